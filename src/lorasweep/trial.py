"""A trial: one configuration, trained and evaluated once, and what came of it."""

import hashlib
import json
import operator
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
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
    return {name: config[name] for name in _relevant(config)}


def _relevant(config: Config) -> tuple[str, ...]:
    return _relevant_names(
        tuple(config),
        config["method.trains"],
        config["method.quant"] is not None,
        config["model.source"] != "random",
    )


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


class Writer:
    """Writes JSON objects one after another, fast where each shares its values with the last.

    Values are told apart by identity, since 1, 1.0 and True are equal, and their texts are not.
    """

    def __init__(self, encode: Callable[[Any], str], comma: str, colon: str) -> None:
        self._encode, self._comma, self._colon = encode, comma, colon
        self._names: tuple[str, ...] = ()
        self._heads: list[str] = []
        self._values: list[Any] = []
        self._pieces: list[str] = []

    def __call__(self, names: tuple[str, ...], values: list[Any]) -> str:
        """Return the object of these names and values."""
        if names != self._names:
            heads = [f"{self._comma}{self._encode(name)}{self._colon}" for name in names]
            heads[0] = heads[0].removeprefix(self._comma)
            self._names, self._heads = names, heads
            self._values, self._pieces = [object()] * len(names), [""] * len(names)
        same, at = list(map(operator.is_, values, self._values)), -1
        for _ in range(same.count(False)):
            at = same.index(False, at + 1)
            self._pieces[at] = self._heads[at] + self._encode(values[at])
        self._values = values
        return "{" + "".join(self._pieces) + "}"


_encode = json.JSONEncoder(separators=(",", ":"), default=str).encode


def key_of(config: Config) -> str:
    """Hash of all that can change the trial's result: 12 hexadecimal digits of SHA-256."""
    return _hash(_encode(relevant(config)))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def keyed(configs: Iterable[Config]) -> Iterator["Trial"]:
    """Trials of these configurations, each with its key, which comes faster for many at once."""
    write = Writer(_encode, ",", ":")
    for config in configs:
        trial, names = Trial(config), _relevant(config)
        # where the property keeps it
        vars(trial)["key"] = _hash(write(names, [config[name] for name in names]))
        yield trial


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
