"""A local record read as it lies there, without MLflow, which takes seconds to load.

Where its tables are not as known here, nothing is found, and MLflow is asked instead.
"""

import contextlib
import math
import sqlite3
from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

_ACTIVE = "lifecycle_stage = 'active'"
_OURS = f"""
    SELECT run_uuid FROM runs WHERE {_ACTIVE}
    AND experiment_id IN (SELECT experiment_id FROM experiments WHERE {_ACTIVE})
"""
_TRIALS = f"{_OURS} AND run_uuid IN (SELECT run_uuid FROM tags WHERE key = 'lorasweep.key')"


def file_of(uri: str) -> Path | None:
    """Return the file of a local record; None for a server."""
    prefix = "sqlite:///"
    return Path(uri.removeprefix(prefix)) if uri.startswith(prefix) else None


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(
        sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=60)
    ) as connection:
        connection.execute("BEGIN")  # all that is read is of one moment
        yield connection


def damage(file: Path) -> str | None:
    """Say why a file can be no record, where that is certain: MLflow would try for minutes."""
    try:
        with _reading(file) as record:
            record.execute("SELECT name FROM sqlite_master").fetchall()
    except sqlite3.OperationalError:  # in use, or not there: that may change
        return None
    except sqlite3.DatabaseError as error:
        return str(error)
    return None


def read(file: Path) -> list[dict[str, Any]] | None:
    """Every trial run, oldest first, as ``lorasweep.record.read`` gives them; None: ask MLflow."""
    try:
        with _reading(file) as record:
            rows = {
                run: {"run_id": run, "start_time": start, "study": study}
                for run, start, study in record.execute(
                    "SELECT run_uuid, start_time, experiments.name FROM runs "
                    f"JOIN experiments USING (experiment_id) WHERE run_uuid IN ({_TRIALS}) "
                    "ORDER BY start_time"
                )
            }
            for what in (
                "value FROM tags WHERE key LIKE 'lorasweep.%' AND",
                "value FROM params WHERE",
                "CASE WHEN is_nan THEN NULL ELSE value END FROM latest_metrics WHERE",
            ):
                query = f"SELECT run_uuid, key, {what} run_uuid IN ({_TRIALS})"
                for run, key, value in record.execute(query).fetchall():
                    rows[run][key] = math.nan if value is None else value
    except sqlite3.Error:
        return None
    return list(rows.values())


def at_rest(file: Path, study: str, sweep: str) -> bool:
    """Whether a sweep was ended, with all of its trials, and nothing is under way."""
    try:
        with _reading(file) as record:
            states = record.execute(
                f"""
                SELECT status FROM runs JOIN experiments USING (experiment_id)
                WHERE run_uuid IN ({_OURS}) AND experiments.name = ? AND run_uuid IN
                (SELECT run_uuid FROM tags WHERE key = 'lorasweep.sweep' AND value = ?)
                """,
                (study, sweep),
            ).fetchall()
            running = f"SELECT 1 FROM runs WHERE status = 'RUNNING' AND run_uuid IN ({_OURS})"
            return states == [("FINISHED",)] and not record.execute(running).fetchall()
    except sqlite3.Error:
        return False


def latest(
    rows: Iterable[Mapping[str, Any]], keys: Container[str], besides: Container[str] = ()
) -> dict[str, dict[str, Any]]:
    """Of each trial the row that counts: the last that is done, or the last that has ended.

    Args:
        rows: of a record, oldest first.
        keys: of the trials.
        besides: runs that do not count.
    """
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        key, state = row["lorasweep.key"], row.get("lorasweep.state")
        if key not in keys or state is None or row["run_id"] in besides:
            continue
        if state == "done" or found.get(key, {}).get("lorasweep.state") != "done":
            found[key] = dict(row)
    return found
