"""Seconds of a trial: a roofline of the device, mended by trials that were measured on it.

A training step takes the longest of what the host needs to launch it (eager PyTorch and PEFT
run hundreds of small operations a block) and what the device needs to compute it: operations
over its rate, and bytes over its bandwidth. See Williams et al. 2009, doi:10.1145/1498765.1498785.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from statistics import median
from typing import Any

from lorasweep.costs import activations, memory
from lorasweep.costs.devices import Device, recognise
from lorasweep.costs.parameters import count
from lorasweep.costs.setting import Setting, setting_of
from lorasweep.trial import Trial

# Seconds that the host needs to launch one block, forward and backward (eager PyTorch, slow
# CPU), for each of its adapters and quantised layers, and for the rest of a step. Fitted, like
# all numbers below, to bench/results/memory_h100.csv; a faster host needs a calibrating trial.
BLOCK, ADAPTER, ADAPTER_PLAIN, QUANTISED, STEP = 4.0e-3, 0.53e-3, 0.3e-3, 0.28e-3, 5e-3
# What checkpointing multiplies that by (recomputation, and hooks on every saved tensor), and the
# share that a forward pass without gradients takes.
CHECKPOINTING, FORWARD = 1.8, 0.28
# Share of the datasheet rates that these kernels reach.
HALF_RATE, SINGLE_RATE, BANDWIDTH = 0.65, 0.75, 0.8
# Times that what a block keeps is read or written in a step, bytes for each number that enters
# an adapter, and bytes for each byte of trained parameters.
TRAFFIC, ADAPTER_TRAFFIC, ADAPTER_TRAFFIC_QUANTISED, OPTIMIZER_TRAFFIC = 8.0, 44.0, 24.0, 16.0
START, READ = 5.0, 1.5e9  # seconds to build a trial, bytes of a checkpoint read a second


@dataclass(frozen=True)
class Data:
    """What a task's data means for costs. ``tokens``: of a padded text on average, if known."""

    n_labels: int
    train_items: int
    eval_items: int
    tokens: float | None = None


@dataclass(frozen=True)
class Bounds:
    """Seconds of one step by what bounds it."""

    host: float
    device: float


@dataclass(frozen=True)
class Seconds:
    """Seconds of a trial. ``calibrated``: a measured trial of its kind was used."""

    load: float
    train: float
    evaluate: float
    calibrated: bool

    @property
    def total(self) -> float:
        """All of it."""
        return self.load + self.train + self.evaluate


Kind = tuple[Any, ...]


@dataclass(frozen=True)
class Calibration:
    """Measured over predicted seconds for each kind of trial: (host, device) factors."""

    factors: Mapping[Kind, tuple[float, float]] = field(default_factory=dict)

    def step(self, kind: Kind, bounds: Bounds) -> tuple[float, bool]:
        """Seconds of a step, and whether a measured trial of this kind was used."""
        host, device = self.factors.get(kind, (1.0, 1.0))
        return max(bounds.host * host, bounds.device * device), kind in self.factors


@dataclass(frozen=True)
class Measured:
    """A trial that ran: seconds of one of its steps, and the tokens of its padded texts."""

    trial: Trial
    step_s: float
    tokens: float


def kind_of(trial: Trial) -> Kind:
    """Trials of one kind share a calibration: same model, method and arithmetic."""
    names = ("model.name", "method.trains", "method.quant", "method.compute_dtype",
             "method.kbit_prepare", "train.precision")  # fmt: skip
    return tuple(str(trial[name]) for name in names)


def estimate(trial: Trial, data: Data, device: Device, calibration: Calibration) -> Seconds:
    """Seconds of a trial on a device: loading, training, evaluating."""
    s = setting_of(trial, data.n_labels)
    tokens = padded_tokens(trial, data)
    kind = kind_of(trial)
    step, calibrated = calibration.step(kind, training_step(s, device, tokens))
    batch, _ = calibration.step(kind, evaluation_batch(s, device, tokens))
    micro_batches = steps(trial, data.train_items) * s.accumulation if s.trains else 0
    weights = memory.weight_bytes(s, count(trial, data.n_labels))
    return Seconds(
        load=START + weights / READ,
        train=micro_batches * step,
        evaluate=math.ceil(data.eval_items / s.eval_batch) * batch,
        calibrated=calibrated,
    )


def padded_tokens(trial: Trial, data: Data) -> float:
    """Tokens of a text as the model sees it, padding included."""
    longest = float(trial["train.max_length"])
    if trial["train.padding"] == "max_length" or data.tokens is None:
        return longest
    return min(longest, data.tokens)


def steps(trial: Trial, train_items: int) -> int:
    """Optimizer steps of the whole training, as the engine counts them."""
    if trial["train.max_steps"]:
        return int(trial["train.max_steps"])
    batches = math.ceil(train_items / trial["train.batch_size"])
    an_epoch = math.ceil(batches / trial["train.accumulation"])
    return max(1, math.ceil(an_epoch * trial["train.epochs"]))


@lru_cache(maxsize=65536)
def training_step(s: Setting, device: Device, tokens: float) -> Bounds:
    """Bounds of one forward and backward pass of a batch, with its share of the optimizer.

    Args:
        s: the trial's setting.
        device: where it runs.
        tokens: of one padded text.
    """
    again = 1 if s.checkpointing else 0
    host = s.shape.blocks * launches(s) * (CHECKPOINTING if s.checkpointing else 1) + STEP
    gradients = 2 if s.trains == "everything" else 1  # of inputs, and of weights
    arithmetic = operations(s, device, tokens, base=1 + again + gradients, rest=3 + again)
    traffic = elementwise(s, tokens) * (1 + FORWARD * again) + restored(s) * (2 + again)
    update = memory.trained_bytes(s) * OPTIMIZER_TRAFFIC / s.accumulation
    moved = (s.batch * traffic + update) / (device.bandwidth * BANDWIDTH)
    return Bounds(host=host, device=s.batch * arithmetic + moved)
