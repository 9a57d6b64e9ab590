"""Inputs of the plan: the device, the record's rows, the sizes of the data."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lorasweep import addresses
from lorasweep.costs import devices, seconds
from lorasweep.planning import packs, plan
from lorasweep.record import sqlite_reader
from lorasweep.request.preflight import content_of, distinct
from lorasweep.trial.trial import Trial, lacks_adapter


def planned(trials: Sequence[Trial]) -> plan.Plan:
    """Work out what trials cost on the device they are planned for.

    Raises:
        RecordError: there is a record, and it cannot be read.
    """
    from lorasweep.models import source
    from lorasweep.tasks import sources

    device = devices.find(trials[0]["device"])
    rows = recorded(trials[0])
    counted = filter(packs.counts(trials[0]), rows) if trials[0]["resume"] != "fresh" else ()
    states = states_of(counted, trials[0])
    if trials[0]["pruner.name"] == "none":  # what was pruned is trained to its end now
        states = {key: state for key, state in states.items() if state != "pruned"}
    sizes = {
        content_of(t, "task"): seconds.Data(*sources.sizes(t.group("task"), source.cache_home()))
        for t in distinct(trials, "task")
    }
    alike = next(iter(sizes.values())) if len(sizes) == 1 else None
    return plan.plan(
        trials,
        states,
        device,
        lambda trial: alike or sizes[content_of(trial, "task")],
        seconds.calibrate(rows, device),
    )


def recorded(trial: Trial) -> list[dict[str, Any]]:
    """Return what the record holds; nothing where there is no record yet."""
    uri = str(trial["tracking.uri"])
    file = addresses.record_file(uri)
    if file is not None and not file.exists():
        return []  # and MLflow, which is slow to load, is not needed
    rows = None if file is None else sqlite_reader.read(file)
    if rows is not None:
        return rows
    from lorasweep.record import reading

    return reading.read(uri)


def states_of(rows: Iterable[Mapping[str, Any]], settings: Trial) -> dict[str, str]:
    """State of each recorded trial by key; ``shared`` where another study has done it."""
    study = str(settings["name"])
    found: dict[str, str] = {}
    for row in rows:
        state, key = row.get("lorasweep.state"), str(row["lorasweep.key"])
        if state is None or lacks_adapter(row, settings) or found.get(key) in ("done", "shared"):
            continue
        found[key] = "shared" if state == "done" and row["study"] != study else str(state)
    return found
