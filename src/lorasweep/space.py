"""The sweep grammar: what was typed → an ordered set of trials.

Hydra parses the command line; this module gives lists their meaning. ``...`` continues a
progression, ``2r`` is a multiple of the trial's own rank, keys named in ``sampler.zip``
advance together, all others are crossed in the order they were typed.
"""

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override, QuotedString, Sweep
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lorasweep import config as checks
from lorasweep.errors import RequestError, nearest
from lorasweep.trial import Trial

CONFIG_NAME = "config"
# Settings that people think of in factors: "1,2,...,8" means 1,2,4,8 for these, and
# 1,2,3,4,5,6,7,8 for all others. Three values before the dots leave no doubt.
GEOMETRIC_KEYS = ("lora.r", "lora.alpha", "train.learning_rate", "train.batch_size")
ELLIPSIS = "..."


# --------------------------------------------------------------------- progressions


def _same(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-9)


def _clean(value: float, whole: bool) -> float:
    return round(value) if whole else float(f"{value:.12g}")


def _steps(head: Sequence[float], bound: float, *, geometric: bool) -> list[float] | None:
    """Continue ``head`` to ``bound``, or None where it is no such progression."""
    first, second = head[0], head[1]
    if geometric:
        if first <= 0 or second <= 0 or bound <= 0 or _same(first, second):
            return None
        count = math.log(bound / first) / math.log(second / first)
    else:
        if _same(first, second):
            return None
        count = (bound - first) / (second - first)
    last = round(count)
    if abs(count - last) > 1e-9 * max(1.0, abs(count)) or last < len(head):
        return None
    step = second / first if geometric else second - first
    values = [first * step**i if geometric else first + step * i for i in range(last + 1)]
    whole = all(isinstance(v, int) for v in (*head, bound))
    if whole and any(abs(v - round(v)) > 1e-6 for v in values):
        return None
    given = zip(values, head, strict=False)
    if not all(_same(a, b) if b else abs(a) < 1e-12 for a, b in given):
        return None
    return [_clean(v, whole) for v in values]


def _multiple(element: Any) -> float | None:
    """``4r`` → 4, ``r`` → 1; None for anything else."""
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+)?r", str(element).strip())
    if match is None:
        return None
    number = float(match[1] or 1)
    return int(number) if number.is_integer() else number


def expand_ellipsis(name: str, elements: Sequence[Any]) -> list[Any]:
    """Replace ``...`` in a list by the values it stands for.

    Raises:
        ValueError: what is before the dots fits no arithmetic or geometric progression that
            ends at the value after them.
    """
    if ELLIPSIS not in elements:
        return list(elements)
    at = elements.index(ELLIPSIS)
    typed = f"{name}={','.join(map(str, elements))}"
    if at < 2 or at + 1 >= len(elements) or ELLIPSIS in elements[at + 1 :]:
        raise ValueError(f"{typed}: '...' needs two values before it and a last one after it")
    part = [*elements[:at], elements[at + 1]]
    numbers = [v for v in part if isinstance(v, int | float) and not isinstance(v, bool)]
    multiples = [m for m in map(_multiple, part) if m is not None]
    of_r = len(multiples) == len(part)
    if not of_r and len(numbers) != len(part):
        raise ValueError(f"{typed}: '...' continues numbers or multiples of r, and nothing else")
    *head, bound = multiples if of_r else numbers
    geometric_first = name in GEOMETRIC_KEYS
    for geometric in (geometric_first, not geometric_first):
        values = _steps(head, bound, geometric=geometric)
        if values is not None:
            found: list[Any] = [f"{v:g}r" if v != 1 else "r" for v in values] if of_r else values
            return found + list(elements[at + 2 :])
    raise ValueError(
        f"{typed}: {', '.join(map(str, elements[:at]))} is no arithmetic or geometric progression "
        f"that reaches {elements[at + 1]}"
    )


# ----------------------------------------------------------------------- composition


@dataclass(frozen=True)
class Composed:
    """A configuration without its swept values: typed, flat, and what its interpolations read."""

    tree: DictConfig
    flat: dict[str, Any]
    referenced: frozenset[str]


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


def _references(tree: DictConfig) -> frozenset[str]:
    raw = OmegaConf.to_container(
        OmegaConf.masked_copy(tree, [str(k) for k in tree if k != "hydra"]), resolve=False
    )
    return frozenset(re.findall(r"\$\{([\w.]+)\}", str(raw)))


class Composer:
    """Composes configurations through Hydra, once per choice of groups."""

    def __init__(self, loader: ConfigLoader, hydra_overrides: Sequence[str] = ()) -> None:
        self.loader = loader
        self.hydra_overrides = list(hydra_overrides)
        self._cache: dict[tuple[str, ...], Composed] = {}

    def groups(self) -> list[str]:
        """Names of the configuration groups that belong to lorasweep."""
        names = self.loader.list_groups("")
        return [n for n in names if n != "hydra" and self.options(n)]

    def options(self, group: str) -> list[str]:
        """Names that a group can be set to."""
        return sorted(self.loader.get_group_options(group, results_filter=ObjectType.CONFIG))

    def __call__(self, overrides: Sequence[str]) -> Composed:
        """Compose with these overrides.

        Raises:
            RequestError: Hydra or the schema refuses them.
        """
        cached = self._cache.get(tuple(overrides))
        if cached is None:
            cached = self._cache[tuple(overrides)] = self._compose(list(overrides))
        return cached

    def _compose(self, overrides: list[str]) -> Composed:
        try:
            tree = self.loader.load_configuration(
                CONFIG_NAME, self.hydra_overrides + overrides, RunMode.RUN
            )
            return Composed(tree, plain(tree), _references(tree))
        except (HydraException, OmegaConfBaseException) as error:
            raise RequestError([describe(error)]) from error


def describe(error: Exception) -> str:
    """Put an error of Hydra or OmegaConf into one line, without its internals."""
    source = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    lines = [line.strip() for line in str(source).splitlines() if line.strip()]
    where = next((line for line in lines if line.startswith("full_key:")), "")
    name = where.removeprefix("full_key:").strip()
    text = lines[0] if lines else type(source).__name__
    return f"{name}: {text}" if name and name not in text else text


# -------------------------------------------------------------------------- the space


@dataclass(frozen=True)
class Axis:
    """Keys that advance together, and the values they take: one tuple a point."""

    keys: tuple[str, ...]
    points: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class Space:
    """A parsed command line: what is fixed, and what is swept."""

    fixed: tuple[str, ...]
    axes: tuple[Axis, ...]


def parse(arguments: Sequence[str], problems: list[str]) -> list[Override]:
    """Parse overrides with Hydra's grammar; what does not parse is added to ``problems``."""
    parser, found = OverridesParser.create(), []
    for argument in arguments:
        try:
            found.append(parser.parse_override(argument))
        except HydraException as error:
            problems.append(f"{argument}: cannot be read ({str(error).splitlines()[0]})")
    return found


def _element(value: Any) -> Any:
    return value.text if isinstance(value, QuotedString) else value


def values_of(override: Override, composer: Composer) -> list[Any]:
    """Every value that a swept override stands for, in order.

    Raises:
        ValueError: a progression that fits nothing, an interval, or an empty glob.
    """
    name = override.key_or_group
    value = override.value()
    if isinstance(value, IntervalSweep):
        raise ValueError(
            f"{name}={override.get_value_string()}: a grid cannot walk an interval; "
            "give a list, a progression or range()"
        )
    if override.is_range_sweep():
        return list(override.sweep_iterator())
    if isinstance(value, Glob):
        names = value.filter(composer.options(name))
        if not names:
            raise ValueError(f"{override.input_line}: matches no option of '{name}'")
        return list(names)
    assert isinstance(value, Sweep)
    return expand_ellipsis(name, [_element(v) for v in value.list])


def words(overrides: Iterable[Override], composer: Composer) -> dict[str, str]:
    """Check group, option and key names. Returns what is wrong, by the override's text."""
    wrong: dict[str, str] = {}
    groups = composer.groups()
    known = list(composer(()).flat)
    for override in overrides:
        name = override.key_or_group
        if override.is_hydra_override() or override.package is not None or override.is_delete():
            continue
        if name in groups:
            options = composer.options(name)
            for value in _listed(override):
                if value != ELLIPSIS and value is not None and str(value) not in options:
                    wrong[override.input_line] = (
                        f"{name}={value}: no such {name}{nearest(str(value), options)} "
                        f"(there are: {', '.join(options)})"
                    )
        elif name not in known and not name.startswith("model.shape."):
            wrong[override.input_line] = (
                f"{override.input_line}: no setting is called '{name}'"
                f"{nearest(name, [*known, *groups])}"
            )
    return wrong


def _listed(override: Override) -> list[Any]:
    value = override.value()
    if isinstance(value, Glob | IntervalSweep) or override.is_range_sweep():
        return []
    return [_element(v) for v in getattr(value, "list", [_element(value)])]


def _zips(spec: Sequence[Any]) -> list[list[str]]:
    """Read ``sampler.zip``: one list of keys, or a list of such lists."""
    if spec and all(isinstance(s, str) for s in spec):
        return [list(spec)]
    return [list(s) for s in spec]


def _axes(
    lists: Mapping[str, list[Any]], zips: Sequence[Sequence[str]], problems: list[str]
) -> list[Axis]:
    """Join zipped keys; the order is that in which the first key of each axis was typed."""
    axes: list[Axis] = []
    joined: set[str] = set()
    for name in lists:
        if name in joined:
            continue
        keys = next((list(z) for z in zips if name in z), [name])
        joined.update(keys)
        missing = [k for k in keys if k not in lists]
        if missing:
            problems.append(f"sampler.zip: '{missing[0]}' is not swept; give it a list of values")
            continue
        lengths = {k: len(lists[k]) for k in keys}
        if len(set(lengths.values())) > 1:
            sizes = ", ".join(f"{k} has {n}" for k, n in lengths.items())
            problems.append(f"sampler.zip: keys that advance together need equal lists ({sizes})")
            continue
        axes.append(Axis(tuple(keys), tuple(zip(*(lists[k] for k in keys), strict=True))))
    for name in itertools.chain.from_iterable(zips):
        if name not in lists:
            message = f"sampler.zip: '{name}' is not swept; give it a list of values"
            if message not in problems:
                problems.append(message)
    return axes


def read(
    arguments: Sequence[str], params: Mapping[str, Any], composer: Composer, problems: list[str]
) -> Space:
    """Typed overrides, over a study's own ``params``, → the space they describe."""
    overrides = parse(arguments, problems)
    typed = {o.key_or_group for o in overrides}
    study = [f"{k}={v}" for k, v in params.items() if k not in typed]
    overrides = [*parse(study, problems), *overrides]
    wrong = words(overrides, composer)
    problems += wrong.values()
    overrides = [o for o in overrides if o.input_line not in wrong]
    lists: dict[str, list[Any]] = {}
    for override in overrides:
        if override.is_sweep_override():
            try:
                lists[override.key_or_group] = values_of(override, composer)
            except ValueError as error:
                problems.append(str(error))
    fixed = [o for o in overrides if not o.is_sweep_override() and not o.is_hydra_override()]
    fixed = _without_refused(fixed, composer, problems)
    flat = composer(fixed_lines := tuple(str(o.input_line) for o in fixed)).flat
    zips = [list(lists)] if flat["sampler.name"] == "zip" else _zips(flat["sampler.zip"])
    return Space(fixed_lines, tuple(_axes(lists, zips, problems)))


def _without_refused(
    fixed: list[Override], composer: Composer, problems: list[str]
) -> list[Override]:
    """Drop fixed overrides that the schema refuses, so that the others can still be checked."""
    try:
        composer([str(o.input_line) for o in fixed])
        return fixed
    except RequestError:
        kept: list[Override] = []
    for override in fixed:
        try:
            composer([str(o.input_line) for o in [*kept, override]])
            kept.append(override)
        except RequestError as error:
            problems += [f"{override.input_line}: {text}" for text in error.problems]
    return kept


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


def _configs(space: Space, composer: Composer, problems: list[str]) -> Iterator[dict[str, Any]]:
    groups, convert = set(composer.groups()), _Converter()
    names = [k for axis in space.axes for k in axis.keys]
    for points in itertools.product(*(axis.points for axis in space.axes)):
        swept = dict(zip(names, itertools.chain.from_iterable(points), strict=True))
        chosen = [f"{k}={v}" for k, v in swept.items() if k in groups]
        values = {k: v for k, v in swept.items() if k not in groups}
        try:
            composed = composer([*space.fixed, *chosen])
            if composed.referenced.isdisjoint(values):
                typed = {k: convert(composed.tree, k, v) for k, v in values.items()}
                flat = {**composed.flat, **typed}
            else:  # an interpolation reads a swept value: resolve anew
                scratch = composed.tree.copy()
                for name, value in values.items():
                    OmegaConf.update(scratch, name, value, merge=False)
                flat = plain(scratch)
        except RequestError as error:
            problems += error.problems
            continue
        except OmegaConfBaseException as error:
            problems.append(describe(error))
            continue
        yield flat


def finish(flat: dict[str, Any], problems: list[str]) -> Trial:
    """Check one flat configuration and settle what depends on several keys (alpha)."""
    found = checks.problems(flat)
    problems += [text for text in found if text not in problems]
    if not found:
        flat["lora.alpha"] = checks.alpha_of(flat["lora.r"], flat["lora.alpha"])
    return Trial(flat)


def expand(space: Space, composer: Composer, problems: list[str]) -> list[Trial]:
    """Walk the space in order. A trial that two points describe alike appears once.

    Trials that cannot run are returned too, so that what they need can be checked as well;
    ``problems`` says that they are wrong.
    """
    trials: dict[str, Trial] = {}
    for flat in _configs(space, composer, problems):
        trial = finish(flat, problems)
        trials.setdefault(trial.key, trial)
    return list(trials.values())
