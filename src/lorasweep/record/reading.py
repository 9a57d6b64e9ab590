"""Read all trials of a record."""

from pathlib import Path
from typing import Any

from lorasweep import addresses
from lorasweep.errors import RecordError
from lorasweep.record import sqlite_reader


def check(uri: str, file: Path) -> None:
    """Refuse a file that is certainly no record, in one sentence.

    Raises:
        RecordError: it is none.
    """
    problem = sqlite_reader.damage(file)
    if problem is not None:
        raise RecordError(f"the record at {uri} cannot be used: {problem}")


def read(uri: str) -> list[dict[str, Any]]:
    """Every trial run in a record, oldest first: tags, params and metrics in one flat dict each.

    Raises:
        RecordError: there is no record at ``uri``, or it cannot be read.
    """
    uri = addresses.absolute(uri)
    file = addresses.record_file(uri)
    if file is not None:
        if not file.exists():
            raise RecordError(f"no record at {uri}; run a sweep first (make sweep)")
        check(uri, file)
        rows = sqlite_reader.read(file)
        if rows is not None:
            return rows
    from lorasweep.record import mlflow_store

    return mlflow_store.read(uri)
