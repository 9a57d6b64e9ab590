"""Engines that fail on purpose, chosen by ``engine.target=tests.e2e.faulty.…``.

What goes wrong, and how often, comes through the environment, which workers inherit:

- ``FAULTY``: a folder; every start of a trial is noted in it, a line each in ``starts``.
  Of packs their ranks are noted in ``packs``, and in ``devices`` the GPU that was given.
- ``FAULTY_STEPS``, ``FAULTY_STEP_S``: length of a ``NoTorch`` trial, and of its steps.
- ``FAULTY_<KIND>=r:n,…``: trials of rank ``r`` fail so in their first ``n`` attempts.
"""

import hashlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

from lorasweep import engines
from lorasweep.engines.base import Engine, Watch
from lorasweep.trial.result import Result
from lorasweep.trial.trial import Trial

HOME = Path(os.environ.get("FAULTY", "."))
FAIL_AT = 3  # the step in which real trainings fail


def note(trial: Trial, what: str) -> int:
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
    wanted = dict(w.split(":") for w in os.environ.get(f"FAULTY_{kind}", "").split(",") if w)
    times = wanted.get(str(trial["lora.r"]))
    return times is not None and note(trial, kind.lower()) <= int(times)


class NoTorch:
    """Trials of made-up results that take as long as asked; they stop and go on like real ones.

    Their results depend on every step taken: a step lost or done twice would change them.
    """

    broken = False  # as a process is after a device-side assertion: everything fails from now on

    def run(self, trials: Sequence[Trial], folder: Callable[[Trial], Path], watch: Watch) -> None:
        with (HOME / "devices").open("a") as log:
            log.write(os.environ.get("CUDA_VISIBLE_DEVICES", "-") + "\n")
        for trial in trials:
            note(trial, "starts")
            busy = HOME / "busy" / str(os.getpid())
            busy.parent.mkdir(exist_ok=True)
            busy.touch()
            if len(list(busy.parent.iterdir())) > 1:
                note(trial, "overlaps")
            try:
                result = self._one(trial, folder(trial), watch)
            except Exception as error:
                result = engines.failure(error, folder(trial))
            busy.unlink()
            watch.end(trial, result)

    def _one(self, trial: Trial, folder: Path, watch: Watch) -> Result:
        folder.mkdir(parents=True, exist_ok=True)
        if due("KILL", trial):
            os.kill(os.getpid(), signal.SIGKILL)
        if due("STICK", trial):
            self.broken = True
        if due("CRASH", trial) or self.broken:
            raise ValueError("injected")
        steps, pause = int(os.environ["FAULTY_STEPS"]), float(os.environ["FAULTY_STEP_S"])
        if due("SLOW", trial):
            pause = 60.0
        state = folder.parent / "state" / "steps.json"
        origin = {"step": 0, "sum": f"{trial['lora.r']} {trial['lora.alpha']}"}
        at = json.loads(state.read_text()) if state.exists() else origin
        for step in range(at["step"] + 1, steps + 1):
            time.sleep(pause)
            at = {"step": step, "sum": hashlib.sha256(at["sum"].encode()).hexdigest()}
            watch.step(trial, step, steps, 1 / step)
            if watch.stopping and step < steps:
                state.parent.mkdir(exist_ok=True)
                state.write_text(json.dumps(at))
                return Result("stopped", folder=folder)
        if due("OOM", trial):
            return Result("oom", error="injected", folder=folder)
        score = int(at["sum"][:6], 16) / 16**6
        (folder / "predictions.txt").write_text(at["sum"] * 1000)
        metrics = {"eval/accuracy": score, "eval/loss": 1 - score, "train/loss": score / 2}
        return Result("done", metrics, [("train/loss", steps, score / 2)], folder=folder)


class Packed:
    """Made-up trials side by side; one of them can end the process, hang, or break the engine."""

    def run(self, trials: Sequence[Trial], folder: Callable[[Trial], Path], watch: Watch) -> None:
        with (HOME / "packs").open("a") as log:
            log.write(" ".join(str(trial["lora.r"]) for trial in trials) + "\n")
        for trial in trials:
            note(trial, "starts")
        steps, pause = int(os.environ["FAULTY_STEPS"]), float(os.environ["FAULTY_STEP_S"])
        for step in range(1, steps + 1):
            time.sleep(pause * len(trials))  # as long as if they came one after another
            for trial in trials:
                watch.step(trial, step, steps, None)
            if step == FAIL_AT:
                self._fail(trials)
        for trial in trials:
            folder(trial).mkdir(parents=True, exist_ok=True)
            scores = {"eval/accuracy": 1 / trial["lora.r"], "eval/loss": 0.5}
            watch.end(trial, Result("done", scores, folder=folder(trial)))

    @staticmethod
    def _fail(trials: Sequence[Trial]) -> None:
        due_now = {kind for kind in ("KILL", "HANG", "STICK") for t in trials if due(kind, t)}
        if "KILL" in due_now:
            os.kill(os.getpid(), signal.SIGKILL)
        if "HANG" in due_now:
            time.sleep(600)
        if "STICK" in due_now:
            raise RuntimeError("CUDA error: device-side assert triggered (injected)")


class Trainer:
    """The reference engine, with trainings that fail in their third step."""

    def __init__(self) -> None:
        from lorasweep.engines.trainer import TrainerEngine

        self.engine: Engine = TrainerEngine()

    def run(self, trials: Sequence[Trial], folder: Callable[[Trial], Path], watch: Watch) -> None:
        for trial in trials:
            note(trial, "starts")
            with _nan() if due("NAN", trial) else nullcontext():
                self.engine.run([trial], folder, _Failing(watch, trial))


@contextmanager
def _nan() -> Iterator[None]:
    """Losses are no numbers."""
    import transformers

    with patch.object(transformers.Trainer, "compute_loss", _lost(transformers.Trainer)):
        yield


def _lost(trainer: Any) -> Callable[..., Any]:
    compute = trainer.compute_loss

    def lost(self: Any, *arguments: Any, **more: Any) -> Any:
        found = compute(self, *arguments, **more)
        return found * float("nan") if self.model.training else found

    return lost


class _Failing:
    """A watch in whose ``step`` things go wrong."""

    def __init__(self, watch: Watch, trial: Trial) -> None:
        self.watch = watch
        self.kill, self.oom = due("KILL", trial), due("OOM", trial)

    @property
    def stopping(self) -> bool:
        return self.watch.stopping

    def step(self, trial: Trial, step: int, total: int, loss: float | None) -> None:
        import torch

        time.sleep(float(os.environ["FAULTY_STEP_S"]) if loss is None else 0.0)
        if loss is None:  # else it is told a second time, with its loss
            note(trial, "steps")
        if step == FAIL_AT and self.kill:
            os.kill(os.getpid(), signal.SIGKILL)
        if step == FAIL_AT and self.oom:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory (injected)")
        self.watch.step(trial, step, total, loss)

    def report(self, trial: Trial, step: int, scores: Mapping[str, float]) -> bool:
        return self.watch.report(trial, step, scores)

    def end(self, trial: Trial, result: Result) -> None:
        self.watch.end(trial, result)

    def next(self) -> Trial | None:
        return None
