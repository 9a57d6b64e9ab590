"""The adapter of one trial: drawn and saved by PEFT, trained in a bank."""

import copy
import math
from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import torch
import transformers
from peft.tuners.lora import LoraLayer
from torch import nn

from lorasweep.engines.packed.bank import Bank, Shape, shape_of
from lorasweep.engines.packed.layout import Lane
from lorasweep.engines.packed.noise import Noise
from lorasweep.errors import LorasweepError
from lorasweep.methods import build, heads
from lorasweep.models import load, roles
from lorasweep.trial.trial import Trial


class Stream:
    """Random numbers of one trial: the same in any pack, and on the CPU the reference's."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.order = torch.Generator().manual_seed(seed)
        on_cpu = device.type == "cpu"
        self.dropout = self.order if on_cpu else torch.Generator(device).manual_seed(seed)

    def noise(self, shape: Sequence[int], p: float, like: torch.Tensor) -> torch.Tensor:
        """Draw factors for dropout: 0 with probability p, else 1/(1-p)."""
        noise = torch.empty(tuple(shape), dtype=like.dtype, device=like.device)
        return noise.bernoulli_(1 - p, generator=self.dropout).div_(1 - p)

    def state(self) -> dict[str, torch.Tensor]:
        """Where the streams stand."""
        return {"order": self.order.get_state(), "dropout": self.dropout.get_state()}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from there."""
        self.order.set_state(state["order"])
        self.dropout.set_state(state["dropout"])


class HeadDropout(nn.Module):
    """Dropout in the head of one trial, with the trial's own stream.

    Where the reference runs the head over every token and then picks one (``lane.last``), the
    noise is drawn for every token too.
    """

    def __init__(self, p: float, adapter: "Adapter", *, every_token: bool) -> None:
        super().__init__()
        self.p, self.adapter, self.every_token = p, adapter, every_token

    def __deepcopy__(self, memo: dict[int, Any]) -> "HeadDropout":
        return HeadDropout(self.p, self.adapter, every_token=self.every_token)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (texts, …, width) to the same shape."""
        lane, fixed = self.adapter.lane, self.adapter.fixed
        if lane is None:
            return x
        if fixed is not None:
            noise, place = fixed
            return noise.of_head(place, x)
        if self.p == 0:
            return x
        if not self.every_token:
            return x * self.adapter.stream.noise(x.shape, self.p, x)
        grid = lane.alone
        noise = self.adapter.stream.noise((grid.rows * grid.width, x.shape[-1]), self.p, x)
        return x * noise[lane.last]


class Template:
    """What adapters of one target have in common: the layers' names, and how PEFT saves them.

    PEFT takes a second to wrap a base of 200 layers, so it does so once; each trial's numbers
    are then drawn as PEFT draws them.
    """

    def __init__(self, trial: Trial, skeleton: nn.Module) -> None:
        kind = skeleton.config.model_type
        self.config, self.name = skeleton.config, roles.head_of(kind)
        self.dtype = next(skeleton.parameters()).dtype
        self.head: nn.Module = skeleton.get_submodule(self.name)
        self.shell = _shell(trial, skeleton, self.head)
        self.layers: dict[str, Any] = {
            name: layer
            for name, layer in self.shell.base_model.model.named_modules()
            if isinstance(layer, LoraLayer)
        }
        of_head = sum(p.numel() for p in self.head.parameters())
        self.frozen = sum(p.numel() for p in skeleton.parameters()) - of_head

    def draw_head(self, trial: Trial) -> nn.Module:
        """Draw a head; a low-rank update on it comes from the global generator."""
        head = copy.deepcopy(self.head)
        load.redraw(head, trial["seed"], self.config)
        return _with_updates(head, trial) if trial["target.head"] == "full_lora" else head

    def draw(self, rank: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Draw A (rank, in) of every layer; B begins at zero.

        PEFT makes two linear layers, which draw weights of their own, and then draws A again;
        it holds A in the format of the base's weights before it comes to float32.
        """
        found = {}
        for name, layer in self.layers.items():
            a, b = torch.empty(rank, layer.in_features), torch.empty(layer.out_features, rank)
            for weight in (a, b, a):
                nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)
            found[name] = a.to(self.dtype)
        return found

    def save(self, adapter: "Adapter", folder: Path) -> int:
        """Write an adapter as PEFT does. Returns its size in bytes.

        Raises:
            LorasweepError: PEFT would also write tensors that the bank did not train.
        """
        self._refuse_untrained([slot for slot, _, _ in adapter.layout.pairs])
        of_row = adapter.bank.weights[adapter.row]
        for slot, a, b in adapter.layout.pairs:
            layer = self.layers[slot]
            layer.lora_A["default"].weight.data = a.of(of_row).cpu().clone()
            layer.lora_B["default"].weight.data = b.of(of_row).cpu().clone()
        config = self.shell.peft_config["default"]
        config.r, config.lora_alpha = adapter.rank, adapter.alpha
        config.lora_dropout = adapter.dropout
        wrapper = self.shell.base_model.model.get_submodule(self.name)
        wrapper.modules_to_save["default"] = copy.deepcopy(adapter.head).cpu()
        return build.save(self.shell, folder, adapter.unfound)

    def _refuse_untrained(self, slots: Sequence[str]) -> None:
        wrapper = self.shell.base_model.model.get_submodule(self.name)
        trained = {id(p) for p in wrapper.parameters()}
        for slot in slots:
            layer = self.layers[slot]
            trained |= {id(m["default"].weight) for m in (layer.lora_A, layer.lora_B)}
        of_adapter = ((n, p) for n, p in self.shell.named_parameters() if p.requires_grad)
        untrained = [name for name, p in of_adapter if id(p) not in trained]
        if untrained:
            raise LorasweepError(
                f"packs did not train {untrained[0]} ({len(untrained)} such tensors), so the "
                "adapter is not saved; use engine=trainer"
            )


class Adapter:
    """What one trial trains: low-rank pairs and a head, as views into a row of a bank.

    Its A are drawn by ``drawing`` meanwhile: with a large rank that takes seconds.
    """

    def __init__(
        self, trial: Trial, template: Template, device: torch.device, drawing: Executor
    ) -> None:
        self.template, self.stream = template, Stream(trial["seed"], device)
        self.rank, self.alpha = int(trial["lora.r"]), trial["lora.alpha"]
        self.dropout, self.scale = float(trial["lora.dropout"]), float(self.alpha) / self.rank
        self.lane: Lane | None = None  # what it reads in the pass under way, if dropout is on
        self.fixed: tuple[Noise, int] | None = None  # in steps of fixed shape: and its lane there
        torch.manual_seed(trial["seed"])
        self.head = template.draw_head(trial)
        own = torch.Generator()
        own.set_state(torch.get_rng_state())  # PEFT goes on with the numbers after the head's
        self.drawn = drawing.submit(template.draw, self.rank, own)
        self.own = shape_of(
            {
                name: ((self.rank, layer.in_features), (layer.out_features, self.rank))
                for name, layer in template.layers.items()
            },
            {name: tuple(p.shape) for name, p in self.head.named_parameters()},
            self.rank,
        )
        self.trainable = self.own.size
        of_head = self.own.size - self.own.low_rank
        self.total = template.frozen + of_head + self.trainable  # PEFT keeps the first head, too
        self.bank: Bank
        self.row: int
        # What the checkpoint lacks of the base, where each trial has its own: the module, and all
        # that it holds by full names.
        self.pooler: nn.Module
        self.unfound: dict[str, torch.Tensor] = {}

    def set_dropouts(self, *, every_token: bool) -> None:
        """Let the head draw from the trial's own stream."""
        for name, module in list(self.head.named_modules()):
            if isinstance(module, nn.Dropout):
                owner, _, leaf = name.rpartition(".")
                own = HeadDropout(module.p, self, every_token=every_token)
                setattr(self.head.get_submodule(owner), leaf, own)

    def drop(self, x: torch.Tensor, p: float, lane: Lane) -> torch.Tensor:
        """Apply dropout to the tokens (tokens, width) of a lane, drawn as for the padded batch."""
        if p == 0:
            return x
        noise = self.stream.noise((lane.alone.rows, lane.alone.width, x.shape[-1]), p, x)
        return x * lane.alone.collect(noise)

    @property
    def layout(self) -> Shape:
        """Where its numbers lie in the row."""
        return self.bank.layouts[self.row]

    def moved(self) -> bool:
        """Whether training changed any B, which start at zero."""
        of_row = self.bank.weights[self.row]
        norms = [b.of(of_row).norm() for _, _, b in self.layout.pairs]
        return bool(torch.stack(norms).sum() > 0)

    def start(self, bank: Bank, row: int) -> None:
        """Take a row of a new bank, with the weights as drawn."""
        drawn = self.drawn.result()
        bank.claim(row, self.own)
        of_row, head = bank.weights[row], dict(self.head.named_parameters())
        for slot, a, _ in bank.layouts[row].pairs:
            a.of(of_row).copy_(drawn[slot])
        for name, entry in bank.layouts[row].head:
            entry.of(of_row).copy_(head[name].detach())
        del self.drawn
        self._take(bank, row)

    def move(self, bank: Bank, row: int) -> None:
        """Go to a row of another bank, with all that the optimizer knows."""
        bank.claim(row, self.own)
        bank.take(row, self.bank, self.row)
        self._take(bank, row)

    def _take(self, bank: Bank, row: int) -> None:
        self.bank, self.row = bank, row
        bank.clear(row)
        bank.scale[row] = self.scale
        bank.lifted[row] = self.scale / (1 - self.dropout)
        self._hold_head()

    def _hold_head(self) -> None:
        for name, parameter in self.bank.head(self.row).items():
            owner, _, leaf = name.rpartition(".")
            setattr(self.head.get_submodule(owner), leaf, parameter)

    def ghost(self) -> "Adapter":
        """Return what goes on computing in this one's place once it is saved, for nobody."""
        left = copy.copy(self)
        left.head = copy.deepcopy(self.head)
        for module in left.head.modules():
            if isinstance(module, HeadDropout):
                module.adapter = left
        left._hold_head()
        return left


def skeleton(config: transformers.PretrainedConfig, dtype: torch.dtype) -> nn.Module:
    """Build the classification model without weights of its own: a frozen one takes no memory.

    PEFT draws and saves adapters on it just as on the base itself.
    """
    config = copy.deepcopy(config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        model = transformers.AutoModelForSequenceClassification.from_config(config, dtype=dtype)
    assert isinstance(model, nn.Module)
    head = model.get_submodule(roles.head_of(config.model_type))
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                nothing = torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
                module._parameters[name] = nn.Parameter(nothing, requires_grad=False)
    for module in head.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(torch.empty(parameter.shape))
    return model


def _with_updates(head: nn.Module, trial: Trial) -> nn.Module:
    """Give each linear layer of a head a low-rank update of its own."""
    lora = trial.group("lora")

    def updated(linear: nn.Linear) -> nn.Module:
        return heads.LoraHead(linear, lora["r"], lora["alpha"], lora["dropout"])

    if isinstance(head, nn.Linear):
        return updated(head)
    for name, module in list(head.named_modules()):
        if isinstance(module, nn.Linear):
            owner, _, leaf = name.rpartition(".")
            setattr(head.get_submodule(owner), leaf, updated(module))
    return head


def _shell(trial: Trial, skeleton: nn.Module, head: nn.Module) -> Any:
    """Return a PEFT model of the trial's target over the skeleton, whose weights it shares."""
    own = {id(p) for p in head.parameters()}
    shared = {id(p): p for p in skeleton.parameters() if id(p) not in own}
    model = copy.deepcopy(skeleton, shared)
    # k-bit preparation concerns the base alone, which has been through it.
    changed = {"method.kbit_prepare": False, "target.head": "full", "lora.r": 1}
    return build.prepare(Trial({**trial.config, **changed}), model)
