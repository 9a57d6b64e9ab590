"""From a typed request to an exit code: space → trials → checks → record → scheduler."""

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from lorasweep import space
from lorasweep.errors import RequestError
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
    problems += preflight(trials)
    if problems:
        raise RequestError(problems)
    return [with_content(trial) for trial in trials]


def with_content(trial: Trial) -> Trial:
    """Add the hash of the user's own files, which are part of what a trial is."""
    from lorasweep import tasks

    digest = tasks.digest(trial.group("task"))
    return trial if digest is None else Trial({**trial.config, "task.sha256": digest})


def preflight(trials: Iterable[Trial]) -> list[str]:
    """Check what trials need from outside: bases, data, a place to write. Loads nothing."""
    from lorasweep import tasks
    from lorasweep.models import source

    found: list[str] = []
    seen: set[str] = set()
    for trial in trials:
        model, task, folder = trial.group("model"), trial.group("task"), str(trial["output_dir"])
        shape = {k: v for k, v in model.items() if k.startswith("shape.")}
        checks: dict[str, Callable[[], list[str]]] = {
            repr(model): partial(source.problems, {**model, "shape": shape}),
            repr(task): partial(tasks.problems, task),
            folder: partial(unwritable, Path(folder)),
        }
        for name, check in checks.items():
            if name not in seen:
                seen.add(name)
                found += check()
        found += quantised_twice(trial, seen)
    return found


def quantised_twice(trial: Trial, seen: set[str]) -> list[str]:
    """Refuse to quantise a base whose checkpoint is quantised already."""
    from lorasweep.models import source

    at = f"{trial['model.name']} {trial['method.name']} {trial['method.quant']}"
    if trial["method.quant"] is None or at in seen:
        return []
    seen.add(at)
    kind = source.quantised(trial.group("model"))
    if kind is None:
        return []
    return [
        f"method={trial['method.name']} model={trial['model.name']}: the checkpoint is already "
        f"quantised ({kind}); use method=lora, or an unquantised checkpoint"
    ]


def unwritable(folder: Path) -> list[str]:
    """Complain when results could not be written to ``folder``."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    if place.is_dir() and os.access(place, os.W_OK | os.X_OK):
        return []
    kind = "is no folder" if not place.is_dir() else "may not be written to"
    return [f"output_dir={folder}: {place} {kind}; choose another output_dir"]


def run(arguments: Sequence[str], params: Mapping[str, Any], composer: Composer) -> int:
    """Run the trials that a request describes. Returns the exit code.

    Raises:
        LorasweepError: the request, the record or the disk cannot be used.
    """
    trials = trials_of(arguments, params, composer)
    if not trials:
        raise RequestError(["nothing to run: the request describes no trial"])
    return run_trials(trials)


def run_one(tree: DictConfig) -> int:
    """Run the one trial that a composed configuration describes. Returns the exit code.

    Raises:
        LorasweepError: the request, the record or the disk cannot be used.
    """
    problems: list[str] = []
    trial = space.finish(space.plain(tree), problems)
    problems += preflight([trial])
    if problems:
        raise RequestError(problems)
    return run_trials([with_content(trial)])


def run_trials(trials: Sequence[Trial]) -> int:
    """Open the record and hand the trials to the scheduler."""
    # Read when the libraries are loaded, so set before. Threads that wait in a loop for each
    # other stop a busy machine (measured on 2 shared cores: 27 s or 247 s for one trial); and
    # the bars on the screen are ours.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TQDM_DISABLE", "1")
    from lorasweep import scheduler
    from lorasweep.record import Record

    first = trials[0]
    output = Path(str(first["output_dir"]))
    record = Record(str(first["tracking.uri"]), output / "artifacts")
    command = " ".join(["python", *sys.argv])
    return scheduler.run(trials, record, command, output / str(first["name"]))
