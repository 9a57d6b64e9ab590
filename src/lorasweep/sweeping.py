"""A sweep from its record to its last table: brings sampler, executor and record together."""

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import psutil

from lorasweep import errors, packs, plan, pruning, rest
from lorasweep.addresses import ARTIFACTS
from lorasweep.app import Outcome, Request
from lorasweep.costs import devices
from lorasweep.errors import RecordError
from lorasweep.executors import environ
from lorasweep.executors.base import Executor
from lorasweep.executors.gpus import kept
from lorasweep.executors.inline import Inline
from lorasweep.executors.local import Local
from lorasweep.models import source
from lorasweep.outbox import collect
from lorasweep.record import Record
from lorasweep.samplers import Past, Sampler, objectives
from lorasweep.scheduler import History, Known, Scheduler, known_of
from lorasweep.screen import Screen, console
from lorasweep.signals import Signals
from lorasweep.trial import Trial

MOST_CPU_WORKERS = 4
_LIBRARIES = 1.0 * 2**30  # bytes that a worker holds besides its trial: torch and its kind
_RAM_SHARE = 0.6


def run(request: Request, trials: Sequence[Trial], found: plan.Plan, *, inline: bool) -> Outcome:
    """Run a sweep.

    Args:
        request: what was asked for.
        trials: of a list, those to run; of a search, its extremes.
        found: the plan of the request's trials.
        inline: run in this process rather than in workers.

    Returns:
        What became of it; exit code 0 where all is done, 1 where some trials failed, 130 where
        the user or a limit of time stopped it.

    Raises:
        RecordError: the record or the disk cannot be used.
    """
    settings = request.settings
    output = Path(str(settings["output_dir"]))
    with Signals() as signals:
        record = Record(str(settings["tracking.uri"]), output / ARTIFACTS)
        study, sampler = str(settings["name"]), request.sampler(trials)
        for sentence in collect(record, output / study):
            console().print(sentence, markup=False, style="yellow", soft_wrap=True)
        sweep = record.open_sweep(study, sampler.identity, f"`{request.command}`")
        try:
            record.join(sweep, only=sampler.remembers)
            ending = _go(request, trials, found, record, sweep, sampler, signals, inline=inline)
            scheduler = ending.scheduler
            return Outcome(ending.close(), tuple(scheduler.keys), scheduler.interrupted)
        except BaseException:
            with contextlib.suppress(RecordError):  # else the next command closes it
                record.abandon(sweep)
            raise


def _go(
    request: Request,
    trials: Sequence[Trial],
    found: plan.Plan,
    record: Record,
    sweep: str,
    sampler: Sampler,
    signals: Signals,
    *,
    inline: bool,
) -> "_Ending":
    """Run what is not in the record."""
    settings, study = request.settings, str(request.settings["name"])
    output = Path(str(settings["output_dir"])) / study
    since = record.anew(sweep) if settings["resume"] == "fresh" else 0.0
    rows = record.all()
    history = _history(rows, settings, since)
    keys = [trial.key for trial in trials]
    if sampler.remembers:
        past = record.past(sweep)
        sampler.restore(_past(past, history.known))
        keys = [past[number]["key"] for number in sorted(past) if number < sampler.total]
    ended = [key for key in keys if key in history.known]  # a search may name a trial twice
    screen = Screen(sampler.total - len(ended), request.varying)
    heard = f", {len(ended)} already in the record" if ended else ""
    screen.say(f"study '{study}', sweep {sampler.identity}: {sampler.total} trials{heard}")
    if sampler.remembers:
        for line in other_searches(record.searches(study), sampler):
            screen.say(line)
    gpus = devices.visible_gpus()[: 1 if inline else settings["executor.workers"]]
    gpus = gpus[: sampler.total]
    place = {"CUDA_VISIBLE_DEVICES": gpus[0]} if gpus else {}
    here = environ.for_trials(place, apart=False) if inline else contextlib.nullcontext()
    with _alone_on(gpus, settings), here:
        logs = output / "workers"
        start = _EXECUTORS[str(settings["executor.name"])]
        executor = Inline() if inline else start(gpus, settings, found, sampler.total, logs)
        scheduler = Scheduler(
            sampler=sampler,
            pruner=_pruner(record, rows, request),
            record=record,
            executor=executor,
            screen=screen,
            sweep=sweep,
            settings=settings,
            shared=_shared(gpus, settings, executor.workers),
            output=output,
            history=history,
            asked=ended if sampler.remembers else (),
            predicted=_predictor(found),
            room=found.room,
            signals=signals,
        )
        with screen:
            scheduler.run()
    return _Ending(request, record, sweep, sampler, scheduler, executor)


def _history(rows: Iterable[Mapping[str, Any]], settings: Trial, since: float) -> History:
    """Read what need not be run, as the user wishes to resume.

    Args:
        rows: of the record.
        settings: of the sweep.
        since: in seconds since 1970; what was started before does not count.
    """
    enough = rest.enough(settings)
    known: dict[str, Known] = {}
    ended, begun = set[str](), set[str]()
    for row in rows:
        key, state = row["lorasweep.key"], row.get("lorasweep.state")
        if row["start_time"] >= since * 1000:
            begun.add(key)
            if enough(row) and (key not in known or state == "done"):
                known[key] = known_of(row)
        if state not in (None, "stopped"):  # a result that waits may still end what was stopped
            ended.add(row["run_id"])
    return History(known, frozenset(ended), frozenset(begun))


def _past(suggestions: Mapping[int, Mapping[str, Any]], known: Mapping[str, Known]) -> list[Past]:
    """What a search has suggested so far, and how that ended; what is to be run again did not."""
    found = []
    for number, suggestion in sorted(suggestions.items()):
        ended = known.get(suggestion["key"])
        state, metrics = (None, {}) if ended is None else (ended.state, ended.metrics)
        found.append(Past(number, suggestion["values"], state, metrics))
    return found


def other_searches(
    searches: Mapping[str, Mapping[int, Mapping[str, Any]]], sampler: Sampler
) -> list[str]:
    """Name the searches that a new one may have been meant to go on from.

    Args:
        searches: what was suggested in each sweep of the study, by the sweep's name.
        sampler: that of this search; of one that has suggestions of its own nothing is said.
    """
    if searches.get(sampler.identity):
        return []
    return [
        f"another search over these settings has {len(suggestions)} trials (sweep {name}); this "
        "one differs in its values, fixed settings or sampler, and begins anew"
        for name, suggestions in searches.items()
        if {key for one in suggestions.values() for key in one["values"]} - {"seed"}
        == sampler.searched
    ]


def _pruner(
    record: Record, rows: Iterable[Mapping[str, Any]], request: Request
) -> pruning.Pruner | None:
    """Return what ends trials early, with the curves of this study's earlier ones."""
    settings = request.settings
    if settings["pruner.name"] == "none":
        return None
    earlier = [
        row
        for row in rows
        if row.get("lorasweep.study") == settings["name"] and row.get("train/total_steps")
    ]
    tasks = {t.key: pruning.task_of(t.config) for t in request.trials}
    tasks |= {row["lorasweep.key"]: pruning.task_of(row) for row in earlier}
    usual = pruning.task_of(settings.config)
    pruner = pruning.make(
        settings.config, request.objectives, cohort=lambda key: tasks.get(key, usual)
    )
    pruner.restore({row["lorasweep.key"]: _reports(record, row) for row in earlier})
    return pruner


def _reports(record: Record, row: Mapping[str, Any]) -> list[pruning.Report]:
    """Read what a trial's evaluations along the way gave."""
    scores: dict[int, dict[str, float]] = {}
    for name in ("eval/accuracy", "eval/loss"):
        for step, value in record.curve(row["run_id"], f"{name}_along"):
            scores.setdefault(step, {})[name] = value
    total = int(row["train/total_steps"])
    return [pruning.Report(step, total, found) for step, found in sorted(scores.items())]


def _predictor(found: plan.Plan) -> Any:
    """Seconds until a trial ends, by the plan; of one not planned, those of the longest."""
    share = {p.trial.key: p.seconds.total for p in found.trials}
    # trials of a pack end together, when all of their shares are over
    packs_of = ([trial.key for trial in pack] for pack in found.packs)
    seconds = {key: sum(map(share.__getitem__, pack)) for pack in packs_of for key in pack}
    longest = max(seconds.values(), default=0.0)
    return lambda trial: seconds.get(trial.key, longest)


def _alone_on(gpus: Sequence[str], settings: Trial) -> AbstractContextManager[None]:
    """Keep GPUs to a sweep while it runs, unless others may use them.

    Raises:
        RequestError: a GPU is in use by others.
    """
    if not gpus or settings["executor.shared_gpu"]:
        return contextlib.nullcontext()
    return kept(gpus, source.cache_home() / "gpus")


def _shared(gpus: Sequence[str], settings: Trial, workers: int) -> str | None:
    """Say with whom trials share their GPUs beyond their own pack; None: with nobody."""
    if gpus and settings["executor.shared_gpu"]:
        return "other programs"
    return "another worker" if 0 < len(gpus) < workers else None


def _local(gpus: Sequence[str], settings: Trial, found: plan.Plan, total: int, logs: Path) -> Local:
    """Workers: one a GPU, or as many as the cores and the memory of this machine allow."""
    asked = settings["executor.workers"]
    target = str(packs.settled(settings)["engine.target"])
    if gpus:
        chosen = [gpus[i % len(gpus)] for i in range(asked or len(gpus))]
        return Local([{"CUDA_VISIBLE_DEVICES": gpu} for gpu in chosen[:total]], target, logs)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = cores or 1
    each = max((p.memory.footprint for p in found.trials), default=0.0) + _LIBRARIES
    room = max(1, int(_RAM_SHARE * psutil.virtual_memory().available / each))
    workers = asked or min(cores, MOST_CPU_WORKERS, room)
    workers = max(1, min(workers, total))
    threads = str(max(1, cores // workers))
    return Local([{"OMP_NUM_THREADS": threads}] * workers, target, logs)


# By executor.name; config.EXECUTORS lists the names for a check that loads none of them.
_EXECUTORS: dict[str, Callable[..., Executor]] = {"local": _local}


class _Ending:
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
            raise RecordError(f"{scheduler.error}; the same command goes on when that is mended")
        found = self.record.rows(scheduler.keys, counts=packs.counts(self.request.settings))
        rows = rest.ordered(self.request, found)
        front = self._front(rows)
        states = [str(row["lorasweep.state"]) for row in rows]
        recorded = {k for k, row in found.items() if row["lorasweep.state"] != "stopped"}
        lost = len(scheduler.keys.keys() & scheduler.known.keys() - recorded)
        self._write(rows, states, whole=not (scheduler.stopped or lost))
        console = scheduler.screen.console
        failed = rest.tell(self.request, rows, front, self.sampler.total, console)
        if scheduler.use.first is not None:
            say(self._seconds())
        rest.tell_next(self.request.settings, console)
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
