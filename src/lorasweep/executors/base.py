"""What an executor is given, whom it tells, and what it can be asked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lorasweep.trial.result import Result
from lorasweep.trial.trial import Trial


@dataclass(frozen=True)
class Job:
    """One trial to run.

    ``trial`` may differ from the one recorded under ``key``: after an OOM it is run with
    checkpointing, or in smaller device steps.
    """

    key: str
    trial: Trial
    folder: Path  # of the trial; its artefacts go into ``artifacts`` under it

    @property
    def artifacts(self) -> Path:
        """Folder for what goes into the record."""
        return self.folder / "artifacts"


class Handler(Protocol):
    """Who is told what happens: the scheduler."""

    def on_step(self, key: str, step: int, total: int, loss: float | None) -> None:
        """Take note of the progress of a trial."""

    def on_report(self, key: str, step: int, total: int, scores: Mapping[str, float]) -> bool:
        """Take note of an evaluation along the way. Returns whether to prune the trial."""

    def on_end(self, key: str, result: Result) -> None:
        """Take a trial's result."""

    def on_next(self, worker: int) -> Job | None:
        """Give another trial to a pack that has a free slot, if there is one for it."""

    def on_lost(self, worker: int, keys: Sequence[str], reason: str) -> None:
        """Take note that a worker died with these trials on it."""


class Executor(Protocol):
    """Runs packs of trials somewhere."""

    workers: int
    stopping: bool  # set to make running trials save what they need to go on, and stop

    def start(self, handler: Handler) -> None:
        """Get ready for work; everything that happens is told to ``handler``."""

    def idle(self) -> list[int]:
        """Workers that have nothing to do."""

    def submit(self, worker: int, pack: Sequence[Job]) -> None:
        """Give a pack to an idle worker."""

    def poll(self, seconds: float) -> None:
        """Wait so long at most for something to happen, and tell the handler."""

    def kill(self, worker: int) -> list[str]:
        """End a worker at once; it is replaced. Returns the keys of the trials it had."""

    def interrupt(self) -> None:
        """Break off what keeps the caller itself busy; called when a signal has come."""

    def close(self) -> None:
        """End everything at once."""
