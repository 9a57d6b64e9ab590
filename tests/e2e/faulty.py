"""Engines that fail on purpose, chosen by ``engine.target=tests.e2e.faulty.…``.

What goes wrong, and how often, comes through the environment, which workers inherit:

- ``FAULTY``: a folder; every start of a trial is noted in it, a line each in ``starts``.
- ``FAULTY_STEPS``, ``FAULTY_STEP_S``: length of a ``NoTorch`` trial, and of its steps.
- ``FAULTY_<KIND>=r:n``: trials of rank ``r`` fail so in their first ``n`` attempts.
"""

import hashlib
import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from lorasweep import engines
from lorasweep.engines.base import Watch
from lorasweep.trial import Result, Trial

HOME = Path(os.environ.get("FAULTY", "."))


def note(trial: Trial, what: str = "starts") -> int:
    """Count what happens to a trial; returns how often it has, this time included."""
    line = f"{trial['lora.r']}\n".encode()
    log = os.open(HOME / what, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(log, line)  # one write to a file opened so: whole lines, whoever else writes
    finally:
        os.close(log)
    return (HOME / what).read_bytes().split(b"\n").count(line.strip())


def due(kind: str, trial: Trial) -> bool:
    """Whether this attempt of this trial is to fail in this way."""
    rank, _, times = os.environ.get(f"FAULTY_{kind}", "").partition(":")
    return rank == str(trial["lora.r"]) and note(trial, kind.lower()) <= int(times)


class NoTorch:
    """Trials of made-up results that take as long as asked; they stop and go on like real ones.

    Their results depend on every step taken: a step lost or done twice would change them.
    """

    def run(self, trials: Sequence[Trial], folder: Callable[[Trial], Path], watch: Watch) -> None:
        for trial in trials:
            note(trial)
            try:
                result = self._one(trial, folder(trial), watch)
            except Exception as error:
                result = engines.failure(error, folder(trial))
            watch.end(trial, result)

    def _one(self, trial: Trial, folder: Path, watch: Watch) -> Result:
        folder.mkdir(parents=True, exist_ok=True)
        if due("KILL", trial):
            os.kill(os.getpid(), signal.SIGKILL)
        if due("CRASH", trial):
            raise ValueError("injected")
        steps, pause = int(os.environ["FAULTY_STEPS"]), float(os.environ["FAULTY_STEP_S"])
        if due("SLOW", trial):
            pause = 60.0
        state = folder.parent / "state" / "steps.json"
        begun = json.loads(state.read_text()) if state.exists() else {"step": 0, "sum": trial.key}
        for step in range(begun["step"] + 1, steps + 1):
            time.sleep(pause)
            begun = {"step": step, "sum": hashlib.md5(begun["sum"].encode()).hexdigest()}
            watch.step(trial, step, steps, 1 / step)
            if watch.stopping and step < steps:
                state.parent.mkdir(exist_ok=True)
                state.write_text(json.dumps(begun))
                return Result("stopped", folder=folder)
        if due("OOM", trial):
            return Result("oom", error="injected", folder=folder)
        score = int(begun["sum"][:6], 16) / 16**6
        (folder / "predictions.txt").write_text(begun["sum"])
        metrics = {"eval/accuracy": score, "eval/loss": 1 - score, "train/loss": score / 2}
        return Result("done", metrics, [("train/loss", steps, score / 2)], folder=folder)
