"""LoRA on a classification head."""

import math

import torch
from torch import nn


class LoraHead(nn.Module):
    """A linear layer trained in full that also carries a low-rank update.

    y = x·Wᵀ + b + (α/r)·dropout(x)·Aᵀ·Bᵀ with W (out, in), A (r, in), B (out, r) all trained.
    This is what PEFT made of a head named both in ``target_modules`` and ``modules_to_save``,
    and how Patil et al. 2025 come to their parameter counts (Table 4).
    """

    def __init__(self, linear: nn.Linear, r: int, alpha: float, dropout: float) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.lora_A = nn.Parameter(torch.empty(r, linear.in_features, device=linear.weight.device))
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, r, device=linear.weight.device))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.scale, self.dropout = alpha / r, nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (…, in) to (…, out)."""
        x = x.to(self.weight.dtype)
        update = self.dropout(x) @ self.lora_A.T @ self.lora_B.T
        return nn.functional.linear(x, self.weight, self.bias) + self.scale * update

    def folded(self) -> nn.Linear:
        """Return a plain layer that computes the same: W + (α/r)·B·A."""
        out, into = self.weight.shape
        linear = nn.Linear(into, out, bias=self.bias is not None, device=self.weight.device)
        with torch.no_grad():
            linear.weight.copy_(self.weight + self.scale * self.lora_B @ self.lora_A)
            if self.bias is not None:
                linear.bias.copy_(self.bias)
        return linear


def swap_head(module: nn.Module, name: str, make: type | None, **options: float) -> None:
    """Swap every linear layer at or under ``name`` for a LoraHead, or back (``make`` None)."""
    wanted = LoraHead if make is None else nn.Linear
    inside = {
        f"{name}.{n}" if n else name: m
        for n, m in module.get_submodule(name).named_modules()
        if isinstance(m, wanted)
    }
    for path, layer in inside.items():
        parent, _, leaf = path.rpartition(".")
        new = layer.folded() if isinstance(layer, LoraHead) else LoraHead(layer, **options)  # type: ignore[arg-type]
        setattr(module.get_submodule(parent), leaf, new)
