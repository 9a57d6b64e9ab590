"""Which trials train together: those that share a base, as many as fit the device."""

from collections.abc import Hashable

from lorasweep.trial import Trial


def base_of(trial: Trial) -> Hashable | None:
    """Return what trials of one pack have in common; None for a trial that runs alone."""
    if trial["engine.name"] != "packed":
        return None
    from lorasweep.engines.packed import compat

    return None if compat.problems(trial) else compat.base_of(trial)


def most(trial: Trial) -> int:
    """Return how many trials a pack may have at most."""
    return int(trial["engine.pack_size"] or 1) if trial["engine.name"] == "packed" else 1
