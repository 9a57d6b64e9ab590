"""What trials need from outside: bases, data, a device, and a place to write."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from omegaconf import MISSING

from lorasweep.costs import devices
from lorasweep.trial.trial import Trial


def content_of(trial: Trial, group: str) -> tuple[str, ...]:
    """Return the values of a trial's settings in a group: what distinguishes its bases or tasks."""
    return tuple(map(str, trial.group(group).values()))


def device_problems(trial: Trial) -> list[str]:
    """Complain about a device that is neither known nor a size."""
    try:
        devices.find(trial["device"])
    except KeyError as error:
        return [f"device={trial['device']}: {error.args[0]}"]
    return []


def distinct(trials: Iterable[Trial], group: str) -> list[Trial]:
    """Return one trial for each different content of a group."""
    kinds = {trial.kind: trial for trial in reversed(list(trials))}
    found: dict[tuple[str, ...], Trial] = {}
    for trial in reversed(kinds.values()):
        found.setdefault(content_of(trial, group), trial)
    return list(found.values())


def preflight(trials: Sequence[Trial]) -> list[str]:
    """Check what trials need from outside: bases, data, a place to write. Loads nothing."""
    from lorasweep.models import source
    from lorasweep.tasks import sources

    found: list[str] = []
    for trial in distinct(trials, "model"):
        if MISSING not in trial.group("model").values():  # said with the other settings
            found += source.problems(source.settings(trial))
    for trial in distinct(trials, "task"):
        if MISSING not in trial.group("task").values():
            found += sources.problems(trial.group("task"))
    for folder in {str(trial["output_dir"]) for trial in trials}:
        found += unwritable(Path(folder))
    return found + already_quantised(trials)


def already_quantised(trials: Iterable[Trial]) -> list[str]:
    """Complain about bases that a method would quantise twice, of those on this machine."""
    from lorasweep.models import source

    found: list[str] = []
    for trial in distinct((t for t in trials if t["method.quant"] is not None), "model"):
        kind = source.quantised(source.settings(trial))
        if kind is not None:
            found.append(
                f"method={trial['method.name']} model={trial['model.name']}: the checkpoint is "
                f"already quantised ({kind}); use method=lora, or an unquantised checkpoint"
            )
    return found


def unwritable(folder: Path) -> list[str]:
    """Complain when results could not be written to ``folder``."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    if place.is_dir() and os.access(place, os.W_OK | os.X_OK):
        return []
    kind = "is no folder" if not place.is_dir() else "may not be written to"
    return [f"output_dir={folder}: {place} {kind}; choose another output_dir"]
