import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from lorasweep.results import evidence


def by_seed(*scores: float) -> "pd.Series[float]":
    return pd.Series(scores, index=range(len(scores)))


def answers(share: "pd.Series[float]", items: int = 400, noise: int = 0) -> pd.DataFrame:
    """Answers with exactly this share right, on other items with every seed."""
    rng = np.random.default_rng(noise)
    rows = {}
    for seed, score in share.items():
        right = np.zeros(items)
        right[rng.permutation(items)[: round(score * items)]] = 1.0
        rows[seed] = right
    return pd.DataFrame(rows).T


def test_without_answers_it_is_the_paired_t_interval() -> None:
    a, b = by_seed(0.61, 0.64, 0.66), by_seed(0.60, 0.62, 0.61)
    found = evidence.difference(a, b)
    right = stats.ttest_rel(a, b)
    assert found.effect == pytest.approx((a - b).mean())
    assert (found.low, found.high) == pytest.approx(tuple(right.confidence_interval()))
    assert 2 * min(found.above(0), found.below(0)) == pytest.approx(right.pvalue)
    assert (found.seeds, found.items) == (3, 0)


def test_only_seeds_that_both_have_are_paired() -> None:
    a, b = by_seed(0.6, 0.7, 0.8), by_seed(0.5, 0.5, 0.5).drop(1)
    assert dict(evidence.difference(a, b).raw) == pytest.approx({0: 0.1, 2: 0.3})


def test_one_seed_has_no_interval() -> None:
    found = evidence.difference(by_seed(0.6), by_seed(0.5))
    assert found.effect == pytest.approx(0.1)
    assert all(math.isnan(x) for x in (found.low, found.high, found.above(0), found.below(0)))


def test_repeats_that_agree_to_the_byte_are_certain() -> None:
    found = evidence.difference(by_seed(2.0, 2.0), by_seed(1.0, 1.0), step=0)
    assert (found.low, found.high) == (1.0, 1.0)
    assert (found.above(0.5), found.below(0.5)) == (0.0, 1.0)


def test_seeds_that_tie_are_as_sure_as_one_answer() -> None:
    """Two and three seeds with equal differences, some of them equal but for rounding."""
    a, b = by_seed(0.62, 0.66, 0.63), by_seed(0.60, 0.64, 0.61)
    for seeds in (2, 3):
        found = evidence.difference(a[:seeds], b[:seeds], step=1 / 50)
        assert found.error == pytest.approx(1 / 50 / math.sqrt(seeds))
        assert found.above(0) > evidence.ALPHA
        unknown = evidence.difference(a[:seeds], b[:seeds])
        assert all(math.isnan(x) for x in (unknown.low, unknown.above(0), unknown.below(0)))
    same = evidence.difference(a, a, (answers(a, 100), answers(a, 100)))
    assert same.high == pytest.approx(4.3027 / 100 / math.sqrt(3), rel=1e-4)
    assert evidence.level(by_seed(0.6, 0.6), 0.5, step=1 / 50).above(0) > evidence.ALPHA


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_intervals_of_scores_of_few_items_cover_the_truth(seeds: int) -> None:
    """Seeds that differ by less than an answer tie most of the time."""
    rng, items, truth = np.random.default_rng(seeds), 250, 0.0522
    for spread in (0.1, 0.3, 1.0, 3.0):
        held = 0
        for _ in range(200):
            exact = 0.6 + np.array([[truth], [0.0]]) + spread / items * rng.normal(size=(2, seeds))
            a, b = (by_seed(*row) for row in np.round(exact * items) / items)
            found = evidence.difference(a, b, step=1 / items)
            held += found.low <= truth <= found.high
        assert held >= 186, (spread, held)


def test_answers_widen_an_interval_that_seeds_alone_would_make_too_narrow() -> None:
    a, b = by_seed(0.60, 0.60, 0.60), by_seed(0.55, 0.55, 0.55)
    alone = evidence.difference(a, b, step=1 / 400)
    both = evidence.difference(a, b, (answers(a, noise=1), answers(b, noise=2)))
    assert alone.error < both.error / 5
    assert both.effect == alone.effect
    assert both.items == 400
    # The items' own part: the variance of the mean difference of an item, over the items.
    per_item = (answers(a, noise=1) - answers(b, noise=2)).mean()
    assert both.error == pytest.approx(stats.sem(per_item), rel=0.01)


def test_answers_do_not_narrow_what_seeds_say() -> None:
    a, b = by_seed(0.80, 0.60, 0.70), by_seed(0.50, 0.55, 0.60)
    alone = evidence.difference(a, b)
    both = evidence.difference(a, b, (answers(a, noise=1), answers(b, noise=1)))
    assert both.error >= alone.error


def test_answers_to_other_items_are_not_paired() -> None:
    a, b = by_seed(0.6, 0.7), by_seed(0.5, 0.5)
    other = answers(b).rename(columns=lambda item: item + 1)
    assert evidence.difference(a, b, (answers(a), other)).items == 0
    assert evidence.difference(a, b, (answers(a), answers(b).drop(1))).items == 0


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """Seeds and items both vary; 95 % of the intervals hold the true difference, or more."""
    rng = np.random.default_rng(0)
    seeds, items, truth, held = 4, 60, 0.1, 0
    for _ in range(200):
        table = truth + 0.1 * rng.normal(size=(seeds, 1)) + 0.5 * rng.normal(size=(1, items))
        frame = pd.DataFrame(table + 0.5 * rng.normal(size=(seeds, items)))
        nothing = frame * 0
        found = evidence.difference(frame.mean(axis=1), nothing.mean(axis=1), (frame, nothing))
        held += found.low <= truth <= found.high
    assert held >= 186


def test_holm_is_holms() -> None:
    # Worked by hand: 3 · 0.01, then max(0.03, 2 · 0.02), then max(0.04, 0.03).
    assert evidence.holm([0.03, math.nan, 0.01, 0.02])[2:] == pytest.approx([0.03, 0.04])
    adjusted = evidence.holm([0.03, math.nan, 0.01, 0.02])
    assert adjusted[0] == pytest.approx(0.04)
    assert math.isnan(adjusted[1])
    assert all(math.isnan(p) for p in evidence.holm([math.nan]))
