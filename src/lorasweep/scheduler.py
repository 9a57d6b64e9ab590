"""The loop: which trials still have to run, running them, recording what each gave."""

import hashlib
import signal
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from lorasweep import errors
from lorasweep.record import Record
from lorasweep.screen import Screen, results
from lorasweep.trial import FINAL_STATES, Result, Trial


def sweep_name(trials: Sequence[Trial]) -> str:
    """Identity of a sweep: the same set of trials is the same sweep, however it was typed."""
    keys = "".join(sorted(t.key for t in trials))
    return hashlib.sha256(keys.encode()).hexdigest()[:8]


class Clock:
    """Where the seconds of a sweep went: start, load, train, evaluate, record, other."""

    def __init__(self, started: float) -> None:
        self.started = self.last = started
        self.parts: dict[str, float] = {}

    def _add(self, part: str, seconds: float) -> None:
        self.parts[part] = self.parts.get(part, 0.0) + seconds

    def mark(self, part: str, metrics: Mapping[str, float] | None = None) -> None:
        """Book the time since the last mark; a trial's own metrics divide it further."""
        now = time.time()
        left, self.last = now - self.last, now
        for stage in ("load", "train", "eval"):
            seconds = (metrics or {}).get(f"time/{stage}_s", 0.0)
            if seconds:
                self._add(stage, seconds)
                left -= seconds
        self._add("other" if metrics is not None else part, left)

    def total(self) -> float:
        """Seconds since the start of the process."""
        return time.time() - self.started

    def __str__(self) -> str:
        """Return the parts in seconds, largest first."""
        parts = sorted(self.parts.items(), key=lambda p: -p[1])
        return ", ".join(f"{name} {seconds:.1f}" for name, seconds in parts)


@contextmanager
def _interruptible(screen: Screen) -> Iterator[None]:
    """Ctrl-C (or SIGTERM) once ends the running trial after its step; twice ends at once."""

    def stop(number: int, frame: FrameType | None) -> None:
        if screen.stopping:
            raise KeyboardInterrupt
        screen.stopping = True
        screen.say("stopping after this step; once more ends at once", style="yellow")

    before = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run(trials: Sequence[Trial], record: Record, command: str, output: Path) -> int:
    """Run what is not done yet, in order, and record it.

    Returns:
        The exit code: 0 all done, 1 some trials failed, 130 stopped by the user.
    """
    states = record.states() if trials[0]["resume"] == "continue" else {}
    todo = [t for t in trials if states.get(t.key) not in FINAL_STATES]
    name, study = sweep_name(trials), str(trials[0]["name"])
    screen = Screen(len(todo))
    skipped = len(trials) - len(todo)
    known = f", {skipped} already in the record" if skipped else ""
    screen.say(f"study '{study}', sweep {name}: {len(trials)} trials{known}")
    # Counted from the start of the process: imports are a part of what the user waits for.
    clock = Clock(psutil.Process().create_time())
    sweep = record.open_sweep(study, name, f"`{command}`")
    with screen, _interruptible(screen):
        try:
            for trial in todo:
                if screen.stopping:
                    break
                _one(trial, sweep, record, screen, output, clock)
        except KeyboardInterrupt:
            screen.stopping = True
    return _finish(trials, record, sweep, screen, clock)


def _one(
    trial: Trial, sweep: str, record: Record, screen: Screen, output: Path, clock: Clock
) -> None:
    from lorasweep.engines import trainer

    clock.mark("start")
    run_id = record.open_trial(sweep, trial, str(trial["engine.name"]))
    folder = output / trial.key
    save_config(trial, folder)
    screen.begin(trial)
    clock.mark("record")
    staging = folder / "artifacts"
    result = Result("stopped", folder=staging)
    try:
        result = trainer.run(trial, staging, screen)
    except KeyboardInterrupt:
        raise
    except Exception as error:
        # Whatever a trial raises is that trial's result; the others still run. The whole
        # traceback goes to the trial's folder, its last line to the screen and the record.
        (folder / "error.txt").write_text(traceback.format_exc())
        reason = f"{type(error).__name__}: {error}"
        result = Result("failed", error=reason.splitlines()[0], folder=staging)
    finally:
        clock.mark("trials", result.metrics)
        staging.mkdir(parents=True, exist_ok=True)
        save_config(trial, staging, hydra=False)
        record.close_trial(run_id, result)
        clock.mark("record")
    screen.end(trial, result)


def save_config(trial: Trial, folder: Path, *, hydra: bool = True) -> None:
    """Write the resolved configuration: Hydra's ``.hydra/config.yaml``, or the artefact's file."""
    import yaml

    tree: dict[str, Any] = {}
    for name, value in trial.config.items():
        *parents, leaf = name.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    file = folder / ".hydra" / "config.yaml" if hydra else folder / "config.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))


def _finish(
    trials: Sequence[Trial], record: Record, sweep: str, screen: Screen, clock: Clock
) -> int:
    """Close the sweep, show its table, and say how it ended."""
    rows = record.rows([t.key for t in trials])
    states = [row.get("lorasweep.state", "?") for row in rows.values()]
    done = states.count("done")
    totals = {
        "sweep/trials": len(trials),
        "sweep/done": done,
        "sweep/seconds": clock.total(),
        **{f"sweep/{part}_s": seconds for part, seconds in clock.parts.items()},
    }
    best = max((float(r.get("eval/accuracy", -1)) for r in rows.values()), default=-1.0)
    if best >= 0:
        totals["sweep/best_accuracy"] = best
    record.close_sweep(sweep, totals, whole=not screen.stopping)
    if rows:
        screen.console.print(results(list(rows.values())))
    failed = sum(s in ("failed", "oom", "diverged") for s in states)
    screen.say(f"{done} of {len(trials)} trials done, {failed} failed, in {clock.total():.0f} s")
    screen.say(f"seconds: {clock}")
    screen.say("compare the runs with 'make ui', draw them with 'make figures'")
    if screen.stopping:
        screen.say("stopped; the same command goes on from here")
        return errors.STOPPED
    return errors.SOME_FAILED if failed else errors.DONE
