"""The sweep grammar: what was typed, as axes and fixed settings."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args, get_type_hints

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override, QuotedString, Sweep
from hydra.errors import HydraException

from lorasweep.errors import RequestError, nearest
from lorasweep.space import checks, schema
from lorasweep.space.composition import Composer
from lorasweep.space.progressions import ELLIPSIS, GEOMETRIC_KEYS, expand_ellipsis, multiple

# Whole numbers although their type is Any: a rank, and an alpha that is no multiple of it.
WHOLE_KEYS = ("lora.r", "lora.alpha")


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
    kind: Any = schema.Root
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
        elif name not in schema.declared() and not name.startswith("model.shape."):
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
