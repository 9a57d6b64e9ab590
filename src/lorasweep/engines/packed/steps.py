"""Whole steps of fixed shape: on a GPU one recorded graph, without a word from the host.

A small base alone leaves a GPU idle between launches. Here the lanes of a pass have equal
lengths and stay where they are, so that forward, backward, clipping and AdamW of all trials can
be recorded once and replayed; the host lays out the next texts meanwhile.
"""

import logging
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import psutil
import torch

from lorasweep.engines.packed.adapter import Adapter
from lorasweep.engines.packed.bank import Bank, Shape, joined
from lorasweep.engines.packed.base import Base
from lorasweep.engines.packed.layout import Lane
from lorasweep.engines.packed.level import Level, bring
from lorasweep.engines.packed.member import Member
from lorasweep.engines.packed.noise import Noise, keys

log = logging.getLogger(__name__)

# Ranks that share a product; in between they are filled up with zeros. Above, each its own.
ROUND_RANKS = (16, 64)
# Tokens of a lane are rounded up to this many: every length is a graph of its own.
QUANTUM = 64
# Compiling the blocks takes about 40 s and saves time as their element-wise work takes it: with
# trial-steps, layers and width. It pays from so much of it, 20,000 steps of a 135M base.
WORTH_COMPILING = 20_000 * 30 * 576
_WARM_UP = 3
_BYTES = 20  # of a trained number: weight, gradient, two moments, the copy and its gradient


def worthwhile(base: Base) -> bool:
    """Whether steps of fixed shape are faster than what padding costs: where launches count."""
    return bool(base.device.type == "cuda")


def worth_compiling(base: Base, trial_steps: int) -> bool:
    """Whether compiling the blocks saves more time than it takes."""
    shape = base.skeleton.config
    work = trial_steps * shape.num_hidden_layers * shape.hidden_size
    return bool(base.device.type == "cuda" and work >= WORTH_COMPILING)


def recordable(base: Base, member: Member) -> bool:
    """Whether a trial's steps are all of one shape, with no dropout but that of its updates."""
    even = base.family.pool_last and not base.drops
    return bool(even) and member.train["accumulation"] == 1


def round_rank(rank: int) -> int:
    """Return the rank that ``rank`` is filled up to."""
    return next((r for r in ROUND_RANKS if rank <= r), rank)


def kind(member: Member) -> Hashable:
    """What two trials need to have in common for one to take the other's place.

    All that a recording holds as it was, not as a number that it reads anew.
    """
    train, adapter = member.train, member.adapter
    scale = adapter.scale if member.trial["target.head"] == "full_lora" else None
    return (
        adapter.own.kin, adapter.own.of_head, scale, adapter.dropout > 0, train["batch_size"],
        train["weight_decay"], train["max_grad_norm"],
    )  # fmt: skip


def common_ranks(counts: Mapping[int, int], weights: int, room: int) -> dict[int, int]:
    """Return the rank that trials of each rank are filled up to.

    Every rank by itself costs launches, every zero memory and time: neighbours are brought
    together as long as that takes few zeros.

    Args:
        counts: trials of each rank.
        weights: of a trial with rank 1.
        room: zeros that may be added where ranks come together.
    """
    found: dict[int, int] = {}
    filled = max(counts)
    for rank in sorted(counts, reverse=True):
        more = counts[rank] * (filled - rank) * weights
        if more <= room:
            room -= more
        else:
            filled = rank
        found[rank] = filled
    return found


class Pool:
    """Memory of recordings, which share it as they are replayed in turn.

    It is that of one stream: what one frees, another could not take at once.
    """

    def __init__(self) -> None:
        self.memory, self.stream = torch.cuda.MemPool(), torch.cuda.Stream()

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Within, steps that are computed take the memory that is there for recordings."""
        torch.cuda.empty_cache()  # within, what others have freed is not given up to make room
        self.stream.wait_stream(torch.cuda.current_stream())
        # Memory is lent to this thread, so backward is to stay in it.
        backward = torch.autograd.set_multithreading_enabled(False)
        with torch.cuda.stream(self.stream), torch.cuda.use_mem_pool(self.memory), backward:
            yield
        torch.cuda.current_stream().wait_stream(self.stream)


@dataclass
class Slot:
    """A lane's place in a bank. Without a member it computes what nobody reads."""

    kind: Hashable
    bank: Bank
    row: int
    batch: int
    decay: float
    max_norm: float
    adapter: Adapter
    member: Member | None


class Steps:
    """Runs whole optimizer steps of trials that sit in fixed slots.

    Args:
        base: what they share.
        members: who sits there first.
        pool: memory of recordings; None computes each step anew.
        compiled: compile the base's blocks, which fuses their element-wise work.
    """

    def __init__(
        self, base: Base, members: Sequence[Member], *, pool: Pool | None, compiled: bool
    ) -> None:
        self.base, self.pool, self.compiled, self.recorded = base, pool, compiled, False
        self.slots: list[Slot] = []
        self.banks: list[Bank] = []
        self.levels: dict[int, Level] = {}
        self.notes: list[str] = []  # on what was given up
        # The table of the attention is as wide as any text, so that only lengths differ.
        self.width = _rounded(int(base.train.lengths.max()), 16)
        self._arrange(members)
        device, lanes = base.device, len(self.slots)
        self.sums, self.norms, self.rates = torch.zeros(3, lanes, device=device)
        most = max(slot.batch for slot in self.slots)  # texts of the largest batch
        self.longest = _rounded(int(np.sort(base.train.lengths)[-most:].sum()), QUANTUM)
        dropped = any(m.adapter.dropout > 0 for m in members)
        self.noise = Noise(len(base.linears), lanes, device) if dropped else None
        of_adapter = {id(member.adapter): member for member in members}
        for number, slot in enumerate(self.slots):
            self._sit(of_adapter[id(slot.adapter)], number)

    def _arrange(self, members: Sequence[Member]) -> None:
        """Put trials of one kin side by side, as rows of banks for ranks that are near."""
        groups: dict[Hashable, list[Member]] = {}
        for member in members:
            groups.setdefault(member.adapter.own.kin, []).append(member)
        # Those with most layers first: then the lanes that a layer updates follow each other.
        for group in sorted(groups.values(), key=lambda g: -len(g[0].adapter.own.pairs)):
            shape = group[0].adapter.own
            counts = Counter(round_rank(m.adapter.rank) for m in group)
            ranks = common_ranks(counts, shape.low_rank // group[0].adapter.rank, self._room())
            for rank in sorted(set(ranks.values())):
                here = [m for m in group if ranks[round_rank(m.adapter.rank)] == rank]
                self._seat_all(here, joined([m.adapter.own for m in here], rank))

    def _seat_all(self, members: list[Member], shape: Shape) -> None:
        bank = Bank(shape, len(members), self.base.autocast, self.base.device, whole=True)
        self.banks.append(bank)
        for row, member in enumerate(members):
            train = member.train
            self.slots.append(
                Slot(
                    kind(member), bank, row, int(train["batch_size"]),
                    float(train["weight_decay"]), float(train["max_grad_norm"]),
                    member.adapter, None,
                )
            )  # fmt: skip

    def _room(self) -> int:
        """Return how many zeros may be added for each kin: a twentieth of the device's memory."""
        on_gpu = self.base.device.type == "cuda"
        memory = torch.cuda.mem_get_info()[1] if on_gpu else psutil.virtual_memory().total
        return int(memory) // 20 // _BYTES

    def _sit(self, member: Member, number: int) -> None:
        """Let a trial have a slot: recordings work on the numbers there, whose ever they are."""
        slot = self.slots[number]
        member.adapter.move(slot.bank, slot.row)
        slot.member, slot.adapter = member, member.adapter
        for text in self.notes:
            member.note(text)
        member.adapter.fixed = None if self.noise is None else (self.noise, number)
        if self.noise is not None:
            self.noise.seat(number, member.adapter.dropout)
        total = self.sums[number]
        member.loss = total.copy_(member.loss)
        member.mark()

    def vacate(self, member: Member) -> None:
        """Free the slot of a trial that has ended."""
        for slot in self.slots:
            if slot.member is member:
                slot.member, slot.adapter = None, slot.adapter.ghost()

    @property
    def empty(self) -> bool:
        """Whether nobody sits here."""
        return all(slot.member is None for slot in self.slots)

    def holds(self, members: Sequence[Member]) -> bool:
        """Whether any of these sits here, or a slot is free."""
        return any(s.member is None or s.member in members for s in self.slots)

    def mostly(self, members: Sequence[Member]) -> bool:
        """Whether these all sit here, and are at least half of the slots."""
        here = [s.member for s in self.slots]
        return all(m in here for m in members) and 2 * len(members) >= len(here)

    def seats(self, members: Sequence[Member]) -> bool:
        """Whether all of these sit here, or have now taken a place that became free."""
        if 2 * len(members) < len(self.slots):
            return False  # too many empty slots: better fewer
        seated = [slot.member for slot in self.slots]
        return all(self._take(member) for member in members if member not in seated)

    def _take(self, member: Member) -> bool:
        """Find a free slot for a trial, of the least rank that is enough."""
        rank, wanted = round_rank(member.adapter.rank), kind(member)
        free = [
            (slot.bank.rank, number)
            for number, slot in enumerate(self.slots)
            if slot.member is None and rank <= slot.bank.rank and slot.kind == wanted
        ]
        # In strict mode a trial's products have the shapes that they have for it alone.
        free = [f for f in free if f[0] == rank] if self.base.strict else sorted(free)
        if free:
            self._sit(member, free[0][1])
        return bool(free)

    # --------------------------------------------------------------------------- a step

    def step(self, members: Sequence[Member]) -> list[torch.Tensor]:
        """Take one step of every member. Returns the norms of their gradients, each shape ()."""
        taken = [slot.member for slot in self.slots]
        rows: list[Sequence[int]] = [() if m is None else m.read().rows for m in taken]
        self._set(taken)
        level = self._level(max(int(self.base.train.lengths[list(r)].sum()) for r in rows if r))
        level.load(self.base.train, rows)
        if self.pool is not None and level.graph is None:
            self._record_all(level)
        if level.graph is not None:
            level.graph.replay()
        else:
            self._compute(level)
            self._update()
        of = {id(member): norm for member, norm in zip(taken, self.norms, strict=True)}
        return [of[id(member)] for member in members]

    def _set(self, members: Sequence[Member | None]) -> None:
        """Bring what changes with every step to the device: rates, and the dropout's keys."""
        rates = [0.0 if m is None else m.rate(m.step) for m in members]
        bring(torch.tensor(rates, dtype=torch.float32), self.rates)
        if self.noise is not None:
            seeds = [0 if m is None else int(m.trial["seed"]) for m in members]
            found = keys(seeds, [0 if m is None else m.step for m in members], len(self.noise.keys))
            bring(torch.from_numpy(found), self.noise.keys)

    def _lanes(self) -> list[Lane]:
        return [Lane(slot.adapter, range(slot.batch), self.width) for slot in self.slots]

    def _level(self, tokens: int) -> Level:
        length = _rounded(tokens, QUANTUM)
        if length not in self.levels:
            batches = [slot.batch for slot in self.slots]
            self.levels[length] = Level(
                self._lanes(), batches, length, self.width, self.base.device, training=True
            )
        return self.levels[length]

    def _compute(self, level: Level) -> None:
        """Forward and backward of all slots: gradients in the banks, losses added up."""
        level.now.lanes = self._lanes()
        for bank in self.banks:
            bank.refresh()
        self.base.seat(self.banks, self.noise)
        with self.base.compiled_blocks(enabled=self.compiled):
            losses = self.base.losses(level.now)
            torch.autograd.backward(losses)
        with torch.no_grad():
            self.sums += torch.stack(losses)
            for bank in self.banks:
                bank.settle()

    def _update(self) -> None:
        with torch.no_grad():
            for i, slot in enumerate(self.slots):
                norm = slot.bank.step(slot.row, self.rates[i], slot.decay, slot.max_norm)
                self.norms[i].copy_(norm)

    def _record_all(self, level: Level) -> None:
        """Record a step of this length, and first of all the longest.

        Its memory is the recordings' common one; what does not fit is known at the start.
        """
        longest = self._level(self.longest)
        for wanted in (longest, level):
            while self.pool is not None and wanted.graph is None:
                self._try_to_record(wanted, self.pool)

    def _try_to_record(self, level: Level, pool: Pool) -> None:
        """Record a step; where the libraries cannot, go on without compiling or recording."""
        sums = self.sums.clone()
        try:
            self._record(level, pool)
        except Exception as error:
            if short := _out_of_memory(error):
                raise short from error
            given_up = "compiled" if self.compiled else "recorded"
            reason = str(error).partition("\n")[0] or type(error).__name__
            self._give_up(f"steps were not {given_up}, which is slower: {reason}")
            self.pool, self.compiled = (pool if self.compiled else None), False
        self.sums.copy_(sums)
        for slot in self.slots:
            slot.bank.clear(slot.row)

    def _give_up(self, text: str) -> None:
        log.warning(text)
        self.notes.append(text)
        for slot in self.slots:
            if slot.member is not None:
                slot.member.note(text)

    def _record(self, level: Level, pool: Pool) -> None:
        """Record a step, after some computed for their gradients, which are to be forgotten."""
        with pool.lent():
            for _ in range(1 if self.recorded else _WARM_UP):
                self._compute(level)
        for slot in self.slots:
            slot.bank.clear(slot.row)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(
            graph, pool=pool.memory.id, stream=pool.stream, capture_error_mode="thread_local"
        ):
            self._compute(level)
            self._update()
        level.graph, self.recorded = graph, True

    # ----------------------------------------------------------------------- evaluation

    def scores(self, rows: Sequence[int]) -> dict[int, torch.Tensor]:
        """Scores (texts, classes) of all slots on the same evaluation texts, by ``id(adapter)``."""
        data, count = self.base.eval, len(self.slots)
        lengths = data.lengths[list(rows)]
        level = Level(
            self._lanes(), [len(rows)] * count, int(lengths.sum()), int(lengths.max()),
            self.base.device, training=False,
        )  # fmt: skip
        level.load(data, [rows] * count)
        self.base.seat(self.banks, self.noise)
        found = self.base.scores(level.now)
        return {id(s.adapter): part for s, part in zip(self.slots, found, strict=True)}


def _out_of_memory(error: BaseException | None) -> torch.OutOfMemoryError | None:
    """Find the lack of memory behind an error: a recording cut short ends with another one."""
    while error is not None and not isinstance(error, torch.OutOfMemoryError):
        error = error.__cause__ or error.__context__
    return error


def _rounded(number: int, to: int) -> int:
    return -(-number // to) * to
