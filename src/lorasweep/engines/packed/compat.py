"""Which trials can be packed, and which may share a pack. Imports nothing heavy."""

from collections.abc import Hashable

from lorasweep.trial import Trial

# Bases whose forward pass was checked against the reference.
ARCHITECTURES = ("llama", "qwen2", "qwen3", "bert", "roberta")
OPTIMIZERS = ("adamw_torch", "adamw_torch_fused")
# What only a trial alone has to itself. Of the time of a pack each has a share.
_OWN = ("memory", "speed/", "time/train_s", "time/eval_s", "time/load_s", "time/total_s")
_GROUPS = ("model.", "method.", "task.")
_SHARED = ("train.precision", "train.max_length", "engine.exactness", "engine.nf4_cache")
# Names and suggestions change nothing; batches of evaluation are the engine's own affair.
_FREE = ("model.name", "model.learning_rate", "method.name", "task.name")


def problems(trial: Trial) -> str | None:
    """Say why a trial cannot be packed; None if it can."""
    if not trial.adapts:
        return f"method={trial['method.name']} trains no adapter"
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
    shared = [name for name in trial["sampler.objectives"] if name.lstrip("+-").startswith(_OWN)]
    if shared:
        return f"sampler.objectives={shared[0]}: a pack shares memory and time"
    return None


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
