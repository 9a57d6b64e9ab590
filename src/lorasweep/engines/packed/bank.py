"""Trained numbers of trials of one shape, as rows of one matrix, and their AdamW."""

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

MATRICES = ("weights", "first", "second")  # of a bank, which make up a trial
_BETAS, _EPSILON = (0.9, 0.999), 1e-8  # the Trainer's


@dataclass(frozen=True)
class Entry:
    """One weight in a trial's vector. ``held`` is its shape here, zeros added to a round rank."""

    name: str
    shape: tuple[int, ...]
    held: tuple[int, ...]
    start: int

    @property
    def place(self) -> slice:
        """Where it lies in the vector."""
        return slice(self.start, self.start + math.prod(self.held))

    def of(self, vector: torch.Tensor) -> torch.Tensor:
        """Return the weight itself, without added zeros, as a view into a trial's vector."""
        whole = vector[self.place].view(self.held)
        return whole[tuple(slice(0, size) for size in self.shape)]


@dataclass(frozen=True)
class Shape:
    """What a trial's vector holds: low-rank pairs first, then the head, its biases last.

    Attributes:
        pairs: adapted layer → its A (r, in) and B (out, r).
        head: name within the head → weight.
        low_rank, decayed, size: ends of the pairs, of what weight decay acts on, of the vector.
    """

    pairs: tuple[tuple[str, Entry, Entry], ...]
    head: tuple[tuple[str, Entry], ...]
    low_rank: int
    decayed: int
    size: int

    @property
    def kin(self) -> Hashable:
        """What trials need to have in common to be rows of one bank: all but the rank."""
        pairs = tuple((slot, a.shape[1], b.shape[0]) for slot, a, b in self.pairs)
        return pairs, tuple(name for name, _ in self.head)

    @property
    def of_head(self) -> Hashable:
        """Shapes of the head's weights."""
        return tuple(entry.shape for _, entry in self.head)

    def within(self, other: "Shape") -> "Shape":
        """Return this layout at the places of one that is as large or larger, of the same kin."""

        def at(own: Entry, place: Entry) -> Entry:
            return Entry(own.name, own.shape, place.held, place.start)

        pairs = zip(self.pairs, other.pairs, strict=True)
        head = zip(self.head, other.head, strict=True)
        return Shape(
            tuple((slot, at(a, to_a), at(b, to_b)) for (slot, a, b), (_, to_a, to_b) in pairs),
            tuple((name, at(entry, to)) for (name, entry), (_, to) in head),
            other.low_rank, other.decayed, other.size,
        )  # fmt: skip

    def entries(self) -> Iterable[Entry]:
        """Every weight, in the order of the vector."""
        for _, a, b in self.pairs:
            yield a
            yield b
        for _, entry in self.head:
            yield entry


Sizes = tuple[int, ...]


def shape_of(
    pairs: Mapping[str, tuple[Sizes, Sizes]], head: Mapping[str, Sizes], rank: int
) -> Shape:
    """Lay out a trial's weights, from the shapes of A and B by layer and of the head's weights.

    Ranks below ``rank`` are filled up with zeros, which stay zeros.
    """
    at = 0

    def entry(name: str, own: Sizes, held: Sizes) -> Entry:
        nonlocal at
        made = Entry(name, own, held, at)
        at += math.prod(held)
        return made

    low = []
    for slot, (a, b) in pairs.items():
        entry_a = entry(f"{slot}.A", a, (rank, a[1]))
        low.append((slot, entry_a, entry(f"{slot}.B", b, (b[0], rank))))
    low_rank = at
    of_head, decayed = [], at
    for name, own in sorted(head.items(), key=lambda item: "bias" in item[0]):
        of_head.append((name, entry(f"head.{name}", own, own)))
        decayed = decayed if "bias" in name else at
    return Shape(tuple(low), tuple(of_head), low_rank, decayed, at)


def joined(shapes: Sequence[Shape], rank: int) -> Shape:
    """Lay out rows in which each of these has its place, ranks filled up to ``rank``."""
    first = shapes[0]
    pairs = {slot: ((rank, a.shape[1]), (b.shape[0], rank)) for slot, a, b in first.pairs}
    head = {
        name: tuple(map(max, zip(*(shape.head[i][1].shape for shape in shapes), strict=True)))
        for i, (name, _) in enumerate(first.head)
    }
    return shape_of(pairs, head, rank)


def update(
    x: torch.Tensor, y: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """Add low-rank updates to y (trials, tokens, out), from x (trials, tokens, in).

    A has shape (trials, r, in), B (trials, out, r), the scale (trials, 1, 1) in float32.
    """
    return raised(torch.bmm(x, a.transpose(1, 2)), y, b, scale)


def raised(
    low: torch.Tensor, y: torch.Tensor, b: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """Add low (trials, tokens, r), scaled and multiplied by Bᵀ, to y (trials, tokens, out)."""
    low = (low * scale).to(low.dtype)
    if low.is_cuda:  # where baddbmm first copies y; a sum is done by whatever reads it next
        return y + torch.bmm(low, b.transpose(1, 2))
    return torch.baddbmm(y, low, b.transpose(1, 2))


class Bank:
    """Weights, gradients and moments of ``rows`` trials of one shape, each float32 (rows, size).

    The products of the low-rank pairs work on ``work``: the weights themselves, or a copy in
    the format of the arithmetic. Gradients arrive in the leaves' ``.grad``, which are views;
    with ``whole``, where every pass is for all rows, those of the copy are tensors of their own.
    """

    def __init__(
        self,
        shape: Shape,
        rows: int,
        dtype: torch.dtype,
        device: torch.device,
        *,
        whole: bool = False,
    ) -> None:
        def matrix() -> torch.Tensor:
            return torch.zeros(rows, shape.size, device=device)

        self.shape, self.rows = shape, rows
        self.layouts = [shape] * rows  # of each row: its own rank within what the bank holds
        self.weights, self.grads, self.first, self.second = (matrix() for _ in range(4))
        self.steps = torch.zeros(rows, device=device)
        self.scale = torch.zeros(rows, 1, 1, device=device)
        # with dropout on, in steps of fixed shape: larger, as less of the input is left
        self.lifted = torch.zeros(rows, 1, 1, device=device)
        self.work, self.work_grads = self.weights, self.grads
        self.whole = whole and dtype != torch.float32
        if dtype != torch.float32:
            self.work = torch.zeros(rows, shape.low_rank, dtype=dtype, device=device)
            self.work_grads = self.grads if self.whole else torch.zeros_like(self.work)
        self.pairs = {slot: (self._leaf(a), self._leaf(b)) for slot, a, b in shape.pairs}

    def claim(self, row: int, own: Shape) -> None:
        """Give a row to a trial of this layout, whatever rank it has itself."""
        self.layouts[row] = own.within(self.shape)

    @property
    def rank(self) -> int:
        """What ranks are filled up to."""
        return self.shape.pairs[0][1].held[0]

    def _leaf(self, entry: Entry) -> torch.Tensor:
        held = (self.rows, *entry.held)
        leaf = self.work[:, entry.place].view(held).detach().requires_grad_()
        leaf.grad = None if self.whole else self.work_grads[:, entry.place].view(held)
        return leaf

    def head(self, row: int) -> dict[str, nn.Parameter]:
        """Return the head's weights of one trial, by their names within the head."""
        found = {}
        for name, entry in self.layouts[row].head:
            parameter = nn.Parameter(entry.of(self.weights[row]))
            parameter.grad = entry.of(self.grads[row])
            found[name] = parameter
        return found

    def refresh(self) -> None:
        """Bring the copy that the products work on up to date."""
        if self.work is not self.weights:
            self.work.copy_(self.weights[:, : self.shape.low_rank])

    def settle(self) -> None:
        """Bring the gradients of the copy to those of the weights."""
        if self.whole:
            entries = [e for _, a, b in self.shape.pairs for e in (a, b)]
            leaves = [leaf for pair in self.pairs.values() for leaf in pair]
            here = [self.grads[:, e.place].view(self.rows, *e.held) for e in entries]
            torch._foreach_copy_(here, [leaf.grad for leaf in leaves])
            for leaf in leaves:
                leaf.grad = None
        elif self.work is not self.weights:
            self.grads[:, : self.shape.low_rank] += self.work_grads
            self.work_grads.zero_()

    def add(self, slot: str, row: int, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Add one trial's low-rank update of a layer: y + (α/r)·x·Aᵀ·Bᵀ.

        Args:
            slot: the layer.
            row: the trial.
            x: the layer's input, shape (tokens, in).
            y: what the base made of it, shape (tokens, out).
        """
        a, b = self.pairs[slot]
        if self.rows > 1:
            a, b = a[row : row + 1], b[row : row + 1]
        return update(x[None], y[None], a, b, self.scale[row : row + 1])[0]

    def step(
        self, row: int, rate: float | torch.Tensor, decay: float, max_norm: float
    ) -> torch.Tensor:
        """Clip the gradient of one trial, take one step of AdamW, and clear the gradient.

        Returns:
            The norm of the gradient before clipping, shape ().
        """
        grad = self.grads[row]
        norm = torch.linalg.vector_norm(grad)
        if max_norm > 0:
            grad.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0))
        self.steps[row] += 1
        self._adamw(row, slice(0, self.shape.decayed), rate, decay)
        if self.shape.decayed < self.shape.size:
            self._adamw(row, slice(self.shape.decayed, None), rate, 0.0)
        (grad[self.shape.low_rank :] if self.whole else grad).zero_()
        return norm

    def _adamw(self, row: int, part: slice, rate: float | torch.Tensor, decay: float) -> None:
        torch._fused_adamw_(
            [self.weights[row, part]], [self.grads[row, part]],
            [self.first[row, part]], [self.second[row, part]], [], [self.steps[row]],
            lr=rate, beta1=_BETAS[0], beta2=_BETAS[1], weight_decay=decay, eps=_EPSILON,
            amsgrad=False, maximize=False,
        )  # fmt: skip

    def clear(self, row: int) -> None:
        """Forget gradients of a step that was not finished."""
        self.grads[row].zero_()
        self.work_grads[row].zero_()

    # ------------------------------------------------------------- in and out, without padding

    def read(self, matrix: torch.Tensor, row: int) -> torch.Tensor:
        """Return one trial's row without added zeros, shape (numbers,), on the CPU."""
        parts = [e.of(matrix[row]).reshape(-1) for e in self.layouts[row].entries()]
        return torch.cat(parts).cpu()

    def take(self, row: int, other: "Bank", from_row: int) -> None:
        """Take over weights and moments of a trial that has a row in another bank."""
        for name in MATRICES:
            to, source = getattr(self, name)[row].zero_(), getattr(other, name)[from_row]
            entries = self.layouts[row].entries(), other.layouts[from_row].entries()
            for new, old in zip(*entries, strict=True):
                new.of(to).copy_(old.of(source))
        self.steps[row] = other.steps[from_row]

    def write(self, matrix: torch.Tensor, row: int, vector: torch.Tensor) -> None:
        """Set one trial's row from what ``read`` gave."""
        at, vector = 0, vector.to(matrix.device)
        matrix[row].zero_()
        for entry in self.layouts[row].entries():
            size = math.prod(entry.shape)
            entry.of(matrix[row]).copy_(vector[at : at + size].view(entry.shape))
            at += size
