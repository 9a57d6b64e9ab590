"""Checks of one trial's settings, each problem a sentence."""

import re
from collections.abc import Iterable, Sequence

from omegaconf import MISSING

from lorasweep import methods
from lorasweep.errors import nearest
from lorasweep.models import roles
from lorasweep.space.schema import OOM_REMEDIES
from lorasweep.trial.key import Config

# What transformers calls them; listed here because a check must not import torch.
SCHEDULES = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
)
OPTIMIZERS = (
    "adamw_torch",
    "adamw_torch_fused",
    "adamw_8bit",
    "paged_adamw_8bit",
    "paged_adamw_32bit",
    "adafactor",
    "sgd",
)


# Those that know all trials beforehand, and those that search.
LISTED_SAMPLERS = ("grid", "zip")
SAMPLERS = (*LISTED_SAMPLERS, "random", "qmc", "tpe", "gp", "nsga2")
PRUNERS = ("none", "asha", "hyperband", "median")
EXECUTORS = ("local",)


def one_of(config: Config, name: str, known: Sequence[str]) -> list[str]:
    """Complain when a setting is not one of the known words."""
    value = config[name]
    if value in known:
        return []
    return [f"{name}={value}: not known{nearest(str(value), known)} (known: {', '.join(known)})"]


def name_problems(config: Config, names: Iterable[str] = ("name", "task.name")) -> list[str]:
    """Complain about names that could not be those of a folder."""
    return [
        f"{name}={config[name]!r}: a folder is named after it; it must not be empty, '.' or '..', "
        "nor hold '/', '\\' or control characters, nor be longer than 150 bytes"
        for name in names
        if config[name] in ("", ".", "..")
        or re.search(r"[/\\\x00-\x1f\x7f]", config[name])
        or len(config[name].encode()) > 150
    ]


def positive(config: Config, names: Iterable[str], *, zero: bool = False) -> list[str]:
    """Complain about numbers that must be above zero (or not below it)."""
    found = []
    for name in names:
        value = config[name]
        if value is not None and not (value >= 0 if zero else value > 0):
            found.append(f"{name}={value}: must be {'at least 0' if zero else 'above 0'}")
    return found


def problems(config: Config) -> list[str]:
    """Everything wrong with one trial's settings, each as a sentence that says where."""
    missing = [name for name, value in config.items() if value == MISSING]
    found = [f"{name} has no value; give it one ({name}=…)" for name in missing]
    if not all(name.startswith("task.") for name in missing):
        return found  # what depends on them cannot be checked
    if missing:
        config = {**config, **dict.fromkeys(missing)}
    found += [
        *positive(config, ("train.epochs", "train.max_steps", "train.batch_size")),
        *positive(config, ("train.accumulation", "train.eval_batch_size", "train.max_length")),
        *positive(config, ("train.eval_every", "train.patience", "train.learning_rate")),
        *positive(config, ("train.weight_decay", "train.max_grad_norm", "seed"), zero=True),
        *positive(config, ("task.train_size", "task.eval_size")),
        *name_problems(config),
        *one_of(config, "resume", ("retry_failed", "only_missing", "fresh")),
        *executor_problems(config),
        *positive(config, [n for n in ("engine.pack_size",) if n in config]),  # packs alone
        *one_of(config, "plan", ("short", "table", "json")),
        *one_of(config, "sampler.name", SAMPLERS),
        *pruner_problems(config),
        *one_of(config, "train.schedule", SCHEDULES),
        *one_of(config, "train.optimizer", OPTIMIZERS),
        *one_of(config, "train.order", ("by_length", "random")),
        *one_of(config, "train.padding", ("longest", "max_length")),
    ]
    if not 0 <= config["train.warmup"] < 1:
        found.append(f"train.warmup={config['train.warmup']}: a share of the steps, from 0 to 1")
    if config["train.patience"] and not config["train.eval_every"]:
        found.append("train.patience needs train.eval_every: how often is the model evaluated?")
    found += methods.problems(config)
    prefix = "model.shape."
    limit = roles.longest_text(
        {n.removeprefix(prefix): v for n, v in config.items() if n.startswith(prefix)}
    )
    if limit is not None and config["train.max_length"] > limit:
        found.append(
            f"train.max_length={config['train.max_length']}: {config['model.name']} reads at most "
            f"{limit} tokens"
        )
    return found


def loose_problems(config: Config) -> list[str]:
    """What ``problems`` says of a trial where another of its kind (``key.LOOSE``) is right."""
    found = positive(config, ("train.learning_rate",))
    found += positive(config, ("seed",), zero=True)
    return found + methods.of(config).loose_problems(config)


def executor_problems(config: Config) -> list[str]:
    """Say what is wrong with how trials are to be run."""
    found = one_of(config, "executor.name", EXECUTORS)
    found += positive(config, ("executor.workers", "executor.max_in_flight", "executor.timeout"))
    found += positive(config, ("executor.time_budget", "executor.max_failures"))
    found += one_of(config, "executor.on_stop", ("checkpoint", "finish"))
    found += positive(config, ("tracking.patience",), zero=True)
    for word in config["executor.oom"]:
        found += one_of({"executor.oom": word}, "executor.oom", OOM_REMEDIES)
    retries = ("executor.retries.crash", "executor.retries.lost", "executor.retries.timeout")
    return found + positive(config, retries, zero=True)


def pruner_problems(config: Config) -> list[str]:
    """Say what is wrong with the settings that end hopeless trials early."""
    found = one_of(config, "pruner.name", PRUNERS)
    if found or config["pruner.name"] == "none":
        return found
    if not config["train.eval_every"]:
        found.append(
            f"pruner={config['pruner.name']} needs train.eval_every: every how many steps are "
            "trials compared?"
        )
    if not config["pruner.eta"] > 1:
        found.append(f"pruner.eta={config['pruner.eta']}: must be above 1 (one in eta goes on)")
    if not 0 < config["pruner.min_share"] < 1:
        share = config["pruner.min_share"]
        found.append(f"pruner.min_share={share}: a share of the training, between 0 and 1")
    return found + positive(config, ("pruner.min_trials",))
