"""The plan of a sweep: trials, parameters, memory, time and disk."""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lorasweep.costs import memory, parameters, seconds
from lorasweep.costs.devices import Device
from lorasweep.costs.seconds import Calibration, Data
from lorasweep.costs.setting import Setting, setting_of
from lorasweep.methods.base import Parameters
from lorasweep.planning import packs
from lorasweep.planning.remedies import remedy
from lorasweep.trial.result import FINAL_STATES
from lorasweep.trial.trial import Trial

GIB = 2**30
State = Literal["new", "done", "failed", "shared"]
_OVER = ("shared", *FINAL_STATES)  # not run again


@dataclass(frozen=True)
class Planned:
    """One trial with what it will cost."""

    trial: Trial
    state: State
    parameters: Parameters
    memory: memory.Memory
    seconds: seconds.Seconds  # of a device: its share where it trains in a pack
    fits: bool
    disk: int  # bytes that its adapter and predictions will take

    @property
    def runs(self) -> bool:
        """Whether the sweep would run it: it is neither done here nor in another study."""
        return self.state in ("new", "failed")


@dataclass(frozen=True)
class Plan:
    """The trials of a sweep on one device."""

    trials: tuple[Planned, ...]
    device: Device
    # overrides that make trials fit → keys of those trials; () where no single idea helps
    remedies: Mapping[tuple[str, ...], tuple[str, ...]]
    peak: packs.Peaks  # memory of a trial alone, planned or not

    @property
    def packs(self) -> list[list[Trial]]:
        """Trials that will train together; those that share no base with others are alone."""
        return packs.form((p.trial for p in self.trials), self.peak, self.device.memory)

    def room(self, together: Sequence[Trial], trial: Trial) -> bool:
        """Whether a pack under way has room for another trial."""
        return packs.fits(together, trial, self.peak, self.device.memory)

    @property
    def disk(self) -> int:
        """Bytes that adapters and predictions of trials that would run will take."""
        return sum(p.disk for p in self.trials if p.runs)

    @property
    def unfit(self) -> tuple[Planned, ...]:
        """Trials that would run but do not fit the device."""
        return tuple(p for p in self.trials if p.runs and not p.fits)

    @property
    def summary(self) -> dict[str, Any]:
        """Totals; hours and disk are those of trials that would run."""
        todo = [p for p in self.trials if p.runs]
        states = Counter(p.state for p in self.trials)
        calibrated = sum(p.seconds.calibrated for p in todo)
        return {
            "trials": len(self.trials),
            **{state: states[state] for state in ("new", "done", "failed", "shared")},
            "unfit": len(self.unfit),
            "remedies": [
                {"set": list(change), "trials": list(keys)}
                for change, keys in self.remedies.items()
            ],
            "gpu_hours": sum(p.seconds.total for p in todo) / 3600,
            "disk_gib": self.disk / GIB,
            "peak_gib": max((p.memory.allocated for p in todo), default=0.0) / GIB,
            "device": self.device.name,
            "device_gib": self.device.gib,
            "calibrated": calibrated,
            "roofline": len(todo) - calibrated,
        }


def plan(
    trials: Sequence[Trial],
    states: Mapping[str, str],
    device: Device,
    data: Callable[[Trial], Data],
    calibration: Calibration | None = None,
) -> Plan:
    """Work out what trials cost on a device.

    Args:
        trials: the sweep.
        states: of the trials in the record, by key (``done failed oom diverged pruned
            stopped``), or ``shared`` for those that another study has done.
        device: where they would run.
        data: what a trial's data means for its costs.
        calibration: what recorded trials say about this device.
    """
    known = calibration or Calibration()
    found: dict[object, Planned] = {}
    planned = []
    bases = {kind: packs.base_of(trial) for kind, trial in {t.kind: t for t in trials}.items()}
    of_base: Counter[Hashable] = Counter()
    for kind, count in Counter(t.kind for t in trials if states.get(t.key) not in _OVER).items():
        of_base[bases[kind]] += count
    for trial in trials:
        like = found.get(trial.kind)
        if like is None:
            base = bases[trial.kind]
            mates = 1 if base is None else max(1, of_base[base])
            like = found[trial.kind] = one(trial, device, data, known, mates)
        state = state_of(states.get(trial.key))
        costs = like.parameters, like.memory, like.seconds, like.fits, like.disk
        planned.append(Planned(trial, state, *costs))
    remedies: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    answers: dict[Setting, tuple[str, ...]] = {}
    for p in planned:
        if p.runs and not p.fits:
            n_labels = data(p.trial).n_labels
            setting = setting_of(p.trial, n_labels)
            if setting not in answers:
                answers[setting] = remedy(p.trial, device, n_labels)
            remedies[answers[setting]].append(p.trial.key)
    peaks = {p.trial.key: p.memory for p in planned}
    n_labels = max((data(p.trial).n_labels for p in found.values()), default=2)

    def peak(trial: Trial) -> memory.Memory:
        return peaks.get(trial.key) or memory.estimate(trial, n_labels)

    return Plan(tuple(planned), device, {k: tuple(v) for k, v in remedies.items()}, peak)


def one(
    trial: Trial,
    device: Device,
    data: Callable[[Trial], Data],
    calibration: Calibration,
    mates: int = 1,
) -> Planned:
    """Cost of one new trial, of so many on its base, itself included."""
    described = data(trial)
    peak = memory.estimate(trial, described.n_labels)
    together = packs.like(trial, peak, mates, device.memory)
    counted = parameters.count(trial, described.n_labels)
    return Planned(
        trial=trial,
        state="new",
        parameters=counted,
        memory=peak,
        seconds=seconds.estimate(trial, described, device, calibration, together),
        fits=peak.footprint <= device.memory,
        disk=size_on_disk(trial, counted, described),
    )


def state_of(recorded: str | None) -> State:
    """What the recorded state of a trial means for the sweep; no state means it is new."""
    if recorded is None:
        return "new"
    if recorded == "shared":
        return "shared"
    return "done" if recorded in _OVER else "failed"


def size_on_disk(trial: Trial, counted: Parameters, data: Data) -> int:
    """Bytes of a trial's artefacts: its adapter in float32, a row of scores for each item."""
    adapter = 4 * (counted.adapters + counted.head) if trial["engine.save_adapter"] else 0
    return adapter + data.eval_items * (4 * data.n_labels + 24)
