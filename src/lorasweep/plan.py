"""What a sweep will cost, before anything is loaded: trials, parameters, memory, time, disk."""

import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lorasweep import naming, packs
from lorasweep.costs import memory, parameters, seconds
from lorasweep.costs.devices import Device
from lorasweep.costs.seconds import Calibration, Data
from lorasweep.costs.setting import Setting, setting_of
from lorasweep.trial import FINAL_STATES, Form, Trial, filled, form

if TYPE_CHECKING:
    from rich.console import Console

GIB = 2**30
State = Literal["new", "done", "failed", "shared"]
_OVER = ("shared", *FINAL_STATES)  # not run again
LIST_UP_TO = 60  # trials are listed one by one up to so many, and grouped beyond
MIN_LENGTH = 32  # tokens; a suggestion does not cut texts further


@dataclass(frozen=True)
class Planned:
    """One trial with what it will cost."""

    trial: Trial
    state: State
    parameters: parameters.Parameters
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


def size_on_disk(trial: Trial, counted: parameters.Parameters, data: Data) -> int:
    """Bytes of a trial's artefacts: its adapter in float32, a row of scores for each item."""
    adapter = 4 * (counted.adapters + counted.head) if trial["engine.save_adapter"] else 0
    return adapter + data.eval_items * (4 * data.n_labels + 24)


@dataclass(frozen=True)
class Change:
    """Overrides as a user types them, and the settings that they stand for."""

    typed: tuple[str, ...]
    settings: Mapping[str, Any]


def remedy(trial: Trial, device: Device, n_labels: int) -> tuple[str, ...]:
    """Smallest change that makes a trial fit, as overrides; empty if nothing tried does.

    Kinds of change are tried by how little they alter the trial (see ``changes``): each alone,
    then on top of all kinds before it, and only then the next. Of what was needed together,
    whatever is not needed is left out, and the rest made as small as will do.
    """

    def fits(chosen: Sequence[Change]) -> bool:
        settings = {k: v for change in chosen for k, v in change.settings.items()}
        changed = Trial({**trial.config, **settings})
        return memory.estimate(changed, n_labels).footprint <= device.memory

    kinds = [kind for kind in changes(trial) if kind]
    chosen = next(filter(fits, combinations(kinds)), [])
    for change in chosen[-2::-1]:  # what alters the trial most first
        without = [other for other in chosen if other is not change]
        smaller = (
            [less if other is change else other for other in chosen]
            for kind in kinds
            if change in kind
            for less in kind
        )
        chosen = next(filter(fits, itertools.chain([without], smaller)))
    return tuple(word for change in chosen for word in change.typed)


def combinations(kinds: Sequence[Sequence[Change]]) -> Iterator[list[Change]]:
    """Changes of each kind alone, and then with the largest of every kind before it."""
    for i, kind in enumerate(kinds):
        before = [earlier[-1] for earlier in kinds[:i]]
        yield from ([change] for change in kind)
        yield from ([*before, change] for change in kind if before)


def changes(trial: Trial) -> list[list[Change]]:
    """Kinds of change, the one that alters a trial least first; in each, the smallest first.

    A smaller evaluation batch changes nothing (and helps where the peak is at evaluation),
    checkpointing only time, and a smaller batch with accumulation keeps the effective batch.
    8-bit states, 4-bit weights and other methods change the arithmetic, shorter texts the data:
    of these each is a kind of its own, since a larger one alters the result more.
    """
    trains, lengths = trial["method.trains"], halves(int(trial["train.max_length"]), MIN_LENGTH)
    evaluation = [
        changed("train.eval_batch_size", n) for n in halves(trial["train.eval_batch_size"])
    ]
    shorter = [[changed("train.max_length", length)] for length in lengths]
    if trains is None:
        return [evaluation, *shorter]
    again = [] if trial["train.checkpointing"] else [changed("train.checkpointing", True)]
    paged = [changed("train.optimizer", "paged_adamw_8bit")]
    qlora = Change(("method=qlora",), {"method.trains": "adapter", "method.quant": "nf4"})
    lora = Change(("method=lora",), {"method.trains": "adapter"})
    methods = [[lora], [qlora]] if trains == "everything" else [[qlora]]
    if trial["method.quant"] in ("nf4", "fp4"):
        methods = []
    return [evaluation, again, smaller_batches(trial), paged, *methods, *shorter]


def changed(name: str, value: Any) -> Change:
    """Change of one setting."""
    return Change((f"{name}={str(value).lower()}",), {name: value})


def halves(number: int, least: int = 1) -> list[int]:
    """Halves of a number, again and again, while they are whole and not below ``least``."""
    found = []
    while number % 2 == 0 and number // 2 >= least:
        number //= 2
        found.append(number)
    return found


def smaller_batches(trial: Trial) -> list[Change]:
    """Smaller batches with as much more accumulation."""
    batch, accumulation = int(trial["train.batch_size"]), int(trial["train.accumulation"])
    found = []
    for smaller in halves(batch):
        more = accumulation * batch // smaller
        settings = {"train.batch_size": smaller, "train.accumulation": more}
        found.append(Change(tuple(f"{k}={v}" for k, v in settings.items()), settings))
    return found


def to_json(plan: Plan) -> str:
    """Plan for machines. ``peak_gib`` is what ``torch.cuda.max_memory_allocated`` would show."""
    packs = [[trial.key for trial in pack] for pack in plan.packs]
    rest = json.dumps({"packs": packs, "summary": plan.summary}).removeprefix("{")
    return f'{{"trials": [{", ".join(json_rows(plan))}], {rest}'


def json_rows(plan: Plan) -> Iterator[str]:
    """Trials as JSON objects. What trials of a kind share is encoded once."""
    forms: dict[object, Form] = {}
    for p in plan.trials:
        if p.trial.kind not in forms:
            forms[p.trial.kind] = json_form(p)
        rest = filled(forms[p.trial.kind], p.trial.config)
        yield f'{{"key": "{p.trial.key}", "state": "{p.state}", {rest}'


def json_form(p: Planned) -> Form:
    """What follows key and state in the rows of all trials of this one's kind."""
    costs = {
        "trainable": p.parameters.trainable,
        "total": p.parameters.total,
        "peak_gib": p.memory.allocated / GIB,
        "seconds": p.seconds.total,
        "fits": p.fits,
    }
    first, *others = form(p.trial.config, p.trial.config, json.dumps, ", ", ": ")
    return '"config": ' + first, *others, ", " + json.dumps(costs)[1:]


def short(plan: Plan) -> str:
    """Plan in a paragraph."""
    summary = plan.summary
    states = [f"{summary[s]} {s}" for s in ("new", "done", "failed", "shared") if summary[s]]
    source = "measured trials" if not summary["roofline"] else "the roofline"
    if summary["calibrated"] and summary["roofline"]:
        source = f"measured trials for {summary['calibrated']}, the roofline for the rest"
    text = (
        f"{len(plan.trials)} trials ({', '.join(states)}) on {plan.device.name} "
        f"({plan.device.gib:.1f} GiB): at most {summary['peak_gib']:.1f} GiB, about "
        f"{duration(3600 * summary['gpu_hours'])} by {source}, "
        f"{summary['disk_gib']:.1f} GiB on disk."
    )
    return " ".join([text, *pack_sentences(plan), *unfit_sentences(plan)])


def pack_sentences(plan: Plan) -> list[str]:
    """Say what trains together, and why what could not does not."""
    todo = [p.trial for p in plan.trials if p.runs]
    formed = packs.form(todo, plan.peak, plan.device.memory)
    together = [pack for pack in formed if len(pack) > 1]
    found = []
    if together:
        where = "one pack" if len(together) == 1 else f"{len(together)} packs"
        found.append(f"{sum(map(len, together))} of them train together in {where}.")
    reasons = Counter(filter(None, map(packs.why_alone, filter(packs.packing, todo))))
    return [*found, *(f"{n} alone: {reason}." for reason, n in reasons.items())]


def unfit_sentences(plan: Plan) -> list[str]:
    """Say what does not fit and what would make it fit."""
    found = []
    for change, keys in plan.remedies.items():
        lead = "1 trial does not fit" if len(keys) == 1 else f"{len(keys)} trials do not fit"
        found.append(f"{lead}; {' '.join(change)} would help." if change else f"{lead} at all.")
    return found


def duration(seconds: float) -> str:
    """Seconds for people: ``48 s``, ``12 min``, ``3.4 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def show(plan: Plan, screen: "Console") -> None:
    """Print the plan for people: a row a trial, or a row a group where there are many."""
    from rich.table import Table

    from lorasweep import width

    drawn = Table(
        title=f"Plan on {plan.device.name}, {plan.device.gib:.1f} GiB", title_justify="left"
    )
    for name in ("model", "method", "target"):
        drawn.add_column(name)
    varying = naming.varying(p.trial for p in plan.trials)
    titles = [naming.title(name, varying) for name in varying]
    if len({p.trial["seed"] for p in plan.trials}) > 1:
        varying, titles = (*varying, "seed"), [*titles, "seed"]
    costs = ("trainable", "% of all", *COLUMNS, "GiB", "time", "fits")
    for name in ("r", "α", *titles, "state", *costs):
        drawn.add_column(name, justify="right")
    for group in groups(plan):
        drawn.add_row(*row(group, varying), style=None if all(p.fits for p in group) else "red")
    width.show(screen, drawn, ["% of all", *COLUMNS, "trainable"])
    note = "GiB are the peak that PyTorch allocates; a trial fits if its pool and CUDA do too."
    screen.print(note, style="dim", markup=False)
    screen.print(short(plan), markup=False)


# Columns of the table → parts of the peak.
COLUMNS = {
    "weights": ("weights",),
    "trained": ("adapters", "gradients", "optimizer"),
    "activations": ("activations", "buffers"),
}


def groups(plan: Plan) -> list[list[Planned]]:
    """Trials that share a row of the table, in the order of the sweep."""
    if len(plan.trials) <= LIST_UP_TO:
        return [[p] for p in plan.trials]
    found: defaultdict[tuple[str, ...], list[Planned]] = defaultdict(list)
    for p in plan.trials:
        layers = naming.target(p.trial.config) if p.trial.adapts else ""
        named = (str(p.trial["model.name"]), str(p.trial["method.name"]), layers)
        found[*named, p.state, str(p.fits)].append(p)
    return list(found.values())


def row(group: Sequence[Planned], varying: Sequence[str]) -> list[str]:
    """Cells of a row; the memory is that of its largest trial, the time that of all."""
    first, largest = group[0], max(group, key=lambda p: p.memory.allocated)
    many = f"{len(group)} " if len(group) > 1 else ""
    parts = [sum(largest.memory.parts[n] for n in names) for names in COLUMNS.values()]
    return [
        str(first.trial["model.name"]),
        str(first.trial["method.name"]),
        naming.target(first.trial.config) if first.trial.adapts else "–",
        spread([p.trial["lora.r"] for p in group if p.trial.adapts]),
        spread([p.trial["lora.alpha"] for p in group if p.trial.adapts], "g"),
        *(several([naming.cell(p.trial.config, name) for p in group]) for name in varying),
        many + first.state,
        spread([p.parameters.trainable for p in group]),
        spread([p.parameters.percent for p in group], ".4f"),
        *(f"{part / GIB:.1f}" for part in parts),
        f"{largest.memory.allocated / GIB:.1f}",
        duration(sum(p.seconds.total for p in group)),
        "yes" if first.fits else "no",
    ]


def spread(values: Sequence[float], form: str = ",") -> str:
    """Return the one value, or the smallest and largest of several."""
    if not values:
        return "–"
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low}…{high}"


def several(texts: Sequence[str]) -> str:
    """Return the one text, or how many there are."""
    different = len(set(texts))
    return texts[0] if different == 1 else f"{different} values"
