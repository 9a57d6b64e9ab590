"""Tasks: text → examples → tokens → metrics.

Where the texts come from is one module each: `reviews5` (a package), `hub`, `files`.
"""

from pathlib import Path
from typing import Protocol

from lorasweep.errors import RequestError, nearest
from lorasweep.tasks import files, hub, reviews5
from lorasweep.tasks.data import Examples, Task, TaskData, listing
from lorasweep.tasks.scoring import metrics
from lorasweep.tasks.tokens import tokenise

__all__ = ["Examples", "Task", "TaskData", "digest", "load", "metrics", "problems", "tokenise"]


class _Source(Protocol):
    def problems(self, task: Task) -> list[str]: ...

    def load(self, task: Task, cache: Path) -> TaskData: ...


_SOURCES: dict[str, _Source] = {"reviews5": reviews5, "hub": hub, "files": files}


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
    return _SOURCES[source].problems(task)


def digest(task: Task) -> str | None:
    """Hash of local files' content, a part of the trial's key; None for pinned sources."""
    return files.digest(task) if task["source"] == "files" else None


def load(task: Task, cache: Path) -> TaskData:
    """Return the items that a trial trains on and is judged by.

    Args:
        task: the settings of the group ``task``, without prefix.
        cache: folder for what was fetched; made if need be.

    Raises:
        LorasweepError: the data cannot be had.
        RequestError: the settings do not fit the data; holds every problem found.
    """
    source = _SOURCES.get(task["source"])
    if source is None:
        raise RequestError(problems(task))
    return source.load(task, cache)
