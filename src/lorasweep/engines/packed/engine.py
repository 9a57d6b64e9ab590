"""The engine: the pack's loop from the first step to the last result."""

import logging
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import datasets
import torch
import transformers

from lorasweep import engines
from lorasweep.engines import environment, memory
from lorasweep.engines.base import Watch
from lorasweep.engines.packed import state
from lorasweep.engines.packed.bank import Bank
from lorasweep.engines.packed.base import Base
from lorasweep.engines.packed.compat import base_of
from lorasweep.engines.packed.evaluation import Verdict, evaluate
from lorasweep.engines.packed.member import DivergedError, Member
from lorasweep.trial import Result, Trial

log = logging.getLogger(__name__)
T = TypeVar("T")


class Pack:
    """Trials under way on one base.

    A pass that fails is taken back; half of its trials then wait until the others have ended.
    So an OOM costs a pass, and an error is in the end that of the trial that makes it.
    """

    def __init__(self, base: Base, folder: Callable[[Trial], Path], watch: Watch) -> None:
        self.base, self.folder, self.watch = base, folder, watch
        self.active: list[Member] = []
        self.waiting: list[Member] = []

    # ----------------------------------------------------------------- coming and going

    def admit(self, trial: Trial) -> None:
        """Take a trial in, where it stopped or at its beginning."""
        folder = self.folder(trial)
        started = time.perf_counter()
        try:
            member = self._member(trial, folder)
        except Exception as error:
            self.watch.end(trial, engines.failure(error, folder))
            return
        member.share += time.perf_counter() - started
        self.active.append(member)

    def _member(self, trial: Trial, folder: Path) -> Member:
        adapter = self.base.adapter(trial)
        shape = adapter.shape(adapter.rank)
        adapter.settle_in(Bank(shape, 1, self.base.autocast, self.base.device), 0)
        member = Member(trial, folder, adapter, self.base.train.lengths)
        state.restore(member)
        return member

    def _refill(self) -> None:
        """Give a free slot to a trial that waits, else to a new one."""
        if self.waiting:
            if not self.active:
                self.active, self.waiting = self.waiting, []
            return
        trial = None if self.watch.stopping else self.watch.next()
        if trial is not None:
            self.admit(trial)

    def _leave(self, member: Member, result: Result) -> None:
        self.active = [m for m in self.active if m is not member]
        result.folder = member.folder
        peaks = memory.peaks().items()
        pack = {n.replace("memory/", "memory/pack_"): value for n, value in peaks}
        result.metrics = {**member.metrics(), **result.metrics, **pack}
        result.curve = member.curve
        result.environment = {**environment.describe(), **self.base.lineage}
        if result.state != "stopped":
            state.forget(member.folder)
        self.watch.end(member.trial, result)
        self._refill()

    # ------------------------------------------------------------------------- the loop

    def run(self) -> None:
        """Train until every trial has ended, or all are stopped."""
        while self.active:
            self._evaluate_along()
            self._close_trained()
            if self.watch.stopping:
                self._stop()
                return
            for group in self._groups():
                losses = self._guarded(group, self._gradients)
                for member, loss in zip(group, losses or (), strict=losses is not None):
                    self._learn(member, loss)

    def _groups(self) -> list[list[Member]]:
        """Who shares a pass: nobody in strict mode, where equal shapes make equal bits."""
        if not self.active:
            return []
        return [[m] for m in self.active] if self.base.strict else [list(self.active)]

    def _guarded(self, group: list[Member], work: Callable[[list[Member]], T]) -> T | None:
        """Do what a group has in common; where it fails, take it back and split the group."""
        try:
            return work(group)
        except Exception as error:
            if not isinstance(error, torch.OutOfMemoryError):
                log.warning("a pass of %d trials failed: %s", len(group), error)
            for member in group:
                member.rewind()
            self._split(group, error)
            return None

    def _split(self, group: list[Member], error: Exception) -> None:
        if self.base.device.type == "cuda":
            torch.cuda.empty_cache()
        if len(group) > 1:
            late = group[(len(group) + 1) // 2 :]
            self.waiting += late
            self.active = [m for m in self.active if m not in late]
            return
        (member,) = group
        if isinstance(error, torch.OutOfMemoryError):
            reason = str(error).splitlines()[0]
            self._leave(member, Result("oom", error=reason, failure="oom"))
        else:
            self._leave(member, engines.failure(error, member.folder))

    @contextmanager
    def _shared(self, members: Sequence[Member], weights: Sequence[int]) -> Iterator[None]:
        """Divide the time of what is done here among the trials, by their weights."""
        started = time.perf_counter()
        yield
        seconds, total = time.perf_counter() - started, sum(weights)
        for member, weight in zip(members, weights, strict=True):
            member.share += seconds * weight / total

    def _gradients(self, group: list[Member]) -> list[torch.Tensor]:
        """Forward and backward of the next micro-batches. Returns the losses."""
        before = [m.tokens for m in group]
        lanes = [m.read() for m in group]
        weights = [m.tokens - had for m, had in zip(group, before, strict=True)]
        with self._shared(group, weights):
            for member in group:
                member.adapter.bank.refresh()
            now = self.base.lay_out(self.base.train, lanes, training=True)
            losses = self.base.losses(now)
            torch.autograd.backward(losses)
            for member in group:
                member.adapter.bank.settle()
            return [loss.detach() for loss in losses]

    def _learn(self, member: Member, loss: torch.Tensor) -> None:
        done = member.step
        try:
            with self._shared([member], [1]):
                logged = member.learn(loss)
        except DivergedError as error:
            self._leave(member, Result("diverged", error=str(error)))
            return
        if member.step > done:
            self.watch.step(member.trial, member.step, member.total, logged)

    # ---------------------------------------------------------------------- evaluations

    def _judged(self, members: list[Member]) -> list[Verdict]:
        batch = min(int(m.train["eval_batch_size"]) for m in members)
        with self._shared(members, [1] * len(members)):
            return evaluate(self.base, [m.adapter for m in members], batch)

    def _evaluate_along(self) -> None:
        while due := [m for m in self.active if m.at_evaluation]:
            verdicts = self._guarded(due, self._judged)
            for member, verdict in zip(due, verdicts or (), strict=verdicts is not None):
                member.evaluated(verdict.metrics)
                # At its last step a trial is as good as done, and no longer compared.
                if member.step < member.total:
                    report = self.watch.report(member.trial, member.step, verdict.metrics)
                    member.pruned = verdict.metrics if report else None

    def _close_trained(self) -> None:
        while trained := [m for m in self.active if m.trained]:
            for member in [m for m in trained if m.pruned]:
                scores = dict(member.pruned or {})
                self._leave(member, Result("pruned", scores, error=f"at step {member.step}"))
            whole = [m for m in trained if not m.pruned]
            for member in whole:
                member.take_best()
            verdicts = self._guarded(whole, self._judged) if whole else None
            for member, verdict in zip(whole, verdicts or (), strict=verdicts is not None):
                self._leave(member, self._result(member, verdict))

    def _result(self, member: Member, verdict: Verdict) -> Result:
        try:
            return self._kept(member, verdict)
        except Exception as error:
            return engines.failure(error, member.folder)

    def _kept(self, member: Member, verdict: Verdict) -> Result:
        """Write a trial's predictions and adapter."""
        metrics = {**member.metrics(), **verdict.metrics}
        member.folder.mkdir(parents=True, exist_ok=True)
        verdict.write(member.folder / "predictions.parquet")
        moved = member.adapter.moved()
        if member.trial["engine.save_adapter"]:
            metrics["adapter/bytes"] = member.adapter.save(member.folder / "adapter")
        if not moved:
            error = "training left lora_B at zero: nothing was learnt"
            return Result("failed", metrics=metrics, error=error)
        return Result("done", metrics=metrics)

    def _stop(self) -> None:
        """Save where every trial stands, at the end of its last whole step."""
        for member in [*self.active, *self.waiting]:
            member.rewind()
            state.save(member)
        while self.active or self.waiting:
            member = (self.active or self.waiting).pop()
            self._leave(member, Result("stopped"))


class PackedEngine:
    """Trains packs; keeps the last base for the next pack."""

    def __init__(self) -> None:
        self.base: Base | None = None

    def run(self, trials: Sequence[Trial], folder: Callable[[Trial], Path], watch: Watch) -> None:
        """Run trials that share a base to their ends (see ``engines.base.Engine``)."""
        _quiet()
        memory.reset()
        started = time.perf_counter()
        try:
            base = self._base(trials[0])
        except Exception as error:
            for trial in trials:
                watch.end(trial, engines.failure(error, folder(trial)))
            return
        loading = time.perf_counter() - started
        pack = Pack(base, folder, watch)
        for trial in trials:
            pack.admit(trial)
        for member in pack.active:
            member.share += loading / len(pack.active)
        pack.run()

    def _base(self, trial: Trial) -> Base:
        if self.base is None or self.base.identity != base_of(trial):
            self.base = None  # first free the old one
            memory.reset()
            self.base = Base(trial)
        return self.base


def _quiet() -> None:
    """Leave the screen to us: no bars, notes or warnings of the libraries."""
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
