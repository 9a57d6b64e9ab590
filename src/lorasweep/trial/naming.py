"""What trials are called on the screen and in the record: by all that tells them apart."""

import ast
import contextlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lorasweep.trial.key import LOOSE, relevant
from lorasweep.trial.trial import Trial

# Options whose name stands for their settings, as long as two of one name do not differ.
_NAMED = ("model", "method", "target", "task")
_USUAL = ("model.name", "method.name", "target.name", "target.head", "lora.r", "lora.alpha", "seed")
_FILES = ("task.train_file", "task.eval_file", "model.path")


def target(config: Mapping[str, Any]) -> str:
    """Return the name of a target; one with a low-rank update on the head is told from others."""
    head = "_head" if config["target.head"] == "full_lora" else ""
    return str(config["target.name"]).removesuffix("_head") + head


def varying(trials: Iterable[Trial]) -> tuple[str, ...]:
    """Return the settings that tell trials apart besides those that are always shown.

    They change results, and differ between trials, or between those of one model, method,
    target or task where they belong to such a group.
    """
    kinds: dict[object, Trial] = {}
    values: defaultdict[tuple[str, str], set[str]] = defaultdict(set)  # by name and option
    for trial in trials:
        kinds.setdefault(trial.kind, trial)
        if trial["method.trains"] is not None:
            for name in set(LOOSE).difference(_USUAL):
                values[name, ""].add(str(trial[name]))
    for trial in kinds.values():
        config = relevant(trial.config)
        files = {name: trial.config[name] for name in _FILES if trial.config.get(name)}
        for name, value in {**config, **files, "task.name": trial["task.name"]}.items():
            group = name.split(".")[0]
            option = ""
            if group in _NAMED and name != "task.name":
                option = target(trial.config) if group == "target" else trial[f"{group}.name"]
            values[name, str(option)].add(str(value))
    found = {name for (name, _), several in values.items() if len(several) > 1}
    return tuple(sorted(n for n in found if n not in _USUAL and not n.endswith("sha256")))


def label(trial: Trial, names: Iterable[str] = ()) -> str:
    """Name a trial for people: model, method, target, rank, alpha, and what else varies."""
    parts = [str(trial["model.name"]), str(trial["method.name"])]
    if trial.adapts:
        alpha = f"α={trial['lora.alpha']:g}"
        parts += [target(trial.config), f"r={trial['lora.r']}", alpha]
    cells = ((name, cell(trial.config, name)) for name in names)
    parts += [f"{title(name, names)}={text}" for name, text in cells if text != "–"]
    if trial["seed"]:
        parts.append(f"seed={trial['seed']}")
    return " ".join(parts)


def title(name: str, names: Iterable[str]) -> str:
    """Return a setting's last word, or all of it where another one ends alike."""
    leaf = name.rpartition(".")[2]
    alike = [other for other in names if other.rpartition(".")[2] == leaf]
    return leaf if len(alike) < 2 else name


def cell(config: Mapping[str, Any], name: str) -> str:
    """Write a setting of a trial or of a row of the record; – where it means nothing."""
    trains = str(config["method.trains"])
    if name.startswith(("lora.", "target.")) and trains != "adapter":
        return "–"
    if name.startswith("train.") and trains == "None":
        return "–"
    value = config.get(name)
    if isinstance(value, str):  # as the record keeps it
        with contextlib.suppress(ValueError, SyntaxError):  # a word
            value = ast.literal_eval(value)
    if name in _FILES and value is not None:
        return Path(str(value)).name
    if isinstance(value, list | tuple):
        return "+".join(map(str, value))
    if isinstance(value, float):
        return f"{value:g}"
    return (
        "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: ``1 trial``, ``12 trials``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
