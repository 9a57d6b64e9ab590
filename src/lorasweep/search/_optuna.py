"""Optuna's samplers, asked and told over a study in memory.

At each ask a fresh sampler, seeded by (seed, point), looks at the study. Nothing that it keeps
to itself survives, so the study, which the record can rebuild, is all that its choice depends
on. What an ask leaves in the study (Optuna cannot sample without a trial) is a trial marked as
failed, which every sampler passes over; the point itself is added as one of its own.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial

from lorasweep.search.designs import Halton, seed_of
from lorasweep.search.dimensions import Codes, Dimension
from lorasweep.search.objectives import Losses

optuna.logging.set_verbosity(optuna.logging.ERROR)

_ATTEMPTS = 1  # to have a sampler that insists on a known point change its mind


def _distribution(d: Dimension) -> BaseDistribution:
    if not d.ordered:
        return CategoricalDistribution(range(len(d.points)))
    low, high = d.bounds
    if d.whole:
        return IntDistribution(int(low), int(high), log=d.log)
    return FloatDistribution(low, high, log=d.log)


class _Studied(ABC):
    """A chooser over an Optuna study: an even design first, then the sampler."""

    # Whether the sampler itself knows what to do with points that lack a dimension. For one
    # that does not, the dimension is set to its middle there (as SMAC does; Hutter et al. 2011).
    conditional = False

    def __init__(
        self, dimensions: Sequence[Dimension], seed: int, objectives: int, startup: int
    ) -> None:
        self.seed, self.startup, self.several = seed, startup, objectives > 1
        self.design = Halton(dimensions, seed)
        self.free = [d for d in dimensions if not d.fixed]
        self.fixed = {d.name: d.bounds[0] for d in dimensions if d.fixed}
        self.distributions = {d.name: _distribution(d) for d in self.free}
        self.study = optuna.create_study(
            directions=["minimize"] * objectives, sampler=RandomSampler(seed=seed)
        )
        self.completed = 0
        self._numbers: dict[int, int] = {}  # of points in the study
        self._count = 0  # trials in the study

    @abstractmethod
    def sampler(self, seed: int, point: int) -> BaseSampler:
        """Make a fresh sampler for one ask."""

    def by_design(self, point: int) -> bool:
        """Whether there is too little to learn from yet."""
        return self.completed < self.startup

    def choose(self, point: int, attempt: int = 0) -> Codes:
        """Choose the codes of a new point; after some attempts at random."""
        if self.by_design(point) or not self.free or attempt > _ATTEMPTS:
            return self.design.choose(point, attempt)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # notes on experimental arguments, clipped infinities
            self.study.sampler = self.sampler(seed_of("optuna", self.seed, point, attempt), point)
            probe = self.study.ask(self.distributions)
        self.study.tell(probe, state=TrialState.FAIL)
        self._count += 1
        return {**self.fixed, **probe.params}

    def pending(self, point: int, codes: Codes) -> None:
        """Add a point that is under way."""
        if not self.conditional:
            codes = {d.name: codes.get(d.name, d.middle()) for d in self.free}
        used = {d.name: codes[d.name] for d in self.free if d.name in codes}
        self.study.add_trial(
            create_trial(
                state=TrialState.RUNNING,
                params=dict(used),
                distributions={name: self.distributions[name] for name in used},
                user_attrs={"point": point},
            )
        )
        self._numbers[point] = self._count
        self._count += 1

    def told(self, point: int, losses: Losses | None) -> None:
        """Close a point."""
        if losses is None:
            self.study.tell(self._numbers[point], state=TrialState.FAIL)
        else:
            self.study.tell(self._numbers[point], list(losses))
            self.completed += 1


class Tpe(_Studied):
    """Tree-structured Parzen estimator (Bergstra et al. 2011), constant liar for points under way.

    With one objective, dimensions that occur together are modelled together, each group on the
    points that have it; with several, each on its own (Ozaki et al. 2022), as Optuna does.
    """

    conditional = True

    def sampler(self, seed: int, point: int) -> BaseSampler:
        """Make a fresh sampler for one ask."""
        return TPESampler(
            seed=seed,
            n_startup_trials=0,
            multivariate=not self.several,
            group=not self.several,
            constant_liar=True,
        )


class Gp(_Studied):
    """Gaussian process with log expected improvement (Ament et al. 2023)."""

    def sampler(self, seed: int, point: int) -> BaseSampler:
        """Make a fresh sampler for one ask."""
        return GPSampler(seed=seed, n_startup_trials=0, warn_independent_sampling=False)


class Nsga2(_Studied):
    """NSGA-II (Deb et al. 2002) without a barrier.

    Generations are counted by points asked, not by points that ended: the first ``population``
    points are the first generation, and so on. Parents are the best of all earlier generations
    that have ended by now. So nobody waits, and history alone says who the parents are.
    """

    def __init__(
        self, dimensions: Sequence[Dimension], seed: int, objectives: int, population: int
    ) -> None:
        super().__init__(dimensions, seed, objectives, startup=2)
        self.population = population
        self._parents: dict[tuple[int, int], list[FrozenTrial]] = {}

    def by_design(self, point: int) -> bool:
        """Whether this is the first generation, or there is no pair of parents."""
        return point < self.population or self.completed < self.startup

    def sampler(self, seed: int, point: int) -> BaseSampler:
        """Make a fresh sampler for one ask."""
        return _Generations(self.population, seed, point // self.population, self._parents)


class _Generations(NSGAIISampler):
    """Optuna's NSGA-II with generations known from the number of the point."""

    def __init__(
        self,
        population: int,
        seed: int,
        generation: int,
        parents: dict[tuple[int, int], list[FrozenTrial]],
    ) -> None:
        super().__init__(population_size=population, seed=seed)
        self._generation, self._size, self._known = generation, population, parents

    def get_trial_generation(self, study: Study, trial: FrozenTrial) -> int:
        return self._generation

    def get_population(self, study: Study, generation: int) -> list[FrozenTrial]:
        return [t for t in _ended(study) if t.user_attrs["point"] // self._size == generation]

    def get_parent_population(self, study: Study, generation: int) -> list[FrozenTrial]:
        if generation == 0:
            return []
        # Who has ended only grows, so its size says which set it is.
        before = sum(t.user_attrs["point"] < generation * self._size for t in _ended(study))
        at = (generation, before)
        if at not in self._known:
            self._known[at] = self.select_parent(study, generation)
        return self._known[at] if len(self._known[at]) > 1 else []


def _ended(study: Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def chooser(
    name: str, dimensions: Sequence[Dimension], objectives: int, settings: Mapping[str, Any]
) -> _Studied:
    """Make the chooser that ``sampler.name`` asks for."""
    seed = settings["seed"]
    if name == "nsga2":
        return Nsga2(dimensions, seed, objectives, settings["population"])
    kind = {"tpe": Tpe, "gp": Gp}[name]
    return kind(dimensions, seed, objectives, settings["startup"])
