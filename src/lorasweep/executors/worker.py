"""A worker process: a device of its own, and an engine that keeps its base between packs.

What it says and is told goes through one pipe. When the pipe closes, the controller is gone,
and so is the worker: nobody is left to take its results.
"""

import contextlib
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from lorasweep import engines
from lorasweep.executors.base import Job
from lorasweep.executors.link import Link
from lorasweep.trial.result import Result

Packs = queue.SimpleQueue[Sequence[Job] | None]
# The controller decides what these mean, and tells.
CONTROLLERS_OWN = (signal.SIGINT, signal.SIGTERM)
STEP_EVERY_S = 0.2  # steps are told no more often: a screen is no faster


class Voice:
    """Speaks to the controller (a ``Handler`` as seen from the engine's side)."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe
        self.answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._said: dict[str, float] = {}

    def on_step(self, key: str, step: int, total: int, loss: float | None) -> None:
        """Tell the progress of a trial now and then."""
        now = time.monotonic()
        if loss is not None or now - self._said.get(key, 0.0) > STEP_EVERY_S:
            self._said[key] = now
            self.pipe.send(("step", key, step, total, loss))

    def on_report(self, key: str, step: int, total: int, scores: Mapping[str, float]) -> bool:
        """Tell an evaluation, and ask whether to go on."""
        self.pipe.send(("report", key, step, total, dict(scores)))
        return bool(self.answers.get())

    def on_end(self, key: str, result: Result) -> None:
        """Tell a result."""
        self.pipe.send(("end", key, result))

    def on_next(self, worker: int) -> Job | None:
        """Ask for another trial."""
        self.pipe.send(("next",))
        job: Job | None = self.answers.get()
        return job

    def on_lost(self, worker: int, keys: Sequence[str], reason: str) -> None:
        """Say why a pack is lost, and end: what broke the engine may have broken the process."""
        self.pipe.send(("lost", reason))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


def main(pipe: Connection, target: str, log: Path) -> None:
    """Run packs until told to quit, or until the pipe closes.

    Args:
        pipe: to the controller.
        target: the engine that is likely to be asked for, loaded while nothing else is to do.
        log: takes what libraries print while no trial runs.
    """
    for number in CONTROLLERS_OWN:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, CONTROLLERS_OWN)
    voice = Voice(pipe)
    link = Link(voice, 0)
    packs: Packs = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(pipe, link, voice, packs), daemon=True).start()
    with _log(log):
        with contextlib.suppress(Exception):  # if it can't be loaded, its trials will say why
            link.engine = target, engines.make(target)
        pipe.send(("idle",))
        while (pack := packs.get()) is not None:
            with _log(pack[0].folder / "trial.log"):
                link.run(pack)
            pipe.send(("idle",))


def _listen(pipe: Connection, link: Link, voice: Voice, packs: Packs) -> None:
    """Take in what the controller says; runs beside the engine."""
    while True:
        try:
            kind, value = pipe.recv()
        except (EOFError, OSError):
            os._exit(1)  # at once, from whatever the engine is doing
        match kind:
            case "pack":
                packs.put(value)
            case "answer":
                voice.answers.put(value)
            case "stop":
                link.stopping = True
            case "quit":
                packs.put(None)
                return


@contextlib.contextmanager
def _log(file: Path) -> Iterator[None]:
    """Send what libraries print, from Python or below it, into a trial's own file."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        log = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    except OSError:  # a full disk; the trial will say so itself
        log = os.open(os.devnull, os.O_WRONLY)
    kept = os.dup(1), os.dup(2)
    try:
        for stream in (1, 2):
            os.dup2(log, stream)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for stream, old in zip((1, 2), kept, strict=True):
            os.dup2(old, stream)
            os.close(old)
        os.close(log)
