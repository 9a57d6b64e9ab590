"""The engine: the pack's loop from the first step to the last result."""

import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import datasets
import torch
import transformers

from lorasweep import engines
from lorasweep.engines import environment, memory
from lorasweep.engines.base import DivergedError, Watch, finite
from lorasweep.engines.packed import state, steps
from lorasweep.engines.packed.adapter import Adapter
from lorasweep.engines.packed.bank import Bank
from lorasweep.engines.packed.base import Base
from lorasweep.engines.packed.compat import base_of
from lorasweep.engines.packed.evaluation import Verdict, evaluate
from lorasweep.engines.packed.member import Member
from lorasweep.trial.result import Result
from lorasweep.trial.trial import Trial

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
        self.steps: list[steps.Steps] = []
        self.pool = self._new_pool()

    def _new_pool(self) -> steps.Pool | None:
        return steps.Pool() if self.base.device.type == "cuda" else None

    # ----------------------------------------------------------------- coming and going

    def admit(self, trials: Sequence[Trial]) -> None:
        """Take trials in, where they stopped or at their beginning.

        Their adapters are drawn side by side.
        """
        started = time.perf_counter()
        begun = [(trial, self._tried(trial, self.base.adapter, trial)) for trial in trials]
        found = [self._tried(t, self._member, t, adapter) for t, adapter in begun if adapter]
        members = [member for member in found if member]
        seconds = time.perf_counter() - started
        self._divide(seconds, members, [m.adapter.trainable for m in members])
        self.active += members

    def _tried(self, trial: Trial, make: Callable[..., T], *what: Any) -> T | None:
        """Make something for a trial; where that fails, the trial has ended."""
        try:
            return make(*what)
        except Exception as error:
            self.watch.end(trial, engines.failure(error, self.folder(trial)))
            return None

    def _member(self, trial: Trial, adapter: Adapter) -> Member:
        adapter.start(Bank(adapter.own, 1, self.base.autocast, self.base.device), 0)
        member = Member(trial, self.folder(trial), adapter, self.base.train.lengths)
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
            self.admit([trial])

    def _leave(self, member: Member, result: Result) -> None:
        self.active = [m for m in self.active if m is not member]
        result.folder = member.folder
        peaks = memory.peaks().items()
        pack = {n.replace("memory/", "memory/pack_"): value for n, value in peaks}
        result.metrics = {**member.metrics(), **result.metrics, **pack}
        result.curve = member.curve
        notes = [*self.base.lineage["notes"], *member.notes]
        result.environment = {**environment.describe(), **self.base.lineage, "notes": notes}
        if result.state != "stopped":
            state.forget(member.folder)
        for slots in self.steps:
            slots.vacate(member)
        self.watch.end(member.trial, result)
        self._refill()

    # ------------------------------------------------------------------------- the loop

    def rehearse(self) -> None:
        """Compute a pass and take it back.

        In a process's first pass on a CPU a loss now and then has another last digit than ever
        after, most likely as its libraries set themselves up in several threads at once.
        """
        first = [member for member in self.active if not member.trained][:1]
        if first and self._guarded(first, self._gradients) is not None:
            first[0].rewind()

    def run(self) -> None:
        """Train until every trial has ended, or all are stopped."""
        while self.active:
            self._evaluate_along()
            self._close_trained()
            if self.watch.stopping:
                self._stop()
                return
            for group in self._groups():
                self._round(group)

    def _groups(self) -> list[list[Member]]:
        """Who shares a pass: nobody in strict mode, where equal shapes make equal bits."""
        if self.base.strict:
            return [[m] for m in self.active]
        even = [m for m in self.active if self._even(m)]
        uneven = [m for m in self.active if not self._even(m)]
        return [group for group in (even, uneven) if group]

    def _even(self, member: Member) -> bool:
        return steps.worthwhile(self.base) and steps.recordable(self.base, member)

    def _round(self, group: list[Member]) -> None:
        """Take the next micro-batch of each trial, and the step where one is complete."""
        started, before = time.perf_counter(), [(m.step, m.tokens) for m in group]
        even = self._even(group[0])
        gave = self._guarded(group, self._whole_steps if even else self._gradients)
        if gave is None:
            return
        told: list[float | DivergedError | None] = []
        for member, one in zip(group, gave, strict=True):
            try:
                told.append(member.stepped(one) if even else member.learn(one))
            except DivergedError as error:
                told.append(error)
        read = [m.tokens - tokens for m, (_, tokens) in zip(group, before, strict=True)]
        self._divide(time.perf_counter() - started, group, read)
        for member, (step, _), logged in zip(group, before, told, strict=True):
            if isinstance(logged, DivergedError):
                self._leave(member, Result("diverged", error=str(logged)))
            elif member.step > step:
                self.watch.step(member.trial, member.step, member.total, logged)

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
        self.steps.clear()
        self.pool = self._new_pool()  # one that ran out in a recording cannot be used again
        if self.base.device.type == "cuda":
            torch.cuda.empty_cache()
        if len(group) > 1:
            for member in group:
                member.note(_divided(len(group), error))
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

    @staticmethod
    def _divide(seconds: float, members: Sequence[Member], weights: Sequence[int]) -> None:
        """Divide time that trials used together, by their weights."""
        for member, weight in zip(members, weights, strict=True):
            member.share += seconds * weight / sum(weights)

    def _gradients(self, group: list[Member]) -> list[torch.Tensor]:
        """Forward and backward of the next micro-batches. Returns the losses."""
        lanes = [m.read() for m in group]
        banks = {id(m.adapter.bank): m.adapter.bank for m in group}.values()
        for bank in banks:
            bank.refresh()
        losses = self.base.losses(self.base.lay_out(self.base.train, lanes, training=True))
        torch.autograd.backward(losses)
        for bank in banks:
            bank.settle()
        return [loss.detach() for loss in losses]

    def _whole_steps(self, group: list[Member]) -> list[torch.Tensor]:
        """Take the next steps, all of one shape. Returns the norms of the gradients."""
        return self._seated(group).step(group)

    def _seated(self, group: list[Member]) -> steps.Steps:
        """Return the slots that these trials sit in; new ones where none fit."""
        for found in self.steps:
            if found.holds(group) and found.seats(group):
                return found
        # What nobody can use any more goes, and its memory with it.
        self.steps = [s for s in self.steps if self.base.strict and not s.empty]
        if not self.steps:
            self.pool = self._new_pool()  # whose recordings are all gone cannot be used again
        left = sum(m.total - m.step for m in self.active)
        compiled = steps.worth_compiling(self.base, left)
        made = steps.Steps(self.base, group, pool=self.pool, compiled=compiled)
        self.steps.append(made)
        return made

    # ---------------------------------------------------------------------- evaluations

    def _judged(self, members: list[Member]) -> list[Verdict]:
        batch = min(int(m.train["eval_batch_size"]) for m in members)
        started = time.perf_counter()
        seats = None  # in strict mode evaluation, too, goes one by one
        if not self.base.strict:
            seats = next((s for s in self.steps if s.mostly(members)), None)
        verdicts = evaluate(self.base, [m.adapter for m in members], batch, seats)
        self._divide(time.perf_counter() - started, members, [1] * len(members))
        return verdicts

    def _evaluate_along(self) -> None:
        while due := [m for m in self.active if m.at_evaluation]:
            verdicts = self._guarded(due, self._judged)
            for member, verdict in zip(due, verdicts or (), strict=verdicts is not None):
                if not self._sound(member, member.evaluated, verdict.metrics):
                    continue
                # At its last step a trial is as good as done, and no longer compared.
                if member.step < member.total:
                    report = self.watch.report(member.trial, member.step, verdict.metrics)
                    member.pruned = verdict.metrics if report else None

    def _sound(self, member: Member, look: Callable[..., None], *what: Any) -> bool:
        """Look at a trial's numbers; where they are none any more, it has ended."""
        try:
            look(*what)
        except DivergedError as error:
            self._leave(member, Result("diverged", error=str(error)))
            return False
        return True

    def _close_trained(self) -> None:
        while trained := [m for m in self.active if m.trained]:
            trained = [m for m in trained if self._sound(m, m.check)]
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
            finite(verdict.metrics["eval/loss"], member.step, "the evaluation loss")
            return self._kept(member, verdict)
        except DivergedError as error:
            return Result("diverged", error=str(error))
        except Exception as error:
            return engines.failure(error, member.folder)

    def _kept(self, member: Member, verdict: Verdict) -> Result:
        """Write a trial's predictions and adapter."""
        metrics = {**member.metrics(), **verdict.metrics}
        member.folder.mkdir(parents=True, exist_ok=True)
        verdict.write(member.folder / "predictions.parquet")
        moved = member.adapter.moved()
        if member.trial["engine.save_adapter"]:
            metrics["adapter/bytes"] = member.adapter.template.save(
                member.adapter, member.folder / "adapter"
            )
        if not moved:
            error = "training left the adapter at zero: nothing was learnt"
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
        # Read when CUDA is first used: without it some products may differ from run to run.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        self.base: Base | None = None

    def run(self, trials: Sequence[Trial], folder: Callable[[Trial], Path], watch: Watch) -> None:
        """Run trials that share a base to their ends (see ``engines.base.Engine``)."""
        _quiet()
        started, first = time.perf_counter(), self.base is None
        try:
            base = self._base(trials[0])
        except Exception as error:
            for trial in trials:
                watch.end(trial, engines.failure(error, folder(trial)))
            return
        loading = time.perf_counter() - started
        memory.reset()  # the peak is of training: a base that was kept costs no loading
        pack = Pack(base, folder, watch)
        pack.admit(trials)
        for member in pack.active:
            member.share += loading / len(pack.active)
        with _deterministic(enabled=base.strict and base.device.type == "cuda"):
            if first and base.strict and base.device.type == "cpu":
                pack.rehearse()
            pack.run()

    def _base(self, trial: Trial) -> Base:
        if self.base is None or self.base.identity != base_of(trial):
            self.base = None  # first free the old one
            memory.reset()
            self.base = Base(trial)
        return self.base


def _divided(count: int, error: Exception) -> str:
    """Say why trials of a pack took turns."""
    if isinstance(error, torch.OutOfMemoryError):
        return f"{count} trials did not fit the device together; some waited for the others"
    reason = str(error).partition("\n")[0] or type(error).__name__
    return f"a pass of {count} trials failed, and some waited for the others: {reason}"


@contextmanager
def _deterministic(*, enabled: bool) -> Iterator[None]:
    """Take the kernels that give the same bits each time, of attention above all."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(enabled or before)
    # Else every new tensor is filled, in case somebody reads what was never written.
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _quiet() -> None:
    """Leave the screen to us: no bars, notes or warnings of the libraries."""
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    # Gradients of a bank lie as its weights do, which is what its optimizer wants.
    warnings.filterwarnings("ignore", message="grad and param do not obey the gradient layout")
