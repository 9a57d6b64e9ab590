"""Put a trial's method and target on a base: PEFT layers on the asked roles, and the head."""

import re
from collections.abc import Mapping
from pathlib import Path

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from lorasweep import methods
from lorasweep.methods.heads import LoraHead, swap_head
from lorasweep.models import load, roles
from lorasweep.trial.trial import Trial


def target_pattern(model_type: str, wanted: list[str]) -> str:
    """Regular expression for the full names of the adapted layers (PEFT's ``target_modules``)."""
    names = roles.modules(model_type, wanted).values()
    blocks = re.escape(roles.blocks_of(model_type))
    return rf"{blocks}\.\d+\.({'|'.join(re.escape(n) for n in names)})"


def prepare(trial: Trial, model: transformers.PreTrainedModel) -> nn.Module:
    """Freeze and adapt a base as the trial's method and target say.

    Draws the adapter from the trial's seed (the global generator is seeded here).
    """
    if trial["method.kbit_prepare"] and trial["method.quant"] is not None:
        # PEFT's recipe: norms and embeddings to float32, inputs that need gradients.
        model = peft.prepare_model_for_kbit_training(
            model, use_gradient_checkpointing=trial["train.checkpointing"]
        )
    torch.manual_seed(trial["seed"])
    method = methods.of(trial.config)
    if method.trains != "adapter":
        model.requires_grad_(method.trains == "everything")
        return model
    head = roles.head_of(model.config.model_type)
    if trial["target.head"] == "full_lora":
        lora = trial.group("lora")
        swap_head(model, head, LoraHead, r=lora["r"], alpha=lora["alpha"], dropout=lora["dropout"])
    layers = target_pattern(model.config.model_type, trial["target.roles"])
    return peft.get_peft_model(model, method.peft_config(trial, layers, head))


def strip(model: peft.PeftModel) -> transformers.PreTrainedModel:
    """Return the base as it was before ``prepare``, but for its head's numbers."""
    base = model.unload()
    swap_head(base, roles.head_of(base.config.model_type), None)
    return base


def counts(model: nn.Module) -> tuple[int, int]:
    """Return trainable and total parameters; a 4-bit weight counts as what it stands for."""
    if isinstance(model, peft.PeftModel):
        trained, everything = model.get_nb_trainable_parameters()
        return int(trained), int(everything)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = 0
    for p in model.parameters():
        packed = p.__class__.__name__ == "Params4bit"
        total += p.numel() * (2 if packed else 1)  # two 4-bit numbers a byte
    return trainable, total


def finite(model: nn.Module) -> bool:
    """Whether all that is trained is still numbers."""
    return all(bool(p.isfinite().all()) for p in model.parameters() if p.requires_grad)


def moved(trial: Trial, model: nn.Module) -> bool:
    """Whether training changed the weights that start at zero, if there are any."""
    zero = methods.of(trial.config).starts_at_zero
    trained = ((n, p) for n, p in model.named_parameters() if p.requires_grad)
    norms = [p.norm() for n, p in trained if zero and zero in n]
    return not norms or bool(torch.stack(norms).sum() > 0)


def save(model: nn.Module, folder: Path, drawn: Mapping[str, torch.Tensor]) -> int:
    """Write the adapter as PEFT does (safetensors).

    Args:
        model: what was trained; anything but a PEFT model is not written.
        folder: where to.
        drawn: what modules of the base hold that come from no checkpoint, by full names. They
            are written as further ``modules_to_save``, although they were not trained.

    Returns:
        Bytes of the weights.
    """
    if not isinstance(model, peft.PeftModel):
        return 0
    head = roles.head_of(model.get_base_model().config.model_type)
    # A head with a low-rank update is saved as the plain layer it amounts to, which stock
    # PEFT can load.
    swap_head(model.get_base_model(), head, None)
    model.peft_config["default"].modules_to_save = [head, *load.owners(drawn)]
    model.save_pretrained(str(folder), safe_serialization=True)
    (folder / "README.md").unlink(missing_ok=True)  # a template that says nothing
    file = folder / "adapter_model.safetensors"
    if drawn:
        own = {f"base_model.model.{n}": value.detach().cpu() for n, value in drawn.items()}
        save_file({**load_file(file), **own}, file, metadata={"format": "pt"})
    return file.stat().st_size
