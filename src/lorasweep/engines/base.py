"""What every engine is given and gives back."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from lorasweep.trial.result import Result
from lorasweep.trial.trial import Trial


class DivergedError(Exception):
    """The loss, or what was trained, is no longer a number."""


def finite(loss: float, step: int, what: str = "the loss") -> float:
    """Return a loss that was read at a step.

    Raises:
        DivergedError: it is no number.
    """
    if not math.isfinite(loss):
        raise DivergedError(f"{what} was {loss} at step {step}")
    return loss


def diverged_weights(step: int) -> DivergedError:
    """Return the error for a training that leaves weights that are no numbers."""
    return DivergedError(f"weights were nan or infinite at step {step}")


def warmup_steps(trial: Trial, total: int) -> int:
    """Return in how many of the steps the learning rate grows.

    It is zero in the first of them, so that a training of a single step would train nothing.
    """
    return 0 if total == 1 else math.ceil(total * trial["train.warmup"])


class Watch(Protocol):
    """Who is told how trials get on, and who says what becomes of them."""

    stopping: bool  # save what is needed to go on (`Folders.state`), end as "stopped"

    def step(self, trial: Trial, step: int, total: int, loss: float | None) -> None:
        """``step`` of ``total`` optimizer steps are done; ``loss`` where it was just read."""

    def report(self, trial: Trial, step: int, scores: Mapping[str, float]) -> bool:
        """Tell what an evaluation along the way gave. Returns whether to prune the trial."""

    def end(self, trial: Trial, result: Result) -> None:
        """Tell that a trial has ended. Its artefacts are complete and may be moved away."""

    def next(self) -> Trial | None:
        """Ask for another trial for the same pack: a slot is free. None: end with the others."""


class Engine(Protocol):
    """Trains and evaluates the trials of a pack; stays alive between packs and keeps its base."""

    def run(self, trials: Sequence[Trial], folder: Callable[[Trial], Path], watch: Watch) -> None:
        """Run trials to their ends, each told to ``watch`` with its result.

        Never raises for what one trial did: OOM, NaN and failure are states of that trial.

        Args:
            trials: the pack; one trial for engines that know no packs.
            folder: where a trial's artefacts go (``predictions.parquet``, ``adapter/``); beside
                it, in ``folder(trial).parent / "state"``, lies what a stopped trial goes on from.
            watch: is told of every step, evaluation and end.
        """
