"""A trial: one configuration, trained and evaluated once, and what came of it."""

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

State = Literal["done", "failed", "oom", "diverged", "pruned", "stopped"]
STATES: tuple[State, ...] = ("done", "failed", "oom", "diverged", "pruned", "stopped")
# A state that another run of the same command would not change.
FINAL_STATES: tuple[State, ...] = ("done", "diverged", "pruned")
# What a failure came from: an exception, a full disk, too long a time, the death of the process.
Failure = Literal["crash", "oom", "disk", "timeout", "lost"]

Config = Mapping[str, Any]

# Settings that change where, how fast or under which name a trial runs, never what comes out.
_NOT_IN_KEY = (
    "name",
    "output_dir",
    "resume",
    "plan",
    "device",
    "skip_unfit",
    "task.classes",
    "train.eval_batch_size",
    # Names and suggestions: what they stand for is in the key.
    "method.name",
    "target.name",
    "model.learning_rate",
    "model.precision",
)
_NOT_IN_KEY_GROUPS = ("engine", "sampler", "pruner", "executor", "tracking")
_ADAPTER_ONLY = ("lora.", "target.")
_QUANT_ONLY = ("method.double_quant", "method.compute_dtype", "method.kbit_prepare")
_UNTRAINED = ("train.precision", "train.max_length", "train.padding")


def relevant(config: Config) -> dict[str, Any]:
    """Return the settings that can change the trial's result, and no others, in sorted order.

    ``method=base lora.r=1,2,4`` is one trial, not three: rank means nothing without an adapter.
    """
    names = _relevant_names(
        tuple(config),
        config["method.trains"],
        config["method.quant"] is not None,
        config["model.source"] != "random",
    )
    return {name: config[name] for name in names}


@lru_cache(maxsize=256)
def _group_names(names: tuple[str, ...], prefix: str) -> tuple[tuple[str, str], ...]:
    return tuple((name, name.removeprefix(prefix)) for name in names if name.startswith(prefix))


@lru_cache(maxsize=256)  # a long sweep has few kinds of trials
def _relevant_names(
    names: tuple[str, ...], trains: str | None, quantised: bool, known_weights: bool
) -> tuple[str, ...]:
    def keep(name: str) -> bool:
        if name in _NOT_IN_KEY or name.split(".")[0] in _NOT_IN_KEY_GROUPS:
            return False
        if name.startswith(_ADAPTER_ONLY) and trains != "adapter":
            return False
        if name in _QUANT_ONLY and not quantised:
            return False
        if name.startswith("train.") and trains is None and name not in _UNTRAINED:
            return False
        if name.startswith("model.shape.") and known_weights:
            return False
        # what the files hold counts, not where they lie
        return not ("task.sha256" in names and name in ("task.train_file", "task.eval_file"))

    return tuple(sorted(filter(keep, names)))


def key_of(config: Config) -> str:
    """Hash of all that can change the trial's result: 12 hexadecimal digits of SHA-256."""
    text = json.dumps(relevant(config), separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Trial:
    """One configuration, flat (``{"lora.r": 8, …}``) and fully resolved (alpha is a number)."""

    config: Config

    @cached_property
    def key(self) -> str:
        """Identity for resume, dedupe and retry."""
        return key_of(self.config)

    def __getitem__(self, name: str) -> Any:
        """Value of one setting by its dotted name."""
        return self.config[name]

    def group(self, name: str) -> dict[str, Any]:
        """Return one group of settings without its prefix: ``group("train")["epochs"]``."""
        names = _group_names(tuple(self.config), name + ".")
        return {short: self.config[long] for long, short in names}

    @property
    def adapts(self) -> bool:
        """Whether a low-rank adapter is trained."""
        return bool(self.config["method.trains"] == "adapter")

    @property
    def label(self) -> str:
        """Short name for people: model, method, target, rank and alpha."""
        parts = [str(self["model.name"]), str(self["method.name"])]
        if self.adapts:
            parts += [str(self["target.name"]), f"r={self['lora.r']}", f"α={self['lora.alpha']:g}"]
        if self["seed"]:
            parts.append(f"seed={self['seed']}")
        return " ".join(parts)


@dataclass
class Result:
    """What a trial gave. ``folder`` holds what goes into the record as artefacts."""

    state: State
    metrics: dict[str, float] = field(default_factory=dict)
    # (metric, step, value) along the training
    curve: list[tuple[str, int, float]] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    failure: Failure | None = None
    folder: Path | None = None
    at: float = field(default_factory=time.time)  # seconds since 1970
