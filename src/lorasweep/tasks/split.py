"""Rows of tables to the two sides of a task: those to train on and those to evaluate on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorasweep.errors import RequestError
from lorasweep.tasks.data import Examples, Task, TaskData, assemble, class_names, listing
from lorasweep.tasks.subset import hold_out, size_problems, subset


@dataclass(frozen=True)
class Rows:
    """The columns in use of one table, one entry a row.

    Attributes:
        where: what to call the table in a complaint.
        numbers: position of each row in its source, from 0.
        texts: the text, or the first of two.
        pairs: the second texts, where the task compares two.
        labels: names of the classes.
    """

    where: str
    numbers: Sequence[int]
    texts: list[str]
    pairs: list[str] | None
    labels: list[str]


def two_sides(
    task: Task, train: Rows, evaluation: Rows | None, names: list[str] | None = None
) -> tuple[Examples, Examples, list[str]]:
    """Return all rows to train on, all to evaluate on, and the names of the classes.

    Items are named ``train:<row>`` and ``eval:<row>``. Without an evaluation table a part of the
    training rows is held out, which keep their names.

    Args:
        task: settings; says how much to hold out, and which sizes must be there.
        train: rows to train on.
        evaluation: rows to evaluate on, if they are apart.
        names: the classes in order, if the source has one.

    Raises:
        RequestError: no task can be made of these rows.
    """
    labels = names or class_names(train.labels)
    found = []
    if len(set(train.labels)) == 1:
        found.append(f"{train.where}: has one class only ('{train.labels[0]}')")
    if evaluation is not None:
        found += _unseen(train, evaluation)
    if found:
        raise RequestError(found)
    learnt = _examples("train", train, labels)
    if evaluation is None:
        learnt, judged = _hold_out(task, train.where, learnt)
    else:
        judged = _examples("eval", evaluation, labels)
    found = size_problems(task, len(learnt), len(judged), len(set(train.labels)))
    if found:
        raise RequestError(found)
    return learnt, judged, labels


def finish(
    task: Task,
    sides: tuple[Examples, Examples, list[str]],
    provenance: Mapping[str, Any],
) -> TaskData:
    """Take the subsets that the task asks for."""
    train, evaluation, labels = sides
    seed = task["subset_seed"]
    return assemble(
        subset(train, task["train_size"], seed),
        subset(evaluation, task["eval_size"], seed),
        labels,
        provenance,
    )


def _unseen(train: Rows, evaluation: Rows) -> list[str]:
    known = set(train.labels)
    unseen = class_names(set(evaluation.labels) - known)
    if not unseen:
        return []
    return [
        f"{evaluation.where}: has labels that the training data do not: {listing(unseen)} "
        f"(they have {listing(class_names(known))})"
    ]


def _examples(side: str, rows: Rows, labels: list[str]) -> Examples:
    index = {name: position for position, name in enumerate(labels)}
    return Examples(
        ids=[f"{side}:{number}" for number in rows.numbers],
        texts=rows.texts,
        pairs=rows.pairs,
        labels=[index[label] for label in rows.labels],
    )


def _hold_out(task: Task, where: str, examples: Examples) -> tuple[Examples, Examples]:
    pairs = examples.pairs or [""] * len(examples)
    contents = [f"{text}\n{pair}" for text, pair in zip(examples.texts, pairs, strict=True)]
    train, held = hold_out(contents, examples.labels, task["eval_fraction"], task["subset_seed"])
    if not held:
        raise RequestError(
            [
                f"{where}: no class has two different texts, so none can be held out for "
                "evaluation; give evaluation data of their own"
            ]
        )
    return examples.take(train), examples.take(held)
