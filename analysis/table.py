"""The tidy table: one row a trial, read from the record and kept as parquet."""

import ast
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from lorasweep.errors import RecordError
from lorasweep.trial import relevant

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
    "params/trainable",
    "params/total",
    "speed/samples_per_s",
    "speed/tokens_per_s",
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
    *("max_length", "batch_size", "settings", "variant", "git_commit", "run_id"),
)
_GROUPS = ("model.", "task.", "method.", "target.", "train.", "lora.")
COLUMNS = (*_FIRST, *METRICS, *_LAST)
_ORDER = ["study", "model", "task", "method", "target", "seed", "r", "alpha", "key"]
_HOW = "`make sweep` runs trials and `make figures` makes the table from their record"

Run = Mapping[str, Any]


def build(uri: str) -> pd.DataFrame:
    """Read the record at an MLflow address into the tidy table (see ``tidy``).

    Raises:
        RecordError: the record cannot be read or holds no trial.
    """
    from lorasweep.record import read as read_record  # mlflow is slow to import: only here

    table = tidy(read_record(uri))
    if table.empty:
        raise RecordError(f"The record at {uri} holds no ended trial yet: {_HOW}.")
    return table


def tidy(runs: Iterable[Run]) -> pd.DataFrame:
    """Make the table from flat runs (tags, params and metrics under their own names).

    Returns:
        One row a trial key, columns ``COLUMNS``: times in seconds, memory in GiB, scores from
        0 to 1. Rank, alpha and target are missing for methods without an adapter. ``settings``
        and ``variant`` spell out what else differs between trials (see ``_differences``).
    """
    kept = _one_per_key(runs)
    configs = [_config(run) for run in kept]
    columns: dict[str, list[Any]] = {
        column: [_text(run.get(name)) for run in kept] for column, name in _TEXT.items()
    }
    for column, name in [*_NUMBERS.items(), *((metric, metric) for metric in METRICS)]:
        columns[column] = [run.get(name) for run in kept]
    table = pd.DataFrame(columns)
    for column in (*_NUMBERS, *METRICS):
        table[column] = pd.to_numeric(table[column], errors="coerce").astype("float64")
    table[list(_TEXT)] = table[list(_TEXT)].astype("str")
    adapts = pd.Series([config["method.trains"] == "adapter" for config in configs], dtype=bool)
    table.loc[~adapts, ["r", "alpha"]] = float("nan")
    table.loc[~adapts, "target"] = None
    table["settings"], table["variant"] = _differences(table, configs)
    if table["seed"].notna().all():
        table["seed"] = table["seed"].astype("int64")
    return table.sort_values(_ORDER, ignore_index=True)[list(COLUMNS)]


def write(table: pd.DataFrame, path: Path) -> None:
    """Write the table as parquet; an interrupted write leaves the old file whole.

    Raises:
        RecordError: the disk refused.
    """
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        table.to_parquet(part, index=False)
        part.replace(path)
    except OSError as error:
        raise RecordError(f"{path} could not be written: {error}.") from error


def read(path: Path) -> pd.DataFrame:
    """Read a table that ``write`` made.

    Raises:
        RecordError: it is missing, damaged, empty or of another make.
    """
    try:
        table = pd.read_parquet(path)
    except FileNotFoundError as error:
        raise RecordError(f"There is no table at {path}: {_HOW}.") from error
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
        raise RecordError(f"{path} is damaged or no parquet file: {_HOW}.") from error
    missing = [column for column in COLUMNS if column not in table.columns]
    if missing:
        raise RecordError(f"{path} lacks the columns {', '.join(missing)}: {_HOW}.")
    if table.empty:
        raise RecordError(f"{path} holds no trials: {_HOW}.")
    return table


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
    config = least | {name: _value(text) for name, text in run.items() if name.startswith(_GROUPS)}
    return relevant(config) | {"method.trains": config["method.trains"]}


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
