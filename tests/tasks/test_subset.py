"""Balanced, nested subsets."""

from collections import Counter

import pytest

from lorasweep.tasks.data import Examples
from lorasweep.tasks.subset import subset


def made(*counts: int) -> Examples:
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    ids = [f"train:{i}" for i in range(len(labels))]
    return Examples(ids, [f"text {i}" for i in ids], None, labels)


@pytest.mark.parametrize(
    ("counts", "size", "taken"),
    [
        ((50, 60, 70), 30, [10, 10, 10]),
        ((50, 60, 70), 31, [10, 10, 11]),
        ((50, 60, 70), 180, [50, 60, 70]),
        ((5, 100, 100), 65, [5, 30, 30]),
        ((100, 5, 40), 100, [55, 5, 40]),
    ],
)
def test_as_balanced_as_the_classes_allow(
    counts: tuple[int, ...], size: int, taken: list[int]
) -> None:
    chosen = subset(made(*counts), size, seed=0)
    assert sorted(Counter(chosen.labels).items()) == list(enumerate(taken))
    assert len(set(chosen.ids)) == size


def test_smaller_subsets_are_the_start_of_larger_ones() -> None:
    examples = made(30, 90, 200, 40)
    previous: dict[int, list[str]] = {label: [] for label in range(4)}
    for size in range(4, 361):
        chosen = subset(examples, size, seed=3)
        for label in range(4):
            ids = [
                item for item, own in zip(chosen.ids, chosen.labels, strict=True) if own == label
            ]
            assert ids[: len(previous[label])] == previous[label]
            previous[label] = ids


def test_choice_follows_seed_and_item_and_nothing_else() -> None:
    examples = made(50, 50)
    backwards = examples.take(range(99, -1, -1))
    assert subset(examples, 20, seed=0) == subset(backwards, 20, seed=0)
    assert set(subset(examples, 20, seed=0).ids) != set(subset(examples, 20, seed=1).ids)


def test_choice_stays_the_same_from_release_to_release() -> None:
    chosen = subset(made(50, 50), 4, seed=0)
    assert chosen.ids == ["train:72", "train:52", "train:24", "train:10"]


def test_no_size_takes_all_as_they_are() -> None:
    examples = made(3, 4)
    assert subset(examples, None, seed=5) == examples
