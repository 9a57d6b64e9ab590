"""Parts of the base that know of several trials: linear layers, dropout, attention."""

import math
from collections.abc import Callable
from typing import Any

import bitsandbytes as bnb
import torch
from torch import nn
from torch.nn import functional
from transformers import AttentionInterface

from lorasweep.engines.packed.layout import Lane, Pass

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

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (1, tokens, in) to (1, tokens, out)."""
        now = self.stage.now
        y = self.base(x)
        if not any(self.slot in lane.adapter.bank.pairs for lane in now.lanes):
            return y
        if len(now.lanes) == 1:
            return self._updated(now, now.lanes[0], x[0], y[0])[None]
        parts = zip(now.lanes, x[0].split(now.tokens), y[0].split(now.tokens), strict=True)
        return torch.cat([self._updated(now, *part) for part in parts])[None]

    def _updated(self, now: Pass, lane: Lane, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        adapter = lane.adapter
        if self.slot not in adapter.bank.pairs:
            return y
        if now.training:
            x = adapter.drop(x, adapter.dropout, lane)
        return adapter.bank.add(self.slot, x, y)


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
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention within each text: (1, heads, tokens, width) to (1, tokens, heads, width)."""
    now: Pass = module.stage.now
    causal = bool(module.is_causal)
    whole = [x[0].transpose(0, 1) for x in (query, key, value)]
    split = zip(*(x.split(now.tokens) for x in whole), strict=True)
    parts = []
    for lane, (q, k, v) in zip(now.lanes, split, strict=True):
        if now.training and dropout > 0:
            parts.append(_with_dropout(lane, q, k, v, dropout, scaling, causal=causal))
        else:
            parts.append(_plain(lane, q, k, v, scaling, causal=causal))
    return torch.cat(parts)[None], None


AttentionInterface.register(ATTENTION, attend)


def _heads(x: torch.Tensor, count: int) -> torch.Tensor:
    """Repeat key or value heads (rows, few, width, head) until there are ``count``."""
    return x if x.shape[1] == count else x.repeat_interleave(count // x.shape[1], dim=1)


def _plain(
    lane: Lane, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, *, causal: bool
) -> torch.Tensor:
    grid = lane.tight
    tables = (grid.spread(x).transpose(1, 2) for x in (q, k, v))
    rows, keys, values = (_heads(x, q.shape[1]) for x in tables)
    # Padding is on the right, where causal attention does not look.
    mask = None if causal else grid.mask
    out = functional.scaled_dot_product_attention(
        rows, keys, values, attn_mask=mask, is_causal=causal, scale=scale
    )
    return grid.collect(out.transpose(1, 2))


def _with_dropout(
    lane: Lane,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    p: float,
    scale: float,
    *,
    causal: bool,
) -> torch.Tensor:
    """Attention written out, as PyTorch computes it on the CPU where there is dropout."""
    grid, root = lane.alone, math.sqrt(scale)
    tables = (grid.spread(x).transpose(1, 2) for x in (q, k, v))
    rows, keys, values = (_heads(x, q.shape[1]) for x in tables)
    scores = (rows * root) @ (keys * root).transpose(-2, -1)
    if grid.mask is not None:
        scores = scores.masked_fill(~grid.mask, -math.inf)
    if causal:
        future = torch.ones(grid.width, grid.width, dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(future, -math.inf)
    weights = scores.softmax(-1)
    weights = weights * lane.adapter.stream.noise(weights.shape, p, weights)
    return grid.collect((weights @ values).transpose(1, 2))


def install(
    model: nn.Module, blocks: str, stage: Stage, frozen: Callable[[nn.Linear], nn.Module]
) -> None:
    """Replace linear layers in the blocks, dropouts anywhere, and attention."""
    for name, module in list(model.named_modules()):
        owner, _, leaf = name.rpartition(".")
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
