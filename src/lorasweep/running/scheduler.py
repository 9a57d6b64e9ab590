"""The loop: ask for trials, give them to workers, take results, record and tell them.

No barrier: a result frees its worker at once. Trials are known by their keys; one that the
record has is not run again, one that another process runs is waited for.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from lorasweep.errors import RecordError
from lorasweep.executors.base import Executor, Job
from lorasweep.planning import packs
from lorasweep.record import leases
from lorasweep.record.record import Record
from lorasweep.running import resume, retries
from lorasweep.running.attempt import Attempt
from lorasweep.running.folders import clear, save_config
from lorasweep.running.outbox import Outbox
from lorasweep.running.progress import Screen
from lorasweep.running.resume import History, Known, known_of
from lorasweep.running.signals import Signals
from lorasweep.running.usage import Use
from lorasweep.search.base import Sampler, Suggestion
from lorasweep.search.pruners import Pruner
from lorasweep.trial.result import Failure, Result, State
from lorasweep.trial.trial import Trial

POLL_S = 0.5
_MOST_CRASHES = 6  # one after another without a trial that ended well: then the sweep stops
ELSEWHERE_S = 2.0  # how often the record is asked for trials that another process runs
# Trials looked ahead for one that suits a pack.
_AHEAD = 1024


class Scheduler:
    """Runs a sampler's trials on an executor (whose ``Handler`` it is)."""

    def __init__(
        self,
        sampler: Sampler,
        pruner: Pruner | None,
        record: Record,
        executor: Executor,
        screen: Screen,
        sweep: str,
        settings: Trial,
        shared: str | None,
        output: Path,
        history: History,
        asked: Sequence[str],
        predicted: Callable[[Trial], float],
        room: Callable[[Sequence[Trial], Trial], bool],
        signals: Signals,
    ) -> None:
        """Bring together what a sweep needs.

        Args:
            sampler: says which trials come next; restored already.
            pruner: says which trials end early, if any.
            record: where claims and results go.
            executor: where trials run.
            screen: what the user sees.
            sweep: the run of the sweep in the record.
            settings: any trial of the sweep, for what is the same in all (executor, engine).
            shared: with whom trials share their GPU beyond their own pack, if with anybody.
            output: folder of the study; each trial has one under it.
            history: what the record says.
            asked: keys of the trials that a search has had and need not run again.
            predicted: seconds that a trial will take, as planned.
            room: whether a pack has room for another trial.
            signals: the user's, caught already.
        """
        self.sampler, self.pruner, self.record = sampler, pruner, record
        self.executor, self.screen, self.sweep = executor, screen, sweep
        self.policy, self.shared = settings.group("executor"), shared
        self.fresh = settings["resume"] == "fresh"
        self.enough = resume.enough(settings)  # whether a recorded run need not be repeated
        self.patience = float(settings["tracking.patience"])
        self.pack_size = packs.most(settings)
        self.output, self.predicted, self.room, self.signals = output, predicted, room, signals
        self.known, self.ended_before = dict(history.known), history.ended
        self.begun = set(history.begun)
        self.outbox = Outbox(record, partial(record.renew, sweep), screen.say)
        self.attempts: dict[str, Attempt] = {}  # running, by key
        self.retry: deque[Attempt] = deque()
        self.ended: deque[tuple[Attempt, Result]] = deque()  # not recorded yet
        self.exhausted = False  # the sampler has nothing to start, at least for now
        self.ready: deque[Suggestion] = deque()  # asked for, not claimed yet
        self.elsewhere: dict[str, Suggestion] = {}  # claimed by another process
        self.contested: set[str] = set()  # those that ever were
        self.doubles: dict[str, list[int]] = {}  # numbers that wait for a trial under way
        self.unwritten: dict[int, dict[str, Any]] = {}  # suggestions not in the record yet
        self.keys = dict.fromkeys(asked)  # every trial that was asked for, in order
        self.states: Counter[State] = Counter()
        self.error: str | None = None  # why the sweep cannot go on
        self.stopped = False  # by the user or by a limit: no new trials
        self.interrupted = False  # by the user
        self.killed = False
        self.started = time.monotonic()
        self.fouled: set[int] = set()  # workers whose process crashed or ran out of memory
        self.crashes = 0  # since a trial ended well
        self.gave_up = False  # as there were too many
        self.use = Use()
        self._ratio: list[float] = []  # measured over predicted seconds
        self._renewed = self._looked = self._checked = time.monotonic()

    # ------------------------------------------------------------------ the loop

    def run(self) -> None:
        """Run until nothing is left, or until a signal or a limit stops it."""
        try:
            with self.signals.told(self._signal):
                first = self._ask()  # before workers are started, as perhaps nothing is left
                if first is not None:
                    self.ready.append(first)
                if self._more() and not self.stopped:
                    self.executor.start(self)
                    while not self.killed and self._turn():
                        pass
        except KeyboardInterrupt:
            self.killed = self.stopped = self.interrupted = True
        finally:
            self.executor.close()
            self._abandon()

    def _turn(self) -> bool:
        """Do what can be done now. Returns whether anything is left."""
        self._keep_alive()
        reached = self.outbox.flush()
        reason = self.outbox.hopeless(self.patience)
        if reason is not None:
            self.fail(reason)
        if reached:
            self._fill()  # before what has ended is recorded: a worker waits for less
            self._look_elsewhere()
        self._settle()
        if not self.attempts and (self.stopped or not self._more()) and not self._waits():
            return False
        self.executor.poll(POLL_S)
        self._check_times()
        return True

    def _more(self) -> bool:
        left = self.retry or self.ready or self.elsewhere or self.outbox.away
        return bool(left) or not self.exhausted

    def _waits(self) -> bool:
        """Whether to stay until the record is back, for what waits on disk to be written there."""
        return bool(self.outbox.waiting) and self.error is None and not self.interrupted

    def _keep_alive(self) -> None:
        """Renew the lease; a record that is away is seen to by the outbox."""
        if time.monotonic() - self._renewed > leases.RENEW_S:
            self._renewed = time.monotonic()
            try:
                self.record.renew(self.sweep)
            except RecordError as error:
                self.outbox.failed(error)

    def _signal(self, count: int) -> None:
        """Ctrl-C or SIGTERM: once stops as asked; twice ends at once."""
        if count == 1:
            self.interrupted = True
            self.stop()
            what = "save their state" if self.executor.stopping else "end"
            self.screen.say(
                f"stopping: running trials {what}; press Ctrl-C again to exit now", style="yellow"
            )
            return
        self.killed = self.stopped = self.interrupted = True
        self.executor.interrupt()
        if count > 2:  # whatever it is that takes so long
            raise KeyboardInterrupt

    def stop(self) -> None:
        """Start no more trials; let those that run end, or save their state, as was asked."""
        self.stopped = True
        if self.policy["on_stop"] == "checkpoint":
            self.executor.stopping = True

    def fail(self, reason: str) -> None:
        """Stop because the sweep cannot go on."""
        if self.error is None:
            self.error = reason
            self.screen.say(f"error: {reason}", style="red")
        self.stop()

    def _crashed(self, reason: str) -> None:
        """Count a process that failed; what fails every time is no fault of the trials."""
        self.crashes += 1
        if self.crashes < _MOST_CRASHES or self.gave_up:
            return
        self.gave_up = True
        self.screen.say(
            f"stopping: {self.crashes} crashes one after another and no trial done between them, "
            f"the last: {reason}; see error.txt and trial.log in the folders of {self.output}",
            style="red",
        )
        self.stop()

    def _abandon(self) -> None:
        """Close what was still under way when everything was ended at once."""
        self._settle()
        for attempt in [*self.attempts.values(), *self.retry]:
            self._close(attempt, Result("stopped", folder=self._folder(attempt) / "artifacts"))
        if self.outbox.flush(now=True):
            with suppress(RecordError):
                self._remember()

    # ----------------------------------------------------------------- dispatching

    def _fill(self) -> None:
        """Give every idle worker something to do."""
        for worker in [] if self.stopped else self.executor.idle():
            if worker in self.fouled:
                self.fouled.remove(worker)
                self.executor.kill(worker)  # what comes next begins in a clean process
                continue
            try:
                pack = self._pack(worker)
            except OSError as error:
                self.fail(f"no trial can be started: {error}")
                return
            if not pack:
                return
            self.executor.submit(worker, pack)

    def _pack(self, worker: int) -> list[Job]:
        """Take the next trial, and with it others that may share its base."""
        first = self._take(lambda _: True, worker, [])
        if first is None:
            return []
        jobs = [self._job(first)]
        # not more than its share: the other workers want some of what is left
        left = self.sampler.total - len(self.keys) + len(self.ready) + len(self.retry)
        share = first.company or 1 + left // self.executor.workers
        while len(jobs) < share and (attempt := self._join(worker)) is not None:
            jobs.append(self._job(attempt))
        return jobs

    def _on(self, worker: int) -> list[Attempt]:
        return [a for a in self.attempts.values() if a.worker == worker]

    def _join(self, worker: int) -> Attempt | None:
        """Claim another trial for a pack: rather one that reads the same texts at the same time."""
        beside = self._on(worker)
        if not beside:
            return None
        pack = [a.job for a in beside]

        def alike(trial: Trial) -> bool:
            return trial["seed"] == pack[-1]["seed"] and self.room(pack, trial)

        attempt = self._take(alike, worker, beside)
        return attempt or self._take(partial(self.room, pack), worker, beside)

    def _take(
        self, suits: Callable[[Trial], bool], worker: int, beside: Sequence[Attempt]
    ) -> Attempt | None:
        """Claim the next trial that suits; those before it that do not wait for another pack."""
        limit = self.policy["max_in_flight"]
        if self.stopped or (limit is not None and len(self.attempts) >= limit):
            return None
        for attempt in list(self.retry):
            if suits(attempt.job) and attempt.may_join(beside):
                self.retry.remove(attempt)
                return self._begin(attempt, worker)
        if any(a.company is not None for a in beside):
            return None
        while (suggestion := self._next(suits)) is not None:
            if not self._in_time(suggestion.trial):
                self.ready.appendleft(suggestion)
                return None
            run = self._claim(suggestion)
            if run is not None:
                return self._begin(Attempt(suggestion, run), worker)
            if self.outbox.away:
                return None
        return None

    def _next(self, suits: Callable[[Trial], bool]) -> Suggestion | None:
        """Return the next suggestion that suits, looking ahead; little where a search learns."""
        for suggestion in self.ready:
            if suits(suggestion.trial):
                self.ready.remove(suggestion)
                return suggestion
        reach = self.pack_size if self.sampler.remembers or self.pack_size == 1 else _AHEAD
        while len(self.ready) < reach and (asked := self._ask()) is not None:
            if suits(asked.trial):
                return asked
            self.ready.append(asked)
        return None

    def _ask(self) -> Suggestion | None:
        """Return the sampler's next suggestion that has to be run here."""
        while (suggestion := self.sampler.ask()) is not None:
            key = suggestion.trial.key
            self.keys[key] = None
            if self.sampler.remembers:
                content = {"values": dict(suggestion.values), "key": key}
                self.unwritten[suggestion.number] = content
            if key in self.known:
                if self.sampler.remembers:  # of a list, those in the record were counted before
                    self.screen.total -= 1
                self.sampler.tell(suggestion.number, self.known[key].state, self.known[key].metrics)
            elif self._under_way(key):
                self.doubles.setdefault(key, []).append(suggestion.number)
            else:
                return suggestion
        self.exhausted = True
        return None

    def _under_way(self, key: str) -> bool:
        waiting = [*(a.trial for a in self.retry), *(s.trial for s in self.ready)]
        return key in self.attempts or key in self.elsewhere or any(t.key == key for t in waiting)

    def _tell(self, suggestion: Suggestion) -> None:
        """Tell the sampler of a trial that is known now, under every number it was asked for."""
        known = self.known[suggestion.trial.key]
        for number in [suggestion.number, *self.doubles.pop(suggestion.trial.key, [])]:
            self.sampler.tell(number, known.state, known.metrics)
        self.exhausted = False

    def _remember(self) -> None:
        """Write down what the sampler suggested: no trial starts before its suggestion is kept."""
        while self.unwritten:
            number, content = next(iter(self.unwritten.items()))
            self.record.suggest(self.sweep, number, content)
            del self.unwritten[number]

    def _claim(self, suggestion: Suggestion) -> str | None:
        """Start the trial's run in the record, unless another process has it."""
        try:
            with self.use.recording():
                self._remember()
                trial = suggestion.trial
                contested = trial.key in self.contested
                engine = str(packs.settled(trial)["engine.name"])
                run = self.record.claim(
                    self.sweep,
                    trial,
                    engine,
                    name=self.screen.label(trial),
                    enough=self.enough,
                    besides=self.ended_before,
                    contested=contested,
                )
        except RecordError as error:
            self.outbox.failed(error)
            self.ready.appendleft(suggestion)
            return None
        if run is None:
            self.elsewhere[suggestion.trial.key] = suggestion
            self.contested.add(suggestion.trial.key)
        return run

    def _begin(self, attempt: Attempt, worker: int) -> Attempt:
        attempt.began = attempt.moved = time.monotonic()
        attempt.worker, attempt.used = worker, 0.0
        attempt.pack = next((a.pack for a in self._on(worker)), attempt.trial.key)
        self.attempts[attempt.trial.key] = attempt
        self.use.begin(worker, attempt.trial.key)
        self.screen.begin(attempt.trial, worker)
        return attempt

    def _job(self, attempt: Attempt) -> Job:
        folder = self._folder(attempt)
        clear(folder, state=self.fresh and attempt.trial.key not in self.begun)
        self.begun.add(attempt.trial.key)
        places = folder / ".hydra", folder / "artifacts"
        save_config(attempt.trial, *(place / "config.yaml" for place in places))
        return Job(attempt.trial.key, attempt.job, folder)

    def _folder(self, attempt: Attempt) -> Path:
        return self.output / attempt.trial.key

    # ---------------------------------------------------------- what workers tell

    def on_step(self, key: str, step: int, total: int, loss: float | None) -> None:
        """Show it (``Handler``)."""
        self._keep_alive()  # an inline executor comes back to the loop only when a trial ends
        self.attempts[key].moved = time.monotonic()
        self.screen.step(key, step, total, loss)

    def on_report(self, key: str, step: int, total: int, scores: Mapping[str, float]) -> bool:
        """Ask the pruner (``Handler``)."""
        self.attempts[key].moved = time.monotonic()
        self.screen.score(key, scores)
        return self.pruner is not None and self.pruner.report(key, step, total, scores)

    def on_next(self, worker: int) -> Job | None:
        """Give a running pack another trial of its kind, if the next one is (``Handler``)."""
        if worker in self.fouled or self.outbox.away:
            return None
        attempt = self._join(worker)
        return None if attempt is None else self._job(attempt)

    def on_end(self, key: str, result: Result) -> None:
        """Record a result, or have the trial run again (``Handler``)."""
        attempt = self._done_with(key)
        if result.state == "oom":
            result.failure = "oom"
        if result.state in ("done", "pruned", "diverged"):
            self.crashes = 0
        if result.failure in ("crash", "oom") and attempt.worker is not None:
            if result.failure == "crash" and attempt.worker not in self.fouled:
                self._crashed(str(result.error))
            # An exception may leave a process unusable: every call of CUDA fails from then on.
            self.fouled.add(attempt.worker)
        if result.failure == "disk":
            self.fail(f"no space left for {self._folder(attempt)}: {result.error}")
            result = Result("stopped", folder=result.folder)
        if result.state in ("failed", "oom") and self._retry(attempt, result):
            return
        self.ended.append((attempt, result))
        # What comes next depends on it: a search learns, a failure may end the sweep.
        if self.sampler.remembers or result.state != "done":
            self._settle()

    def _settle(self) -> None:
        """Record what has ended."""
        while self.ended:
            self._close(*self.ended.popleft())

    def on_lost(self, worker: int, keys: Sequence[str], reason: str) -> None:
        """Have the trials of a worker that died run again (``Handler``)."""
        self.fouled.discard(worker)
        self._crashed(reason)
        if len(keys) > 1:
            self._suspect(keys, reason, whole=True)
            return
        for key in keys:
            self._failed(self._done_with(key), reason, "lost")

    def _suspect(self, keys: Sequence[str], reason: str, *, whole: bool) -> None:
        """Have the trials of a pack whose process ended run again as a pack.

        What a trial shared with others is not counted against it: it would take the others with
        it until none has a chance left. Each time the packs are halved, so that it is soon alone.
        """
        together = [self._done_with(key) for key in list(self.attempts) if key in keys]
        for attempt in together:
            attempt.suspected(len(keys), whole=whole)
            self._save_error(attempt, reason)
            if self.stopped:
                folder = self._folder(attempt) / "artifacts"
                self._close(attempt, Result("stopped", error=reason, folder=folder))
        if not self.stopped:
            self.retry.extend(together)
            most = min(a.company or 1 for a in together)
            self.screen.again_together([a.trial for a in together], reason, most)

    def _failed(self, attempt: Attempt, reason: str, failure: Failure) -> None:
        """Have a trial whose process was ended run again, or record that it failed."""
        self._save_error(attempt, reason)
        folder = self._folder(attempt) / "artifacts"
        result = Result("failed", error=reason, failure=failure, folder=folder)
        if not self._retry(attempt, result):
            self._close(attempt, result)

    def _save_error(self, attempt: Attempt, reason: str) -> None:
        """Write what a trial cannot say itself to where a traceback of its own would be."""
        log = self.output / attempt.pack / "trial.log"
        seconds = time.monotonic() - attempt.moved
        text = f"{reason}\nlast heard of {seconds:.0f} s before; what was printed is in {log}\n"
        with suppress(OSError):
            (self._folder(attempt) / "error.txt").write_text(text)

    def _done_with(self, key: str) -> Attempt:
        self.use.end(key)
        return self.attempts.pop(key)

    def _retry(self, attempt: Attempt, result: Result) -> bool:
        """Put a trial that failed back in the queue, if it may be tried again."""
        failure = result.failure
        if failure is None:
            return False
        attempt.failures[failure] += 1
        change = retries.again(attempt.trial, failure, attempt.failures[failure], self.policy)
        if change is None:
            return False
        if self.stopped:  # it has not had all of its chances
            self._close(attempt, Result("stopped", error=result.error, folder=result.folder))
            return True
        if failure == "oom":
            attempt.change, attempt.company = change, 1
        self.screen.again(attempt.trial, result, retries.typed(change))
        self.retry.append(attempt)
        return True

    def _close(self, attempt: Attempt, result: Result) -> None:
        """Record a result, tell the sampler, and see whether the sweep goes on."""
        key, trial = attempt.trial.key, attempt.trial
        (self._folder(attempt) / "artifacts").mkdir(parents=True, exist_ok=True)
        self.use.add(result.metrics)
        tags = attempt.tags | ({"lorasweep.shared": self.shared} if self.shared else {})
        try:
            with self.use.recording():
                self.outbox.send(attempt.run, self._folder(attempt), result, tags)
        except OSError as error:
            self.fail(f"the result of {self.screen.label(trial)} could not be kept: {error}")
        self.states[result.state] += 1
        if result.state == "done":
            seconds = time.monotonic() - attempt.began
            self._ratio.append(seconds / max(self.predicted(trial), 1e-6))
        if result.state != "stopped":
            clear(self._folder(attempt), state=True, artifacts=False)
            self.known[key] = Known(result.state, result.metrics)
            self._tell(attempt.suggestion)
        self.screen.end(trial, result)
        failed = self.states["failed"] + self.states["oom"]
        most = 1 if self.policy["fail_fast"] else self.policy["max_failures"]
        if result.state in ("failed", "oom") and most is not None and failed >= most:
            self.screen.say(f"stopping: {failed} failed", style="red")
            self.stop()

    # ------------------------------------------------------------------- limits

    def _in_time(self, trial: Trial) -> bool:
        """Whether a trial would end within the time budget; if not, no more are started."""
        budget = self.policy["time_budget"]
        if budget is None:
            return True
        ratio = sum(self._ratio) / len(self._ratio) if self._ratio else 1.0
        end = time.monotonic() - self.started + ratio * self.predicted(trial)
        if end <= budget * 60:
            return True
        self.screen.say(
            f"executor.time_budget={budget}: {self.screen.label(trial)} would not end in time"
        )
        self.stopped = True
        return False

    def _check_times(self) -> None:
        """End workers with a trial that has taken too long; the others on them are run again.

        Trials of a pack divide the time of their process: a pack of n may take n times as long.
        """
        limit, now = self.policy["timeout"], time.monotonic()
        passed, self._checked = now - self._checked, now
        for worker in {a.worker for a in self.attempts.values() if a.worker is not None}:
            beside = self._on(worker)
            for attempt in beside:
                attempt.used += min(passed, now - attempt.began) / len(beside)
            if limit is not None and any(a.used > limit * 60 for a in beside):
                self._end_late(worker, beside, limit)

    def _end_late(self, worker: int, beside: Sequence[Attempt], limit: float) -> None:
        """End a worker. Where none of its trials has moved for as long, any may be the cause."""
        reason = f"not done after executor.timeout={limit:g} minutes"
        stuck = min(time.monotonic() - a.moved for a in beside) > limit * 60
        self.executor.kill(worker)
        self.fouled.discard(worker)
        if stuck and len(beside) > 1:
            self._suspect([a.trial.key for a in beside], reason, whole=False)
            return
        for attempt in beside:
            self._done_with(attempt.trial.key)
            if attempt.used > limit * 60:
                self._failed(attempt, reason, "timeout")
            else:
                self.retry.append(attempt)

    def _look_elsewhere(self) -> None:
        """See whether trials that another process claimed have ended, or were left by it."""
        if not self.elsewhere or time.monotonic() - self._looked < ELSEWHERE_S or self.stopped:
            return
        self._looked = time.monotonic()
        try:
            rows = self.record.rows(
                self.elsewhere, counts=lambda row: row["run_id"] not in self.ended_before
            )
        except RecordError as error:
            self.outbox.failed(error)
            return
        for key, suggestion in list(self.elsewhere.items()):
            row = rows.get(key, {})
            if self.enough(row) or row.get("lorasweep.state") in ("failed", "oom"):
                del self.elsewhere[key]
                self.known[key] = known_of(row)
                self._tell(suggestion)
                self.screen.elsewhere(suggestion.trial, row)
            elif not self.attempts and not self.retry:
                # Its owner is gone, or has ended it in a way that is not enough here: claim it.
                del self.elsewhere[key]
                self.ready.append(suggestion)
