"""Where texts come from: a package, a hub, or the user's own files."""

import importlib
from pathlib import Path
from typing import Protocol, cast

from lorasweep.errors import RequestError, nearest
from lorasweep.tasks.data import Task, TaskData, listing


class _Source(Protocol):
    def problems(self, task: Task) -> list[str]: ...

    def load(self, task: Task, cache: Path) -> TaskData: ...


_TOKENS_A_WORD = 1.35  # English in usual vocabularies of 30,000 to 130,000 pieces
_SOURCES = ("reviews5", "hub", "files")


def _source(name: str) -> _Source:
    """Load the module of a source; a plan needs few of them."""
    return cast("_Source", importlib.import_module(f"{__name__}.{name}"))


def problems(task: Task) -> list[str]:
    """Check a task before the first trial: everything wrong with it, or an empty list.

    Reads local files, asks a hub one question at most, and downloads nothing.

    Args:
        task: the settings of the group ``task``, without prefix.
    """
    source = str(task["source"])
    if source not in _SOURCES:
        return [
            f"task.source={source}: not known{nearest(source, _SOURCES)} "
            f"(known: {listing(_SOURCES)})"
        ]
    return _source(source).problems(task)


def digest(task: Task) -> str | None:
    """Hash of local files' content, a part of the trial's key; None for pinned sources."""
    if task["source"] != "files":
        return None
    from lorasweep.tasks.sources import files

    return files.digest(task)


def sizes(task: Task, cache: Path) -> tuple[int, int, int, float | None]:
    """Describe a task for a plan, without fetching anything.

    Local files are read; of a hub's data, the sizes that were asked for are believed.

    Returns:
        Numbers of classes, training and evaluation items, and of tokens in a text (about; None
        where texts are taken to fill the longest length).
    """
    if task["source"] == "files":
        data = load(task, cache)
        words = sum(len(text.split()) for text in data.train.texts) / len(data.train)
        return len(data.labels), len(data.train), len(data.eval), words * _TOKENS_A_WORD
    rows, tokens = (0, 0), None
    if task["source"] == "reviews5":
        from lorasweep.tasks.sources import reviews5

        rows, tokens = (reviews5.TRAIN_ROWS, reviews5.EVAL_ROWS), reviews5.TOKENS
    train, evaluation = task["train_size"] or rows[0], task["eval_size"] or rows[1]
    return int(task["classes"] or 2), int(train), int(evaluation), tokens


def load(task: Task, cache: Path) -> TaskData:
    """Return the items that a trial trains on and is judged by.

    Args:
        task: the settings of the group ``task``, without prefix.
        cache: folder for what was fetched; made if need be.

    Raises:
        LorasweepError: the data cannot be had.
        RequestError: the settings do not fit the data; holds every problem found.
    """
    if task["source"] not in _SOURCES:
        raise RequestError(problems(task))
    return _source(str(task["source"])).load(task, cache)
