"""Lists that continue a progression: ``1,2,4,...,512`` and ``r,2r,...,8r``."""

import math
import re
from collections.abc import Sequence
from typing import Any

# Settings that people think of in factors: "1,2,...,8" means 1,2,4,8 for these, and
# 1,2,3,4,5,6,7,8 for all others. Three values before the dots leave no doubt.
GEOMETRIC_KEYS = ("lora.r", "lora.alpha", "train.learning_rate", "train.batch_size")
ELLIPSIS = "..."


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
