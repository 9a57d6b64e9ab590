"""Parts of the base that know of several trials: linear layers, dropout, attention, last block."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import bitsandbytes as bnb
import torch
from torch import nn
from torch.nn import functional
from transformers import AttentionInterface

from lorasweep.engines.packed.bank import Bank, raised, update
from lorasweep.engines.packed.fused import thinned_down, usable
from lorasweep.engines.packed.layout import Even, Lane, Pass

ATTENTION = "lorasweep_packed"


class Stage:
    """Where the base's parts find the pass under way."""

    now: Pass


class Dense(nn.Module):
    """A frozen linear layer."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (…, in) to (…, out)."""
        return functional.linear(x, self.weight, self.bias)


class _Dequantised(torch.autograd.Function):
    """x·Wᵀ + b where W is dequantised in each direction, and kept in neither."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: "FourBit") -> torch.Tensor:
        ctx.layer = layer
        return functional.linear(x, layer.dense(x.dtype), layer.offset(x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad @ ctx.layer.dense(grad.dtype), None


class FourBit(nn.Module):
    """A frozen linear layer held in 4 bits, computed as bitsandbytes does.

    ``keep`` makes a copy in the format of the arithmetic: the same numbers, for more memory.
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.packed, self.bias, self.dtype = linear.weight, linear.bias, dtype
        self.copy: torch.Tensor | None = None

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the weight (out, in) as bitsandbytes dequantises it."""
        if self.copy is not None and self.copy.dtype == dtype:
            return self.copy
        weight = bnb.functional.dequantize_4bit(self.packed.data, self.packed.quant_state)
        return weight.to(dtype)

    def offset(self, dtype: torch.dtype) -> torch.Tensor | None:
        """Return the bias in the format of the arithmetic."""
        return None if self.bias is None else self.bias.to(dtype)

    def keep(self) -> None:
        """Dequantise once and for all."""
        self.copy = self.dense(self.dtype).contiguous()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (…, in) to (…, out)."""
        inner = x.to(self.dtype)
        if self.copy is not None:
            return functional.linear(inner, self.copy, self.offset(self.dtype)).to(x.dtype)
        return _Dequantised.apply(inner, self).to(x.dtype)


class PackedLinear(nn.Module):
    """A frozen linear layer for the tokens of all trials, with each trial's own update."""

    def __init__(self, base: nn.Module, slot: str, stage: Stage) -> None:
        super().__init__()
        self.base, self.slot, self.stage = base, slot, stage
        # For even passes: lanes of each bank that has an update here and of those between, and
        # that (A, B, scale, scale with dropout on), None where there is none; and the dropout's
        # (keys, bars) of each.
        self.sizes: list[int] = []
        self.updates: list[tuple[torch.Tensor, ...] | None] = []
        self.noise: list[tuple[torch.Tensor, torch.Tensor]] | None = None
        self.format = torch.float32  # of A and B
        self.kernels = False

    def seat(self, banks: Sequence[Bank], noise: tuple[torch.Tensor, torch.Tensor] | None) -> None:
        """Set whose lanes follow each other in even passes, and what drops their inputs."""
        reach = max((i for i, bank in enumerate(banks, 1) if self.slot in bank.pairs), default=0)
        self.sizes = [bank.rows for bank in banks[:reach]]
        self.updates = [
            (*bank.pairs[self.slot], bank.scale, bank.lifted) if self.slot in bank.pairs else None
            for bank in banks[:reach]
        ]
        self.format = banks[0].work.dtype
        self.noise = None
        if noise is not None:
            keys, bars = (part[: sum(self.sizes)].split(self.sizes) for part in noise)
            self.noise = list(zip(keys, bars, strict=True))
            self.kernels = usable(noise[0].device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (1, tokens, in), or in even passes (lanes, tokens, in), to the same with out."""
        now = self.stage.now
        y = self.base(x)
        if now.even is not None:
            return self._even(x, y)
        if not any(self.slot in lane.adapter.bank.pairs for lane in now.lanes):
            return y
        if len(now.lanes) == 1:
            return self._updated(now, now.lanes[0], x[0], y[0])[None]
        parts = zip(now.lanes, x[0].split(now.tokens), y[0].split(now.tokens), strict=True)
        return torch.cat([self._updated(now, *part) for part in parts])[None]

    def _even(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if not self.updates:
            return y
        lanes, noise = sum(self.sizes), self.noise if self.stage.now.training else None
        own = x.to(self.format)[:lanes].split(self.sizes)  # cast as autocast does
        made = y[:lanes].split(self.sizes)
        parts = []
        for i, change in enumerate(self.updates):
            if change is None:
                parts.append(made[i])
                continue
            a, b, scale, lifted = change
            if noise is None:
                parts.append(update(own[i], made[i], a, b, scale))
            else:
                low = thinned_down(own[i], a, *noise[i], kernels=self.kernels)
                parts.append(raised(low, made[i], b, lifted))
        if lanes < y.shape[0]:
            parts.append(y[lanes:])
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _updated(self, now: Pass, lane: Lane, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        adapter = lane.adapter
        if self.slot not in adapter.bank.pairs:
            return y
        if now.training:
            x = adapter.drop(x, adapter.dropout, lane)
        return adapter.bank.add(self.slot, adapter.row, x, y)


class Pick(nn.Module):
    """In even passes keeps the tokens that texts are judged by."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (lanes, tokens, width) to (lanes, most texts of any lane, width)."""
        now = self.stage.now
        if now.even is None:
            return x
        return x.flatten(0, 1).index_select(0, now.pooled).view(len(x), -1, x.shape[-1])


class LastBlock(nn.Module):
    """A Llama-like model's last block: past its attention, only pooled tokens are read by anyone.

    In uneven passes it goes on with all of them, as dropout there is drawn in the Trainer's order.
    """

    def __init__(self, block: nn.Module, stage: Stage) -> None:
        super().__init__()
        self.block, self.pick = block, Pick(stage)
        # Within the attention, which gives what goes in here the shape of its own input.
        block.self_attn.o_proj = nn.Sequential(self.pick, block.self_attn.o_proj)

    def forward(self, x: torch.Tensor, **rest: Any) -> torch.Tensor:
        """Map (lanes, tokens, width) to what ``Pick`` keeps of it."""
        block = self.block
        attended, _ = block.self_attn(hidden_states=block.input_layernorm(x), **rest)
        x = self.pick(x) + attended
        return x + block.mlp(block.post_attention_layernorm(x))


class PackedDropout(nn.Module):
    """The base's own dropout, drawn by each trial for its own tokens."""

    def __init__(self, p: float, stage: Stage) -> None:
        super().__init__()
        self.p, self.stage = p, stage

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (1, tokens, width) to the same shape."""
        now = self.stage.now
        if not now.training or self.p == 0:
            return x
        parts = zip(now.lanes, x[0].split(now.tokens), strict=True)
        return torch.cat([lane.adapter.drop(part, self.p, lane) for lane, part in parts])[None]


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention within each text: (1, heads, tokens, width) to (1, tokens, heads, width).

    With a sliding window a token sees so many, itself and those before it.
    """
    now: Pass = module.stage.now
    if now.even is not None:
        return _even(now.even, query, key, value, scaling, sliding_window), None
    causal = bool(module.is_causal)
    whole = [x[0].transpose(0, 1) for x in (query, key, value)]
    split = zip(*(x.split(now.tokens) for x in whole), strict=True)
    parts = []
    for lane, (q, k, v) in zip(now.lanes, split, strict=True):
        if now.training and dropout > 0:
            seen = _seen(lane.alone.width, sliding_window, q.device) if causal else None
            parts.append(_with_dropout(lane, q, k, v, dropout, scaling, seen))
        else:
            parts.append(_plain(lane, q, k, v, scaling, sliding_window, causal=causal))
    return torch.cat(parts)[None], None


AttentionInterface.register(ATTENTION, attend)


class _Move(torch.autograd.Function):
    """Tokens to cells or back: a gather both ways, where autograd would add up with atomics.

    ``index`` says where each row of the result comes from, ``back`` the same for the gradient,
    ``kept`` which rows of the gradient are real; the others are padding and get zeros.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, index: torch.Tensor, back: torch.Tensor, kept: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(back, kept)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        back, kept = ctx.saved_tensors
        return grad.index_select(0, back) * kept[:, None, None], None, None, None


def _seen(width: int, window: int | None, device: torch.device) -> torch.Tensor:
    """Return which tokens each one sees: itself and those before it, shape (width, width)."""
    seen = torch.ones(width, width, dtype=torch.bool, device=device).tril()
    return seen if window is None else seen.triu(1 - window)


def _window(width: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    """Return the mask of a sliding window; None where it is no narrower than the texts."""
    return None if window is None or window >= width else _seen(width, window, device)


def _even(
    even: Even,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    window: int | None,
) -> torch.Tensor:
    """Causal attention in an even pass: (lanes, heads, tokens, width), tokens before heads out.

    Padding is on the right, where nothing looks, so that it needs no mask.
    """

    def spread(x: torch.Tensor) -> torch.Tensor:
        flat = x.transpose(1, 2).flatten(0, 1)
        cells = _Move.apply(flat, even.token_of, even.cell_of, even.real)
        return cells.view(even.texts, even.width, *flat.shape[1:]).transpose(1, 2)

    rows, keys, values = spread(query), spread(key), spread(value)
    mask = _window(even.width, window, query.device)
    if query.device.type == "cpu" or mask is not None:  # no fast kernel for grouped heads
        keys, values = _heads(keys, rows.shape[1]), _heads(values, rows.shape[1])
    grouped = keys.shape[1] != rows.shape[1]
    out = functional.scaled_dot_product_attention(
        rows, keys, values, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=grouped
    )
    flat = out.transpose(1, 2).flatten(0, 1)
    tokens = _Move.apply(flat, even.cell_of, even.token_of, even.filled)
    return tokens.view(query.shape[0], query.shape[2], *flat.shape[1:])


def _heads(x: torch.Tensor, count: int) -> torch.Tensor:
    """Repeat key or value heads (rows, few, width, head) until there are ``count``."""
    return x if x.shape[1] == count else x.repeat_interleave(count // x.shape[1], dim=1)


def _plain(
    lane: Lane,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    window: int | None,
    *,
    causal: bool,
) -> torch.Tensor:
    grid = lane.tight
    tables = (grid.spread(x).transpose(1, 2) for x in (q, k, v))
    rows, keys, values = (_heads(x, q.shape[1]) for x in tables)
    # Padding is on the right, where causal attention does not look.
    mask = _window(grid.width, window, q.device) if causal else grid.mask
    out = functional.scaled_dot_product_attention(
        rows, keys, values, attn_mask=mask, is_causal=causal and mask is None, scale=scale
    )
    return grid.collect(out.transpose(1, 2))


def _with_dropout(
    lane: Lane,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    p: float,
    scale: float,
    seen: torch.Tensor | None,
) -> torch.Tensor:
    """Attention written out, as PyTorch computes it on the CPU where there is dropout."""
    grid, root = lane.alone, math.sqrt(scale)
    tables = (grid.spread(x).transpose(1, 2) for x in (q, k, v))
    rows, keys, values = (_heads(x, q.shape[1]) for x in tables)
    scores = (rows * root) @ (keys * root).transpose(-2, -1)
    mask = grid.mask if seen is None else seen  # padding on the right is seen by padding alone
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    weights = scores.softmax(-1)
    weights = weights * lane.adapter.stream.noise(weights.shape, p, weights)
    return grid.collect((weights @ values).transpose(1, 2))


def install(
    model: nn.Module, blocks: str, stage: Stage, frozen: Callable[[nn.Linear], nn.Module]
) -> None:
    """Replace linear layers in the blocks, dropouts anywhere, and attention."""
    for name, module in list(model.named_modules()):
        owner, _, leaf = name.rpartition(".")
        if hasattr(module, "chunk_size_feed_forward"):
            module.chunk_size_feed_forward = 0  # of a batch's padded texts, which here is none
        if isinstance(module, nn.Linear) and name.startswith(f"{blocks}."):
            new: nn.Module = PackedLinear(frozen(module), name, stage)
        elif isinstance(module, nn.Dropout):
            new = PackedDropout(module.p, stage)
        else:
            if hasattr(module, "is_causal"):
                module.stage = stage
            if hasattr(module, "config"):
                module.config._attn_implementation = ATTENTION
            continue
        setattr(model.get_submodule(owner), leaf, new)
