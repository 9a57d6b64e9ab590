"""The axes of a space as a sampler sees them: numbers, with an order where there is one.

A point is coded as one number a dimension: the place in the list, or the number itself for an
interval. So ``lora.r=1,2,4,...,512`` is the integers 0 to 9, that is log2 of the rank.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorasweep.space.grammar import Axis, Interval
from lorasweep.space.progressions import multiple

Code = float | int
Codes = Mapping[str, Code]


@dataclass(frozen=True)
class Dimension:
    """One axis: a list with or without an order, or an interval."""

    keys: tuple[str, ...]
    points: tuple[tuple[Any, ...], ...]
    ordered: bool
    interval: Interval | None = None

    @property
    def name(self) -> str:
        """Return the keys that advance together, as one name."""
        return ",".join(self.keys)

    @property
    def fixed(self) -> bool:
        """Whether there is only one value, and so nothing to choose."""
        low, high = self.bounds
        return low == high

    @property
    def bounds(self) -> tuple[Code, Code]:
        """Smallest and largest code, both included."""
        if self.interval is None:
            return 0, len(self.points) - 1
        return self.interval.low, self.interval.high

    @property
    def whole(self) -> bool:
        """Whether codes are whole numbers."""
        return self.interval is None or self.interval.whole

    @property
    def log(self) -> bool:
        """Whether the codes themselves are spread by their logarithm."""
        return self.interval is not None and self.interval.log

    def at(self, share: float) -> Code:
        """Code at a share of the way, ``0 <= share < 1``: equal shares are equally likely.

        A whole number owns the half unit on both sides of it, on the scale that is used
        (as Optuna's ``IntDistribution`` has it).
        """
        half = 0.5 if self.whole else 0.0
        low, high = self.bounds[0] - half, self.bounds[1] + half
        if self.log:
            value = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
        else:
            value = low + share * (high - low)
        return self.tidy(value)

    def tidy(self, code: float) -> Code:
        """Return the code as it is written down: whole, or with six digits; within bounds."""
        low, high = self.bounds
        code = round(code) if self.whole else float(f"{code:.6g}")
        return min(max(code, low), high)

    def middle(self) -> Code:
        """Return the code in the middle: stands for a dimension that does not matter."""
        return self.at(0.5)

    def values(self, code: Code) -> dict[str, Any]:
        """Return the settings that a code stands for."""
        if self.interval is not None:
            return {self.keys[0]: self.interval.value(code)}
        return dict(zip(self.keys, self.points[int(code)], strict=True))

    def code(self, values: Mapping[str, Any]) -> Code | None:
        """Return the code of recorded settings; None where they are not in this dimension."""
        if any(key not in values for key in self.keys):
            return None
        if self.interval is not None:
            return self.interval.code(values[self.keys[0]])
        wanted = tuple(values[key] for key in self.keys)
        return self.points.index(wanted) if wanted in self.points else None


def _numbers(points: Sequence[tuple[Any, ...]]) -> list[float] | None:
    """Return the values of a single key as numbers: plain ones, or multiples of r."""
    values = [point[0] for point in points]
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        return values
    multiples = [multiple(v) for v in values]
    return [m for m in multiples if m is not None] if None not in multiples else None


def dimension(axis: Axis) -> Dimension:
    """An axis of the space, with its order where its values rise or fall.

    Keys and values are sorted, so that a space is the same in whatever order it was typed.
    """
    numbers = _numbers(axis.points) if len(axis.keys) == 1 else None
    steps = [b - a for a, b in itertools.pairwise(numbers)] if numbers else []
    rises, falls = bool(steps) and min(steps) > 0, bool(steps) and max(steps) < 0
    ordered = rises or falls or axis.interval is not None
    places = sorted(range(len(axis.keys)), key=axis.keys.__getitem__)
    points = [tuple(point[place] for place in places) for point in axis.points]
    points = points[::-1] if falls else points if ordered else sorted(points, key=repr)
    return Dimension(tuple(sorted(axis.keys)), tuple(points), ordered, axis.interval)


def identity(dimensions: Sequence[Dimension]) -> list[Any]:
    """All that defines the dimensions, for a hash."""
    return [(d.keys, d.points, d.bounds, d.whole, d.log) for d in dimensions]
