"""Pruners against examples worked by hand, and on made-up curves."""

import math
from collections.abc import Mapping
from random import Random

import pytest

from lorasweep.search import objectives, pruners
from lorasweep.search.pruners import Asha, Hyperband, Median, Report
from lorasweep.space import expand, grammar
from lorasweep.space.composition import Composer

ACCURACY = objectives.parse(["accuracy"], [])
ACCURACY_AND_MEMORY = objectives.parse(["accuracy", "memory"], [])
Curves = Mapping[str, list[Report]]


def score(accuracy: float, gib: float | None = None) -> dict[str, float]:
    scores = {"eval/accuracy_along": accuracy, "eval/loss_along": 1 - accuracy}
    return scores if gib is None else {**scores, "memory/peak_rss_gib": gib}


# ------------------------------------------------------------------------------- ASHA


def test_rungs_are_shares_of_the_training() -> None:
    assert pruners.rungs(0.1, 3) == pytest.approx([0.1, 0.3, 0.9])
    assert pruners.rungs(1 / 9, 3) == pytest.approx([1 / 9, 1 / 3])
    assert pruners.rungs(0.25, 2) == [0.25, 0.5]


# key, step of 100, accuracy, ends. At each rung the best max(1, n // 2) of n go on.
BY_HAND = [
    ("a", 10, 0.10, False),  # before the first rung
    ("a", 25, 0.50, False),  # 1 is here, 1 goes on
    ("b", 25, 0.40, True),  # second of 2
    ("c", 30, 0.60, False),  # first of 3; its first evaluation after the rung
    ("c", 40, 0.01, False),  # between rungs: not compared
    ("d", 25, 0.55, False),  # second of 4, 2 go on
    ("e", 25, 0.52, True),  # third of 5
    ("a", 50, 0.70, False),  # the next rung starts anew
    ("d", 50, 0.65, True),
    ("c", 50, 0.90, False),
    ("f", 25, 0.60, False),  # equal to the best
    ("g", 25, math.nan, True),
    ("a", 75, 0.10, False),  # no rung here
    ("a", 100, 0.10, False),  # an end is no place to prune
]


def asha(min_trials: int = 1) -> Asha:
    return Asha(ACCURACY, eta=2, min_share=0.25, min_trials=min_trials)


def test_successive_halving_by_hand() -> None:
    pruner = asha()
    for key, step, accuracy, ends in BY_HAND:
        assert pruner.report(key, step, 100, score(accuracy)) == ends, (key, step)


@pytest.mark.parametrize("at", range(len(BY_HAND)))
def test_a_restart_changes_no_decision(at: int) -> None:
    curves: dict[str, list[Report]] = {}
    for key, step, accuracy, _ in BY_HAND[:at]:
        curves.setdefault(key, []).append(Report(step, 100, score(accuracy)))
    pruner = asha()
    pruner.restore(curves)
    for key, step, accuracy, ends in BY_HAND[at:]:
        assert pruner.report(key, step, 100, score(accuracy)) == ends, (key, step)


def test_a_trial_run_again_is_not_judged_again() -> None:
    pruner = asha()
    assert not pruner.report("a", 25, 100, score(0.5))
    for n in range(8):
        pruner.report(str(n), 25, 100, score(0.6 + n / 100))
    assert not pruner.report("a", 25, 100, score(0.5))


def test_nobody_is_judged_before_enough_have_come() -> None:
    pruner = asha(min_trials=3)
    assert not pruner.report("a", 25, 100, score(0.5))
    assert not pruner.report("b", 25, 100, score(0.4))
    assert pruner.report("c", 25, 100, score(0.3))


def test_an_evaluation_that_passes_two_rungs_counts_for_the_later() -> None:
    pruner = asha()
    assert not pruner.report("a", 60, 100, score(0.9))
    assert not pruner.report("b", 25, 100, score(0.1))  # alone on the first rung


def test_trainings_of_different_length_compare_by_share() -> None:
    pruner = asha()
    assert not pruner.report("a", 25, 100, score(0.9))
    assert not pruner.report("b", 25, 1000, score(0.1))
    assert pruner.report("b", 250, 1000, score(0.8))


def test_two_tasks_are_not_compared() -> None:
    pruner = Asha(ACCURACY, eta=2, min_share=0.25, min_trials=1, cohort=lambda key: key[0])
    assert not pruner.report("easy 1", 25, 100, score(0.9))
    assert not pruner.report("hard 1", 25, 100, score(0.3))
    assert pruner.report("hard 2", 25, 100, score(0.2))


def test_several_objectives_rank_by_layer_then_by_crowding() -> None:
    pruner = Asha(ACCURACY_AND_MEMORY, eta=2, min_share=0.25, min_trials=3)

    def ends(key: str, accuracy: float, gib: float) -> bool:
        return pruner.report(key, 25, 100, score(accuracy, gib))

    assert not ends("best", 0.90, 8.0)
    assert not ends("small", 0.50, 1.0)
    assert ends("bad", 0.40, 9.0)  # both others are better in both; 1 of 3 goes on
    # On the front of three, 2 of 4 go on: the two ends of the front come first.
    assert ends("middle", 0.85, 1.5)
    assert ends("worse", 0.84, 1.6)  # behind "middle"
    # The front is best, fair, middle, small. 3 of 6 go on: both ends, and of the others the one
    # with more room: 0.05 / 0.4 + 6.5 / 7 = 1.05 against 0.38 / 0.4 + 0.6 / 7 = 1.04.
    assert not ends("fair", 0.88, 1.6)


def test_an_objective_that_is_not_measured_along_the_way_is_left_out() -> None:
    pruner = Asha(ACCURACY_AND_MEMORY, eta=2, min_share=0.25, min_trials=1)
    assert not pruner.report("a", 25, 100, score(0.5))
    assert pruner.report("b", 25, 100, score(0.4))
    unmeasured = Asha(objectives.parse(["time"], []), eta=2, min_share=0.25, min_trials=1)
    assert not any(unmeasured.report(k, 25, 100, score(0.5)) for k in "abcd")


# -------------------------------------------------------------------------- Hyperband


def test_brackets_have_the_sizes_of_the_paper() -> None:
    # Li et al. 2018, Table 1: n_i at i = 0 for R = 81, eta = 3 is 81, 34, 15, 8, 5
    pruner = Hyperband(ACCURACY, eta=3, min_share=1 / 81, min_trials=1)
    assert pruner.weights == [81, 34, 15, 8, 5]
    firsts = [b.rungs[0] if b.rungs else 1.0 for b in pruner.brackets]
    assert firsts == pytest.approx([1 / 81, 1 / 27, 1 / 9, 1 / 3, 1.0])


def test_trials_are_spread_over_brackets_by_their_keys() -> None:
    pruner = Hyperband(ACCURACY, eta=3, min_share=1 / 9, min_trials=1)
    places = [pruner.bracket(f"key{n}") for n in range(1700)]
    for place, weight in enumerate((9, 5, 3)):
        assert places.count(place) == pytest.approx(100 * weight, rel=0.2)
    again = Hyperband(ACCURACY, eta=3, min_share=1 / 9, min_trials=1)
    assert [again.bracket(f"key{n}") for n in range(1700)] == places


def test_a_bracket_compares_only_its_own() -> None:
    pruner = Hyperband(ACCURACY, eta=3, min_share=1 / 9, min_trials=1)
    keys: dict[int, list[str]] = {0: [], 1: [], 2: []}
    for n in range(100):
        keys[pruner.bracket(f"key{n}")].append(f"key{n}")
    assert not pruner.report(keys[0][0], 12, 100, score(0.9))
    assert pruner.report(keys[0][1], 12, 100, score(0.8))
    assert not pruner.report(keys[1][0], 12, 100, score(0.1))  # begins at a third
    assert not pruner.report(keys[1][0], 34, 100, score(0.1))
    assert pruner.report(keys[1][1], 34, 100, score(0.05))
    assert not any(pruner.report(k, 50, 100, score(0.0)) for k in keys[2])
    restored = Hyperband(ACCURACY, eta=3, min_share=1 / 9, min_trials=1)
    restored.restore({keys[0][0]: [Report(12, 100, score(0.9))]})
    assert restored.report(keys[0][1], 12, 100, score(0.8))


# ----------------------------------------------------------------------------- median


def median() -> Median:
    return Median(ACCURACY, min_share=0.2, min_trials=4)


FOUR = {"a": (0.2, 0.3), "b": (0.3, 0.6), "c": (0.4, 0.5)}


def test_median_by_hand() -> None:
    pruner = median()
    for key, (first, second) in FOUR.items():
        assert not pruner.report(key, 20, 100, score(first))
        assert not pruner.report(key, 40, 100, score(second))
    # the others had 0.2, 0.3 and 0.4 at step 20, and 0.3, 0.6 and 0.5 at step 40
    assert not pruner.report("d", 10, 100, score(0.0))  # before min_share
    assert not pruner.report("d", 20, 100, score(0.3))  # one of three was better
    assert pruner.report("d", 40, 100, score(0.4))  # two were
    assert not pruner.report("e", 20, 100, score(0.55))
    assert not pruner.report("e", 40, 100, score(0.1))  # its best until now counts
    assert not pruner.report("e", 100, 100, score(0.1))


def test_median_counts_only_those_that_came_as_far() -> None:
    pruner = median()
    for n in range(5):
        assert not pruner.report(str(n), 40 if n < 2 else 20, 100, score(0.9))
    assert not pruner.report("low", 40, 100, score(0.1))  # only two are at 40
    assert pruner.report("low too", 20, 100, score(0.1))


def test_median_after_a_restart() -> None:
    pruner = median()
    pruner.restore(
        {k: [Report(20, 100, score(a)), Report(40, 100, score(b))] for k, (a, b) in FOUR.items()}
    )
    assert pruner.report("d", 40, 100, score(0.4))
    assert not pruner.report("e", 40, 100, score(0.5))


# ------------------------------------------------------------------- made-up trainings


@pytest.mark.parametrize(
    ("name", "most"), [("none", 1.0), ("asha", 0.45), ("hyperband", 0.7), ("median", 0.75)]
)
def test_pruning_saves_steps_and_keeps_the_best(composer: Composer, name: str, most: float) -> None:
    """60 curves that rise to their own height, some slowly; ten trials at a time."""
    typed = [f"pruner={name}", "train.eval_every=5"]
    flat = composer(grammar.read(typed, {}, composer, []).fixed).flat
    pruner, draw = pruners.make(flat, ACCURACY), Random(1)
    heights = {f"trial {n}": draw.random() for n in range(60)}
    waiting, steps = list(heights), 0
    running: dict[str, int] = {}
    ended: dict[str, int] = {}
    while waiting or running:
        while waiting and len(running) < 10:
            running[waiting.pop(0)] = 0
        for key in list(running):
            running[key] += 5
            steps += 5
            accuracy = heights[key] * (1 - math.exp(-running[key] / 20))
            if pruner.report(key, running[key], 100, score(accuracy)) or running[key] == 100:
                ended[key] = running.pop(key)
    assert steps <= most * 100 * len(heights)
    best = max(heights, key=heights.__getitem__)
    assert ended[best] == 100


def test_settings_come_from_the_command_line(composer: Composer) -> None:
    typed = ["pruner=asha", "pruner.eta=2", "pruner.min_share=0.25", "train.eval_every=5"]
    flat = composer(grammar.read(typed, {}, composer, []).fixed).flat
    pruner = pruners.make(flat, ACCURACY)
    assert isinstance(pruner, Asha)
    assert (pruner.eta, pruner.rungs, pruner.min_trials) == (2, [0.25, 0.5], 4)


def test_pruning_is_no_part_of_a_trials_key(composer: Composer) -> None:
    problems: list[str] = []
    keys = {
        expand.expand(grammar.read(typed, {}, composer, problems), composer, problems)[0].key
        for typed in (["train.eval_every=5"], ["train.eval_every=5", "pruner=asha"])
    }
    assert problems == []
    assert len(keys) == 1


def test_tasks_are_told_apart(composer: Composer) -> None:
    flats = [composer([f"task={name}"]).flat for name in ("reviews5", "yelp5")]
    names = {pruners.task_of(flat) for flat in flats}
    assert len(names) == 2
    # a row of the record holds the same settings as text
    assert pruners.task_of({k: str(v) for k, v in flats[0].items()}) in names
