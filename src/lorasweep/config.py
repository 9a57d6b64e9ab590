"""The types of every setting, and the checks that span several of them.

Defaults are not here: they are in ``conf/``. ``problems`` collects everything that is wrong
with a trial, so that a user mends a command once, not once per mistake.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, is_dataclass
from enum import StrEnum
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from omegaconf import MISSING

from lorasweep import addresses
from lorasweep.errors import nearest
from lorasweep.models import roles
from lorasweep.retries import OOM_REMEDIES
from lorasweep.trial import Config, whole


class Precision(StrEnum):
    """Number format of weights and arithmetic."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class Quant(StrEnum):
    """Number format of a quantised base (bitsandbytes)."""

    nf4 = "nf4"
    fp4 = "fp4"
    int8 = "int8"


class Head(StrEnum):
    """What happens to the classification head beside an adapter.

    ``full`` trains a copy of it; ``full_lora`` trains a copy that also carries a low-rank
    update, which is how the paper's parameter counts come about.
    """

    full = "full"
    full_lora = "full_lora"


class Source(StrEnum):
    """Where a base comes from."""

    package = "package"
    hub = "hub"
    path = "path"
    random = "random"


class Exactness(StrEnum):
    """How like a packed trial is to the same trial alone.

    ``strict``: bit by bit. ``fast``: but for rounding, in products that several trials share.
    """

    strict = "strict"
    fast = "fast"


class MasterWeights(StrEnum):
    """What full fine-tuning keeps the weights in where the arithmetic runs in 16 bits.

    ``none``: in the format of the arithmetic.
    """

    float32 = "float32"
    none = "none"


class Copies(StrEnum):
    """Whether a 4-bit base is also kept dequantised: where memory allows, or never."""

    auto = "auto"
    off = "off"


class Trains(StrEnum):
    """Which weights a method trains."""

    everything = "everything"
    adapter = "adapter"


@dataclass
class Model:
    name: str = MISSING
    source: Source = MISSING
    package: str | None = MISSING
    version: str | None = MISSING
    wheel_sha256: str | None = MISSING
    path: str | None = MISSING
    id: str | None = MISSING
    revision: str | None = MISSING
    tokenizer: str | None = MISSING
    precision: Precision = MISSING
    learning_rate: float = MISSING
    shape: dict[str, Any] = MISSING


@dataclass
class Method:
    name: str = MISSING
    trains: Trains | None = MISSING
    quant: Quant | None = MISSING
    double_quant: bool = MISSING
    compute_dtype: Precision = MISSING
    kbit_prepare: bool = MISSING


@dataclass
class Target:
    name: str = MISSING
    roles: list[str] = MISSING
    head: Head = MISSING


@dataclass
class Task:
    name: str = MISSING
    source: str = MISSING
    id: str | None = MISSING
    revision: str | None = MISSING
    config: str | None = MISSING
    train_split: str | None = MISSING
    eval_split: str | None = MISSING
    train_file: str | None = MISSING
    eval_file: str | None = MISSING
    eval_fraction: float | None = MISSING
    quotes: bool | None = MISSING
    text: str = MISSING
    text_pair: str | None = MISSING
    label: str = MISSING
    classes: int | None = MISSING
    train_size: int | None = MISSING
    eval_size: int | None = MISSING
    subset_seed: int = MISSING


@dataclass
class Train:
    epochs: float = MISSING
    max_steps: int | None = MISSING
    batch_size: int = MISSING
    accumulation: int = MISSING
    eval_batch_size: int = MISSING
    learning_rate: float = MISSING
    schedule: str = MISSING
    warmup: float = MISSING
    weight_decay: float = MISSING
    optimizer: str = MISSING
    max_grad_norm: float = MISSING
    max_length: int = MISSING
    padding: str = MISSING
    order: str = MISSING
    precision: Precision = MISSING
    master_weights: MasterWeights = MISSING
    checkpointing: bool = MISSING
    eval_every: int | None = MISSING
    patience: int | None = MISSING


@dataclass
class Lora:
    # Checked with the other settings of a trial, where "2.5" can be answered in a sentence.
    r: Any = MISSING
    alpha: Any = MISSING
    dropout: float = MISSING


@dataclass
class Engine:
    name: str = MISSING
    target: str = MISSING
    fallback: str | None = MISSING
    gpu_only: bool = MISSING
    save_adapter: bool = MISSING
    exactness: Exactness = MISSING
    nf4_cache: Copies = MISSING
    pack_size: int | None = MISSING


@dataclass
class Sampler:
    name: str = MISSING
    zip: list[Any] = MISSING
    trials: int | None = MISSING
    seed: int = MISSING
    objectives: list[str] = MISSING
    startup: int = MISSING
    population: int = MISSING


@dataclass
class Pruner:
    name: str = MISSING
    eta: float = MISSING
    min_share: float = MISSING
    min_trials: int = MISSING


@dataclass
class Executor:
    name: str = MISSING
    workers: int | None = MISSING
    max_in_flight: int | None = MISSING
    shared_gpu: bool = MISSING
    on_stop: str = MISSING
    timeout: float | None = MISSING
    time_budget: float | None = MISSING
    fail_fast: bool = MISSING
    max_failures: int | None = MISSING
    retries: dict[str, int] = MISSING
    oom: list[str] = MISSING


@dataclass
class Tracking:
    name: str = MISSING
    uri: str = MISSING
    patience: float = MISSING


@dataclass
class Root:
    name: str = MISSING
    seed: int = MISSING
    output_dir: str = MISSING
    resume: str = MISSING
    plan: str = MISSING
    device: str | None = MISSING
    skip_unfit: bool = MISSING
    model: Model = MISSING
    method: Method = MISSING
    target: Target = MISSING
    task: Task = MISSING
    train: Train = MISSING
    lora: Lora = MISSING
    engine: Engine = MISSING
    sampler: Sampler = MISSING
    pruner: Pruner = MISSING
    executor: Executor = MISSING
    tracking: Tracking = MISSING


@cache
def declared(kind: type = Root, prefix: str = "") -> frozenset[str]:
    """Names of the settings that there are whatever is chosen, without those in dictionaries."""
    found = frozenset[str]()
    for name, part in get_type_hints(kind).items():
        if isinstance(part, type) and is_dataclass(part):
            found |= declared(part, f"{prefix}{name}.")
        elif get_origin(part) is not dict:
            found |= {prefix + name}
    return found


@cache
def text_settings(kind: type = Root, prefix: str = "") -> frozenset[str]:
    """Names of the settings that hold any text: names, files, folders, columns."""
    found = frozenset[str]()
    for name, part in get_type_hints(kind).items():
        if isinstance(part, type) and is_dataclass(part):
            found |= text_settings(part, f"{prefix}{name}.")
        elif part in (str, str | None):
            found |= {prefix + name}
    return found


def register() -> None:
    """Put where Hydra finds them the schema and what ``conf/`` calls (``${record_at:…}``)."""
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver(
        "record_at", lambda file: addresses.record_at(Path(file)), replace=True
    )
    ConfigStore.instance().store(name="schema", node=Root)


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


def alpha_of(r: Any, alpha: Any) -> float:
    """Return alpha as a number; ``2r``, ``r`` and ``0.5r`` are multiples of the rank.

    Raises:
        ValueError: it is neither a number nor a multiple of r.
    """
    if isinstance(alpha, int | float) and not isinstance(alpha, bool):
        return whole(alpha)
    factors = _factors(str(alpha).strip())
    if factors is None:
        raise ValueError(f"lora.alpha={alpha}: neither a number nor a multiple of r (r, 2r, 0.5r)")
    return whole(factors[0] * r / factors[1])


@lru_cache(maxsize=256)
def _factors(alpha: str) -> tuple[float, float] | None:
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+)?\s*\*?\s*r(?:/(\d+\.?\d*))?", alpha)
    return None if match is None else (float(match[1] or 1), float(match[2] or 1))


def rank_problems(config: Config) -> list[str]:
    """Say what is wrong with rank and alpha."""
    r, alpha = config["lora.r"], config["lora.alpha"]
    if not isinstance(r, int) or isinstance(r, bool) or r < 1:
        return [f"lora.r={r}: the rank must be a whole number of at least 1"]
    try:
        value = alpha_of(r, alpha)
    except ValueError as error:
        return [str(error)]
    if value <= 0:
        return [f"lora.alpha={alpha}: alpha must be above 0 (the update is scaled by alpha/r)"]
    return []


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
    if config["method.trains"] == "adapter":
        found += adapter_problems(config)
    if config["method.trains"] == "everything" and config["method.quant"] is not None:
        found.append(
            f"method={config['method.name']} method.quant={config['method.quant']}: quantised "
            "weights cannot be trained; use method=qlora, or method.quant=null"
        )
    if _untrainable(config):
        found.append(
            "train.precision=fp16 train.master_weights=none: float16 weights cannot be trained, "
            "as their gradients are scaled; use train.master_weights=float32, or bf16"
        )
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


def _untrainable(config: Config) -> bool:
    everything = config["method.trains"] == "everything"
    half = config["train.precision"] == "fp16"
    return bool(everything and half and config["train.master_weights"] == "none")


def loose_problems(config: Config) -> list[str]:
    """What ``problems`` says of a trial where another of its kind (``trial.LOOSE``) is right."""
    found = positive(config, ("train.learning_rate",))
    found += positive(config, ("seed",), zero=True)
    return found + (rank_problems(config) if config["method.trains"] == "adapter" else [])


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


def adapter_problems(config: Config) -> list[str]:
    """Say what is wrong with rank, alpha, dropout and target modules."""
    found = rank_problems(config)
    if not 0 <= config["lora.dropout"] < 1:
        found.append(f"lora.dropout={config['lora.dropout']}: must be from 0 to below 1")
    wanted = config["target.roles"]
    if not wanted:
        found.append("target.roles=[]: an adapter needs at least one layer")
    model_type = config.get("model.shape.model_type")
    if model_type is not None:
        where = f"target={config['target.name']} model={config['model.name']}"
        found += [f"{where}: {text}" for text in roles.problems(model_type, tuple(wanted))]
    return found
