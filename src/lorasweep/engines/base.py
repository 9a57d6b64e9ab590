"""What every engine is given and gives back."""

from pathlib import Path
from typing import Protocol

from lorasweep.trial import Result, Trial


class Watch(Protocol):
    """Who is told how a trial gets on, and says whether it should end."""

    stopping: bool

    def step(self, step: int, total: int, loss: float | None) -> None:
        """``step`` of ``total`` optimizer steps are done; ``loss`` where it was just read."""


class Engine(Protocol):
    """Trains and evaluates one trial; ``folder`` takes the artefacts."""

    def __call__(self, trial: Trial, folder: Path, watch: Watch) -> Result:
        """Run the trial. Never raises for what the trial did: OOM and NaN are states."""
