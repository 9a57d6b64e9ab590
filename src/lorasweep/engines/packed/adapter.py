"""The adapter of one trial: drawn and saved by PEFT, trained in a bank."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from peft.tuners.lora import LoraLayer
from torch import nn

from lorasweep.engines.packed.bank import Bank, Shape, shape_of
from lorasweep.engines.packed.layout import Lane
from lorasweep.models import adapters, load, roles
from lorasweep.trial import Trial


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

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (texts, …, width) to the same shape."""
        lane = self.adapter.lane
        if lane is None or self.p == 0:
            return x
        if not self.every_token:
            return x * self.adapter.stream.noise(x.shape, self.p, x)
        grid = lane.alone
        noise = self.adapter.stream.noise((grid.rows * grid.width, x.shape[-1]), self.p, x)
        return x * noise[lane.last]


class Adapter:
    """What one trial trains: low-rank pairs and a head, as views into a row of a bank."""

    def __init__(self, trial: Trial, skeleton: nn.Module, device: torch.device) -> None:
        head = roles.head_of(skeleton.config.model_type)
        self.shell = shell(trial, skeleton, head)
        self.head: nn.Module = self.shell.base_model.model.get_submodule(head).modules_to_save[
            "default"
        ]
        self.stream = Stream(trial["seed"], device)
        self.trainable, self.total = adapters.counts(self.shell)
        self.dropout = float(trial["lora.dropout"])
        self.rank = int(trial["lora.r"])
        self.scale = float(trial["lora.alpha"]) / self.rank
        self.lane: Lane | None = None  # what it reads in the pass under way, if dropout is on
        self.bank: Bank
        self.row: int

    def _pairs(self) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
        return {
            name: (layer.lora_A["default"].weight, layer.lora_B["default"].weight)
            for name, layer in self.shell.base_model.model.named_modules()
            if isinstance(layer, LoraLayer)
        }

    def shape(self) -> Shape:
        """Layout of the weights as drawn."""
        pairs = {slot: (tuple(a.shape), tuple(b.shape)) for slot, (a, b) in self._pairs().items()}
        head = {name: tuple(p.shape) for name, p in self.head.named_parameters()}
        return shape_of(pairs, head, self.rank)

    def settle_in(self, bank: Bank, row: int) -> None:
        """Move the weights as drawn into a row of a bank."""
        pairs, head = self._pairs(), dict(self.head.named_parameters())
        drawn = [p.detach().reshape(-1) for pair in pairs.values() for p in pair]
        drawn += [head[name].detach().reshape(-1) for name, _ in bank.shape.head]
        bank.claim(row, self.shape())
        bank.write(bank.weights, row, torch.cat([d.cpu() for d in drawn]))
        for matrix in (bank.first, bank.second):
            matrix[row].zero_()
        bank.steps[row] = 0
        for pair in pairs.values():
            for parameter in pair:
                parameter.data = torch.empty(0)
        self._take(bank, row)

    def move(self, bank: Bank, row: int) -> None:
        """Go to a row of another bank, with all that the optimizer knows."""
        bank.claim(row, self.layout)
        for name in ("weights", "first", "second"):
            bank.write(getattr(bank, name), row, self.bank.read(getattr(self.bank, name), self.row))
        bank.steps[row] = self.bank.steps[self.row]
        self._take(bank, row)

    def _take(self, bank: Bank, row: int) -> None:
        self.bank, self.row = bank, row
        bank.clear(row)
        bank.scale[row] = self.scale
        self._hold_head()

    def _hold_head(self) -> None:
        for name, parameter in self.bank.head(self.row).items():
            owner, _, leaf = name.rpartition(".")
            setattr(self.head.get_submodule(owner), leaf, parameter)

    def ghost(self) -> "Adapter":
        """Return what goes on computing in this one's place once it is saved, for nobody."""
        left = copy.copy(self)
        left.head = copy.deepcopy(self.head)
        left._hold_head()
        return left

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

    def save(self, folder: Path) -> int:
        """Write the adapter as PEFT does. Returns its size in bytes. The adapter ends here."""
        of_row = self.bank.weights[self.row]
        for (a, b), (_, entry_a, entry_b) in zip(
            self._pairs().values(), self.layout.pairs, strict=True
        ):
            a.data, b.data = entry_a.of(of_row).cpu().clone(), entry_b.of(of_row).cpu().clone()
        for parameter in self.head.parameters():
            parameter.data = parameter.data.cpu().clone()
        return adapters.save(self.shell, folder)


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


def shell(trial: Trial, skeleton: nn.Module, head: str) -> Any:
    """Return a PEFT model of the trial over the skeleton, its adapter and head as first drawn."""
    drawn = {id(p) for p in skeleton.get_submodule(head).parameters()}
    shared = {id(p): p for p in skeleton.parameters() if id(p) not in drawn}
    model = copy.deepcopy(skeleton, shared)
    load.redraw(model.get_submodule(head), trial["seed"], model.config)
    # k-bit preparation concerns the base alone, which has been through it.
    plain = Trial({**trial.config, "method.kbit_prepare": False})
    return adapters.prepare(plain, model)
