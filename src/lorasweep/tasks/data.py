"""What a task is made of: examples with classes, and where they came from."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

Task = Mapping[str, Any]


@dataclass(frozen=True)
class Examples:
    """Texts with classes, one entry an item in every list.

    Attributes:
        ids: names of the items that stay the same from run to run.
        texts: the text, or the first of two.
        pairs: the second texts, where the task compares two.
        labels: index of each item's class.
    """

    ids: list[str]
    texts: list[str]
    pairs: list[str] | None
    labels: list[int]

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.ids)

    def take(self, rows: Sequence[int]) -> "Examples":
        """Return the items at these positions, in this order."""
        return Examples(
            ids=[self.ids[row] for row in rows],
            texts=[self.texts[row] for row in rows],
            pairs=None if self.pairs is None else [self.pairs[row] for row in rows],
            labels=[self.labels[row] for row in rows],
        )


@dataclass(frozen=True)
class TaskData:
    """What a trial trains on and what it is judged by.

    Attributes:
        train: items to train on.
        eval: items to evaluate on; no item is in both.
        labels: names of the classes, by index.
        digest: SHA-256 of the items and class names.
        provenance: source, revision or hash, sizes and licence, for the record.
    """

    train: Examples
    eval: Examples
    labels: list[str]
    digest: str
    provenance: dict[str, Any]


def assemble(
    train: Examples, evaluation: Examples, labels: list[str], provenance: Mapping[str, Any]
) -> TaskData:
    """Put the two sides together and describe them."""
    content = json.dumps([asdict(train), asdict(evaluation), labels]).encode()
    trained_on = set(_contents(train))
    described = {
        **provenance,
        "train_rows": len(train),
        "eval_rows": len(evaluation),
        "train_rows_per_class": _per_class(train, labels),
        "eval_rows_per_class": _per_class(evaluation, labels),
        "eval_texts_also_in_train": sum(text in trained_on for text in _contents(evaluation)),
    }
    return TaskData(train, evaluation, labels, hashlib.sha256(content).hexdigest(), described)


def _contents(examples: Examples) -> Iterable[tuple[str, str]]:
    return zip(examples.texts, examples.pairs or [""] * len(examples), strict=True)


def _per_class(examples: Examples, labels: list[str]) -> dict[str, int]:
    counts = [0] * len(labels)
    for label in examples.labels:
        counts[label] += 1
    return dict(zip(labels, counts, strict=True))


def as_label(value: Any) -> str | None:
    """Name of the class that a cell holds; None where it is blank.

    A column of whole numbers with gaps arrives as floats: ``3.0`` is class ``3`` there.
    """
    if value is None or value != value:  # NaN is the one value unlike itself
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip() or None


def class_names(labels: Iterable[str | None]) -> list[str]:
    """Sort the classes: by number if all are whole numbers, else by alphabet."""
    names = {label for label in labels if label is not None}
    if all(re.fullmatch(r"[+-]?\d+", name) for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def listing(items: Iterable[object], most: int = 5) -> str:
    """Join items for a sentence, at most so many of them."""
    shown = [str(item) for item in items]
    more = f" and {len(shown) - most:,} more" if len(shown) > most else ""
    return ", ".join(shown[:most]) + more


def summary(task: Task, data: TaskData) -> str:
    """Say how large a task is, and what the most common class alone would score."""
    most = max(map(data.eval.labels.count, range(len(data.labels)))) / len(data.eval)
    return (
        f"task {task['name']}: {len(data.train):,} items to train, {len(data.eval):,} to evaluate, "
        f"{len(data.labels)} classes; always the most common class has accuracy {most:.3f}"
    )
