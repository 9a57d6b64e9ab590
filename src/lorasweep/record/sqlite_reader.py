"""A local record read as it lies there, without MLflow, which takes seconds to load.

Where its tables are not as known here, nothing is found, and MLflow is asked instead.
"""

import contextlib
import math
import sqlite3
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from lorasweep import addresses

Mark = tuple[int | None, str | None]  # when a run ended, and in which state
_ACTIVE = "lifecycle_stage = 'active'"
OURS = f"""
    SELECT run_uuid FROM runs WHERE {_ACTIVE}
    AND experiment_id IN (SELECT experiment_id FROM experiments WHERE {_ACTIVE})
"""
_TRIALS = f"{OURS} AND run_uuid IN (SELECT run_uuid FROM tags WHERE key = 'lorasweep.key')"


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(
        sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=60)
    ) as connection:
        connection.execute("BEGIN")  # all that is read is of one moment
        yield connection


def damage(file: Path) -> str | None:
    """Say why a file can be no record, where that is certain: MLflow would try for minutes."""
    if file.is_dir():
        return f"it is a folder; name a file in it ({file / addresses.NAME})"
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
            return [*_rows(record, _ended(file.resolve()))]
    except sqlite3.Error:
        return None


@lru_cache(maxsize=1)
def _ended(file: Path) -> dict[str, tuple[Mark, dict[str, Any]]]:
    """Params and metrics of the trials of a record that had ended when it was last read.

    A start reads its record several times, and these are most of it. Whatever may change or be
    withdrawn (which runs there are, their tags) is read each time.
    """
    return {}


def _rows(
    record: sqlite3.Connection, ended: dict[str, tuple[Mark, dict[str, Any]]]
) -> Iterator[dict[str, Any]]:
    query = f"""
        SELECT run_uuid, start_time, end_time, experiments.name
        FROM runs JOIN experiments USING (experiment_id)
        WHERE run_uuid IN ({_TRIALS}) ORDER BY start_time
    """
    for run, start, end, study in record.execute(query).fetchall():
        tags = _pairs(record, "value FROM tags WHERE key LIKE 'lorasweep.%' AND", run)
        # Who ends a run, or ends it once more, writes this time and state with its last numbers.
        mark = end, tags.get("lorasweep.state")
        if run in ended and ended[run][0] == mark:
            content = ended[run][1]
        else:
            content = _content(record, run)
            if None not in mark:
                ended[run] = mark, content
        yield {"run_id": run, "start_time": start, "study": study, **tags, **content}


def _content(record: sqlite3.Connection, run: str) -> dict[str, Any]:
    number = "CASE WHEN is_nan THEN NULL ELSE value END FROM latest_metrics WHERE"
    numbers = _pairs(record, number, run)
    return {
        **_pairs(record, "value FROM params WHERE", run),
        **{name: math.nan if value is None else value for name, value in numbers.items()},
    }


def _pairs(record: sqlite3.Connection, what: str, run: str) -> dict[str, Any]:
    return dict(record.execute(f"SELECT key, {what} run_uuid = ?", (run,)).fetchall())


def at_rest(file: Path, study: str, sweep: str) -> bool:
    """Whether a sweep was ended, with all of its trials, and nothing is under way."""
    try:
        with _reading(file) as record:
            states = record.execute(
                f"""
                SELECT status FROM runs JOIN experiments USING (experiment_id)
                WHERE run_uuid IN ({OURS}) AND experiments.name = ? AND run_uuid IN
                (SELECT run_uuid FROM tags WHERE key = 'lorasweep.sweep' AND value = ?)
                """,
                (study, sweep),
            ).fetchall()
            running = f"SELECT 1 FROM runs WHERE status = 'RUNNING' AND run_uuid IN ({OURS})"
            return states == [("FINISHED",)] and not record.execute(running).fetchall()
    except sqlite3.Error:
        return False
