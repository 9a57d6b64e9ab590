"""Configurations made through Hydra from ``conf/``: typed, flat, each choice of groups once."""

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.object_type import ObjectType
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from lorasweep.errors import RequestError

CONFIG_NAME = "config"


@dataclass(frozen=True)
class Composed:
    """A configuration without its swept values: typed, flat, and what its interpolations read."""

    tree: DictConfig  # without Hydra's own settings
    hydra: DictConfig  # those
    flat: dict[str, Any]
    parts: dict[str, str]  # unresolved, by top-level name
    referenced: frozenset[str]

    @classmethod
    def of(cls, tree: DictConfig, hydra: DictConfig) -> "Composed":
        """Read all of it off the tree, which is without Hydra's own settings."""
        raw = OmegaConf.to_container(tree, resolve=False)
        assert isinstance(raw, dict)
        parts = {str(name): repr(value) for name, value in raw.items()}
        referenced = re.findall(r"\$\{([\w.]+)\}", " ".join(parts.values()))
        return cls(tree, hydra, _resolved(tree), parts, frozenset(referenced))


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
    return _resolved(OmegaConf.masked_copy(tree, [str(k) for k in tree if k != "hydra"]))


def _resolved(own: DictConfig) -> dict[str, Any]:
    container = OmegaConf.to_container(own, resolve=True, enum_to_str=True, throw_on_missing=False)
    assert isinstance(container, dict)
    return flatten({str(k): v for k, v in container.items() if k != "study"})


class Composer:
    """Composes configurations through Hydra, once per choice of groups."""

    def __init__(self, loader: ConfigLoader, hydra_overrides: Sequence[str] = ()) -> None:
        self.loader = loader
        self.hydra_overrides = list(hydra_overrides)
        self._cache: dict[tuple[str, ...], Composed | RequestError] = {}
        self._joined: dict[tuple[str, ...], Composed | None] = {}
        # overrides with one option → where it is composed, and the groups that are chosen there
        self._foreseen: dict[tuple[str, ...], tuple[Composed, frozenset[str]]] = {}
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

    def foresee(self, fixed: Sequence[str], choices: Mapping[str, Iterable[Any]]) -> None:
        """Compose options that will be chosen, an option of each of several groups at a time.

        That is as many compositions as the longest list has. Only groups are taken whose files
        all speak for their own group and no other.
        """
        try:
            chosen = self(fixed).hydra.runtime.choices
        except RequestError:
            return
        rows = itertools.zip_longest(
            *(
                [(group, option) for option in options if option != chosen.get(group)]
                for group, options in choices.items()
                if all(self._alone(group, option) for option in (chosen.get(group), *options))
            )
        )
        for row in rows:
            words = {group: f"{group}={option}" for group, option in filter(None, row)}
            try:
                found = self((*fixed, *words.values())), frozenset(words)
            except RequestError:
                continue  # composing one by one says what is wrong
            self._foreseen |= {(*fixed, word): found for word in words.values()}

    def _alone(self, group: str, option: Any) -> bool:
        """Whether an option's file says nothing but what is in its own group."""
        found = self.loader.repository.load_config(f"{group}/{option}")
        return found is not None and not found.defaults_list and found.header["package"] is None

    def choose(self, fixed: Sequence[str], options: Mapping[str, Any]) -> Composed:
        """Compose with these overrides and an option of each of several groups.

        Options that each change nothing but their own group's part are composed one by one (or
        as foreseen), and put together: a sum of compositions in place of a product.

        Raises:
            RequestError: Hydra or the schema refuses them.
        """
        overrides = (*fixed, *(f"{group}={option}" for group, option in options.items()))
        if overrides not in self._joined:
            self._joined[overrides] = self._join(fixed, options) if options else None
        return self._joined[overrides] or self(overrides)

    def _join(self, fixed: Sequence[str], options: Mapping[str, Any]) -> Composed | None:
        try:
            base = self(fixed)
            chosen, tree = base.hydra.runtime.choices, base.tree.copy()
            for group, option in options.items():
                if chosen.get(group) == option:
                    continue
                words = (*fixed, f"{group}={option}")
                found, groups = self._foreseen.get(words) or (self(words), {group})
                names = base.parts.keys() | found.parts.keys()
                if any(n not in groups and base.parts.get(n) != found.parts.get(n) for n in names):
                    return None
                OmegaConf.update(tree, group, found.tree[group], merge=False)
            return Composed.of(tree, base.hydra)
        except (RequestError, OmegaConfBaseException):
            return None  # composing all together says what is wrong

    def _compose(self, overrides: list[str]) -> Composed | RequestError:
        try:
            tree = self.loader.load_configuration(
                CONFIG_NAME, self.hydra_overrides + overrides, RunMode.RUN
            )
            with open_dict(tree):
                hydra = tree.pop("hydra")  # half of the tree, which joining options would copy
            return Composed.of(tree, hydra)
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
