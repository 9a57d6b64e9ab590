"""Peak memory of a trial on its device, and what it is made of.

The formula takes the largest of the moments of what the Trainer engine does (PEFT, eager,
SDPA, autocast):

- the end of the forward pass: all that the backward pass needs is alive;
- the first block of the backward pass, recomputed first where checkpointing is on;
- the last block of the backward pass: nearly all gradients are alive;
- the optimizer's step: gradients, states and the optimizer's own temporaries;
- an evaluation batch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from lorasweep.costs import activations
from lorasweep.costs.parameters import of
from lorasweep.costs.setting import Setting, setting_of
from lorasweep.methods.base import Parameters
from lorasweep.trial.trial import Trial

GIB = 2**30
PARTS = ("weights", "adapters", "gradients", "optimizer", "activations", "buffers", "framework")
# Read off bench/results/memory_h100.csv: cuBLAS keeps its workspaces in PyTorch's pool, the CUDA
# context and its kernels live outside, and the pool is larger than the tensors in it.
WORKSPACE = 0.066 * GIB
CONTEXT = 0.8 * GIB
POOL = 1.03
BLOCK_4BIT, BLOCK_DOUBLE, BLOCK_OPTIMIZER = 64, 256, 256


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak of a trial, by what holds them."""

    parts: Mapping[str, float]
    moment: str

    @property
    def allocated(self) -> float:
        """What ``torch.cuda.max_memory_allocated`` shows, in bytes."""
        return sum(size for name, size in self.parts.items() if name != "framework")

    @property
    def footprint(self) -> float:
        """What the device must have free: the pool, the CUDA context and its kernels, in bytes."""
        return self.allocated * POOL + self.parts["framework"]


def estimate(trial: Trial, n_labels: int) -> Memory:
    """Peak memory of a trial whose task has ``n_labels`` classes."""
    return peak(setting_of(trial, n_labels))


@lru_cache(maxsize=65536)
def peak(s: Setting) -> Memory:
    """Peak memory of a trial with this setting: the largest of the moments."""
    parameters = of(s)
    weights = weight_bytes(s)
    adapters = 4.0 * (parameters.adapters + parameters.head)
    trained = adapters if s.trains == "adapter" else weights if s.trains else 0.0
    moments = training(s, parameters, trained) if s.trains else {}
    moments["evaluation"] = (0.0, activations.evaluation(s), activations.dequantised(s))
    moment = max(moments, key=lambda name: sum(moments[name]))
    gradients, kept, buffers = moments[moment]
    parts = {
        "weights": weights,
        "adapters": adapters,
        "gradients": gradients,
        "optimizer": optimizer_bytes(s, parameters, trained),
        "activations": kept,
        "buffers": buffers + WORKSPACE,
        "framework": CONTEXT,
    }
    return Memory(parts, moment)


def weight_bytes(s: Setting) -> float:
    """Bytes of the base with its original head, by the precision of each part.

    Only matrices inside the blocks are quantised. 4-bit blocks of 64 carry a float32 scale;
    double quantisation stores it in 8 bits with a float32 for each 256 (arXiv:2305.14314, 3);
    int8 keeps a float32 for each row (arXiv:2208.07339, 3). The head is float32 everywhere.
    """
    shape = s.shape
    head = 4.0 * (shape.head_parameters + of(s).frozen_head_lora)
    body = shape.total - shape.head_parameters
    if s.quant is None:
        return body * s.weight + head
    matrices = shape.block_weights
    rest = (body - matrices) * (4 if s.kbit_prepare else s.weight) + head
    if s.quant == "int8":
        return matrices + 4 * shape.blocks * sum(layer.d_out for layer in shape.linears) + rest
    scale = 1 + 4 / BLOCK_DOUBLE if s.double_quant else 4
    return matrices / 2 + matrices / BLOCK_4BIT * scale + rest


def optimizer_bytes(s: Setting, parameters: Parameters, trained: float) -> float:
    """Bytes of the optimizer's states, which live as long as the training.

    AdamW keeps two numbers of the parameter's type (arXiv:1711.05101); in 8 bits two bytes with
    a float32 for each 256 (arXiv:2110.02861); paged states can leave the device; Adafactor
    keeps a number for each row and column (arXiv:1804.04235, 3).
    """
    if s.trains is None or s.optimizer == "sgd" or s.optimizer.startswith("paged"):
        return 0.0
    if s.optimizer == "adamw_8bit":
        return parameters.trainable * 2 * (1 + 4 / BLOCK_OPTIMIZER)
    if s.optimizer == "adafactor":
        layers = s.adapted or s.shape.linears
        sides = sum(layer.d_in + layer.d_out + 2 * s.r for layer in layers)
        return 4.0 * s.shape.blocks * sides
    return 2 * trained


Moment = tuple[float, float, float]  # bytes of gradients, activations and buffers


def training(s: Setting, parameters: Parameters, trained: float) -> dict[str, Moment]:
    """Bytes that come and go in a training step, at each of its moments."""
    shape = s.shape
    block = activations.block(s)
    stored = activations.stored(s)
    saved = shape.blocks * stored + activations.tail(s)
    casts = 2.0 * parameters.adapters if s.autocast and s.checkpointing else 0.0
    if s.checkpointing:  # else they are among what each block keeps
        casts += shape.blocks * activations.weight_casts(s)
    recomputed = block if s.checkpointing else 0.0
    held = trained if s.accumulation > 1 else 0.0
    buffers = activations.forward_buffers(s)
    # The last norm runs backward before the first block is recomputed, so both never meet.
    backward = buffers if s.checkpointing else max(buffers, activations.norm_buffers(s))
    root = trained if s.optimizer == "adamw_torch" else 0.0  # of each second moment
    return {
        "forward": (held, saved + casts, buffers),
        "backward": (held, saved + recomputed, backward),
        "gradients": (max(held, late_gradients(s, trained)), stored + block, buffers),
        "optimizer": (trained, 0.0, root),
    }


def late_gradients(s: Setting, trained: float) -> float:
    """Bytes of gradients when the first block's are still to come; the embeddings' come last."""
    shape = s.shape
    inside = trained - 4.0 * shape.head_parameters
    if s.trains == "everything":
        inside -= shape.embeddings * s.weight
    return trained - inside / shape.blocks - (trained - 4.0 * shape.head_parameters - inside)
