"""An engine that trains nothing, so that what is left of a sweep is its overhead.

    python sweep.py -m engine.target=bench.noop.Noop …    (from the root of the repository)

Each trial gives 20 numbers and a curve of 20 points. It takes no time, or with ``BENCH_SLEEP``
between 0.2 and 2 seconds, decided by its place in the grid (rank and seed).
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from bench.arms.noop import METRICS, curve, metrics, work
from lorasweep.engines.base import Watch
from lorasweep.trial.result import Result
from lorasweep.trial.trial import Trial


class Noop:
    """Ends every trial with made-up numbers (an ``Engine``)."""

    def run(self, trials: Sequence[Trial], folder: Callable[[Trial], Path], watch: Watch) -> None:
        """Run trials one after another."""
        for trial in trials:
            work(trial["lora.r"], trial["seed"])
            points = [("train/loss", step, value) for step, value in curve(trial["lora.r"])]
            scores = metrics(trial["lora.r"], trial["seed"])
            assert len(scores) == METRICS
            watch.end(trial, Result("done", scores, points, {}, folder=folder(trial)))
