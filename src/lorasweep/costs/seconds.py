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

# Seconds of one eager operation on the host, and how many there are; fitted to bench/memory.py
# on an H100 with a slow host (results/memory.csv). A faster host needs a calibrating trial.
CALL = 17e-6
BLOCK_FORWARD, BLOCK_BACKWARD = 92, 120
ADAPTER_FORWARD, ADAPTER_BACKWARD = 15, 22
QUANTISED_FORWARD, QUANTISED_BACKWARD = 19, 20
TENSOR, STEP = 1, 600  # clipping and AdamW for each trained tensor; the rest of a step
# Share of the datasheet rates that these kernels reach.
HALF_RATE, SINGLE_RATE, BANDWIDTH = 0.65, 0.75, 0.8
# Times that what a block keeps is read or written, and bytes moved for each trained parameter.
TRAFFIC, OPTIMIZER_TRAFFIC = 5.0, 60.0
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
    forward, backward = calls(s)
    blocks = s.shape.blocks * (forward * (1 + again) + backward)
    tensors = TENSOR * trained_tensors(s) / s.accumulation
    trained = memory.trained_elements(s) / s.accumulation
    passes = compute(s, device, s.batch * tokens, tokens, forwards=1 + again, backward=True)
    update = trained * OPTIMIZER_TRAFFIC / (device.bandwidth * BANDWIDTH)
    return Bounds(host=CALL * (blocks + tensors + STEP), device=passes + update)


@lru_cache(maxsize=65536)
def evaluation_batch(s: Setting, device: Device, tokens: float) -> Bounds:
    """Bounds of the forward pass of one evaluation batch."""
    forward, _ = calls(s)
    passes = compute(s, device, s.eval_batch * tokens, tokens, forwards=1, backward=False)
    return Bounds(host=CALL * (s.shape.blocks * forward + STEP), device=passes)


def calls(s: Setting) -> tuple[int, int]:
    """Operations that the host launches in one block, forward and backward."""
    adapters = len(s.adapted)
    quantised = len(s.shape.linears) if s.quant is not None else 0
    return (
        BLOCK_FORWARD + adapters * ADAPTER_FORWARD + quantised * QUANTISED_FORWARD,
        BLOCK_BACKWARD + adapters * ADAPTER_BACKWARD + quantised * QUANTISED_BACKWARD,
    )


def trained_tensors(s: Setting) -> int:
    """Tensors that the optimizer goes through."""
    of_a_block = 2 * len(s.adapted) or len(s.shape.linears) + s.shape.norms_per_block
    return s.shape.blocks * of_a_block if s.trains else 0


def compute(
    s: Setting, device: Device, tokens: float, length: float, *, forwards: int, backward: bool
) -> float:
    """Seconds of arithmetic and memory traffic for ``tokens`` tokens in texts of ``length``."""
    shape = s.shape
    base = 2.0 * shape.block_weights
    update = 2.0 * shape.blocks * sum(layer.lora(s.r) for layer in s.adapted)
    scores = 4.0 * shape.blocks * shape.heads * shape.head_dim * length
    of_base = 2 if s.trains == "everything" else 1
    times = forwards + (of_base if backward else 0)
    twice = forwards + (2 if backward else 0)  # gradients of inputs and of weights
    half = (scores + update) * twice
    single = 0.0
    if s.quant is not None and s.compute == 4 and s.quant != "int8":
        single = base * times
    else:
        half += base * times
    if not s.autocast:
        half, single = 0.0, half + single
    arithmetic = tokens * (
        half / (device.half * HALF_RATE) + single / (device.single * SINGLE_RATE)
    )
    kept = shape.blocks * activations.block_per_token(s, length) * tokens * TRAFFIC
    elementwise = kept * (times + 1) / 3
    weights = dequantisation(s) * (forwards + (1 if backward else 0))
    return arithmetic + (elementwise + weights) / (device.bandwidth * BANDWIDTH)


def dequantisation(s: Setting) -> float:
    """Bytes moved to restore the matrices of all blocks once: codes read, numbers written."""
    if s.quant is None:
        return 0.0
    return s.shape.block_weights * (0.5 + 2 * s.compute)
