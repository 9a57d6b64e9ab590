"""What one row a trial cannot hold: the answer to every item, and the curves of the training.

Two more parquet files beside the tidy table ``x.parquet``, so that a committed results file is
enough to test a claim item by item and to draw how trials learnt. They hold no text: an item is
known by a hash of its id.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from lorasweep.addresses import ARTIFACTS, artifacts_folder, record_file
from lorasweep.errors import RecordError

ITEMS = ("key", "item", "gold", "predicted")
CURVES = ("key", "metric", "step", "value")
CURVED = ("train/loss", "eval/accuracy_along", "eval/loss_along")


@dataclass(frozen=True)
class Details:
    """Answers and curves of the trials of a table; either may be empty.

    Attributes:
        items: ``key``, ``item`` (a 64-bit hash of the item's id), ``gold`` and ``predicted``
            (class numbers); one row a trial and evaluation item.
        curves: ``key``, ``metric``, ``step`` and ``value``; only metrics with several steps.
    """

    items: pd.DataFrame
    curves: pd.DataFrame


def empty() -> Details:
    """Return details of nothing."""
    items = pd.DataFrame({name: pd.Series(dtype="int64") for name in ITEMS})
    curves = pd.DataFrame({name: pd.Series(dtype="float64") for name in CURVES})
    return Details(items.astype({"key": "str"}), curves.astype({"key": "str", "metric": "str"}))


def build(uri: str, table: pd.DataFrame) -> Details:
    """Read the predictions and the curves of a table's finished trials from their record.

    Artefacts that are gone (a record moved without them) leave their trials out.

    Raises:
        RecordError: the record cannot be read.
    """
    from lorasweep.record.record import Record  # a results file needs none

    beside = _beside(uri)
    record = Record(uri, beside or Path())
    done = table[table["state"] == "done"]
    runs = list(done[["key", "run_id"]].itertuples(index=False, name=None))
    moved = _moved(beside)
    answers = [
        _answers(key, path) for key, run in runs if (path := _predictions(record, run, moved))
    ]
    curves = [_curve(record, key, run) for key, run in runs]
    nothing = empty()
    return Details(
        _joined([nothing.items, *answers], ["key", "item"]),
        _joined([nothing.curves, *curves], ["key", "metric", "step"]),
    )


def completed(details: Details, before: Details, table: pd.DataFrame) -> Details:
    """Add what an earlier file holds of the table's finished trials and the record no longer."""
    done = set(table.loc[table["state"] == "done", "key"])

    def both(new: pd.DataFrame, old: pd.DataFrame, order: list[str]) -> pd.DataFrame:
        kept = old[old["key"].isin(done - set(new["key"]))]
        return _joined([new[:0], new, kept], order)

    return Details(
        both(details.items, before.items, ["key", "item"]),
        both(details.curves, before.curves, ["key", "metric", "step"]),
    )


def write(details: Details, table: Path) -> list[Path]:
    """Write what there is beside a table; files of an earlier table are removed.

    Raises:
        RecordError: the disk refused.
    """
    written = []
    for path, frame in zip(_paths(table), (details.items, details.curves), strict=True):
        try:
            if frame.empty:
                path.unlink(missing_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(path.name + ".part")
            frame.to_parquet(part, index=False, compression="zstd")
            part.replace(path)
        except OSError as error:
            raise RecordError(f"{path} could not be written: {error}.") from error
        written.append(path)
    return written


def read(table: Path) -> Details:
    """Read what lies beside a table; nothing where nothing does.

    Raises:
        RecordError: a file is damaged or of another make.
    """
    nothing = empty()
    found = []
    for path, none in zip(_paths(table), (nothing.items, nothing.curves), strict=True):
        if not path.exists():
            found.append(none)
            continue
        try:
            frame = pd.read_parquet(path)
        except (OSError, ValueError) as error:
            raise RecordError(f"{path} is damaged or no parquet file.") from error
        if list(frame.columns) != list(none.columns):
            raise RecordError(f"{path} does not hold the columns {', '.join(none.columns)}.")
        found.append(frame)
    return Details(*found)


def _paths(table: Path) -> tuple[Path, Path]:
    return table.with_suffix(".items.parquet"), table.with_suffix(".curves.parquet")


def _joined(frames: Iterable[pd.DataFrame], order: list[str]) -> pd.DataFrame:
    whole = [frame for frame in frames if not frame.empty]
    if not whole:
        return next(iter(frames))
    return pd.concat(whole).sort_values(order, ignore_index=True)


def _beside(uri: str) -> Path | None:
    """Folder of a local record's artefacts."""
    file = record_file(uri)
    return None if file is None else file.resolve().parent / ARTIFACTS


def _moved(folder: Path | None) -> dict[str, Path]:
    """Predictions beside a local record by run, wherever the record was made."""
    if folder is None:
        return {}
    found: Iterator[Path] = folder.glob("*/*/artifacts/predictions.parquet")
    return {path.parent.parent.name: path for path in found}


def _predictions(record: Any, run: str, moved: dict[str, Path]) -> Path | None:
    if run in moved:
        return moved[run]
    folder = artifacts_folder(str(record.client.get_run(run).info.artifact_uri))
    if folder is not None:
        path = folder / "predictions.parquet"
        return path if path.exists() else None
    if not any(one.path == "predictions.parquet" for one in record.client.list_artifacts(run)):
        return None
    return Path(record.client.download_artifacts(run, "predictions.parquet"))


def _answers(key: str, path: Path) -> pd.DataFrame:
    told = pd.read_parquet(path, columns=["id", "gold", "predicted"])
    return pd.DataFrame(
        {
            "key": pd.Series([key] * len(told), dtype="str"),
            "item": [item_of(str(name)) for name in told["id"]],
            "gold": told["gold"].astype("int16"),
            "predicted": told["predicted"].astype("int16"),
        }
    )


def item_of(name: str) -> int:
    """Hash of an item's id: the same in every trial, and nothing can be read from it."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], signed=True)


def _curve(record: Any, key: str, run: str) -> pd.DataFrame:
    rows = [
        (key, metric, step, value)
        for metric in CURVED
        for step, value in _steps(record.curve(run, metric))
    ]
    frame = pd.DataFrame(rows, columns=list(CURVES))
    return frame.astype({"key": "str", "metric": "str", "step": "float64", "value": "float64"})


def _steps(history: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Steps of a curve in order; the trial's own number stands at step 0 and is no part of it."""
    along = dict(sorted((step, value) for step, value in history if step > 0))
    return list(along.items()) if len(along) > 1 else []
