"""The type of every setting, for Hydra."""

from dataclasses import dataclass, is_dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from omegaconf import MISSING

from lorasweep import addresses


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
    type: str = MISSING
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


OOM_REMEDIES = ("alone", "checkpointing", "accumulate")
