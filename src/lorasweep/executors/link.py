"""An engine's watch that speaks for the trials of one pack, whoever listens."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from lorasweep import engines
from lorasweep.engines.base import Engine
from lorasweep.executors.base import Handler, Job
from lorasweep.trial.result import Result
from lorasweep.trial.trial import Trial


class Link:
    """Passes on what an engine tells, under the keys that the trials are recorded by."""

    def __init__(self, handler: Handler, worker: int) -> None:
        self.handler, self.worker = handler, worker
        self.stopping = False
        self.jobs: dict[str, Job] = {}
        self.totals: dict[str, int] = {}  # steps that each trial will have
        self.engine: tuple[str, Engine] | None = None

    def run(self, pack: Sequence[Job]) -> None:
        """Run a pack with the engine that its trials ask for; every trial gets a result."""
        self.jobs = {job.trial.key: job for job in pack}
        first = pack[0].trial
        try:
            with engines.threads(first):
                self._engine(first).run([job.trial for job in pack], self._artifacts, self)
        except Exception as error:
            self._broken([(j, engines.failure(error, j.artifacts)) for j in self.jobs.values()])
        for job in list(self.jobs.values()):
            lost = Result("failed", error="the engine returned without a result", failure="crash")
            self.end(job.trial, lost)

    def _broken(self, failed: Sequence[tuple[Job, Result]]) -> None:
        """Tell of an engine that raised: of several trials, nobody knows which made it."""
        if len(failed) > 1 and failed[0][1].failure == "crash":
            self.jobs.clear()
            keys = [job.key for job, _ in failed]
            self.handler.on_lost(self.worker, keys, str(failed[0][1].error))
            return
        for job, result in failed:
            self.end(job.trial, result)

    def _engine(self, trial: Trial) -> Engine:
        """Return the engine, the one of the last pack where it is the same."""
        target = str(trial["engine.target"])
        if self.engine is None or self.engine[0] != target:
            self.engine = None  # frees its base first
            self.engine = target, engines.make(target)
        return self.engine[1]

    def _artifacts(self, trial: Trial) -> Path:
        return self.jobs[trial.key].artifacts

    # ------------------------------------------------------------ what engines call

    def step(self, trial: Trial, step: int, total: int, loss: float | None) -> None:
        """Pass on (``Watch``)."""
        self.totals[trial.key] = total
        self.handler.on_step(self.jobs[trial.key].key, step, total, loss)

    def report(self, trial: Trial, step: int, scores: Mapping[str, float]) -> bool:
        """Pass on (``Watch``)."""
        total = self.totals.get(trial.key, step)
        return self.handler.on_report(self.jobs[trial.key].key, step, total, scores)

    def end(self, trial: Trial, result: Result) -> None:
        """Pass on (``Watch``)."""
        self.handler.on_end(self.jobs.pop(trial.key).key, result)

    def next(self) -> Trial | None:
        """Pass on (``Watch``)."""
        job = None if self.stopping else self.handler.on_next(self.worker)
        if job is None:
            return None
        self.jobs[job.trial.key] = job
        return job.trial
