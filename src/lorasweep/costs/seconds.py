"""Seconds of a trial: a roofline of the device, mended by trials that were measured on it.

A step takes the longer of what the host needs to launch it (eager PyTorch and PEFT run
hundreds of small operations a block) and what the device needs to compute it: operations over
its rate plus bytes over its bandwidth. See Williams et al. 2009, doi:10.1145/1498765.1498785.
In a pack the launches are shared by all, and a trial's share is what the device needs for it.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from statistics import median
from typing import Any, Literal

from lorasweep.costs import activations, memory
from lorasweep.costs.devices import Device, same
from lorasweep.costs.setting import Setting, setting_of
from lorasweep.measured import undisturbed
from lorasweep.trial.trial import Trial

# All numbers are fitted to bench/results/memory_h100.csv (an H100 whose host is slow: on a
# faster host small models are faster than predicted, until a trial has been measured there).
# Seconds that the host needs to launch a block, forward and backward, each of its adapters
# (under autocast, and without), each quantised layer; and the rest of a step.
BLOCK, ADAPTER, ADAPTER_PLAIN, QUANTISED, STEP = 3.4e-3, 0.52e-3, 0.2e-3, 0.23e-3, 17e-3
# What checkpointing multiplies these by (recomputation, hooks on each saved tensor), and the
# share of an evaluation batch.
CHECKPOINTING, EVALUATION = 1.88, 0.33
# Share of the datasheet rates that matrix products and copies reach.
HALF_RATE, SINGLE_RATE, BANDWIDTH = 0.75, 0.76, 0.8
# Bytes moved in a step for each byte that a block keeps, for each number that enters an adapter
# (PEFT casts to float32 unless the base is quantised), for each trained parameter (clipping and
# foreach AdamW; a fused AdamW reads and writes each number once); and the share of a forward pass.
TRAFFIC, CAST_TRAFFIC, ADAPTER_TRAFFIC, FORWARD = 12.5, 89.0, 62.0, 0.42
UPDATE_TRAFFIC, FUSED_UPDATE_TRAFFIC = 66.0, 40.0
START, READ = 5.0, 1.5e9  # seconds to build a trial; bytes of a checkpoint read a second
RECORDING = 40.0  # seconds until a pack's steps are compiled and recorded


@dataclass(frozen=True)
class Data:
    """What a task's data means for costs. ``tokens``: of a padded text on average, if known."""

    n_labels: int
    train_items: int
    eval_items: int
    tokens: float | None = None


Bound = Literal["host", "device", "pack"]  # the last: of the device, in a pack


@dataclass(frozen=True)
class Bounds:
    """Seconds of one batch by what bounds it; the host launches while the device computes."""

    host: float
    device: float

    @property
    def by(self) -> Bound:
        """Which of the two takes longer."""
        return "host" if self.host > self.device else "device"


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


Kind = tuple[str, ...]
# Trials that agree in these share a calibration.
_KIND = (
    "model.name",
    "method.trains",
    "method.quant",
    "method.compute_dtype",
    "train.precision",
    "train.checkpointing",
)


@dataclass(frozen=True)
class Calibration:
    """Measured over predicted seconds of a step, by kind of trial and what bound the step."""

    factors: Mapping[tuple[Kind, Bound], float] = field(default_factory=dict)

    def knows(self, kind: Kind) -> bool:
        """Whether a trial of this kind was measured."""
        return (kind, "host") in self.factors or (kind, "device") in self.factors

    def share(self, kind: Kind, bounds: Bounds) -> float:
        """Seconds of a pack that a batch of one of its trials takes."""
        return bounds.device * self.factors.get((kind, "pack"), 1.0)

    def seconds(self, kind: Kind, bounds: Bounds) -> float:
        """Seconds of a batch, each bound mended by what was measured of it."""
        host = bounds.host * self.factors.get((kind, "host"), 1.0)
        return max(host, bounds.device * self.factors.get((kind, "device"), 1.0))


def kind_of(config: Mapping[str, Any]) -> Kind:
    """Kind of a trial: same model, method and arithmetic."""
    return tuple(str(config[name]) for name in _KIND)


def calibrate(rows: Iterable[Mapping[str, Any]], device: Device) -> Calibration:
    """Learn from recorded trials, alone and in packs, on this device.

    Args:
        rows: trials as ``record.read`` gives them: params as text, metrics, tags.
        device: where the coming trials run; rows of other devices are left out.
    """
    ratios: defaultdict[tuple[Kind, Bound], list[float]] = defaultdict(list)
    for row in rows:
        packed = tells_share(row, device)
        if not packed and not tells_seconds(row, device):
            continue
        try:
            bounds, seconds = of_recorded(row, device)
        except KeyError:  # recorded by a version that knew other settings
            continue
        by, least = bounds.by, max(bounds.host, bounds.device)
        if packed:
            by, least = "pack", bounds.device
        ratios[kind_of(row), by].append(seconds / least)
    return Calibration({key: median(found) for key, found in ratios.items()})


def tells_share(row: Mapping[str, Any], device: Device) -> bool:
    """Whether a recorded trial trained in an undisturbed pack, to its end, on this device."""
    ran = row.get("lorasweep.state") == "done" and row.get("time/pack_share_s")
    return bool(ran) and undisturbed(row) and same(device, str(row.get("lorasweep.device")))


def tells_seconds(row: Mapping[str, Any], device: Device) -> bool:
    """Whether a recorded trial trained alone and undisturbed, to its end, on this device."""
    alone = row.get("lorasweep.pack", row.get("lorasweep.key")) == row.get("lorasweep.key")
    ran = row.get("lorasweep.state") == "done" and row.get("time/train_s")
    return (
        bool(ran) and alone and undisturbed(row) and same(device, str(row.get("lorasweep.device")))
    )


def of_recorded(row: Mapping[str, Any], device: Device) -> tuple[Bounds, float]:
    """Bounds of a recorded trial's batch, and the seconds that it took.

    In a pack they are its share of all, evaluation too, and no token is padding.
    """
    trial = Trial({name: typed(value) for name, value in row.items()})
    s = setting_of(trial, n_labels=2)  # the few outputs of a head take no time
    alone = row.get("time/train_s")
    own = "" if alone else "pack_"
    texts = float(row[f"speed/{own}tokens_per_s"]) / float(row[f"speed/{own}samples_per_s"])
    padded = padded_tokens(trial, Data(2, 0, 0, texts)) if alone else texts
    took = float(alone or row["time/pack_share_s"])
    batches = float(row["train/steps"]) * s.accumulation
    return training_batch(s, device, padded), took / batches


def typed(value: Any) -> Any:
    """Value of a setting from the text that the record keeps of it."""
    if not isinstance(value, str):
        return value
    if value in ("None", "True", "False"):
        return {"None": None, "True": True, "False": False}[value]
    try:
        return json.loads(value)
    except ValueError:
        return value


def estimate(
    trial: Trial, data: Data, device: Device, calibration: Calibration, together: int = 1
) -> Seconds:
    """Seconds of a trial on a device: loading, training, evaluating.

    Args:
        trial: the trial.
        data: of its task.
        device: where it runs.
        calibration: what recorded trials say of that device.
        together: trials of its pack; of more than one, its share of the pack's seconds is told.
    """
    s = setting_of(trial, data.n_labels)
    kind, tokens = kind_of(trial.config), padded_tokens(trial, data)
    trained = steps(trial, data.train_items) * s.accumulation if s.trains else 0
    evaluated = math.ceil(data.eval_items / s.eval_batch)
    if together > 1:
        tokens = min(tokens, data.tokens or tokens)
        known = (kind, "pack") in calibration.factors  # and then evaluation is in it
        again = 0 if known else evaluated
        return Seconds(
            load=(START + RECORDING + memory.weight_bytes(s) / READ) / together,
            train=trained * calibration.share(kind, training_batch(s, device, tokens)),
            evaluate=again * calibration.share(kind, evaluation_batch(s, device, tokens)),
            calibrated=known,
        )
    return Seconds(
        load=START + memory.weight_bytes(s) / READ,
        train=trained * calibration.seconds(kind, training_batch(s, device, tokens)),
        evaluate=evaluated * calibration.seconds(kind, evaluation_batch(s, device, tokens)),
        calibrated=calibration.knows(kind),
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
    batches = math.ceil(train_items / int(trial["train.batch_size"]))
    an_epoch = math.ceil(batches / int(trial["train.accumulation"]))
    return max(1, math.ceil(an_epoch * float(trial["train.epochs"])))


@lru_cache(maxsize=65536)
def training_batch(s: Setting, device: Device, tokens: float) -> Bounds:
    """Bounds of one forward and backward pass of a batch, with its share of the optimizer.

    Args:
        s: the trial's setting.
        device: where it runs.
        tokens: of one padded text.
    """
    again = 1 if s.checkpointing else 0
    gradients = 2 if s.trains == "everything" else 1  # of inputs, and of weights
    arithmetic = products(s, device, tokens, base=1 + again + gradients, rest=3 + again)
    traffic = elementwise(s, tokens) * (1 + FORWARD * again)
    update = trained_elements(s) * update_traffic(s) / s.accumulation
    moved = s.batch * traffic + restored(s) * (2 + again) + update
    return Bounds(
        host=s.shape.blocks * launches(s) * (CHECKPOINTING if again else 1) + STEP,
        device=s.batch * arithmetic + moved / (device.bandwidth * BANDWIDTH),
    )


@lru_cache(maxsize=65536)
def evaluation_batch(s: Setting, device: Device, tokens: float) -> Bounds:
    """Bounds of the forward pass of one evaluation batch of texts of ``tokens`` tokens."""
    moved = s.eval_batch * elementwise(s, tokens) * FORWARD + restored(s)
    arithmetic = s.eval_batch * products(s, device, tokens, base=1, rest=1)
    return Bounds(
        host=s.shape.blocks * launches(s) * EVALUATION,
        device=arithmetic + moved / (device.bandwidth * BANDWIDTH),
    )


def launches(s: Setting) -> float:
    """Seconds that the host needs to launch one block, forward and backward."""
    adapter = ADAPTER if s.autocast else ADAPTER_PLAIN
    quantised = len(s.shape.linears) if s.quant is not None else 0
    return BLOCK + len(s.adapted) * adapter + quantised * QUANTISED


def products(s: Setting, device: Device, tokens: float, *, base: int, rest: int) -> float:
    """Seconds of the matrix products for one text of ``tokens`` tokens.

    Args:
        s: the trial's setting.
        device: where it runs.
        tokens: of the text.
        base: times that each matrix of the base is multiplied.
        rest: times that adapters and attention scores are.
    """
    shape = s.shape
    adapters = shape.blocks * sum(layer.lora(s.r) for layer in s.adapted)
    scores = 2 * shape.blocks * shape.heads * shape.head_dim * tokens
    rate = device.half * HALF_RATE if s.autocast else device.single * SINGLE_RATE
    return 2 * tokens * (base * shape.block_weights + rest * (adapters + scores)) / rate


def elementwise(s: Setting, tokens: float) -> float:
    """Bytes moved between matrix products in a step, for one text of ``tokens`` tokens."""
    kept = activations.kept_by_block(s) + s.element * tokens
    entering = sum(layer.d_in for layer in s.adapted)
    adapters = entering * (CAST_TRAFFIC if s.quant is None else ADAPTER_TRAFFIC)
    return tokens * s.shape.blocks * (kept * TRAFFIC + adapters)


def restored(s: Setting) -> float:
    """Bytes moved to restore the matrices of all blocks once: codes read, numbers used."""
    return 0.0 if s.quant is None else s.shape.block_weights * (0.5 + 2 * s.compute)


def update_traffic(s: Setting) -> float:
    """Bytes that clipping and the optimizer move for each trained parameter."""
    return UPDATE_TRAFFIC if s.optimizer == "adamw_torch" else FUSED_UPDATE_TRAFFIC


def trained_elements(s: Setting) -> float:
    """Elements that the optimizer goes through; the head is too small to count."""
    if s.trains == "everything":
        return s.shape.total
    return s.shape.blocks * sum(layer.lora(s.r) for layer in s.adapted)
