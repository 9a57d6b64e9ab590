"""MLflow's own tables in a SQLite file, read and written without MLflow.

MLflow takes 3 seconds of a core to load, and through its client a trial is five calls, each of
its 150 params, tags and numbers an object that is looked up before it is written: some 60 ms.
The same rows in two transactions take 3 ms. They are the rows that MLflow would have written
(tests/test_tables.py compares), and where its tables are not as known here, ``Tables.of`` finds
none and the client is used.
"""

import contextlib
import math
import sqlite3
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from lorasweep.addresses import artifacts_at
from lorasweep.record import sqlite_reader
from lorasweep.record.store import Point, Run, Study

_LONGEST_PARAM, _LONGEST_TAG = 6000, 8000  # characters; MLflow too cuts what is longer
_LARGEST = 1.7976931348623157e308  # stands for infinity
_WAIT_S = 60.0  # for other writers
_NUMBER = {"run_uuid", "key", "value", "timestamp", "step", "is_nan"}
_KNOWN = {
    "experiments": {
        *("experiment_id", "name", "workspace", "artifact_location", "lifecycle_stage"),
        *("creation_time", "last_update_time"),
    },
    "experiment_tags": {"experiment_id", "key", "value"},
    "runs": {
        *("run_uuid", "name", "source_type", "source_name", "entry_point_name", "user_id"),
        *("status", "start_time", "end_time", "deleted_time", "source_version"),
        *("lifecycle_stage", "artifact_uri", "experiment_id"),
    },
    "params": {"run_uuid", "key", "value"},
    "tags": {"run_uuid", "key", "value"},
    "metrics": _NUMBER,
    "latest_metrics": _NUMBER,
}


class Tables:
    """A local MLflow store (a ``Store``)."""

    errors: tuple[type[Exception], ...] = (sqlite3.Error,)

    def __init__(self, file: Path) -> None:
        # Kept open: who closes a file last writes its log back, which takes a while.
        self._connection = sqlite3.connect(
            f"{file.absolute().as_uri()}?mode=rw", uri=True, timeout=_WAIT_S, isolation_level=None
        )
        # The flush is left to the write-ahead log: a crash loses nothing.
        self._connection.execute("PRAGMA synchronous=NORMAL")
        self._connection.execute("PRAGMA foreign_keys=ON")

    @classmethod
    def of(cls, file: Path) -> Self | None:
        """Return the tables of a record, if they are as known.

        Raises:
            sqlite3.Error: the file cannot be read.
        """
        found = cls(file)
        same = all(found._columns(table) == names for table, names in _KNOWN.items())
        return found if same else None

    def _columns(self, table: str) -> set[str]:
        return {row[1] for row in self._connection.execute(f"PRAGMA table_info({table})")}

    @contextlib.contextmanager
    def _at_once(self, begin: str) -> Iterator[sqlite3.Connection]:
        try:
            self._connection.execute(begin)
            yield self._connection
            self._connection.execute("COMMIT")
        finally:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")

    def _writing(self) -> contextlib.AbstractContextManager[sqlite3.Connection]:
        """All or nothing, whatever breaks it off."""
        return self._at_once("BEGIN IMMEDIATE")

    def _reading(self) -> contextlib.AbstractContextManager[sqlite3.Connection]:
        """All of one moment."""
        return self._at_once("BEGIN")

    # ------------------------------------------------------------------ reading

    def study(self, name: str) -> Study | None:
        """Find it (``Store``)."""
        found = self._connection.execute(
            "SELECT experiment_id, artifact_location, lifecycle_stage FROM experiments "
            "WHERE name = ? AND workspace = 'default'",
            (name,),
        ).fetchone()
        return found and Study(str(found[0]), str(found[1]), found[2] == "active")

    def run(self, number: str) -> Run | None:
        """Find it (``Store``)."""
        found = self._runs("run_uuid = ?", [number])
        return found[0] if found else None

    def runs(
        self,
        tags: Mapping[str, str | None],
        *,
        running: bool = False,
        study: Study | None = None,
    ) -> list[Run]:
        """Find them (``Store``)."""
        where, values = [f"run_uuid IN ({sqlite_reader.OURS})"], list[str | int]()
        if running:
            where.append("status = 'RUNNING'")
        if study is not None:
            where.append("experiment_id = ?")
            values.append(int(study.number))
        for name, value in tags.items():
            test = "value != ''" if value is None else "value = ?"
            where.append(f"run_uuid IN (SELECT run_uuid FROM tags WHERE key = ? AND {test})")
            values += [name] if value is None else [name, value]
        return self._runs(" AND ".join(where), values)

    def _runs(self, where: str, values: Sequence[str | int]) -> list[Run]:
        query = f"""
            SELECT run_uuid, status, artifact_uri, lifecycle_stage FROM runs
            WHERE {where} ORDER BY start_time, run_uuid
        """
        tags = "SELECT key, value FROM tags WHERE run_uuid = ?"
        with self._reading() as connection:
            return [
                Run(
                    number,
                    status,
                    str(place),
                    dict(connection.execute(tags, (number,)).fetchall()),
                    stage == "active",
                )
                for number, status, place, stage in connection.execute(query, values).fetchall()
            ]

    def curve(self, run: str, metric: str) -> list[tuple[int, float]]:
        """Read it (``Store``)."""
        found = self._connection.execute(
            "SELECT step, value, is_nan FROM metrics WHERE run_uuid = ? AND key = ? "
            "ORDER BY timestamp, step, value",
            (run, metric),
        )
        return [(step, math.nan if is_nan else value) for step, value, is_nan in found.fetchall()]

    # ------------------------------------------------------------------ writing

    def make_study(self, name: str, place: str | None, tags: Mapping[str, str]) -> None:
        """Make it (``Store``)."""
        now = _now()
        row = {
            "name": name,
            "workspace": "default",
            "artifact_location": place,
            "lifecycle_stage": "active",
            "creation_time": now,
            "last_update_time": now,
        }
        with self._writing() as connection:
            if _insert(connection, "experiments", [row], "OR IGNORE"):
                made = self.study(name)
                assert made is not None
                number = int(made.number)
                tagged = [{"experiment_id": number, "key": k, "value": v} for k, v in tags.items()]
                _insert(connection, "experiment_tags", tagged)

    def relocate(self, artifacts: Path) -> None:
        """Do it, study by study (``Store``)."""
        studies = "SELECT experiment_id, name, artifact_location FROM experiments"
        for number, name, known in self._connection.execute(studies).fetchall():
            folder = artifacts / name
            place = artifacts_at(folder)
            if place == known:
                continue
            own = "SELECT run_uuid FROM runs WHERE experiment_id = ?"
            runs = [run for (run,) in self._connection.execute(own, (number,)).fetchall()]
            there = [run for run in runs if (folder / run / "artifacts").is_dir()]
            if not there:
                continue
            with self._writing() as connection:
                connection.execute(
                    "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?",
                    (place, number),
                )
                connection.executemany(
                    "UPDATE runs SET artifact_uri = ? WHERE run_uuid = ?",
                    [(f"{place}/{run}/artifacts", run) for run in there],
                )

    def create(
        self, study: Study, name: str, tags: Mapping[str, str], params: Mapping[str, str]
    ) -> Run:
        """Start it (``Store``)."""
        run = uuid.uuid4().hex
        place = f"{study.place.rstrip('/')}/{run}/artifacts"
        row = {
            "run_uuid": run,
            "name": name,
            "source_type": "UNKNOWN",
            "source_name": "",
            "entry_point_name": "",
            "user_id": "unknown",
            "status": "RUNNING",
            "start_time": _now(),
            "end_time": None,
            "deleted_time": None,
            "source_version": "",
            "lifecycle_stage": "active",
            "artifact_uri": place,
            "experiment_id": int(study.number),
        }
        named = {**tags, "mlflow.runName": name}
        with self._writing() as connection:
            _insert(connection, "runs", [row])
            _put(connection, "tags", run, named, _LONGEST_TAG)
            _put(connection, "params", run, params, _LONGEST_PARAM)
        return Run(run, "RUNNING", place, named)

    def tag(self, run: str, name: str, value: str | None) -> None:
        """Set or remove it (``Store``)."""
        with self._writing() as connection:
            if value is None:
                connection.execute("DELETE FROM tags WHERE run_uuid = ? AND key = ?", (run, name))
            else:
                _put(connection, "tags", run, {name: value}, _LONGEST_TAG)

    def resume(self, run: str) -> None:
        """Set its status (``Store``)."""
        with self._writing() as connection:
            _set(connection, run, {"status": "RUNNING"})

    def delete(self, run: str) -> None:
        """Remove it, so that none pile up among the deleted ones (``Store``)."""
        with self._writing() as connection:
            for table in ("tags", "params", "runs"):
                connection.execute(f"DELETE FROM {table} WHERE run_uuid = ?", (run,))

    def close(
        self, run: str, status: str, at: float, points: Sequence[Point], tags: Mapping[str, str]
    ) -> None:
        """Write and end it in one transaction (``Store``)."""
        rows = [_row(run, point, int(at * 1000)) for point in points]
        latest = dict[str, dict[str, Any]]()
        for row in rows:
            known = latest.get(row["key"])
            if known is None or _order(row) > _order(known):
                latest[row["key"]] = row
        with self._writing() as connection:
            _insert(connection, "metrics", rows, "OR IGNORE")
            _insert(connection, "latest_metrics", latest.values(), "OR REPLACE")
            _put(connection, "tags", run, tags, _LONGEST_TAG)
            _set(connection, run, {"status": status, "end_time": _now()})


def _now() -> int:
    return int(time.time() * 1000)


def _insert(
    connection: sqlite3.Connection, table: str, rows: Iterable[Mapping[str, Any]], how: str = ""
) -> int:
    """Insert rows that all have the same columns. Returns how many were."""
    found = list(rows)
    if not found:
        return 0
    names, holes = ", ".join(found[0]), ", ".join(f":{name}" for name in found[0])
    query = f"INSERT {how} INTO {table} ({names}) VALUES ({holes})"
    return connection.executemany(query, found).rowcount


def _put(
    connection: sqlite3.Connection, table: str, run: str, values: Mapping[str, str], longest: int
) -> None:
    rows = [{"run_uuid": run, "key": k, "value": v[:longest]} for k, v in values.items()]
    _insert(connection, table, rows, "OR REPLACE")


def _set(connection: sqlite3.Connection, run: str, values: Mapping[str, str | int]) -> None:
    names = ", ".join(f"{name} = ?" for name in values)
    connection.execute(f"UPDATE runs SET {names} WHERE run_uuid = ?", (*values.values(), run))


def _row(run: str, point: Point, at: int) -> dict[str, Any]:
    """Write a number as MLflow does, which SQL has no word for if it is none or infinite."""
    name, step, value = point
    is_nan = math.isnan(value)
    if is_nan or math.isinf(value):
        value = 0.0 if is_nan else math.copysign(_LARGEST, value)
    return {
        "run_uuid": run,
        "key": name,
        "value": value,
        "timestamp": at,
        "step": step,
        "is_nan": is_nan,
    }


def _order(row: Mapping[str, Any]) -> tuple[int, int, float]:
    """What MLflow takes for later."""
    return row["step"], row["timestamp"], row["value"]
