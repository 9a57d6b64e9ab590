"""What is written and shown when a sweep ends."""

import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from lorasweep import addresses, errors, table_width
from lorasweep.errors import RecordError
from lorasweep.executors.base import Executor
from lorasweep.planning import packs
from lorasweep.record.record import Record
from lorasweep.request.request import Request
from lorasweep.running.resume import Row
from lorasweep.running.scheduler import Scheduler
from lorasweep.running.summary import collapsed, means, results
from lorasweep.search import objectives
from lorasweep.search.base import Sampler
from lorasweep.trial.trial import Trial

ROOT = Path(__file__).resolve().parents[3]  # where the Makefile is
DEFAULT = "outputs"  # record that `make ui` and its like take without being told


class Ending:
    """What is written and said when a sweep ends."""

    def __init__(
        self,
        request: Request,
        record: Record,
        sweep: str,
        sampler: Sampler,
        scheduler: Scheduler,
        executor: Executor,
    ) -> None:
        self.request, self.record, self.sweep = request, record, sweep
        self.sampler, self.scheduler, self.executor = sampler, scheduler, executor

    def close(self) -> int:
        """Close the sweep, show its table, and say how it ended. Returns the exit code."""
        scheduler, say = self.scheduler, self.scheduler.screen.say
        if scheduler.outbox.waiting:
            waiting = len(scheduler.outbox.waiting)
            say(f"{waiting} results wait on disk for the record; the same command writes them")
            if scheduler.interrupted:
                return errors.STOPPED
        if scheduler.error is not None:
            raise RecordError(f"{scheduler.error}; fix this and rerun: the sweep resumes")
        found = self.record.rows(scheduler.keys, counts=packs.counts(self.request.settings))
        rows = ordered(self.request, found)
        front = self._front(rows)
        states = [str(row["lorasweep.state"]) for row in rows]
        recorded = {k for k, row in found.items() if row["lorasweep.state"] != "stopped"}
        lost = len(scheduler.keys.keys() & scheduler.known.keys() - recorded)
        self._write(rows, states, whole=not (scheduler.stopped or lost))
        console = scheduler.screen.console
        failed = tell(self.request, rows, front, self.sampler.total, console)
        if scheduler.use.first is not None:
            say(self._seconds())
        tell_next(self.request.settings, console)
        if scheduler.stopped:
            say("stopped; the same command goes on from here")
        if scheduler.interrupted:
            return errors.STOPPED
        if lost:
            say(f"{lost} of the results are not in the record; the same command goes on from here")
            return errors.BAD_RECORD
        if failed or scheduler.gave_up:
            return errors.SOME_FAILED
        return errors.STOPPED if scheduler.stopped else errors.DONE

    def _front(self, rows: Sequence[Mapping[str, Any]]) -> list[bool]:
        """Mark the Pareto front, where there are several objectives."""
        aims = self.request.objectives
        if len(aims) < 2:
            return [False] * len(rows)
        done = [row["lorasweep.state"] == "done" for row in rows]
        points = [objectives.losses(row, aims) for row, ok in zip(rows, done, strict=True) if ok]
        marks = iter(objectives.front(points))
        found = [ok and next(marks) for ok in done]
        names = ",".join(o.name for o in aims)
        for row, best in zip(rows, found, strict=True):
            self.record.mark(row["run_id"], "lorasweep.front", names if best else "")
        return found

    def _write(
        self, rows: Sequence[Mapping[str, Any]], states: Sequence[str], *, whole: bool
    ) -> None:
        use = self.scheduler.use
        totals = {
            "sweep/trials": self.sampler.total,
            "sweep/done": states.count("done"),
            "sweep/seconds": time.time() - self.request.began,
            **{f"sweep/{part}_s": seconds for part, seconds in use.parts.items()},
        }
        if use.first is not None:
            totals["sweep/idle_share"] = use.idle_share(self.executor.workers)
        best = [float(row["eval/accuracy"]) for row in rows if "eval/accuracy" in row]
        if best:
            totals["sweep/best_accuracy"] = max(best)
        self.record.leave(self.sweep)
        self.record.close_sweep(self.sweep, totals, whole=whole)

    def _seconds(self) -> str:
        use, workers = self.scheduler.use, self.executor.workers
        assert use.first is not None
        start = use.first - self.request.began
        plural = f"{workers} workers" if workers > 1 else "1 worker"
        waited = time.time() - use.last if self.scheduler.contested and use.last else 0.0
        others = f"; then {waited:.1f} waiting for other sweeps" if waited > 5 else ""
        return (
            f"seconds: start {start:.1f}; {plural}, {100 * use.idle_share(workers):.0f} % idle; "
            f"over all of them {use}{others}"
        )


def ordered(request: Request, rows: Mapping[str, Row]) -> list[Row]:
    """Best first by the first objective; what has no value comes last."""
    return sorted(rows.values(), key=request.objectives[0].loss)


def tell(
    request: Request, rows: Sequence[Row], front: Sequence[bool], total: int, screen: Console
) -> int:
    """Show the table of a sweep and how many trials are done. Returns how many failed."""
    if rows:
        by = ", ".join(o.name for o in request.objectives)
        over_seeds = means(rows, request.varying)
        if over_seeds is not None:
            table_width.show(screen, over_seeds, ["F1 macro"])
        spare = ["trainable", "memory", "train s", "F1 macro"]
        table_width.show(screen, results(rows, by, front, request.varying), spare)
    one_class = sum(map(collapsed, rows))
    if one_class:
        many = f"{one_class} of them predict" if one_class > 1 else "1 of them predicts"
        screen.print(f"{many} one class for all items", markup=False)
    states = [row["lorasweep.state"] for row in rows]
    failed, diverged = states.count("failed") + states.count("oom"), states.count("diverged")
    seconds = time.time() - request.began
    parts = [f"{states.count('done')} of {total} trials done"]
    parts += [f"{diverged} diverged"] if diverged else []  # a result, and no failure
    text = ", ".join([*parts, f"{failed} failed", f"in {seconds:.0f} s"])
    screen.print(text, markup=False)
    return failed


def tell_next(settings: Trial, screen: Console) -> None:
    """Say how to look at the runs: in words that work from the folder one is in, as typed."""
    make = "make" if Path.cwd() == ROOT else f"make -C {shlex.quote(str(ROOT))}"
    uri = addresses.absolute(str(settings["tracking.uri"]))
    file = addresses.record_file(uri)
    if file is not None:
        place = file.parent if file.name == addresses.NAME else file
        uri = str(place.relative_to(ROOT) if place.is_relative_to(ROOT) else place)
    record = "" if uri == DEFAULT else " " + shlex.quote(f"RECORD={uri.replace('$', '$$')}")
    browse = f"with `{make} ui{record}`" if file is not None else f"at {uri}"
    told = f"compare the runs {browse}, draw them with `{make} figures{record}`"
    screen.print(told, markup=False, soft_wrap=True)  # a command is not cut
