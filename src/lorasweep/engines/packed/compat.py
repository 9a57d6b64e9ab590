"""Which trials can be packed, and which may share a pack. Imports nothing heavy."""

from collections.abc import Container, Hashable

from lorasweep import methods
from lorasweep.trial.key import NEUTRAL
from lorasweep.trial.trial import Trial

# Bases whose forward pass was checked against the reference.
ARCHITECTURES = ("llama", "qwen2", "qwen3", "bert", "roberta")
OPTIMIZERS = ("adamw_torch", "adamw_torch_fused")
# What only a trial alone has to itself. Of the time of a pack each has a share.
_OWN = ("memory", "speed/", "time")
_SHARES = ("time/pack_share_s",)
_OF_METHOD = ("method.", "lora.", "target.")
_GROUPS = ("model.", "method.", "task.")
_SHARED = ("train.precision", "train.max_length", "engine.exactness", "engine.nf4_cache")
# Names and suggestions change nothing; batches of evaluation are the engine's own affair.
_FREE = ("model.name", "model.learning_rate", "method.name", "task.name")


def problems(trial: Trial) -> str | None:
    """Say why a trial cannot be packed; None if it can."""
    if not trial.adapts:
        return f"method={trial['method.name']} trains no adapter"
    known = methods.of(trial.config).packed
    if known is None:
        return f"method={trial['method.name']}: packs do not know this method"
    unknown = unknown_settings(trial, known)
    if unknown:
        return f"{unknown[0]}={trial[unknown[0]]}: packs do not know {unknown[0]}"
    quant = trial["method.quant"]
    if quant not in (None, "nf4", "fp4"):
        return f"method.quant={quant}: packs know nf4 and fp4"
    architecture = trial.config.get("model.shape.model_type")
    if architecture not in ARCHITECTURES:
        return f"model={trial['model.name']}: packs know {', '.join(ARCHITECTURES)}"
    if trial["train.optimizer"] not in OPTIMIZERS:
        return f"train.optimizer={trial['train.optimizer']}: packs know {', '.join(OPTIMIZERS)}"
    if trial["train.precision"] == "fp16":
        return "train.precision=fp16: packs know fp32 and bf16"
    if trial["train.checkpointing"]:
        return "train.checkpointing=true: packs keep their activations"
    own = own_objectives(trial)
    return f"sampler.objectives={own[0]}: a pack shares memory and time" if own else None


def unknown_settings(trial: Trial, known: Container[str]) -> list[str]:
    """Return the settings of the method that have an effect and that packs do not know.

    They would be left out of account, and the trial trained as something else.
    """
    return [
        name
        for name, value in trial.config.items()
        if name.startswith(_OF_METHOD)
        and name not in known
        and not (name in NEUTRAL and value == NEUTRAL[name])
    ]


def own_objectives(trial: Trial) -> list[str]:
    """Return the objectives of a sweep that only a trial alone has to itself."""
    names = {str(name): str(name).lstrip("+-") for name in trial["sampler.objectives"]}
    return [o for o, name in names.items() if name.startswith(_OWN) and name not in _SHARES]


def base_of(trial: Trial) -> Hashable:
    """Return what trials of one pack have in common: base, its format, task and length."""
    names = sorted(
        name
        for name in trial.config
        if name in _SHARED or (name.startswith(_GROUPS) and name not in _FREE)
    )
    if trial["model.source"] != "random":  # those are drawn in it; else it is a suggestion
        names.remove("model.precision")
    return tuple((name, str(trial.config[name])) for name in names)
