"""Ending trials early that others leave behind, by their evaluations along the way.

All pruners are asynchronous: a trial is compared with those that have come as far by now, and
nobody waits. Progress is a share of the training, so trials of different length compare.
Several objectives are compared by Pareto layer, then by crowding, then by the first of them
(as NSGA-II sorts; Schmucker et al. 2021, arXiv:2106.12639, rank rungs by non-dominated sorting).
A pruner says whether a trial goes on, and nothing else: its learning rate follows the schedule
of the whole training, so a survivor equals the same trial unpruned.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from lorasweep.search.designs import seed_of
from lorasweep.search.objectives import Losses, Objective, losses, ranks
from lorasweep.trial.key import Config

_ALONG = "_along"  # how the record names what was evaluated along the way


class Report(NamedTuple):
    """One evaluation along the way: at this optimizer step of so many."""

    step: int
    total: int
    scores: Mapping[str, float]


class Pruner(Protocol):
    """Says which trials to end early. Trials are known by their keys."""

    def report(self, key: str, step: int, total: int, scores: Mapping[str, float]) -> bool:
        """Take note of an evaluation; return whether the trial should end now."""
        ...

    def restore(self, curves: Mapping[str, Sequence[Report]]) -> None:
        """Take note of what earlier processes recorded; nobody is judged again."""
        ...


def everyone(key: str) -> str:
    """Compare every trial with every other."""
    return ""


def task_of(config: Mapping[str, Any]) -> str:
    """Name the cohort of a trial's task: scores on different data do not compare.

    Takes a trial's settings, or its row in the record, where they are text.
    """
    return " ".join(f"{k}={config[k]}" for k in sorted(config) if k.startswith("task."))


def _scored(scores: Mapping[str, float], objectives: Sequence[Objective]) -> Losses:
    return losses({k.removesuffix(_ALONG): v for k, v in scores.items()}, objectives)


def ahead(own: Losses, others: Sequence[Losses]) -> int:
    """How many of the others rank strictly before a trial.

    Objectives that nobody has measured yet (the seconds of a whole training) are left out.
    """
    points = [own, *others]
    measured = [i for i in range(len(own)) if any(math.isfinite(p[i]) for p in points)]
    if not measured:
        return 0
    mine, *theirs = ranks([tuple(p[i] for i in measured) for p in points])
    return sum(rank < mine for rank in theirs)


class NoPruner:
    """Lets every trial train to its end."""

    def report(self, key: str, step: int, total: int, scores: Mapping[str, float]) -> bool:
        """Never end a trial."""
        return False

    def restore(self, curves: Mapping[str, Sequence[Report]]) -> None:
        """Nothing to note."""


class Asha:
    """Asynchronous successive halving, in its stopping form.

    Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning", arXiv:1810.05934:
    rung k is at ``min_share · eta^k`` of the training; of n trials that have reached it the
    best ``max(1, n // eta)`` go on. Here a trial is judged once a rung, when it gets there.
    """

    def __init__(
        self,
        objectives: Sequence[Objective],
        *,
        eta: float,
        min_share: float,
        min_trials: int,
        cohort: Callable[[str], str] = everyone,
    ) -> None:
        self.objectives, self.eta, self.min_trials = objectives, eta, min_trials
        self.cohort = cohort
        self.rungs = rungs(min_share, eta)
        # (cohort, rung) -> trial -> losses
        self._reached: dict[tuple[str, int], dict[str, Losses]] = {}

    def report(self, key: str, step: int, total: int, scores: Mapping[str, float]) -> bool:
        """Judge a trial at its first evaluation on or after a rung."""
        rung = self._note(key, step, total, scores)
        if rung is None or step >= total:
            return False
        reached = dict(self._reached[self.cohort(key), rung])
        count, own = len(reached), reached.pop(key)
        if count < self.min_trials:
            return False
        return ahead(own, list(reached.values())) >= max(1, math.floor(count / self.eta))

    def restore(self, curves: Mapping[str, Sequence[Report]]) -> None:
        """Put earlier trials on the rungs that they reached."""
        for key, reports in curves.items():
            for report in sorted(reports, key=lambda r: r.step):
                self._note(key, *report)

    def _note(self, key: str, step: int, total: int, scores: Mapping[str, float]) -> int | None:
        """Return the rung that the trial has just reached, None between two of them."""
        passed = [k for k, share in enumerate(self.rungs) if share <= step / total + 1e-9]
        if not passed:
            return None
        rung = self._reached.setdefault((self.cohort(key), passed[-1]), {})
        if key in rung:  # judged here before; a trial that is run again as well
            return None
        rung[key] = _scored(scores, self.objectives)
        return passed[-1]


def rungs(min_share: float, eta: float) -> list[float]:
    """Shares of the training at which trials are compared, the end left out."""
    found, share = [], min_share
    while share < 1 - 1e-9:
        found.append(share)
        share *= eta
    return found


class Hyperband:
    """Brackets of ASHA that begin at later and later rungs; the last one prunes nobody.

    Li et al. 2018, "Hyperband: A Novel Bandit-Based Approach to Hyperparameter Optimization",
    arXiv:1603.06560, algorithm 1: with s_max + 1 brackets, bracket s starts
    ``ceil((s_max + 1) / (s + 1) · eta^s)`` trials, of which each trains ``eta^-s`` of the whole
    before the first comparison. A trial's bracket is drawn with these weights from its key, so
    a restart puts it into the same one.
    """

    def __init__(
        self,
        objectives: Sequence[Objective],
        *,
        eta: float,
        min_share: float,
        min_trials: int,
        cohort: Callable[[str], str] = everyone,
    ) -> None:
        first = [*rungs(min_share, eta), 1.0]
        self.brackets = [
            Asha(objectives, eta=eta, min_share=share, min_trials=min_trials, cohort=cohort)
            for share in first
        ]
        most = len(first) - 1
        self.weights = [
            math.ceil((most + 1) / (s + 1) * eta**s) for s in range(most, -1, -1)
        ]  # the bracket that begins first has the most

    def bracket(self, key: str) -> int:
        """Place of the trial's bracket; 0 begins to prune first."""
        at = seed_of("bracket", key) % sum(self.weights)
        for place, weight in enumerate(self.weights):
            if at < weight:
                return place
            at -= weight
        raise AssertionError("weights are positive")

    def report(self, key: str, step: int, total: int, scores: Mapping[str, float]) -> bool:
        """Judge a trial within its bracket."""
        return self.brackets[self.bracket(key)].report(key, step, total, scores)

    def restore(self, curves: Mapping[str, Sequence[Report]]) -> None:
        """Put earlier trials into their brackets."""
        for key, reports in curves.items():
            self.brackets[self.bracket(key)].restore({key: reports})


class Median:
    """Ends a trial when more than half of the others had done better by its step.

    The median stopping rule of Golovin et al. 2017, "Google Vizier", 3.2.1, on the best score
    so far; by rank, so that it holds for several objectives (each at its best so far).
    """

    def __init__(
        self,
        objectives: Sequence[Objective],
        *,
        min_share: float,
        min_trials: int,
        cohort: Callable[[str], str] = everyone,
    ) -> None:
        self.objectives, self.min_share, self.min_trials = objectives, min_share, min_trials
        self.cohort = cohort
        # cohort -> trial -> share of the training -> losses
        self._curves: dict[str, dict[str, dict[float, Losses]]] = {}

    def report(self, key: str, step: int, total: int, scores: Mapping[str, float]) -> bool:
        """Judge a trial at each evaluation."""
        curves, share = self._note(key, step, total, scores), step / total
        if share < self.min_share - 1e-9 or step >= total:
            return False
        # those that came as far; a trial that ended before says nothing about this step
        others = [c for k, c in curves.items() if k != key and max(c) >= share - 1e-9]
        if len(others) + 1 < self.min_trials or not others:
            return False
        own = _best(curves[key], share)
        return 2 * ahead(own, [_best(c, share) for c in others]) > len(others)

    def restore(self, curves: Mapping[str, Sequence[Report]]) -> None:
        """Take in the curves of earlier trials."""
        for key, reports in curves.items():
            for report in reports:
                self._note(key, *report)

    def _note(
        self, key: str, step: int, total: int, scores: Mapping[str, float]
    ) -> dict[str, dict[float, Losses]]:
        curves = self._curves.setdefault(self.cohort(key), {})
        curves.setdefault(key, {})[step / total] = _scored(scores, self.objectives)
        return curves


def _best(curve: Mapping[float, Losses], until: float) -> Losses:
    """Each objective at its best up to a share of the training."""
    seen = [point for share, point in curve.items() if share <= until + 1e-9]
    # a trial that was first evaluated later is taken by that evaluation
    return tuple(map(min, zip(*(seen or [curve[min(curve)]]), strict=True)))


def make(
    config: Config, objectives: Sequence[Objective], cohort: Callable[[str], str] = everyone
) -> Pruner:
    """Make the pruner that a sweep's settings ask for.

    Args:
        config: the flat settings of any of its trials.
        objectives: what the sweep improves.
        cohort: group of a trial, by its key; only trials of one group are compared.
    """
    settings: dict[str, Any] = {
        name: config[f"pruner.{name}"] for name in ("eta", "min_share", "min_trials")
    }
    match config["pruner.name"]:
        case "asha":
            return Asha(objectives, **settings, cohort=cohort)
        case "hyperband":
            return Hyperband(objectives, **settings, cohort=cohort)
        case "median":
            del settings["eta"]
            return Median(objectives, **settings, cohort=cohort)
        case _:
            return NoPruner()
