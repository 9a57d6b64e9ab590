"""How large a difference is, and how sure: intervals over seeds and evaluation items.

A claim about a method is about what training it again would give, so the seeds are the sample.
Two sides are compared within each seed (same data order, same fresh head) and, where the answers
were kept, within each evaluation item. Seeds share their items, so the difference of one answer
belongs to two clusters, its seed and its item: the variance is that of an intercept clustered
both ways (Cameron, Gelbach and Miller 2011, doi:10.1198/jbes.2010.07136), no smaller than by seeds
or by items alone, with Student's t on (seeds - 1) degrees of freedom, the smaller number of
clusters less one. Without answers it is the paired t interval over seeds.

A score of n items is a multiple of 1/n, so a few seeds often tie, which says that they differ by
less than a step and not that they never differ. The spread of the seeds is therefore never taken
to be smaller than one step.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

CONFIDENCE = 0.95
ALPHA = (1 - CONFIDENCE) / 2  # of a one-sided test: what the 95 % interval shows on one side
_ROUNDING = 1e-12  # differences of equal scores differ by no more than this


@dataclass(frozen=True)
class Estimate:
    """A difference (or a level) with its uncertainty.

    Attributes:
        effect: in the unit of the score.
        error: standard error; NaN for one seed, and where seeds tie in steps of unknown size.
        seeds: that both sides have.
        items: evaluation items that were paired; 0 where only seeds were.
        raw: what each seed says, by seed.
    """

    effect: float
    error: float
    seeds: int
    items: int
    raw: tuple[tuple[int, float], ...]

    @property
    def low(self) -> float:
        """Lower end of the 95 % interval; NaN without an error."""
        return self.effect - self._half

    @property
    def high(self) -> float:
        """Upper end of the 95 % interval; NaN without an error."""
        return self.effect + self._half

    @property
    def _half(self) -> float:
        if self.seeds < 2:
            return math.nan
        return float(stats.t.ppf(1 - ALPHA, self.seeds - 1)) * self.error

    def above(self, bound: float) -> float:
        """P value of "it is not greater than ``bound``" (one-sided t); NaN without an error."""
        return self._p(self.effect - bound)

    def below(self, bound: float) -> float:
        """P value of "it is not smaller than ``bound``" (one-sided t); NaN without an error."""
        return self._p(bound - self.effect)

    def _p(self, distance: float) -> float:
        if self.seeds < 2:
            return math.nan
        if self.error == 0:  # of an exact measure, the same in every repeat
            return 0.0 if distance > 0 else 1.0
        return float(stats.t.sf(distance / self.error, self.seeds - 1))


def difference(
    a: pd.Series,
    b: pd.Series,
    answers: tuple[pd.DataFrame, pd.DataFrame] | None = None,
    step: float | None = None,
) -> Estimate:
    """``a`` less ``b`` over the seeds that both have.

    Args:
        a: a score by seed.
        b: another.
        answers: for both sides, whether each answer is right (or the share of cells in which it
            is), seeds × items. Used where both know all seeds and the same items.
        step: of the score, 1/n for n items; 0 for an exact measure that repeats may give again to
            the last digit; None where it is not known, and then seeds that tie have no error.
    """
    both = a.index.intersection(b.index).sort_values()
    by_seed = (a.loc[both] - b.loc[both]).astype(float)
    if answers is not None:
        right, other = answers
        items = right.columns.intersection(other.columns)
        complete = {*both} <= {*right.index} & {*other.index}
        if complete and len(items) == len(right.columns) == len(other.columns) > 0:
            by_item = right.loc[both, items] - other.loc[both, items]
            return _estimate(by_seed, by_item, step)
    return _estimate(by_seed, None, step)


def level(
    a: pd.Series, less: float, answers: pd.DataFrame | None = None, step: float | None = None
) -> Estimate:
    """A score less a constant (see ``difference``)."""
    by_seed = a.sort_index().astype(float) - less
    if answers is not None and {*a.index} <= {*answers.index} and len(answers.columns):
        return _estimate(by_seed, answers.loc[by_seed.index] - less, step)
    return _estimate(by_seed, None, step)


def _estimate(by_seed: pd.Series, by_item: pd.DataFrame | None, step: float | None) -> Estimate:
    seeds = len(by_seed)
    raw = tuple((int(str(seed)), float(value)) for seed, value in by_seed.items())
    effect = float(by_seed.mean()) if seeds else math.nan
    items = 0 if by_item is None else by_item.shape[1]
    if seeds < 2:
        return Estimate(effect, math.nan, seeds, items, raw)
    spread = float(np.std(by_seed, ddof=1))
    if step is None and items:
        step = 1 / items
    if step is None:
        error = spread / math.sqrt(seeds) if spread > _ROUNDING else math.nan
    else:
        error = max(spread, step) / math.sqrt(seeds)
    if by_item is not None:
        error = max(error, _clustered(by_item.to_numpy(dtype=float)))
    return Estimate(effect, error, seeds, items, raw)


def _clustered(by_item: "np.ndarray[Any, Any]") -> float:
    """Standard error of the mean of seeds × items, clustered by both.

    The variance by two clusters is a sum with a difference in it, and a few seeds may agree by
    chance: it is never taken to be smaller than that by seed or that by item alone.
    """
    from statsmodels.regression.linear_model import OLS  # slow to import: only here
    from statsmodels.stats.sandwich_covariance import cov_cluster_2groups

    seeds, items = by_item.shape
    fit = OLS(by_item.ravel(), np.ones(by_item.size)).fit()
    by_seed, by_answer = np.repeat(np.arange(seeds), items), np.tile(np.arange(items), seeds)
    variances = cov_cluster_2groups(fit, by_seed, by_answer)  # by both, by seed, by item
    return math.sqrt(max(0.0, *(float(variance[0, 0]) for variance in variances)))


def holm(p_values: Sequence[float]) -> list[float]:
    """P values adjusted by Holm (1979); NaN where there is none."""
    from statsmodels.stats.multitest import multipletests

    known = [p for p in p_values if not math.isnan(p)]
    if len(known) < 2:
        return list(p_values)
    adjusted = iter(multipletests(known, method="holm")[1])
    return [math.nan if math.isnan(p) else float(next(adjusted)) for p in p_values]
