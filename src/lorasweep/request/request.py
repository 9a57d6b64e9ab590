"""From typed words to a checked request: trials, or a search among more than can be listed."""

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import psutil

from lorasweep import search as samplers
from lorasweep.errors import RequestError
from lorasweep.request.preflight import content_of, device_problems, distinct, preflight
from lorasweep.search.base import Sampler
from lorasweep.search.listed import Listed
from lorasweep.search.objectives import Objective
from lorasweep.space import grammar
from lorasweep.space.checks import LISTED_SAMPLERS
from lorasweep.space.composition import Composer
from lorasweep.trial import naming
from lorasweep.trial.key import Form, key_form
from lorasweep.trial.trial import Trial, keyed


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


def request_of(arguments: Sequence[str], params: Mapping[str, Any], composer: Composer) -> Request:
    """Read what was typed.

    Raises:
        RequestError: with every problem of the command line, the models, the data and the
            output folder, found before anything is loaded.
    """
    problems: list[str] = []
    described = grammar.read(arguments, params, composer, problems)
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
    from lorasweep.models import source
    from lorasweep.tasks import sources

    groups: dict[str, Callable[[Trial], Mapping[str, str | None]]] = {
        "model": lambda trial: source.identity(source.settings(trial)),
        "task": lambda trial: {"sha256": sources.digest(trial.group("task"))},
    }
    content = {
        (group, content_of(trial, group)): {f"{group}.{k}": v for k, v in add(trial).items() if v}
        for group, add in groups.items()
        for trial in distinct(trials, group)
    }
    if not any(content.values()):
        return list(trials)
    kinds: dict[object, tuple[dict[str, str], Form]] = {}  # what is added, and of its keys
    found: dict[str, Trial] = {}
    for trial in trials:
        if trial.kind not in kinds:
            parts = [content[group, content_of(trial, group)] for group in groups]
            more = {name: value for part in parts for name, value in part.items()}
            kinds[trial.kind] = more, key_form({**trial.config, **more})
        more, form = kinds[trial.kind]
        known = keyed({**trial.config, **more}, trial.kind, form)
        found.setdefault(known.key, known)  # two paths to one content are one trial
    return list(found.values())
