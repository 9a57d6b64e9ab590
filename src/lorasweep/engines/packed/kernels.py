"""Triton kernels that drop inputs of a low-rank product as they load them.

Imported where there is a GPU alone, as Triton comes with PyTorch for GPUs. The sizes of tiles
follow from a product's rank, width and format, never from how many lanes or tokens there are: a
trial's sums are added up in the same order in every pack. For the same reason nothing is tuned by
measuring, and no sum is divided among programs.
"""

import torch
import triton
import triton.language as tl

# Their divisibility would be a reason to compile again, in the worst case while recording.
_VARYING = ["key", "bars", "tokens"]


@triton.jit
def _drawn(key: tl.tensor, bars: tl.tensor, lane: tl.tensor) -> tl.tuple:
    """Return what a lane's numbers start from, their stride, and below which one drops."""
    first = tl.load(key + 2 * lane).to(tl.uint32, bitcast=True)
    stride = tl.load(key + 2 * lane + 1).to(tl.uint32, bitcast=True) | 1
    return first, stride, tl.load(bars + lane).to(tl.uint32, bitcast=True)


@triton.jit
def _kept(
    rows: tl.tensor, cols: tl.tensor, width: tl.tensor,
    first: tl.tensor, stride: tl.tensor, bar: tl.tensor,
) -> tl.tensor:  # fmt: skip
    """Return which entries (rows, cols) of a lane stay: the hash of ``noise.thinned``."""
    of_row = (rows * width).to(tl.uint32) * stride + first
    x = of_row[:, None] + (cols.to(tl.uint32) * stride)[None, :]
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return ((x ^ (x >> 16)) & 0xFFFFFF) >= bar


@triton.jit(do_not_specialize=_VARYING)
def _down(
    x: tl.tensor, a: tl.tensor, key: tl.tensor, bars: tl.tensor, low: tl.tensor,
    tokens: tl.tensor, width: tl.tensor, rank: tl.tensor, a_lane: tl.tensor,
    ROWS: tl.constexpr, COLS: tl.constexpr, RANKS: tl.constexpr,
) -> None:  # fmt: skip
    """Compute a tile (ROWS, RANKS) of thin(x)·Aᵀ."""
    lane = tl.program_id(2).to(tl.int64)
    first, stride, bar = _drawn(key, bars, lane)
    ranks = tl.program_id(0) * RANKS + tl.arange(0, RANKS)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    x += lane * tokens * width
    a += lane * a_lane
    total = tl.zeros((ROWS, RANKS), dtype=tl.float32)
    for start in range(0, width, COLS):
        cols = start + tl.arange(0, COLS)
        there = (rows < tokens)[:, None] & (cols < width)[None, :]
        tile = tl.load(x + rows[:, None] * width + cols[None, :], mask=there, other=0.0)
        tile = tl.where(_kept(rows, cols, width, first, stride, bar), tile, 0.0)
        there = (cols < width)[:, None] & (ranks < rank)[None, :]
        pairs = tl.load(a + ranks[None, :] * width + cols[:, None], mask=there, other=0.0)
        total = tl.dot(tile, pairs, total, input_precision="ieee")
    low += lane * tokens * rank + rows[:, None] * rank + ranks[None, :]
    there = (rows < tokens)[:, None] & (ranks < rank)[None, :]
    tl.store(low, total.to(low.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=_VARYING)
def _down_a(
    low: tl.tensor, x: tl.tensor, key: tl.tensor, bars: tl.tensor, a: tl.tensor,
    tokens: tl.tensor, width: tl.tensor, rank: tl.tensor,
    ROWS: tl.constexpr, COLS: tl.constexpr, RANKS: tl.constexpr,
) -> None:  # fmt: skip
    """Compute a tile (RANKS, COLS) of lowᵀ·thin(x), over all tokens of a lane in their order."""
    lane = tl.program_id(2).to(tl.int64)
    first, stride, bar = _drawn(key, bars, lane)
    ranks = tl.program_id(0) * RANKS + tl.arange(0, RANKS)
    cols = tl.program_id(1) * COLS + tl.arange(0, COLS)
    x += lane * tokens * width
    low += lane * tokens * rank
    total = tl.zeros((RANKS, COLS), dtype=tl.float32)
    for start in range(0, tokens, ROWS):
        rows = start + tl.arange(0, ROWS)
        there = (rows < tokens)[:, None] & (cols < width)[None, :]
        tile = tl.load(x + rows[:, None] * width + cols[None, :], mask=there, other=0.0)
        tile = tl.where(_kept(rows, cols, width, first, stride, bar), tile, 0.0)
        there = (rows < tokens)[None, :] & (ranks < rank)[:, None]
        pairs = tl.load(low + rows[None, :] * rank + ranks[:, None], mask=there, other=0.0)
        total = tl.dot(pairs, tile, total, input_precision="ieee")
    a += lane * rank * width + ranks[:, None] * width + cols[None, :]
    there = (ranks < rank)[:, None] & (cols < width)[None, :]
    tl.store(a, total.to(a.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=_VARYING)
def _down_x(
    low: tl.tensor, a: tl.tensor, key: tl.tensor, bars: tl.tensor, x: tl.tensor,
    tokens: tl.tensor, width: tl.tensor, rank: tl.tensor, a_lane: tl.tensor,
    ROWS: tl.constexpr, COLS: tl.constexpr, RANKS: tl.constexpr,
) -> None:  # fmt: skip
    """Compute a tile (ROWS, COLS) of thin(low·A)."""
    lane = tl.program_id(2).to(tl.int64)
    first, stride, bar = _drawn(key, bars, lane)
    cols = tl.program_id(0) * COLS + tl.arange(0, COLS)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    low += lane * tokens * rank
    a += lane * a_lane
    total = tl.zeros((ROWS, COLS), dtype=tl.float32)
    for start in range(0, rank, RANKS):
        ranks = start + tl.arange(0, RANKS)
        there = (rows < tokens)[:, None] & (ranks < rank)[None, :]
        tile = tl.load(low + rows[:, None] * rank + ranks[None, :], mask=there, other=0.0)
        there = (ranks < rank)[:, None] & (cols < width)[None, :]
        pairs = tl.load(a + ranks[:, None] * width + cols[None, :], mask=there, other=0.0)
        total = tl.dot(tile, pairs, total, input_precision="ieee")
    total = tl.where(_kept(rows, cols, width, first, stride, bar), total, 0.0)
    x += lane * tokens * width + rows[:, None] * width + cols[None, :]
    there = (rows < tokens)[:, None] & (cols < width)[None, :]
    tl.store(x, total.to(x.dtype.element_ty), mask=there)


def _inner(a: torch.Tensor) -> torch.Tensor:
    """Return A such that its lanes may lie apart, as in a bank, but not the rows of a lane."""
    return a if a.stride()[1:] == (a.shape[2], 1) else a.contiguous()


def _sizes(
    like: torch.Tensor, rank: int, *, rows: int, cols: int, ranks: int, warps: int
) -> dict[str, int]:
    """Return a program's tile, the warps it has, and how far it loads ahead.

    Given for 16 bits: no register is spilled, and less than 99 KiB shared, which is all that a
    small GPU has. Exact products of float32 have no units of their own, and need registers.
    """
    if like.dtype == torch.float32:
        rows, cols, ranks, warps = 32, 32, 32, 4
    ranks = min(ranks, max(16, triton.next_power_of_2(rank)))
    ahead = 3 if ranks <= 128 else 2
    return {"ROWS": rows, "COLS": cols, "RANKS": ranks, "num_warps": warps, "num_stages": ahead}


def down(x: torch.Tensor, a: torch.Tensor, key: torch.Tensor, bars: torch.Tensor) -> torch.Tensor:
    """Compute thin(x)·Aᵀ: (lanes, tokens, r)."""
    x, a = x.contiguous(), _inner(a)
    lanes, tokens, width = x.shape
    rank = a.shape[1]
    rows, warps = 128 if 32 < rank <= 128 else 64, 8 if rank > 32 else 4
    size = _sizes(x, rank, rows=rows, cols=64, ranks=256, warps=warps)
    low = x.new_empty(lanes, tokens, rank)
    grid = (triton.cdiv(rank, size["RANKS"]), triton.cdiv(tokens, size["ROWS"]), lanes)
    _down[grid](
        x, a, key.contiguous(), bars.contiguous(), low, tokens, width, rank, a.stride(0), **size
    )
    return low


def down_a(
    grad: torch.Tensor, x: torch.Tensor, key: torch.Tensor, bars: torch.Tensor
) -> torch.Tensor:
    """Compute A's gradient, gradᵀ·thin(x), shape (lanes, r, in), from grad (lanes, tokens, r)."""
    grad, x = grad.contiguous(), x.contiguous()
    lanes, tokens, width = x.shape
    rank = grad.shape[2]
    # A program takes all tokens of its lane: a narrow layer needs narrow tiles to fill a GPU.
    cols, warps = 32 if width <= 1024 else 64, 8 if rank > 32 else 4
    size = _sizes(x, rank, rows=64, cols=cols, ranks=256, warps=warps)
    a = x.new_empty(lanes, rank, width)
    grid = (triton.cdiv(rank, size["RANKS"]), triton.cdiv(width, size["COLS"]), lanes)
    _down_a[grid](grad, x, key.contiguous(), bars.contiguous(), a, tokens, width, rank, **size)
    return a


def down_x(
    grad: torch.Tensor, a: torch.Tensor, key: torch.Tensor, bars: torch.Tensor
) -> torch.Tensor:
    """Compute x's gradient, thin(grad·A), shape (lanes, tokens, in), from (lanes, tokens, r)."""
    grad, a = grad.contiguous(), _inner(a)
    lanes, tokens, rank = grad.shape
    width = a.shape[2]
    rows, cols, warps = 128 if rank > 32 else 64, 128 if rank > 64 else 64, 8 if rank > 32 else 4
    size = _sizes(a, rank, rows=rows, cols=cols, ranks=64, warps=warps)
    x = grad.new_empty(lanes, tokens, width)
    grid = (triton.cdiv(width, size["COLS"]), triton.cdiv(tokens, size["ROWS"]), lanes)
    _down_x[grid](
        grad, a, key.contiguous(), bars.contiguous(), x, tokens, width, rank, a.stride(0), **size
    )
    return x
