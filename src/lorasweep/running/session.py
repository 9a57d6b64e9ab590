"""One sweep from its record to its last table: brings sampler, executor and record together."""

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import psutil

from lorasweep.addresses import ARTIFACTS
from lorasweep.console import console
from lorasweep.costs import devices
from lorasweep.errors import RecordError
from lorasweep.executors import environ
from lorasweep.executors.base import Executor
from lorasweep.executors.gpus import kept
from lorasweep.executors.inline import Inline
from lorasweep.executors.local import Local
from lorasweep.models import source
from lorasweep.planning import packs, plan
from lorasweep.record.record import Record
from lorasweep.request.request import Request
from lorasweep.running.ending import Ending
from lorasweep.running.outbox import collect
from lorasweep.running.progress import Screen
from lorasweep.running.resume import history_of, other_searches, past_suggestions, reports
from lorasweep.running.scheduler import Scheduler
from lorasweep.running.signals import Signals
from lorasweep.running.sweep import Outcome
from lorasweep.search import pruners
from lorasweep.search.base import Sampler
from lorasweep.trial import naming
from lorasweep.trial.trial import Trial

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
        How it ended; exit code 0 where all is done, 1 where some trials failed, 130 where
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
) -> Ending:
    """Run what is not in the record."""
    settings, study = request.settings, str(request.settings["name"])
    output = Path(str(settings["output_dir"])) / study
    since = record.anew(sweep) if settings["resume"] == "fresh" else 0.0
    rows = record.all()
    history = history_of(rows, settings, since)
    keys = [trial.key for trial in trials]
    if sampler.remembers:
        past = record.past(sweep)
        sampler.restore(past_suggestions(past, history.known))
        keys = [past[number]["key"] for number in sorted(past) if number < sampler.total]
    ended = [key for key in keys if key in history.known]  # a search may name a trial twice
    screen = Screen(sampler.total - len(ended), request.varying)
    heard = f", {len(ended)} already in the record" if ended else ""
    trials_in_all = naming.counted(sampler.total, "trial")
    screen.say(f"study '{study}', sweep {sampler.identity}: {trials_in_all}{heard}")
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
    return Ending(request, record, sweep, sampler, scheduler, executor)


def _pruner(
    record: Record, rows: Iterable[Mapping[str, Any]], request: Request
) -> pruners.Pruner | None:
    """Return what ends trials early, with the curves of this study's earlier ones."""
    settings = request.settings
    if settings["pruner.name"] == "none":
        return None
    earlier = [
        row
        for row in rows
        if row.get("lorasweep.study") == settings["name"] and row.get("train/total_steps")
    ]
    tasks = {t.key: pruners.task_of(t.config) for t in request.trials}
    tasks |= {row["lorasweep.key"]: pruners.task_of(row) for row in earlier}
    usual = pruners.task_of(settings.config)
    pruner = pruners.make(
        settings.config, request.objectives, cohort=lambda key: tasks.get(key, usual)
    )
    pruner.restore({row["lorasweep.key"]: reports(record, row) for row in earlier})
    return pruner


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


# By executor.name; space.checks.EXECUTORS lists the names for a check that loads none of them.
_EXECUTORS: dict[str, Callable[..., Executor]] = {"local": _local}
