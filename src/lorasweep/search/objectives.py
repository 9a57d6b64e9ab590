"""What is better: the objectives of a sweep, and the order that several of them give.

Everything here works on *losses*: one number an objective, lower is better, infinity where
the trial has none. So "accuracy up" and "memory down" need no further care.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorasweep.errors import nearest

Losses = tuple[float, ...]
# What a trial is told that ended without a number: worse than anything measured.
WORST = math.inf


@dataclass(frozen=True)
class Objective:
    """A metric to improve: the first of ``metrics`` that a trial has, up or down."""

    name: str
    metrics: tuple[str, ...]
    up: bool

    def value(self, metrics: Mapping[str, Any]) -> float | None:
        """Return what the trial measured; None where it measured nothing that is a number."""
        for name in self.metrics:
            if metrics.get(name) is not None:
                found = float(metrics[name])
                return found if math.isfinite(found) else None
        return None

    def loss(self, metrics: Mapping[str, Any]) -> float:
        """Return the value with the sign that makes lower better."""
        found = self.value(metrics)
        if found is None:
            return WORST
        return -found if self.up else found


_SCORES = ("accuracy", "f1_macro", "f1_micro", "precision_macro", "recall_macro")
NAMED = {
    o.name: o
    for o in (
        *(Objective(name, (f"eval/{name}",), up=True) for name in _SCORES),
        Objective("f1", ("eval/f1_macro",), up=True),
        Objective("loss", ("eval/loss",), up=False),
        # What a GPU allocates is the trial's own; on a CPU only the process can be measured.
        Objective("memory", ("memory/peak_allocated_gib", "memory/peak_rss_gib"), up=False),
        Objective("time", ("time/train_s",), up=False),
        Objective("params", ("params/trainable",), up=False),
    )
}
METRICS = (
    *(f"eval/{name}" for name in (*_SCORES, "loss")),
    "train/loss",
    *(f"time/{name}" for name in ("train_s", "eval_s", "load_s", "total_s", "pack_share_s")),
    *(f"memory/peak_{name}_gib" for name in ("allocated", "reserved", "rss")),
    "params/trainable",
    "params/total",
    "speed/samples_per_s",
    "speed/tokens_per_s",
    "adapter/bytes",
)


def parse(words: Sequence[Any], problems: list[str]) -> tuple[Objective, ...]:
    """Read ``sampler.objectives``: names, or metrics of the record with ``+`` (up) or ``-``."""
    found = [o for o in (_parse(str(word), problems) for word in words) if o is not None]
    metrics = [o.metrics for o in found]
    if len(set(metrics)) < len(metrics):
        problems.append(f"sampler.objectives=[{','.join(map(str, words))}]: one is there twice")
    if not words:
        problems.append("sampler.objectives=[]: what is to be improved? for example [accuracy]")
    return tuple(found)


def _parse(word: str, problems: list[str]) -> Objective | None:
    sign, metric = word[:1], word[1:]
    if sign in ("+", "-") and metric in METRICS:
        return Objective(word, (metric,), up=sign == "+")
    if word in NAMED:
        return NAMED[word]
    if word in METRICS:
        problems.append(f"sampler.objectives: {word} up or down? write +{word} or -{word}")
    elif sign in ("+", "-") and metric in NAMED:
        problems.append(f"sampler.objectives: '{metric}' knows its direction; leave out the {sign}")
    else:
        known = [*NAMED, *(f"{s}{m}" for s in "+-" for m in METRICS)]
        problems.append(
            f"sampler.objectives: no objective '{word}'{nearest(word, known)} "
            f"(there are: {', '.join(NAMED)}; or +metric, -metric for one of the record)"
        )
    return None


def losses(metrics: Mapping[str, Any], objectives: Iterable[Objective]) -> Losses:
    """Losses of one trial, in the order of the objectives."""
    return tuple(o.loss(metrics) for o in objectives)


# ------------------------------------------------------------------------- Pareto order


def dominates(a: Losses, b: Losses) -> bool:
    """Whether ``a`` is nowhere worse than ``b`` and somewhere better."""
    return a != b and all(x <= y for x, y in zip(a, b, strict=True))


def front(points: Sequence[Losses]) -> list[bool]:
    """Which points no other dominates. Equal points are on the front together."""
    # In lexicographic order a point can only be dominated by one before it.
    order = sorted(range(len(points)), key=lambda i: points[i])
    kept: list[Losses] = []
    on = [False] * len(points)
    for i in order:
        on[i] = not any(dominates(other, points[i]) for other in kept)
        if on[i] and (not kept or kept[-1] != points[i]):
            kept.append(points[i])
    return on


def layers(points: Sequence[Losses]) -> list[int]:
    """Pareto layer of each point: 0 for the front, 1 for the front of the rest, and so on."""
    found = [0] * len(points)
    left, layer = list(range(len(points))), 0
    while left:
        on = front([points[i] for i in left])
        for i, first in zip(left, on, strict=True):
            if first:
                found[i] = layer
        left = [i for i, first in zip(left, on, strict=True) if not first]
        layer += 1
    return found


def crowding(points: Sequence[Losses]) -> list[float]:
    """Crowding distance: how far apart a point's neighbours are, summed over the objectives.

    Deb et al. 2002, "A fast and elitist multiobjective genetic algorithm: NSGA-II", III-B. The
    two ends of an objective have an infinite distance; so everyone keeps the extremes.
    """
    found = [0.0] * len(points)
    for axis in zip(*points, strict=True):
        order = sorted(range(len(points)), key=lambda i: axis[i])
        span = axis[order[-1]] - axis[order[0]]
        if not 0 < span < math.inf:
            continue
        found[order[0]] = found[order[-1]] = math.inf
        for before, i, after in zip(order, order[1:], order[2:], strict=False):
            found[i] += (axis[after] - axis[before]) / span
    return found


def ranks(points: Sequence[Losses]) -> list[tuple[float, ...]]:
    """Return a sort key for each point: Pareto layer, then less crowded, then first objective."""
    layer = layers(points)
    found: list[tuple[float, ...]] = [(float(level),) for level in layer]
    if not points or len(points[0]) == 1:
        return found
    for level in set(layer):
        members = [i for i, its in enumerate(layer) if its == level]
        distances = crowding([points[i] for i in members])
        for i, distance in zip(members, distances, strict=True):
            found[i] = (float(level), -distance, points[i][0])
    return found


def pareto(rows: Sequence[Mapping[str, Any]], objectives: Sequence[Objective]) -> list[bool]:
    """Which rows of the record are on the Pareto front: done, measured, and dominated by none.

    With one objective these are the best rows (several where they are equal).
    """
    points = [losses(row, objectives) for row in rows]
    counts = [
        row.get("lorasweep.state", "done") == "done" and all(map(math.isfinite, point))
        for row, point in zip(rows, points, strict=True)
    ]
    on = iter(front([p for p, counted in zip(points, counts, strict=True) if counted]))
    return [counted and next(on) for counted in counts]
