"""Subsets that are balanced, nested and the same on every machine.

Which items are taken follows from a hash of seed and item, not from a random generator whose
stream a library may change.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence

from lorasweep.tasks.data import Examples, Task


def subset(examples: Examples, size: int | None, seed: int) -> Examples:
    """Take a subset with equally many items of each class.

    With one seed, a smaller subset is part of every larger one: of each class it holds the first
    items of the larger. A class with too few items gives all it has; the others make up for it.

    Args:
        examples: what to take from.
        size: number of items, at most ``len(examples)``; None takes all, as they are.
        seed: another seed gives other items.
    """
    if size is None:
        return examples
    order = sorted(range(len(examples)), key=lambda row: rank(f"{seed}:{examples.ids[row]}"))
    left = _quotas(examples.labels, size)
    taken = []
    for row in order:
        label = examples.labels[row]
        if left[label]:
            left[label] -= 1
            taken.append(row)
    return examples.take(taken)


def _quotas(labels: Sequence[int], size: int) -> dict[int, int]:
    """Share out the places: each class an equal part of what the smaller ones have left."""
    counts = Counter(labels)
    quotas = {}
    for done, label in enumerate(sorted(counts, key=lambda label: (counts[label], label))):
        quotas[label] = min(counts[label], size // (len(counts) - done))
        size -= quotas[label]
    return quotas


def hold_out(
    texts: Sequence[str], labels: Sequence[int], fraction: float, seed: int
) -> tuple[list[int], list[int]]:
    """Split positions into (train, evaluation), with the same share of every class in both.

    Equal texts of one class stay together, so none is on both sides. A class with a single text
    stays in train.
    """
    hashes = [rank(f"hold-out:{seed}:{text}") for text in texts]
    by_class: dict[int, list[bytes]] = {}
    for label, key in zip(labels, hashes, strict=True):
        by_class.setdefault(label, []).append(key)
    limits = {}
    for label, keys in by_class.items():
        held = min(max(round(len(keys) * fraction), 1), len(keys) - 1)
        # the text at the limit stays in train, and so do its equals
        limits[label] = sorted(keys)[held]
    train: list[int] = []
    evaluation: list[int] = []
    for row, (label, key) in enumerate(zip(labels, hashes, strict=True)):
        (evaluation if key < limits[label] else train).append(row)
    return train, evaluation


def rank(text: str) -> bytes:
    """Return a sort key that looks random and depends on nothing but the text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def size_problems(task: Task, train: int, evaluation: int, classes: int) -> list[str]:
    """Say which wanted sizes the rows there are cannot give."""
    found = []
    for setting, available in (("train_size", train), ("eval_size", evaluation)):
        size = task[setting]
        if size is not None and size > available:
            found.append(
                f"task.{setting}={size}: {task['name']} has {available:,} rows to choose from; "
                f"give at most that, or null for all of them"
            )
        elif size is not None and size < classes:
            found.append(
                f"task.{setting}={size}: fewer than the {classes} classes of {task['name']}"
            )
    return found


def fraction_problems(task: Task) -> list[str]:
    """Say if no share can be held out for evaluation."""
    share = task["eval_fraction"]
    if share is not None and 0 < share < 1:
        return []
    return [f"task.eval_fraction={share}: give the share to hold out, between 0 and 1"]
