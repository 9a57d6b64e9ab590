"""Carry out a request: plan it, run what is missing, return the exit code."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from lorasweep.errors import DONE, RequestError
from lorasweep.planning import plan, show
from lorasweep.planning.prepare import planned
from lorasweep.request.preflight import device_problems, preflight
from lorasweep.request.request import Request, request_of, with_content
from lorasweep.running.fetch import fetch
from lorasweep.search import objectives
from lorasweep.space import expand, hydra_cache
from lorasweep.space.composition import Composer, plain
from lorasweep.trial.trial import Trial

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Outcome:
    """How a sweep ended."""

    code: int  # the exit code
    keys: tuple[str, ...] = ()  # of its trials
    interrupted: bool = False  # by the user


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
    trial = expand.finish(plain(tree), problems)
    problems += device_problems(trial)
    problems += preflight([trial]) if problems or trial["plan"] == "short" else []
    aims = objectives.parse(trial["sampler.objectives"], problems)
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
        raise RequestError([*show.unfit_sentences(found), f"{hint}; plan=table shows all"])
    unfit = {p.trial.key for p in found.unfit}
    return [p.trial for p in found.trials if p.trial.key not in unfit]


def carry_out(request: Request, *, inline: bool = False) -> Outcome:
    """Plan what was asked for, and unless only the plan was wanted, do it."""
    found, wanted = planned(request.trials), request.settings["plan"]
    if wanted == "json":
        print(show.to_json(found))
        return Outcome(DONE)
    # These draw with rich, which takes a while to load.
    from lorasweep.console import console
    from lorasweep.running import finished

    screen = console()
    if wanted == "table":
        show.show(found, screen)
        return Outcome(DONE)
    if request.search is not None:
        screen.print("a search; its extremes are:", markup=False)
    screen.print(show.short(found), markup=False)
    hydra_cache.settle()
    trials = fitting(found, screen)
    if not trials:
        raise RequestError(["nothing to run: no trial is left"])
    code = finished.shown(request, trials, screen)
    if code is not None:
        return Outcome(code, tuple(t.key for t in trials))
    for sentence in fetch(request.trials):
        screen.print(sentence, markup=False)
    # Read when the libraries are loaded, so set before. Threads that wait for each other in a
    # loop stop a busy machine: on 2 cores with one other process, 58 s in place of 14 s, and
    # 7.2 s in place of 7.6 s on idle ones. And the bars on the screen are ours.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    os.environ.setdefault("TQDM_DISABLE", "1")
    from lorasweep.running import session

    return session.run(request, trials, found, inline=inline)
