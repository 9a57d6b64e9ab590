"""Worker processes on this machine: one a GPU, or as many as asked for on the CPU."""

import contextlib
import multiprocessing
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType

import psutil

from lorasweep.executors import environ, worker
from lorasweep.executors.base import Handler, Job

_QUIT_S = 5.0  # how long a worker may take to leave
_SOON_S = 0.01  # and, after the last end of a pack, to say that it is idle
# Each starts from nothing: no memory, no CUDA state and no locks of the controller's.
_FRESH = multiprocessing.get_context("spawn")


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    keys: set[str] = field(default_factory=set)  # of the trials on it
    ready: bool = False  # its engine is loaded and has nothing to do
    error: str | None = None  # why it ends, if it said so


class Local:
    """Workers that each keep one device, started when there is work for them."""

    def __init__(self, places: Sequence[Mapping[str, str]], target: str, logs: Path) -> None:
        """Prepare workers.

        Args:
            places: for each worker the environment that gives it its device and threads.
            target: the engine to load while a worker starts.
            logs: folder for what workers print outside of trials.
        """
        self.places, self.target, self.logs = places, target, logs
        self.workers, self.stopping = len(places), False
        self._told = False
        self._workers: dict[int, _Worker] = {}

    def start(self, handler: Handler) -> None:
        """Start the workers; they load their libraries while the controller goes on."""
        self.handler = handler
        for number in range(len(self.places)):
            self._spawn(number)

    def _spawn(self, number: int) -> None:
        ours, theirs = _FRESH.Pipe()
        resource_tracker.ensure_running()  # would be born with the worker, and undo the mask
        log = self.logs / f"worker_{number}.log"
        process = _FRESH.Process(
            target=worker.main, args=(theirs, self.target, log), name=f"lorasweep-{number}"
        )
        with environ.for_trials(self.places[number], apart=True), _deaf(), _without_main():
            process.start()
        theirs.close()  # or its end would never be seen
        self._workers[number] = _Worker(process, ours)

    def idle(self) -> list[int]:
        """Workers without trials; one that was lost is started anew."""
        for number in range(len(self.places)):
            if number not in self._workers and not self.stopping:
                self._spawn(number)
        return [n for n, w in sorted(self._workers.items()) if w.ready and not w.keys]

    def submit(self, worker: int, pack: Sequence[Job]) -> None:
        """Send the pack to the worker."""
        found = self._workers[worker]
        found.keys, found.ready = {job.key for job in pack}, False
        self._send(worker, ("pack", list(pack)))

    def _send(self, number: int, message: tuple[str, object]) -> None:
        # One that is dead is found by `poll`, which says what was lost.
        with contextlib.suppress(OSError):
            self._workers[number].pipe.send(message)

    def poll(self, seconds: float) -> None:
        """Take what the workers say."""
        if self.stopping and not self._told:
            self._told = True
            for number in self._workers:
                self._send(number, ("stop", None))
        pipes = {w.pipe: n for n, w in self._workers.items()}
        if not pipes:
            time.sleep(seconds)
        for pipe in wait(list(pipes), seconds):
            assert isinstance(pipe, Connection)
            self._hear(pipes[pipe], pipe)

    def _hear(self, number: int, pipe: Connection) -> None:
        """Take all that waits in a pipe, or note that nobody is at its other end.

        After the last end of a pack that is also what the worker says next, at once: it shall
        not wait for its next pack while the scheduler writes down the last one.
        """
        found = self._workers[number]
        try:
            while pipe.poll(0 if found.keys or found.ready else _SOON_S):
                self._take(number, pipe.recv())
        except (EOFError, OSError):
            self._lost(number)

    def _take(self, number: int, message: tuple[object, ...]) -> None:
        found = self._workers[number]
        match message:
            case ("idle",):
                found.ready = True
            case ("step", str(key), int(step), int(total), loss):
                self.handler.on_step(key, step, total, loss)  # type: ignore[arg-type]
            case ("report", str(key), int(step), int(total), dict(scores)):
                prune = self.handler.on_report(key, step, total, scores)
                self._send(number, ("answer", prune))
            case ("end", str(key), result):
                found.keys.discard(key)
                self.handler.on_end(key, result)  # type: ignore[arg-type]
            case ("lost", str(reason)):
                found.error = reason
            case ("next",):
                job = self.handler.on_next(number)
                if job is not None:
                    found.keys.add(job.key)
                self._send(number, ("answer", job))

    def _lost(self, number: int) -> None:
        said = self._workers[number].error
        keys, code = self._forget(number)
        reason = said or f"the worker process ended by itself (exit code {code})"
        self.handler.on_lost(number, keys, reason)

    def _forget(self, number: int) -> tuple[list[str], int | None]:
        found = self._workers.pop(number)
        found.pipe.close()
        found.process.join(5)
        return sorted(found.keys), found.process.exitcode

    def kill(self, worker: int) -> list[str]:
        """End a worker at once; it is replaced. Returns the keys of the trials it had."""
        _end(self._workers[worker].process)
        return self._forget(worker)[0]

    def interrupt(self) -> None:
        """Nothing keeps the caller busy."""

    def close(self) -> None:
        """End all workers: those that have nothing to do may leave by themselves."""
        for number, found in self._workers.items():
            if found.keys or not found.ready:
                _end(found.process)
            else:
                self._send(number, ("quit", None))
        for found in self._workers.values():
            found.process.join(_QUIT_S)
            _end(found.process)
            found.process.join(_QUIT_S)  # one that hangs in the kernel is not waited for
            found.pipe.close()
        self._workers.clear()


def _end(process: BaseProcess) -> None:
    """End a process and what it started (compilers, loaders of data), whatever they do."""
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
    process.kill()


@contextmanager
def _without_main() -> Iterator[None]:
    """Have child processes be born without the caller's script.

    They would run it again on their way to the worker: in vain, and in a script that sweeps
    without ``if __name__ == "__main__"`` it would sweep again.
    """
    main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextmanager
def _deaf() -> Iterator[None]:
    """Have child processes be born deaf to Ctrl-C, which a terminal sends to them too.

    Until a worker says itself what it does with signals they wait, for the worker and for us.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, worker.CONTROLLERS_OWN)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
