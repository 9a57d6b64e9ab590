"""Which trials come next: every one of a list, or those that a search chooses.

Neither Optuna nor torch is loaded before a search that needs them is asked for its first
trial's number, so that plans and refusals stay quick.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from lorasweep.errors import RequestError
from lorasweep.search import designs, objectives
from lorasweep.search.base import Past, Sampler, Suggestion
from lorasweep.search.dimensions import Dimension, dimension
from lorasweep.search.listed import Listed
from lorasweep.search.objectives import Objective, pareto
from lorasweep.search.pointwise import Chooser, Pointwise, active
from lorasweep.space import expand
from lorasweep.space.checks import LISTED_SAMPLERS, SAMPLERS, positive
from lorasweep.space.composition import Composer
from lorasweep.space.grammar import Axis, Space
from lorasweep.trial.trial import Trial

__all__ = [
    "Listed",
    "Objective",
    "Past",
    "Pointwise",
    "Sampler",
    "Suggestion",
    "corners",
    "make",
    "objectives_of",
    "pareto",
    "problems",
]


def _settings(space: Space, composer: Composer) -> dict[str, Any]:
    flat = composer(space.fixed).flat
    return {k.removeprefix("sampler."): v for k, v in flat.items() if k.startswith("sampler.")}


def _searched(axes: Sequence[Axis]) -> list[Dimension]:
    """Return what a search chooses, by name; seeds are no choice, they repeat it."""
    found = [dimension(axis) for axis in axes if axis.keys != ("seed",)]
    return sorted(found, key=lambda dimension: dimension.name)


def _seeds(axes: Sequence[Axis]) -> list[int]:
    return sorted(point[0] for axis in axes if axis.keys == ("seed",) for point in axis.points)


def objectives_of(space: Space, composer: Composer) -> tuple[Objective, ...]:
    """Return what this sweep improves, whatever its sampler (for tables, pruners, the front)."""
    return objectives.parse(_settings(space, composer)["objectives"], [])


def corners(space: Space, composer: Composer, problems: list[str]) -> list[Trial]:
    """Return trials that show beforehand whether a sweep can run, and at most how large it gets.

    For a list of trials these are all of them. For a search they are its extremes: every
    combination of choices without an order, with the first and last of those with one, at one
    seed. What is wrong with any of them is added to ``problems``.
    """
    if _settings(space, composer)["name"] in LISTED_SAMPLERS:
        return expand.expand(space, composer, problems)
    axes = [dataclasses.replace(axis, points=_ends(axis)) for axis in space.axes]
    return expand.expand(dataclasses.replace(space, axes=tuple(axes)), composer, problems)


def _ends(axis: Axis) -> tuple[tuple[Any, ...], ...]:
    if axis.keys == ("seed",):
        return axis.points[:1]
    if dimension(axis).ordered and len(axis.points) > 2:
        return axis.points[0], axis.points[-1]
    return axis.points


def problems(space: Space, composer: Composer) -> list[str]:
    """Everything that is wrong with how the sampler is set, each as a sentence."""
    settings, found = _settings(space, composer), list[str]()
    objectives.parse(settings["objectives"], found)
    name = settings["name"]
    if name not in SAMPLERS:
        return found  # said with the other settings of each trial
    searching = ", ".join(s for s in SAMPLERS if s not in LISTED_SAMPLERS)
    if name in LISTED_SAMPLERS:
        if settings["trials"] is not None:
            found.append(
                f"sampler.trials={settings['trials']}: sampler={name} runs all combinations; "
                f"choose a sampler that takes some of them ({searching})"
            )
        return found
    return found + _search_problems(space, composer, settings)


def _search_problems(space: Space, composer: Composer, settings: dict[str, Any]) -> list[str]:
    name, found = settings["name"], []
    if settings["trials"] is None:
        found.append(
            f"sampler={name} needs sampler.trials: how many points are to be tried? "
            "(sampler.trials=50)"
        )
    found += positive({f"sampler.{k}": v for k, v in settings.items()}, ("sampler.trials",))
    found += positive({"sampler.seed": settings["seed"]}, ("sampler.seed",), zero=True)
    for key, least in (("startup", 1), ("population", 2)):
        if settings[key] < least:
            found.append(f"sampler.{key}={settings[key]}: must be at least {least}")
    searched = _searched(space.axes)
    if not searched:
        found.append(f"sampler={name}: nothing to search; give lists or intervals")
    ignored = {key for d in searched for key in d.keys}
    for trial in corners(space, composer, []):
        ignored -= {key for d in active(trial.config, searched) for key in d.keys}
    for key in sorted(ignored):
        found.append(
            f"{key}: changes no result here, so there is nothing to search; give one value"
        )
    return found


def make(
    space: Space,
    composer: Composer,
    trials: Sequence[Trial] | None = None,
    complete: Callable[[Trial], Trial] = lambda trial: trial,
) -> Sampler:
    """Make the sampler that a request asks for.

    Args:
        space: what is fixed and what is swept.
        composer: composes the configuration of a point.
        trials: for ``grid`` and ``zip``, the trials to hand out, if not all of the space.
        complete: what is done to a trial before it is handed out (its data's hash added).

    Raises:
        RequestError: the request is wrong; holds all of its problems.
    """
    settings, found = _settings(space, composer), problems(space, composer)
    known = corners(space, composer, found) if trials is None else list(trials)
    if found:
        raise RequestError(found)
    if settings["name"] in LISTED_SAMPLERS:
        return Listed([complete(t) for t in known] if trials is None else known)
    aims = objectives.parse(settings["objectives"], [])
    searched = _searched(space.axes)
    fixed = [settings[k] for k in ("name", "seed", "objectives", "startup", "population")]
    return Pointwise(
        build=expand.Builder(space, composer),
        dimensions=searched,
        seeds=_seeds(space.axes),
        points=settings["trials"],
        objectives=aims,
        chooser=_chooser(searched, len(aims), settings),
        complete=complete,
        settings=fixed,
    )


def _chooser(searched: Sequence[Dimension], aims: int, settings: dict[str, Any]) -> Chooser:
    match settings["name"]:
        case "random":
            return designs.Uniform(searched, settings["seed"])
        case "qmc":
            return designs.Halton(searched, settings["seed"])
        case name:
            from lorasweep.search import _optuna  # half a second

            return _optuna.chooser(name, searched, aims, settings)
