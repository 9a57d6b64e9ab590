"""From a typed request to an exit code: space → trials → checks → record → scheduler."""

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from rich.prompt import Confirm

from lorasweep import costs, plan, space
from lorasweep.costs import devices
from lorasweep.errors import DONE, LorasweepError, RequestError
from lorasweep.screen import console
from lorasweep.space import Composer
from lorasweep.trial import Trial


def trials_of(
    arguments: Sequence[str], params: Mapping[str, Any], composer: Composer
) -> list[Trial]:
    """Expand a request into trials that could run.

    Raises:
        RequestError: with every problem of the command line, the models, the data and the
            output folder, found before anything is loaded.
    """
    problems: list[str] = []
    described = space.read(arguments, params, composer, problems)
    trials = space.expand(described, composer, problems)
    problems += device_problems(trials[0]) if trials else []
    if problems or not trials or trials[0]["plan"] == "short":
        problems += preflight(trials)  # a plan alone needs shapes, and nothing from outside
    if problems:
        raise RequestError(problems)
    return with_content(trials)


def with_content(trials: Sequence[Trial]) -> list[Trial]:
    """Add the hash of the user's own files, which are part of what a trial is."""
    from lorasweep import tasks

    hashes = {
        _content(trial, "task"): tasks.digest(trial.group("task"))
        for trial in _distinct(trials, "task")
    }
    if not any(hashes.values()):
        return list(trials)
    found = [(trial, hashes[_content(trial, "task")]) for trial in trials]
    return [t if h is None else Trial({**t.config, "task.sha256": h}) for t, h in found]


def _content(trial: Trial, group: str) -> tuple[str, ...]:
    return tuple(map(str, trial.group(group).values()))


def device_problems(trial: Trial) -> list[str]:
    """Complain about a device that is neither known nor a size."""
    try:
        devices.find(trial["device"])
    except KeyError as error:
        return [f"device={trial['device']}: {error.args[0]}"]
    return []


def _distinct(trials: Iterable[Trial], group: str) -> list[Trial]:
    """Return one trial for each different content of a group."""
    found: dict[tuple[str, ...], Trial] = {}
    for trial in trials:
        found.setdefault(_content(trial, group), trial)
    return list(found.values())


def preflight(trials: Sequence[Trial]) -> list[str]:
    """Check what trials need from outside: bases, data, a place to write. Loads nothing."""
    from lorasweep import tasks
    from lorasweep.models import source

    found: list[str] = []
    for trial in _distinct(trials, "model"):
        found += source.problems(source.settings(trial))
    for trial in _distinct(trials, "task"):
        found += tasks.problems(trial.group("task"))
    for folder in {str(trial["output_dir"]) for trial in trials}:
        found += unwritable(Path(folder))
    quantising = [t for t in trials if t["method.quant"] is not None]
    for trial in _distinct(quantising, "model"):
        kind = source.quantised(source.settings(trial))
        if kind is not None:
            found.append(
                f"method={trial['method.name']} model={trial['model.name']}: the checkpoint is "
                f"already quantised ({kind}); use method=lora, or an unquantised checkpoint"
            )
    return found


def fetch(trials: Sequence[Trial]) -> None:
    """Bring bases and data to this machine before the first trial starts.

    Raises:
        RequestError: something cannot be had; holds all that cannot.
    """
    from lorasweep import tasks
    from lorasweep.models import source

    problems: list[str] = []
    cache = source.cache_home()
    for trial in _distinct(trials, "model"):
        try:
            source.locate(source.settings(trial), cache)
        except LorasweepError as error:
            problems.append(f"model={trial['model.name']}: {error}")
    for trial in _distinct(trials, "task"):
        try:
            tasks.load(trial.group("task"), cache)
        except RequestError as error:
            problems += error.problems
        except LorasweepError as error:
            problems.append(str(error))
    if problems:
        raise RequestError(problems)


def unwritable(folder: Path) -> list[str]:
    """Complain when results could not be written to ``folder``."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    if place.is_dir() and os.access(place, os.W_OK | os.X_OK):
        return []
    kind = "is no folder" if not place.is_dir() else "may not be written to"
    return [f"output_dir={folder}: {place} {kind}; choose another output_dir"]


def planned(trials: Sequence[Trial]) -> plan.Plan:
    """Work out what trials cost on the device they are planned for.

    Raises:
        RecordError: there is a record, and it cannot be read.
    """
    from lorasweep import tasks
    from lorasweep.models import source

    device = devices.find(trials[0]["device"])
    rows = recorded(trials[0])
    sizes = {
        _content(t, "task"): costs.Data(*tasks.sizes(t.group("task"), source.cache_home()))
        for t in _distinct(trials, "task")
    }
    alike = next(iter(sizes.values())) if len(sizes) == 1 else None
    return plan.plan(
        trials,
        states_of(rows, str(trials[0]["name"])) if trials[0]["resume"] == "continue" else {},
        device,
        lambda trial: alike or sizes[_content(trial, "task")],
        costs.calibrate(rows, device),
    )


def recorded(trial: Trial) -> list[dict[str, Any]]:
    """Return what the record holds; nothing where there is no record yet."""
    uri = str(trial["tracking.uri"])
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        return []  # and MLflow, which is slow to load, is not needed
    from lorasweep import record

    return record.read(uri)


def states_of(rows: Iterable[Mapping[str, Any]], study: str) -> dict[str, str]:
    """State of each recorded trial by key; ``shared`` where another study has done it."""
    found: dict[str, str] = {}
    for row in rows:
        state, key = row.get("lorasweep.state"), str(row["lorasweep.key"])
        if state is None or found.get(key) in ("done", "shared"):
            continue
        found[key] = "shared" if state == "done" and row["study"] != study else str(state)
    return found


def run(arguments: Sequence[str], params: Mapping[str, Any], composer: Composer) -> int:
    """Run the trials that a request describes. Returns the exit code.

    Raises:
        LorasweepError: the request, the record or the disk cannot be used.
    """
    return run_trials(trials_of(arguments, params, composer))


def run_one(tree: DictConfig) -> int:
    """Run the one trial that a composed configuration describes. Returns the exit code.

    Raises:
        LorasweepError: the request, the record or the disk cannot be used.
    """
    problems: list[str] = []
    trial = space.finish(space.plain(tree), problems)
    problems += device_problems(trial)
    problems += preflight([trial]) if problems or trial["plan"] == "short" else []
    if problems:
        raise RequestError(problems)
    return run_trials(with_content([trial]))


def fitting(found: plan.Plan, screen: Console) -> list[Trial]:
    """Leave out trials that do not fit, as the user wishes.

    Raises:
        RequestError: some do not fit, and nobody said to go on without them.
    """
    if not found.unfit:
        return [p.trial for p in found.trials]
    skip = bool(found.trials[0].trial["skip_unfit"])
    if not skip and sys.stdin.isatty():
        skip = Confirm.ask(f"go on without the {len(found.unfit)} that do not fit?", console=screen)
    if not skip:
        hint = "skip_unfit=true runs the others"
        raise RequestError([*plan.unfit_sentences(found), f"{hint}; plan=table shows all"])
    unfit = {p.trial.key for p in found.unfit}
    return [p.trial for p in found.trials if p.trial.key not in unfit]


def run_trials(trials: Sequence[Trial]) -> int:
    """Plan the trials, and unless only the plan was asked for, run them."""
    found, screen = planned(trials), console()
    match trials[0]["plan"]:
        case "json":
            print(json.dumps(plan.to_json(found)))
            return DONE
        case "table":
            screen.print(plan.table(found))
            return DONE
        case _:
            screen.print(plan.short(found), markup=False)
    return carry_out(fitting(found, screen))


def carry_out(trials: Sequence[Trial]) -> int:
    """Fetch what the trials need, open the record and hand over to the scheduler."""
    if not trials:
        raise RequestError(["nothing to run: no trial is left"])
    # Read when the libraries are loaded, so set before. Threads that wait in a loop for each
    # other stop a busy machine (measured on 2 shared cores: 27 s or 247 s for one trial); and
    # the bars on the screen are ours.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TQDM_DISABLE", "1")
    from lorasweep import scheduler
    from lorasweep.record import Record

    fetch(trials)
    first = trials[0]
    output = Path(str(first["output_dir"]))
    record = Record(str(first["tracking.uri"]), output / "artifacts")
    command = " ".join(["python", *sys.argv])
    return scheduler.run(trials, record, command, output / str(first["name"]))
