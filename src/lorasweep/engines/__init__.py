"""Engines: what trains and evaluates trials."""

import errno
import importlib
import traceback
from pathlib import Path

from lorasweep.engines.base import Engine
from lorasweep.trial import Result


def make(target: str) -> Engine:
    """Return a new engine of the class at a dotted path (``engine.target``).

    Raises:
        ImportError, AttributeError: there is none.
    """
    module, _, name = target.rpartition(".")
    engine: Engine = getattr(importlib.import_module(module), name)()
    return engine


def failure(error: Exception, folder: Path) -> Result:
    """Return what an exception makes of a trial; the traceback goes beside its artefacts."""
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if not full:
        folder.parent.mkdir(parents=True, exist_ok=True)
        (folder.parent / "error.txt").write_text("".join(traceback.format_exception(error)))
    return Result("failed", error=reason, failure="disk" if full else "crash", folder=folder)
