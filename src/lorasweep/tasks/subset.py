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
    return examples.take(pick(examples.ids, examples.labels, size, seed))


def pick(ids: Sequence[str], labels: Sequence[int], size: int | None, seed: int) -> list[int]:
    """Return the positions that `subset` takes, from ids and classes alone."""
    if size is None:
        return list(range(len(ids)))
    order = sorted(range(len(ids)), key=lambda row: rank(f"{seed}:{ids[row]}"))
    left = _quotas(labels, size)
    taken = []
    for row in order:
        if left[labels[row]]:
            left[labels[row]] -= 1
            taken.append(row)
    return taken


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
    limits = {}
    for label in set(labels):
        own = sorted(hashes[row] for row in range(len(labels)) if labels[row] == label)
        held = min(max(round(len(own) * fraction), 1), len(own) - 1)
        # the item at the limit stays in train, and so do its equals
        limits[label] = own[held]
    rows = range(len(labels))
    train = [row for row in rows if hashes[row] >= limits[labels[row]]]
    return train, [row for row in rows if hashes[row] < limits[labels[row]]]


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
