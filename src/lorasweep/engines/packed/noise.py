"""Dropout of steps of fixed shape: what falls out follows from trial, step and place alone.

A generator's numbers come in the order in which they are asked for, so trials that share a
product would have to take turns. A hash of the place needs no turns and no memory: the same
number is found again in the backward pass, in a recording, and after a restart.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

_BITS = 24  # of a hash that are compared with the probability
_EVERY = np.uint64(0x9E3779B97F4A7C15)


def _scrambled(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Splitmix64's finaliser (Steele, Lea, Flood 2014, doi:10.1145/2714064.2660195)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def keys(seeds: Sequence[int], steps: Sequence[int], slots: int) -> npt.NDArray[np.int32]:
    """Return a key for each layer and trial at its step, shape (slots, trials, 2)."""
    with np.errstate(over="ignore"):
        of_trial = _scrambled(np.asarray(seeds, dtype=np.uint64) + _EVERY)
        of_step = _scrambled(of_trial ^ (np.asarray(steps, dtype=np.uint64) * _EVERY))
        of_slot = (np.arange(slots, dtype=np.uint64) + np.uint64(1)) * _EVERY
        return _scrambled(of_step[None] ^ of_slot[:, None]).view(np.int32).reshape(slots, -1, 2)


def _mixed(x: torch.Tensor) -> torch.Tensor:
    """Scramble 32 bits: lowbias32 of github.com/skeeto/hash-prospector (public domain)."""
    x = (x ^ ((x >> 16) & 0xFFFF)) * 0x7FEB352D
    x = (x ^ ((x >> 15) & 0x1FFFF)) * (0x846CA68B - (1 << 32))
    return x ^ ((x >> 16) & 0xFFFF)


def thinned(x: torch.Tensor, key: torch.Tensor, bars: torch.Tensor) -> torch.Tensor:
    """Set entries of x to zero with each trial's probability; the others stay as they are.

    Args:
        x: shape (trials, rows, width).
        key: shape (trials, 2), int32.
        bars: number below which a hash means that an entry is dropped, shape (trials, 1, 1),
            int32.
    """
    place = torch.arange(x.shape[1] * x.shape[2], dtype=torch.int32, device=x.device)
    stride = (key[:, 1] | 1)[:, None, None]
    number = _mixed(place.view(1, *x.shape[1:]) * stride + key[:, 0, None, None])
    return torch.where((number & ((1 << _BITS) - 1)) >= bars, x, 0.0)


class Noise:
    """Dropout of the lanes of fixed steps: all that a recorded step reads of it.

    Attributes:
        keys: of each layer, and of the head at last, shape (layers + 1, lanes, 2), int32;
            others for every step.
        bars: shape (lanes, 1, 1), int32.
        lift: 1/(1-p), by which what is left counts more, shape (lanes, 1).
    """

    def __init__(self, layers: int, lanes: int, device: torch.device) -> None:
        self.keys = torch.zeros(layers + 1, lanes, 2, dtype=torch.int32, device=device)
        self.bars = torch.zeros(lanes, 1, 1, dtype=torch.int32, device=device)
        self.lift = torch.ones(lanes, 1, device=device)

    def seat(self, lane: int, p: float) -> None:
        """Set the probability of a lane."""
        self.bars[lane] = round(p * (1 << _BITS))
        self.lift[lane] = 1 / (1 - p)

    def of_head(self, lane: int, x: torch.Tensor) -> torch.Tensor:
        """Apply dropout to what one trial's head reads, shape (texts, width)."""
        here = slice(lane, lane + 1)
        return thinned(x[None], self.keys[-1, here], self.bars[here])[0] * self.lift[lane]
