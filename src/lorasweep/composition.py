"""Configurations made through Hydra from ``conf/``: typed, flat, each choice of groups once."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.object_type import ObjectType
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lorasweep.errors import RequestError

CONFIG_NAME = "config"


@dataclass(frozen=True)
class Composed:
    """A configuration without its swept values: typed, flat, and what its interpolations read."""

    tree: DictConfig
    flat: dict[str, Any]
    parts: dict[str, str]  # unresolved, by top-level name
    referenced: frozenset[str]

    @classmethod
    def of(cls, tree: DictConfig) -> "Composed":
        """Read all of it off the tree."""
        parts = _parts(tree)
        referenced = re.findall(r"\$\{([\w.]+)\}", " ".join(parts.values()))
        return cls(tree, plain(tree), parts, frozenset(referenced))


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested → ``{"lora.r": 8}``; lists stay values."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def plain(tree: DictConfig) -> dict[str, Any]:
    """Resolve a composed configuration to plain values, without Hydra's own node."""
    own = OmegaConf.masked_copy(tree, [str(k) for k in tree if k not in ("hydra", "study")])
    container = OmegaConf.to_container(own, resolve=True, enum_to_str=True, throw_on_missing=False)
    assert isinstance(container, dict)
    return flatten({str(k): v for k, v in container.items()})


def _parts(tree: DictConfig) -> dict[str, str]:
    raw = OmegaConf.to_container(tree, resolve=False)
    assert isinstance(raw, dict)
    return {str(name): repr(value) for name, value in raw.items() if name != "hydra"}


class Composer:
    """Composes configurations through Hydra, once per choice of groups."""

    def __init__(self, loader: ConfigLoader, hydra_overrides: Sequence[str] = ()) -> None:
        self.loader = loader
        self.hydra_overrides = list(hydra_overrides)
        self._cache: dict[tuple[str, ...], Composed | RequestError] = {}
        self._options: dict[str, list[str]] = {}  # Hydra reads folders anew each time
        self._groups: list[str] = []

    def groups(self) -> list[str]:
        """Names of the configuration groups that belong to lorasweep."""
        if not self._groups:
            names = self.loader.list_groups("")
            self._groups = [n for n in names if n != "hydra" and self.options(n)]
        return self._groups

    def options(self, group: str) -> list[str]:
        """Names that a group can be set to."""
        if group not in self._options:
            found = self.loader.get_group_options(group, results_filter=ObjectType.CONFIG)
            self._options[group] = sorted(found)
        return self._options[group]

    def __call__(self, overrides: Sequence[str]) -> Composed:
        """Compose with these overrides.

        Raises:
            RequestError: Hydra or the schema refuses them.
        """
        cached = self._cache.get(tuple(overrides))
        if cached is None:
            cached = self._cache[tuple(overrides)] = self._compose(list(overrides))
        if isinstance(cached, RequestError):
            raise cached
        return cached

    def choose(self, fixed: Sequence[str], options: Mapping[str, Any]) -> Composed:
        """Compose with these overrides and an option of each of several groups.

        Options that each change nothing but their own group's part are composed one by one, and
        put together: a sum of compositions in place of a product.

        Raises:
            RequestError: Hydra or the schema refuses them.
        """
        overrides = (*fixed, *(f"{group}={option}" for group, option in options.items()))
        if overrides not in self._cache and len(options) > 1:
            joined = self._join(fixed, options)
            if joined is not None:
                self._cache[overrides] = joined
        return self(overrides)

    def _join(self, fixed: Sequence[str], options: Mapping[str, Any]) -> Composed | None:
        try:
            base = self(fixed)
            chosen, tree = base.tree.hydra.runtime.choices, base.tree.copy()
            for group, option in options.items():
                if chosen.get(group) == option:
                    continue
                found = self((*fixed, f"{group}={option}"))
                names = base.parts.keys() | found.parts.keys()
                if any(n != group and base.parts.get(n) != found.parts.get(n) for n in names):
                    return None
                OmegaConf.update(tree, group, found.tree[group], merge=False)
            return Composed.of(tree)
        except (RequestError, OmegaConfBaseException):
            return None  # composing all together says what is wrong

    def _compose(self, overrides: list[str]) -> Composed | RequestError:
        try:
            tree = self.loader.load_configuration(
                CONFIG_NAME, self.hydra_overrides + overrides, RunMode.RUN
            )
            return Composed.of(tree)
        except (HydraException, OmegaConfBaseException) as error:
            return RequestError([describe(error)])


def describe(error: Exception) -> str:
    """Put an error of Hydra or OmegaConf into one line, without its internals."""
    source = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    lines = [line.strip() for line in str(source).splitlines() if line.strip()]
    where = next((line for line in lines if line.startswith("full_key:")), "")
    name = where.removeprefix("full_key:").strip()
    text = lines[0] if lines else type(source).__name__
    return f"{name}: {text}" if name and name not in text else text
