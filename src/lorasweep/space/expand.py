"""A described space expanded into trials."""

import itertools
from collections.abc import Container, Hashable, Iterable, Iterator, Mapping
from enum import Enum
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lorasweep.errors import RequestError
from lorasweep.methods.lora import alpha_of
from lorasweep.space import checks
from lorasweep.space.composition import Composed, Composer, describe, plain
from lorasweep.space.grammar import Axis, Space
from lorasweep.trial.key import LOOSE, Form, key_form
from lorasweep.trial.trial import Trial, keyed


class _Converter:
    """Turns swept values into the schema's types, each distinct value once."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], Any] = {}
        self._scratch: DictConfig | None = None

    def __call__(self, tree: DictConfig, name: str, value: Any) -> Any:
        at = (name, repr(value))
        if at not in self._seen:
            if self._scratch is None:  # copied once: types are the same whatever was chosen
                self._scratch = tree.copy()
            OmegaConf.update(self._scratch, name, value, merge=False)
            typed = OmegaConf.select(self._scratch, name)
            if OmegaConf.is_config(typed):
                typed = OmegaConf.to_container(typed, resolve=True)
            self._seen[at] = typed.name if isinstance(typed, Enum) else typed
        return self._seen[at]


class Builder:
    """Puts swept values into the fixed configuration, one trial at a time."""

    def __init__(self, space: Space, composer: Composer) -> None:
        self.fixed, self.composer = space.fixed, composer
        self.groups = frozenset(composer.groups())
        self._convert = _Converter()
        values = (v for axis in space.axes for point in axis.points for v in point)
        self._refers = any(map(_refers, values))
        composer.foresee(self.fixed, _options(space.axes, self.groups))
        self._last: tuple[dict[str, Any], Composed] | None = None
        self._kinds: dict[tuple[Hashable, ...], object] = {}

    def __call__(
        self, swept: Mapping[str, Any], problems: list[str]
    ) -> tuple[dict[str, Any], object] | None:
        """Return the flat configuration and the trial's kind (``Trial.kind``).

        None where it is refused, which ``problems`` explains.
        """
        options = {k: v for k, v in swept.items() if k in self.groups}
        values = {k: v for k, v in swept.items() if k not in self.groups}
        try:
            composed = self._composed(options)
            if composed.referenced.isdisjoint(values) and not self._refers:
                typed = {k: self._convert(composed.tree, k, v) for k, v in values.items()}
                return {**composed.flat, **typed}, self._kind(composed, typed)
            # an interpolation reads a swept value, or is one: resolve anew
            scratch = composed.tree.copy()
            for name, value in values.items():
                OmegaConf.update(scratch, name, value, merge=False)
            return plain(scratch), object()
        except RequestError as error:
            problems += error.problems
        except OmegaConfBaseException as error:
            problems.append(describe(error))
        return None

    def _composed(self, options: dict[str, Any]) -> Composed:
        if self._last is None or self._last[0] != options:
            self._last = options, self.composer.choose(self.fixed, options)
        return self._last[1]

    def _kind(self, composed: Composed, typed: Mapping[str, Any]) -> object:
        # By identity, since 1, 1.0 and True are equal; composer and converter keep the objects.
        looks = [(k, id(v)) for k, v in typed.items() if k not in LOOSE]
        return self._kinds.setdefault((id(composed), *looks), object())


def _refers(value: Any) -> bool:
    """Whether a swept value is an interpolation, which reads other settings."""
    return isinstance(value, str | list | dict) and "${" in str(value)


def _options(axes: Iterable[Axis], groups: Container[str]) -> dict[str, list[Any]]:
    """Return what the swept groups will be set to."""
    places = [(axis, at, key) for axis in axes for at, key in enumerate(axis.keys)]
    return {
        key: list(dict.fromkeys(point[at] for point in axis.points))
        for axis, at, key in places
        if key in groups
    }


def _configs(
    space: Space, composer: Composer, problems: list[str]
) -> Iterator[tuple[dict[str, Any], object]]:
    build = Builder(space, composer)
    names = [k for axis in space.axes for k in axis.keys]
    for points in itertools.product(*(axis.points for axis in space.axes)):
        values = itertools.chain.from_iterable(points)
        found = build(dict(zip(names, values, strict=True)), problems)
        if found is not None:
            yield found


def finish(flat: dict[str, Any], problems: list[str]) -> Trial:
    """Check one flat configuration and settle what depends on several keys (alpha)."""
    return Trial(_settled(flat, checks.problems(flat), problems))


def _settled(flat: dict[str, Any], found: list[str], problems: list[str]) -> dict[str, Any]:
    problems += [text for text in found if text not in problems]
    if not found:
        flat["lora.alpha"] = alpha_of(flat["lora.r"], flat["lora.alpha"])
    return flat


def expand(space: Space, composer: Composer, problems: list[str]) -> list[Trial]:
    """Walk the space in order. A trial that two points describe alike appears once.

    Trials that cannot run are returned too, so that what they need can be checked as well;
    ``problems`` says that they are wrong.
    """
    kinds: dict[object, tuple[bool, Form]] = {}  # whether it is right, and of its keys
    trials: dict[str, Trial] = {}
    for flat, kind in _configs(space, composer, problems):
        if kind not in kinds:
            kinds[kind] = not checks.problems(flat), key_form(flat)
        right, form = kinds[kind]
        found = checks.loose_problems(flat) if right else checks.problems(flat)
        trial = keyed(_settled(flat, found, problems), kind, form)
        trials.setdefault(trial.key, trial)
    return list(trials.values())
