"""The tidy table: one row a trial, from rows of the record.

Here and not in ``analysis``, which draws it: ``lorasweep.sweep`` returns this table wherever the
package is installed, and ``analysis`` is a folder of the repository.
"""

import ast
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from lorasweep import measured
from lorasweep.trial.key import NEUTRAL, numerics, relevant

METRICS = (
    "eval/accuracy",
    "eval/f1_macro",
    "eval/f1_micro",
    "eval/precision_macro",
    "eval/recall_macro",
    "eval/loss",
    "train/loss",
    "time/train_s",
    "time/eval_s",
    "time/load_s",
    "time/total_s",
    "time/pack_share_s",
    "memory/peak_allocated_gib",
    "memory/peak_reserved_gib",
    "memory/peak_rss_gib",
    "memory/pack_peak_allocated_gib",
    "memory/pack_peak_reserved_gib",
    "params/trainable",
    "params/total",
    "speed/samples_per_s",
    "speed/tokens_per_s",
    "train/steps",
)
# column → its name in the record
_TEXT = {
    "key": "lorasweep.key",
    "study": "study",
    "model": "model.name",
    "task": "task.name",
    "method": "method.name",
    "target": "target.name",
    "state": "lorasweep.state",
    "engine": "lorasweep.engine",
    "device": "lorasweep.device",
    "head": "target.head",
    "quant": "method.quant",
    "precision": "train.precision",
    "pack": "lorasweep.pack",
    "changed": "lorasweep.changed",
    "git_commit": "lorasweep.git_commit",
    "run_id": "run_id",
}
_NUMBERS = {
    "r": "lora.r",
    "alpha": "lora.alpha",
    "learning_rate": "train.learning_rate",
    "seed": "seed",
    "epochs": "train.epochs",
    "train_size": "task.train_size",
    "eval_size": "task.eval_size",
    "max_length": "train.max_length",
    "batch_size": "train.batch_size",
}
# The columns in order: who and what, the metrics, all else.
_FIRST = (
    *("key", "study", "model", "task", "method", "target", "r", "alpha"),
    *("learning_rate", "seed", "state", "engine"),
)
_LAST = (
    *("device", "head", "quant", "precision", "epochs", "train_size", "eval_size"),
    *("max_length", "batch_size", "settings", "variant", "pack", "shared", "changed"),
    *("error", "config"),
    *("git_commit", "run_id"),
)
_GROUPS = ("model.", "task.", "method.", "target.", "train.", "lora.")
# Settings that say where files lie on one machine, and never what a trial is.
_PLACES = ("task.train_file", "task.eval_file", "model.path")
COLUMNS = (*_FIRST, *METRICS, *_LAST)
# What a trial is: rows that agree in these are one trial, whatever their keys.
_POINT = [
    *("model", "task", "method", "target", "r", "alpha", "learning_rate", "seed", "head", "quant"),
    *("precision", "epochs", "train_size", "eval_size", "max_length", "batch_size"),
    *("settings", "variant"),
]
_ORDER = ["study", "model", "task", "method", "target", "seed", "r", "alpha", "key"]

Run = Mapping[str, Any]


def tidy(runs: Iterable[Run]) -> pd.DataFrame:
    """Make the table from flat runs (tags, params and metrics under their own names).

    Returns:
        One row a trial (``one_per_seed``), columns ``COLUMNS``: times in seconds, memory in GiB,
        scores from 0 to 1. Rank, alpha and target are missing for methods without an adapter,
        epochs where ``train.max_steps`` decides. ``settings`` and ``variant`` spell out what else
        differs between trials (see ``_differences``); ``config`` holds all settings as JSON,
        without paths. Trials that are ``outdated`` are left out.
    """
    kept = _one_per_key(run for run in runs if not outdated(run))
    configs = [_config(run) for run in kept]
    columns: dict[str, list[Any]] = {"shared": [measured.shared(run) for run in kept]}
    columns |= {column: [_text(run.get(name)) for run in kept] for column, name in _TEXT.items()}
    for column, name in [*_NUMBERS.items(), *((metric, metric) for metric in METRICS)]:
        columns[column] = [run.get(name) for run in kept]
    table = pd.DataFrame(columns)
    for column in (*_NUMBERS, *METRICS):
        table[column] = pd.to_numeric(table[column], errors="coerce").astype("float64")
    table[[*_TEXT, "shared"]] = table[[*_TEXT, "shared"]].astype("str")
    stepped = pd.Series(
        [config.get("train.max_steps") is not None for config in configs], dtype=bool
    )
    table.loc[stepped, "epochs"] = float("nan")
    adapts = pd.Series([config["method.trains"] == "adapter" for config in configs], dtype=bool)
    table.loc[~adapts, ["r", "alpha"]] = float("nan")
    table.loc[~adapts, "target"] = None
    table["settings"], table["variant"] = _differences(table, configs)
    table["error"] = pd.Series([_error(run) for run in kept], dtype="str")
    table["config"] = pd.Series([_json(run) for run in kept], dtype="str")
    if table["seed"].notna().all():
        table["seed"] = table["seed"].astype("int64")
    return one_per_seed(table).sort_values(_ORDER, ignore_index=True)[list(COLUMNS)]


def one_per_seed(table: pd.DataFrame) -> pd.DataFrame:
    """Keep one row of each trial that a record holds under several keys, or interval and n lie.

    Earlier releases gave one trial another key for another spelling (``lora.alpha=16.0``). The
    last row that is done is kept, or else the last.
    """
    done = table["state"].eq("done")
    kept = (
        table.assign(done=done)
        .sort_values("done", kind="stable")
        .drop_duplicates(_POINT, keep="last")
    )
    return table.loc[kept.index.sort_values()]


def outdated(run: Run) -> bool:
    """Whether a later release changed the numbers of such a trial (``key.NUMERICS``)."""
    config = {name: _value(text) for name, text in run.items() if name.startswith(_GROUPS)}
    try:
        return int(run.get("lorasweep.numerics") or 0) < numerics(config)
    except KeyError:  # not all settings are known
        return False


def _one_per_key(runs: Iterable[Run]) -> list[Run]:
    """Keep the newest run of every key, but never a broken one over a finished one."""

    def rank(run: Run) -> tuple[bool, Any, str]:
        return run["lorasweep.state"] == "done", run["start_time"], run["run_id"]

    # A run without a state is still in flight or was cut off: it has no result yet.
    ended = sorted((run for run in runs if run.get("lorasweep.state")), key=rank)
    return list({run["lorasweep.key"]: run for run in ended}.values())


def _text(value: Any) -> str | None:
    """MLflow keeps every param as text, None included."""
    return None if value in (None, "None", "") else str(value)


def _value(text: Any) -> Any:
    """Undo MLflow's ``str`` on a param."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):  # a word
        return text


def _config(run: Run) -> dict[str, Any]:
    """Return the settings that can change this run's result, typed again."""
    least = {"method.trains": None, "method.quant": None, "model.source": None}
    known = {name: _value(text) for name, text in run.items() if name.startswith(_GROUPS)}
    config = least | NEUTRAL | known  # a setting that came after the run was at its neutral value
    return relevant(config) | {"method.trains": config["method.trains"]}


def _json(run: Run) -> str:
    """All settings of a run but those that only say where a file lies."""
    named = {name: _value(text) for name, text in run.items() if name.startswith(_GROUPS)}
    return json.dumps({k: v for k, v in sorted(named.items()) if k not in _PLACES})


def _error(run: Run) -> str | None:
    """First line of what a trial said when it failed, without the folders of one machine."""
    lines = str(run.get("lorasweep.error") or "").strip().splitlines()
    return re.sub(r"(?<![\w.])(?:/[\w.+@-]+)+/", "…/", lines[0])[:300] if lines else None


def _differences(table: pd.DataFrame, configs: list[dict[str, Any]]) -> tuple[Any, Any]:
    """Spell out settings without a column of their own, where trials differ in them.

    Without this, trials that differ only in dropout, say, would pass for seeds of one another.

    Returns:
        Two columns of text: ``settings`` differ within a model and task; ``variant``
        (``method.*`` and ``target.*``) within a method and target.
    """
    known = {*_TEXT.values(), *_NUMBERS.values()}
    extra = pd.DataFrame(
        [{n: str(v) for n, v in config.items() if n not in known} for config in configs],
        index=table.index,
    )
    own = [name for name in extra.columns if name.startswith(("method.", "target."))]
    shared = [name for name in extra.columns if name not in own]
    place = [table["model"], table["task"]]
    series = [*place, table["method"], table["target"]]
    return _varying(extra[shared], place), _varying(extra[own], series)


def _varying(extra: pd.DataFrame, within: list["pd.Series[Any]"]) -> list[str]:
    """Join ``name=value`` of the columns with several values within a group, row by row."""
    varies = pd.DataFrame(False, index=extra.index, columns=extra.columns)
    for _, rows in extra.groupby(within, dropna=False):
        varies.loc[rows.index] = (rows.nunique() > 1).to_numpy()
    names = sorted(varies.columns[varies.any()])
    return [
        ", ".join(f"{n}={v}" for n, v, on in zip(names, texts, shown, strict=True) if on and v == v)
        for texts, shown in zip(extra[names].to_numpy(), varies[names].to_numpy(), strict=True)
    ]
