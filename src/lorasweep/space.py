"""The sweep grammar: what was typed → an ordered set of trials.

Hydra parses the command line; this module gives lists their meaning. ``...`` continues a
progression, ``2r`` is a multiple of the trial's own rank, keys named in ``sampler.zip``
advance together, all others are crossed in the order they were typed.
"""

import itertools
import math
import re
from collections.abc import Container, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, get_args, get_type_hints

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override, QuotedString, Sweep
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lorasweep import config as checks
from lorasweep.composition import Composed, Composer, describe, plain
from lorasweep.errors import RequestError, nearest
from lorasweep.trial import LOOSE, Form, Trial, key_form, keyed

# Settings that people think of in factors: "1,2,...,8" means 1,2,4,8 for these, and
# 1,2,3,4,5,6,7,8 for all others. Three values before the dots leave no doubt.
GEOMETRIC_KEYS = ("lora.r", "lora.alpha", "train.learning_rate", "train.batch_size")
ELLIPSIS = "..."
# Whole numbers although their type is Any: a rank, and an alpha that is no multiple of it.
WHOLE_KEYS = ("lora.r", "lora.alpha")


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


def multiple(element: Any) -> float | None:
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
    multiples = [m for m in map(multiple, part) if m is not None]
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


# -------------------------------------------------------------------------- the space


@dataclass(frozen=True)
class Interval:
    """Numbers from ``low`` to ``high``, both included; ``of_r``: they are multiples of r."""

    low: float
    high: float
    whole: bool
    log: bool
    of_r: bool = False

    def value(self, number: float) -> Any:
        """Return the setting that a number of the interval stands for."""
        return f"{number:.6g}r" if self.of_r else number

    def code(self, value: Any) -> float | None:
        """Return the number that a setting stands for; None where it is not in the interval."""
        number = multiple(value) if self.of_r else value
        if isinstance(number, bool) or not isinstance(number, int | float):
            return None
        return number if self.low <= number <= self.high else None


@dataclass(frozen=True)
class Axis:
    """Keys that advance together, and the values they take: one tuple a point.

    The points of an interval are its two ends.
    """

    keys: tuple[str, ...]
    points: tuple[tuple[Any, ...], ...]
    interval: Interval | None = None


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
        ValueError: a progression that fits nothing, or an empty glob.
    """
    name = override.key_or_group
    value = override.value()
    if override.is_range_sweep():
        return list(override.sweep_iterator())
    if isinstance(value, Glob):
        names = value.filter(composer.options(name))
        if not names:
            raise ValueError(f"{override.input_line}: matches no option of '{name}'")
        return list(names)
    assert isinstance(value, Sweep)
    return expand_ellipsis(name, [_element(v) for v in value.list])


def interval_of(override: Override, composer: Composer, flat: Mapping[str, Any]) -> Interval:
    """Read ``interval(low, high)``, with ``tag(log, …)`` or ``tag(r, …)`` around it or not.

    Rank, alpha, learning rate and batch size are spread by their logarithm without being told.

    Raises:
        ValueError: the sampler cannot walk an interval, or the interval makes no sense.
    """
    name, value = override.key_or_group, override.value()
    assert isinstance(value, IntervalSweep)
    assert value.start is not None
    assert value.end is not None
    low, high, typed = value.start, value.end, f"{name}={override.get_value_string()}"
    kinds = _types(name, flat)
    if str(flat["sampler.name"]) in checks.LISTED_SAMPLERS:
        others = ", ".join(s for s in checks.SAMPLERS if s not in checks.LISTED_SAMPLERS)
        raise ValueError(
            f"{typed}: sampler={flat['sampler.name']} cannot walk an interval; give a list, a "
            f"progression or range(), or choose a sampler that can ({others})"
        )
    if name in composer.groups() or not kinds & {int, float}:
        raise ValueError(f"{typed}: '{name}' is no number; give a list")
    if name == "seed":
        raise ValueError(f"{typed}: seeds are a list; every point is run once for each")
    unknown = value.tags - {"log", "r"}
    if unknown:
        raise ValueError(f"{typed}: tag '{min(unknown)}' means nothing here (log, r)")
    of_r = "r" in value.tags
    if of_r and name != "lora.alpha":
        raise ValueError(f"{typed}: only lora.alpha can be a multiple of r")
    casted = isinstance(low, int) and isinstance(high, int)  # int(interval(…))
    whole = casted or (float not in kinds and not of_r)
    log = "log" in value.tags or name in GEOMETRIC_KEYS
    if not low <= high:
        raise ValueError(f"{typed}: the first number must not be above the second")
    if whole and not (float(low).is_integer() and float(high).is_integer()):
        raise ValueError(f"{typed}: the ends must be whole numbers")
    if (log or name in WHOLE_KEYS) and low <= 0:
        raise ValueError(f"{typed}: must begin above 0")
    if whole:
        low, high = int(low), int(high)
    return Interval(low, high, whole, log, of_r)


def _types(name: str, flat: Mapping[str, Any]) -> set[type]:
    """Types that a setting can have: by the schema, or where that says Any by its value."""
    if name in WHOLE_KEYS:
        return {int}
    kind: Any = checks.Root
    for part in name.split("."):
        kind = get_type_hints(kind).get(part) if hasattr(kind, "__annotations__") else None
    return set(get_args(kind) or (kind,)) if kind else {type(flat.get(name))}


def words(overrides: Iterable[Override], composer: Composer) -> dict[str, str]:
    """Check group, option and key names. Returns what is wrong, by the override's text."""
    wrong: dict[str, str] = {}
    groups = composer.groups()
    for override in overrides:
        name = override.key_or_group
        if override.is_hydra_override() or override.package is not None:
            continue
        if override.is_delete():
            if name != "study":  # the only one that may be none
                wrong[override.input_line] = (
                    f"{override.input_line}: no setting can be left out; give it another value"
                )
        elif name in groups:
            options = composer.options(name)
            for value in _listed(override):
                if value != ELLIPSIS and value is not None and str(value) not in options:
                    wrong[override.input_line] = (
                        f"{name}={value}: no such {name}{nearest(str(value), options)} "
                        f"(there are: {', '.join(options)})"
                    )
        elif name not in checks.declared() and not name.startswith("model.shape."):
            known = list(composer(()).flat)
            if name not in known:
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
    lists: Mapping[str, list[Any]],
    intervals: Mapping[str, Interval],
    zips: Sequence[Sequence[str]],
    problems: list[str],
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
        if len(keys) > 1 and intervals.keys() & keys:
            name = next(k for k in keys if k in intervals)
            problems.append(f"sampler.zip: '{name}' is an interval; only lists advance together")
            continue
        points = tuple(zip(*(lists[k] for k in keys), strict=True))
        axes.append(Axis(tuple(keys), points, intervals.get(keys[0])))
    for name in itertools.chain.from_iterable(zips):
        if name not in lists:
            message = f"sampler.zip: '{name}' is not swept; give it a list of values"
            if message not in problems:
                problems.append(message)
    return axes


def fixed(arguments: Sequence[str]) -> list[str]:
    """Return those of the typed overrides that have one value, and are not Hydra's own."""
    return [str(o.input_line) for o in parse(arguments, []) if _is_fixed(o)]


def _is_fixed(override: Override) -> bool:
    return not override.is_sweep_override() and not override.is_hydra_override()


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
    kept = _without_refused([o for o in overrides if _is_fixed(o)], composer, problems)
    flat = composer(fixed_lines := tuple(str(o.input_line) for o in kept)).flat
    lists: dict[str, list[Any]] = {}
    intervals: dict[str, Interval] = {}
    for override in overrides:
        name = override.key_or_group
        if not override.is_sweep_override():
            continue
        if name.split(".")[0] in ("sampler", "pruner"):
            problems.append(f"{override.input_line}: a sweep has one {name}; give one value")
            continue
        try:
            if isinstance(override.value(), IntervalSweep):
                intervals[name] = found = interval_of(override, composer, flat)
                lists[name] = [found.value(found.low), found.value(found.high)]
            else:
                lists[name] = values_of(override, composer)
        except ValueError as error:
            problems.append(str(error))
    zips = [list(lists)] if flat["sampler.name"] == "zip" else _zips(flat["sampler.zip"])
    return Space(fixed_lines, tuple(_axes(lists, intervals, zips, problems)))


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
        flat["lora.alpha"] = checks.alpha_of(flat["lora.r"], flat["lora.alpha"])
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
