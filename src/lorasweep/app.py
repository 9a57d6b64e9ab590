"""From a typed request to an exit code: space → trials → checks → record → scheduler."""

import os
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from omegaconf import MISSING, DictConfig

from lorasweep import addresses, costs, glance, naming, packs, plan, samplers, space, startup
from lorasweep.composition import Composer, plain
from lorasweep.config import LISTED_SAMPLERS
from lorasweep.costs import devices
from lorasweep.errors import DONE, LorasweepError, RequestError
from lorasweep.samplers import Listed, Objective, Sampler
from lorasweep.trial import Form, Trial, key_form, keyed, lacks_adapter

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Request:
    """What was asked for: trials, or a search among more than could be listed."""

    trials: list[Trial]  # all of them; of a search its extremes, which say what it needs
    objectives: tuple[Objective, ...]
    search: Callable[[], Sampler] | None = None
    command: str = field(default_factory=lambda: shlex.join(["python", *sys.orig_argv[1:]]))
    # Imports are a part of what the user waits for.
    began: float = field(default_factory=lambda: psutil.Process().create_time())

    @property
    def settings(self) -> Trial:
        """Any of the trials, for what is the same in all."""
        return self.trials[0]

    @cached_property
    def varying(self) -> tuple[str, ...]:
        """Settings that tell the trials apart besides model, method, target, rank and alpha."""
        return naming.varying(self.trials)

    def sampler(self, fitting: Sequence[Trial]) -> Sampler:
        """Return what hands out the trials: those given, or the search."""
        return Listed(fitting) if self.search is None else self.search()


@dataclass(frozen=True)
class Outcome:
    """How a sweep ended."""

    code: int  # the exit code
    keys: tuple[str, ...] = ()  # of its trials
    interrupted: bool = False  # by the user


def request_of(arguments: Sequence[str], params: Mapping[str, Any], composer: Composer) -> Request:
    """Read what was typed.

    Raises:
        RequestError: with every problem of the command line, the models, the data and the
            output folder, found before anything is loaded.
    """
    problems: list[str] = []
    described = space.read(arguments, params, composer, problems)
    problems += samplers.problems(described, composer)
    trials = samplers.corners(described, composer, problems)
    problems += device_problems(trials[0]) if trials else []
    if problems or not trials or trials[0]["plan"] == "short":
        problems += preflight(trials)  # a plan alone needs shapes, and nothing from outside
    if problems:
        raise RequestError(problems)
    objectives = samplers.objectives_of(described, composer)
    if trials[0]["sampler.name"] in LISTED_SAMPLERS:
        return Request(with_content(trials), objectives)

    def search() -> Sampler:
        return samplers.make(described, composer, complete=lambda trial: with_content([trial])[0])

    return Request(with_content(trials), objectives, search)


def with_content(trials: Sequence[Trial]) -> list[Trial]:
    """Add what the user's own files hold and what a branch stands for, as parts of the key."""
    from lorasweep import tasks
    from lorasweep.models import source

    groups: dict[str, Callable[[Trial], Mapping[str, str | None]]] = {
        "model": lambda trial: source.identity(source.settings(trial)),
        "task": lambda trial: {"sha256": tasks.digest(trial.group("task"))},
    }
    content = {
        (group, _content(trial, group)): {f"{group}.{k}": v for k, v in add(trial).items() if v}
        for group, add in groups.items()
        for trial in _distinct(trials, group)
    }
    if not any(content.values()):
        return list(trials)
    kinds: dict[object, tuple[dict[str, str], Form]] = {}  # what is added, and of its keys
    found: dict[str, Trial] = {}
    for trial in trials:
        if trial.kind not in kinds:
            parts = [content[group, _content(trial, group)] for group in groups]
            more = {name: value for part in parts for name, value in part.items()}
            kinds[trial.kind] = more, key_form({**trial.config, **more})
        more, form = kinds[trial.kind]
        known = keyed({**trial.config, **more}, trial.kind, form)
        found.setdefault(known.key, known)  # two paths to one content are one trial
    return list(found.values())


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
    kinds = {trial.kind: trial for trial in reversed(list(trials))}
    found: dict[tuple[str, ...], Trial] = {}
    for trial in reversed(kinds.values()):
        found.setdefault(_content(trial, group), trial)
    return list(found.values())


def preflight(trials: Sequence[Trial]) -> list[str]:
    """Check what trials need from outside: bases, data, a place to write. Loads nothing."""
    from lorasweep import tasks
    from lorasweep.models import source

    found: list[str] = []
    for trial in _distinct(trials, "model"):
        if MISSING not in trial.group("model").values():  # said with the other settings
            found += source.problems(source.settings(trial))
    for trial in _distinct(trials, "task"):
        if MISSING not in trial.group("task").values():
            found += tasks.problems(trial.group("task"))
    for folder in {str(trial["output_dir"]) for trial in trials}:
        found += unwritable(Path(folder))
    return found + already_quantised(trials)


def already_quantised(trials: Iterable[Trial]) -> list[str]:
    """Complain about bases that a method would quantise twice, of those on this machine."""
    from lorasweep.models import source

    found: list[str] = []
    for trial in _distinct((t for t in trials if t["method.quant"] is not None), "model"):
        kind = source.quantised(source.settings(trial))
        if kind is not None:
            found.append(
                f"method={trial['method.name']} model={trial['model.name']}: the checkpoint is "
                f"already quantised ({kind}); use method=lora, or an unquantised checkpoint"
            )
    return found


def fetch(trials: Sequence[Trial]) -> list[str]:
    """Bring bases and data to this machine before the first trial starts.

    Returns:
        A sentence about each task: how many items, and what score is had without learning.

    Raises:
        RequestError: something cannot be had; holds all that cannot.
    """
    from lorasweep import tasks
    from lorasweep.models import source

    problems: list[str] = []
    told: list[str] = []
    cache = source.cache_home()
    for trial in _distinct(trials, "model"):
        try:
            source.locate(source.settings(trial), cache)
        except LorasweepError as error:
            problems.append(f"model={trial['model.name']}: {error}")
    for trial in _distinct(trials, "task"):
        try:
            told.append(
                tasks.described(trial.group("task"), tasks.load(trial.group("task"), cache))
            )
        except RequestError as error:
            problems += error.problems
        except LorasweepError as error:
            problems.append(str(error))
    problems = problems or already_quantised(trials)  # that could not be told before
    if problems:
        raise RequestError(problems)
    return told


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
    counted = filter(packs.counts(trials[0]), rows) if trials[0]["resume"] != "fresh" else ()
    states = states_of(counted, trials[0])
    if trials[0]["pruner.name"] == "none":  # what was pruned is trained to its end now
        states = {key: state for key, state in states.items() if state != "pruned"}
    sizes = {
        _content(t, "task"): costs.Data(*tasks.sizes(t.group("task"), source.cache_home()))
        for t in _distinct(trials, "task")
    }
    alike = next(iter(sizes.values())) if len(sizes) == 1 else None
    return plan.plan(
        trials,
        states,
        device,
        lambda trial: alike or sizes[_content(trial, "task")],
        costs.calibrate(rows, device),
    )


def recorded(trial: Trial) -> list[dict[str, Any]]:
    """Return what the record holds; nothing where there is no record yet."""
    uri = str(trial["tracking.uri"])
    file = addresses.record_file(uri)
    if file is not None and not file.exists():
        return []  # and MLflow, which is slow to load, is not needed
    rows = None if file is None else glance.read(file)
    if rows is not None:
        return rows
    from lorasweep import record

    return record.read(uri)


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


def run(arguments: Sequence[str], params: Mapping[str, Any], composer: Composer) -> int:
    """Run the sweep that was typed, in worker processes. Returns the exit code.

    Raises:
        LorasweepError: the request, the record or the disk cannot be used.
    """
    return carry_out(request_of(arguments, params, composer)).code


def run_one(tree: DictConfig) -> int:
    """Run the one trial that a composed configuration describes, in this process.

    Raises:
        LorasweepError: the request, the record or the disk cannot be used.
    """
    problems: list[str] = []
    trial = space.finish(plain(tree), problems)
    problems += device_problems(trial)
    problems += preflight([trial]) if problems or trial["plan"] == "short" else []
    aims = samplers.objectives.parse(trial["sampler.objectives"], problems)
    if problems:
        raise RequestError(problems)
    return carry_out(Request(with_content([trial]), aims), inline=True).code


def fitting(found: plan.Plan, screen: "Console") -> list[Trial]:
    """Leave out trials that do not fit, as the user wishes.

    Raises:
        RequestError: some do not fit, and nobody said to go on without them.
    """
    if not found.unfit:
        return [p.trial for p in found.trials]
    skip = bool(found.trials[0].trial["skip_unfit"])
    if not skip and sys.stdin.isatty():
        from rich.prompt import Confirm

        skip = Confirm.ask(f"go on without the {len(found.unfit)} that do not fit?", console=screen)
    if not skip:
        hint = "skip_unfit=true runs the others"
        raise RequestError([*plan.unfit_sentences(found), f"{hint}; plan=table shows all"])
    unfit = {p.trial.key for p in found.unfit}
    return [p.trial for p in found.trials if p.trial.key not in unfit]


def carry_out(request: Request, *, inline: bool = False) -> Outcome:
    """Plan what was asked for, and unless only the plan was wanted, do it."""
    found, wanted = planned(request.trials), request.settings["plan"]
    if wanted == "json":
        print(plan.to_json(found))
        return Outcome(DONE)
    from lorasweep import rest  # draws with rich, which takes a while to load
    from lorasweep.screen import console

    screen = console()
    if wanted == "table":
        plan.show(found, screen)
        return Outcome(DONE)
    if request.search is not None:
        screen.print("a search; its extremes are:", markup=False)
    screen.print(plan.short(found), markup=False)
    startup.settle()
    trials = fitting(found, screen)
    if not trials:
        raise RequestError(["nothing to run: no trial is left"])
    code = rest.shown(request, trials, screen)
    if code is not None:
        return Outcome(code, tuple(t.key for t in trials))
    for sentence in fetch(request.trials):
        screen.print(sentence, markup=False)
    # Read when the libraries are loaded, so set before. Threads that wait for each other in a
    # loop stop a busy machine: on 2 cores with one other process, 58 s in place of 14 s, and
    # 7.2 s in place of 7.6 s on idle ones. And the bars on the screen are ours.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    os.environ.setdefault("TQDM_DISABLE", "1")
    from lorasweep import sweeping

    return sweeping.run(request, trials, found, inline=inline)
