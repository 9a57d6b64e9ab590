"""Which trials train together: those that share a base, as many as fit the device."""

import os
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from lorasweep.costs import devices, memory
from lorasweep.trial.trial import Trial

_PACKED = "lorasweep.engines.packed.engine.PackedEngine"
MOST = 64  # trials in a pack where the user sets no limit; memory ends most packs before
Peaks = Callable[[Trial], memory.Memory]


def base_of(trial: Trial) -> Hashable | None:
    """Return what trials of one pack have in common; None for a trial that runs alone."""
    if not packing(trial) or why_alone(trial):
        return None
    from lorasweep.engines.packed import compat

    return compat.base_of(trial)


def why_alone(trial: Trial) -> str | None:
    """Say why the packed engine leaves a trial to the reference; None where it does not."""
    from lorasweep.engines.packed import compat

    return compat.problems(trial)


def measures_alone(trial: Trial) -> bool:
    """Whether a sweep asks for time and memory that only a trial alone has."""
    from lorasweep.engines.packed import compat

    asked = trial["engine.name"] == "trainer" or compat.own_objectives(trial)
    return bool(asked) and settled(trial)["engine.name"] != "packed"


def counts(settings: Trial) -> Callable[[Mapping[str, Any]], bool]:
    """Say which recorded runs (their rows, or their tags) a sweep takes for its own.

    Where times and memory are to be those of trials alone, a trial that was done in a pack has
    yet to be measured; how it ended otherwise is known.
    """
    if not measures_alone(settings):
        return lambda run: True
    done_in_pack = {"lorasweep.state": "done", "lorasweep.engine": "packed"}
    return lambda run: any(run.get(name) != value for name, value in done_in_pack.items())


def packing(trial: Trial) -> bool:
    """Whether a sweep's engine packs at all, here or on the device that is planned for."""
    if trial["engine.name"] != "packed":
        return False
    return not trial["engine.gpu_only"] or _on_gpu(
        trial["device"], os.getenv("CUDA_VISIBLE_DEVICES")
    )


@cache
def _on_gpu(device: str | None, visible: str | None) -> bool:
    """Whether trials run on a GPU, or are planned for one; the driver is asked once."""
    return devices.find(device).name != devices.cpu().name


def settled(trial: Trial) -> Trial:
    """Return a trial with the engine that will run it: what packs cannot train goes elsewhere."""
    if trial["engine.target"] != _PACKED or (packing(trial) and why_alone(trial) is None):
        return trial  # an engine of the user's own takes whatever comes
    other = {"engine.name": "trainer", "engine.target": trial["engine.fallback"]}
    return Trial({**trial.config, **other})


def most(trial: Trial) -> int:
    """Return how many trials a pack may have at most."""
    return int(trial["engine.pack_size"] or MOST) if packing(trial) else 1


def footprint(peaks: Sequence[memory.Memory]) -> float:
    """Bytes that a device must have free for a pack: the base once, all else for each trial.

    Adapters, gradients and states grow with the sum of the ranks, activations with the number
    of trials; what one trial frees while another peaks is not counted on.
    """
    first, *others = peaks
    return first.footprint + sum(map(_added, others))


def form(trials: Iterable[Trial], peak: Peaks, room: float) -> list[list[Trial]]:
    """Cut trials into packs: each joins the last pack of its base while that has room.

    Trials of one seed come together, as when they run: they read the same texts at the same time.

    Args:
        trials: what is to run.
        peak: the memory of a trial alone.
        room: bytes of the device.
    """
    packs: list[list[Trial]] = []
    last: dict[Hashable, tuple[list[Trial], float]] = {}
    kinds: dict[object, tuple[Hashable | None, int, float, float]] = {}
    for trial in sorted(trials, key=lambda trial: int(trial["seed"])):
        if trial.kind not in kinds:
            own = peak(trial)
            kinds[trial.kind] = base_of(trial), most(trial), own.footprint, _added(own)
        base, limit, alone, added = kinds[trial.kind]
        pack, held = last.get(base, ([], 0.0))
        if base is not None and pack and len(pack) < limit and held + added <= room:
            pack.append(trial)
            last[base] = pack, held + added
        else:
            packs.append([trial])
            last[base] = packs[-1], alone
    return packs


def _added(peak: memory.Memory) -> float:
    """Bytes that a trial adds to a pack."""
    return (peak.allocated - peak.parts["weights"]) * memory.POOL


def like(trial: Trial, peak: memory.Memory, count: int, room: float) -> int:
    """Return how many of so many trials like this one a pack would hold; 1: it runs alone."""
    others = int((room - peak.footprint) / max(1.0, _added(peak)))
    return max(1, min(count, most(trial), 1 + others)) if count > 1 else 1


def fits(pack: Sequence[Trial], trial: Trial, peak: Peaks, room: float) -> bool:
    """Whether a trial may join a pack: on the same base, and there is room."""
    if len(pack) >= most(trial):
        return False
    base = base_of(trial)
    if base is None or base != base_of(pack[0]):
        return False
    return footprint([*map(peak, pack), peak(trial)]) <= room
