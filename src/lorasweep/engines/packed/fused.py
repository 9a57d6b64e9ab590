"""Dropout and the first low-rank product in one: no thinned input is ever written.

The kernels are operators of PyTorch, into which its compiler does not look. Triton is imported
within them, as PyTorch for CPUs comes without.
"""

import functools
import importlib.util
from typing import Any

import torch

from lorasweep.engines.packed.noise import thinned


@torch.library.custom_op("lorasweep::down", mutates_args=())
def _down(x: torch.Tensor, a: torch.Tensor, key: torch.Tensor, bars: torch.Tensor) -> torch.Tensor:
    from lorasweep.engines.packed import kernels

    return kernels.down(x, a, key, bars)


@torch.library.custom_op("lorasweep::down_a", mutates_args=())
def _down_a(
    grad: torch.Tensor, x: torch.Tensor, key: torch.Tensor, bars: torch.Tensor
) -> torch.Tensor:
    from lorasweep.engines.packed import kernels

    return kernels.down_a(grad, x, key, bars)


@torch.library.custom_op("lorasweep::down_x", mutates_args=())
def _down_x(
    grad: torch.Tensor, a: torch.Tensor, key: torch.Tensor, bars: torch.Tensor
) -> torch.Tensor:
    from lorasweep.engines.packed import kernels

    return kernels.down_x(grad, a, key, bars)


@_down.register_fake
def _(x: torch.Tensor, a: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
    return x.new_empty(x.shape[0], x.shape[1], a.shape[1])


@_down_a.register_fake
def _(grad: torch.Tensor, x: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
    return x.new_empty(x.shape[0], grad.shape[2], x.shape[2])


@_down_x.register_fake
def _(grad: torch.Tensor, a: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
    return grad.new_empty(grad.shape[0], grad.shape[1], a.shape[2])


def _keep(ctx: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(
    ctx: Any, grad: torch.Tensor
) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None]:
    x, a, key, bars = ctx.saved_tensors
    of_x = _down_x(grad, a, key, bars) if ctx.needs_input_grad[0] else None
    of_a = _down_a(grad, x, key, bars) if ctx.needs_input_grad[1] else None
    return of_x, of_a, None, None


_down.register_autograd(_gradients, setup_context=_keep)


@functools.cache
def usable(device: torch.device) -> bool:
    """Whether the kernels run here: with Triton, and matrix units for bfloat16 (Ampere, 2020)."""
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return False
    return bool(torch.cuda.get_device_capability(device) >= (8, 0))


def thinned_down(
    x: torch.Tensor, a: torch.Tensor, key: torch.Tensor, bars: torch.Tensor, *, kernels: bool
) -> torch.Tensor:
    """Compute thin(x)·Aᵀ (trials, tokens, r), the mask being that of ``noise.thinned``.

    Args:
        x: shape (trials, tokens, in), in the format of A.
        a: shape (trials, r, in).
        key: shape (trials, 2), int32.
        bars: shape (trials, 1, 1), int32.
        kernels: compute it by them, where they are usable.
    """
    if kernels:
        low: torch.Tensor = _down(x, a, key, bars)
        return low
    return torch.bmm(thinned(x, key, bars), a.transpose(1, 2))
