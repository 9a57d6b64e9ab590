"""Samplers that choose one point after another, for one or several seeds each.

``Pointwise`` numbers suggestions, runs each point once per seed, keeps what was told and takes
it up again after a restart. Which point comes next is its chooser's business. A chooser must
be a function of (seed, number, history): then the n-th suggestion after a restart is the one
there would have been without.
"""

import hashlib
import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Protocol

from lorasweep.errors import RequestError
from lorasweep.search.base import UNENDED, Past, Suggestion
from lorasweep.search.dimensions import Codes, Dimension, identity
from lorasweep.search.objectives import WORST, Losses, Objective
from lorasweep.space.expand import Builder, finish
from lorasweep.trial.key import Config, relevant
from lorasweep.trial.result import State
from lorasweep.trial.trial import Trial

# Results, and bad ones: without them a sampler would come back to the same place for ever.
_BAD: tuple[State, ...] = ("diverged", "oom")

_ATTEMPTS = 32  # to find a point that is not there yet


def _text(values: Mapping[str, Any]) -> str:
    return json.dumps(values, sort_keys=True)


class Chooser(Protocol):
    """Chooses points; keyed by the point's number, in codes of the dimensions."""

    def choose(self, point: int, attempt: int) -> Codes:
        """Return the codes of a new point, for all dimensions; another one at each attempt."""
        ...

    def pending(self, point: int, codes: Codes) -> None:
        """Note that a point is under way; only dimensions that matter to it are given."""
        ...

    def told(self, point: int, losses: Losses | None) -> None:
        """Note how a point ended; None: it failed, and says nothing about the point."""
        ...


@dataclass
class _Point:
    values: dict[str, Any]
    # by place in the list of seeds
    ended: dict[int, Losses | None] = field(default_factory=dict)


def active(config: Config, dimensions: Sequence[Dimension]) -> list[Dimension]:
    """Return the dimensions that can change this trial's result (no rank for ``method=base``)."""
    names = relevant(config)
    groups = {name.split(".")[0] for name in names}
    return [d for d in dimensions if any(key in names or key in groups for key in d.keys)]


def losses_of(
    state: State, metrics: Mapping[str, float], objectives: Sequence[Objective]
) -> Losses | None:
    """Return what a trial's end tells the sampler: losses, or None for nothing.

    A trial that diverged or did not fit is as bad as can be; one that crashed says nothing. A
    pruned one has the scores it had when it was pruned, but its seconds are no measure of what
    the whole training takes.
    """
    if state == "failed":
        return None
    if state in _BAD:
        return (WORST,) * len(objectives)
    return tuple(
        WORST if state == "pruned" and o.metrics[0].startswith("time/") else o.loss(metrics)
        for o in objectives
    )


class Pointwise:
    """A sampler that chooses points one after another (``Sampler``)."""

    remembers = True

    def __init__(
        self,
        *,
        build: Builder,
        dimensions: Sequence[Dimension],
        seeds: Sequence[int],
        points: int,
        objectives: Sequence[Objective],
        chooser: Chooser,
        complete: Callable[[Trial], Trial],
        settings: Sequence[Any],
    ) -> None:
        self.build, self.dimensions, self.seeds = build, dimensions, seeds
        self.objectives, self.chooser, self.complete = objectives, chooser, complete
        self.total = points * self.replicas
        self.identity = self._identity(settings)
        self.searched = frozenset(key for d in dimensions for key in d.keys)
        self._points: dict[int, _Point] = {}
        self._known: set[str] = set()  # values of points, as text
        self._asked: set[int] = set()
        self._again: deque[int] = deque()
        self._next = 0

    @property
    def replicas(self) -> int:
        """How many trials a point is: one a seed."""
        return max(1, len(self.seeds))

    def restore(self, past: Sequence[Past]) -> None:
        """Take up an earlier process's suggestions; what never ended is asked for again first."""
        past = sorted(past, key=lambda p: p.number)
        for one in past:
            point = one.number // self.replicas
            if point not in self._points:
                self._start(point, {k: v for k, v in one.values.items() if not self._is_seed(k)})
            self._asked.add(one.number)
        for one in past:
            if one.state is None or one.state in UNENDED:
                self._again.append(one.number)
            else:
                self.tell(one.number, one.state, one.metrics)

    def ask(self) -> Suggestion | None:
        """Return the next trial, or None when all have been asked for."""
        while self._again:
            number = self._again.popleft()
            if number < self.total:  # sampler.trials may be less than it was
                return self._suggestion(number)
        while self._next in self._asked:
            self._next += 1
        if self._next >= self.total:
            return None
        number = self._next
        point = number // self.replicas
        if point not in self._points:
            self._start(point, self._new(point))
        self._asked.add(number)
        return self._suggestion(number)

    def tell(self, number: int, state: State, metrics: Mapping[str, float]) -> None:
        """Learn how a trial ended; the point is told when it ended for every seed."""
        if state in UNENDED:
            return
        place, at = divmod(number, self.replicas)
        point = self._points[place]
        if at in point.ended:
            return
        point.ended[at] = losses_of(state, metrics, self.objectives)
        if len(point.ended) == self.replicas:
            found = [losses for losses in point.ended.values() if losses is not None]
            mean = tuple(map(fmean, zip(*found, strict=True)))
            self.chooser.told(place, mean if found else None)

    # --------------------------------------------------------------------- insides

    def _is_seed(self, key: str) -> bool:
        return key == "seed" and bool(self.seeds)

    def _start(self, point: int, values: dict[str, Any]) -> None:
        self._points[point] = _Point(values)
        self._known.add(_text(values))
        codes = {d.name: d.code(values) for d in self.dimensions}
        self.chooser.pending(point, {k: c for k, c in codes.items() if c is not None})

    def _new(self, point: int) -> dict[str, Any]:
        """Return the values of a new point: none that was there before, if that can be had.

        A trial that is repeated gives the recorded result, so it would teach nothing.
        """
        first = values = self._values(self.chooser.choose(point, 0))
        for attempt in range(1, _ATTEMPTS):
            if _text(values) not in self._known:
                return values
            values = self._values(self.chooser.choose(point, attempt))
        return first if _text(values) in self._known else values

    def _values(self, codes: Codes) -> dict[str, Any]:
        """Return the settings that codes stand for, without those that do not matter here."""
        chosen = {d.name: d.values(d.tidy(codes[d.name])) for d in self.dimensions}
        everything = {k: v for values in chosen.values() for k, v in values.items()}
        used = active(self._flat(everything), self.dimensions)
        return {k: v for d in used for k, v in chosen[d.name].items()}

    def _flat(self, values: Mapping[str, Any]) -> dict[str, Any]:
        problems: list[str] = []
        found = self.build(values, problems)
        if found is None:
            raise RequestError(problems)
        return found[0]

    def _suggestion(self, number: int) -> Suggestion:
        point, at = divmod(number, self.replicas)
        values = dict(self._points[point].values)
        if self.seeds:
            values["seed"] = self.seeds[at]
        problems: list[str] = []
        trial = finish(self._flat(values), problems)
        if problems:  # the corners of the space were checked, so this should not be
            raise RequestError(problems)
        return Suggestion(number, self.complete(trial), values)

    def _identity(self, settings: Sequence[Any]) -> str:
        """Hash of the space, what is fixed, and the sampler; not of how many trials there are."""
        groups = [d for d in self.dimensions if self.build.groups.intersection(d.keys)]
        keys = []
        for values in _products(self.dimensions, groups):
            problems: list[str] = []
            keys.append(self.complete(finish(self._flat(values), problems)).key)
        parts = [settings, identity(self.dimensions), list(self.seeds), sorted(set(keys))]
        return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:8]


def _products(dimensions: Sequence[Dimension], walked: Sequence[Dimension]) -> list[dict[str, Any]]:
    """Every combination of the walked dimensions, the others at their first value."""
    found: list[dict[str, Any]] = [{}]
    for d in dimensions:
        codes = range(len(d.points)) if d in walked else [d.bounds[0]]
        found = [{**values, **d.values(code)} for values in found for code in codes]
    return found
