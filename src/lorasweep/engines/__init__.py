"""Engines: what trains and evaluates trials."""

import errno
import importlib
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lorasweep.engines.base import Engine
from lorasweep.errors import LorasweepError
from lorasweep.trial.result import Result
from lorasweep.trial.trial import Trial


def make(target: str) -> Engine:
    """Return a new engine of the class at a dotted path (``engine.target``).

    Raises:
        ImportError, AttributeError: there is none.
    """
    module, _, name = target.rpartition(".")
    engine: Engine = getattr(importlib.import_module(module), name)()
    return engine


@contextmanager
def threads(trial: Trial) -> Iterator[None]:
    """Run trials like this one on as many threads as are part of their results.

    How a CPU divides a product among threads decides its last bits, and the number of workers
    how many threads each has: ``strict`` trials have one, whatever else runs on the machine.
    """
    import torch

    if trial["engine.exactness"] != "strict" or torch.cuda.is_available():
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def failure(error: Exception, folder: Path) -> Result:
    """Return what an exception makes of a trial; the traceback goes beside its artefacts.

    What we refuse ourselves, in a sentence, would be refused again.
    """
    if isinstance(error, LorasweepError):
        return Result("failed", error=str(error), folder=folder)
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    full = _disk_full(error)
    if not full:
        folder.parent.mkdir(parents=True, exist_ok=True)
        (folder.parent / "error.txt").write_text("".join(traceback.format_exception(error)))
    return Result("failed", error=reason, failure="disk" if full else "crash", folder=folder)


def _disk_full(error: BaseException | None) -> bool:
    """Whether an exception, or one that led to it, came of a full disk.

    Libraries in other languages say so in words only.
    """
    if error is None:
        return False
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    said = any(word in str(error) for word in (os.strerror(errno.ENOSPC), "os error 28"))
    return said or _disk_full(error.__cause__ or error.__context__)
