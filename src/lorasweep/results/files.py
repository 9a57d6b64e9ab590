"""The tidy table as a file: read from the record, kept as parquet."""

import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from lorasweep.errors import RecordError
from lorasweep.results.tidy import COLUMNS, METRICS, one_per_seed, outdated, tidy

__all__ = ["COLUMNS", "METRICS", "alone", "build", "read", "setting", "tidy", "write"]

# Columns that tables made by earlier versions lack; reading fills them with nothing.
_LATER = (
    *("memory/pack_peak_allocated_gib", "memory/pack_peak_reserved_gib", "train/steps"),
    *("pack", "shared", "changed", "error", "config"),
)
_HOW = "`make sweep` runs trials and `make figures` makes the table from their record"


def build(uri: str) -> pd.DataFrame:
    """Read the record at an MLflow address into the tidy table (see ``tidy``).

    Raises:
        RecordError: the record cannot be read or holds no trial.
    """
    from lorasweep.record.reading import read as read_record  # a results file needs none

    runs = read_record(uri)
    table = tidy(runs)
    if table.empty:
        raise RecordError(f"The record at {uri} holds no ended trial yet: {_HOW}.")
    left = len({run["lorasweep.key"] for run in runs if outdated(run)})
    if left:
        print(
            f"{left} trial{'s' * (left > 1)} of an earlier release left out: this one gives other "
            "numbers; the same commands run them again",
            file=sys.stderr,
        )
    return table


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
    for column in _LATER:
        if column not in table.columns:
            table[column] = float("nan") if column in METRICS else pd.Series(dtype="str")
    missing = [column for column in COLUMNS if column not in table.columns]
    if missing:
        raise RecordError(f"{path} lacks the columns {', '.join(missing)}: {_HOW}.")
    if table.empty:
        raise RecordError(f"{path} holds no trials: {_HOW}.")
    return one_per_seed(table).reset_index(drop=True)[list(COLUMNS)]


def alone(table: pd.DataFrame) -> "pd.Series[bool]":
    """Which trials had the device to themselves, so that their time and memory are their own.

    A packed trial has a share of its pack's time, under another name; one that shared its GPU
    with another worker or program (``shared``) has their time in its own; and one that was run
    again with other settings after a failure (``changed``) cost what those settings cost.
    """
    others = table["shared"].isna() & table["changed"].isna()
    return others & table["time/pack_share_s"].isna()


def setting(table: pd.DataFrame, name: str) -> "pd.Series[Any]":
    """One setting of every trial by its dotted name; None where the table does not tell."""

    def find(config: Any) -> Any:
        return json.loads(config).get(name) if isinstance(config, str) else None

    return pd.Series([find(config) for config in table["config"]], index=table.index, dtype=object)
