"""MLflow's own tables in a SQLite file, written a trial at a time.

Through ``MlflowClient`` a trial is five calls, each of its 150 params, tags and numbers an object
that is looked up before it is written: some 60 ms of a core. The same rows in two transactions
take 3 ms. They are the rows that MLflow would have written (tests/test_tables.py compares), and
where its tables are not as known here, ``Tables.of`` finds none and the client is used.
"""

import math
import time
import uuid
from collections.abc import Iterable, Mapping
from typing import Any, Self

import sqlalchemy
from mlflow.entities import Experiment, Metric
from mlflow.store.tracking.dbmodels import models
from mlflow.tracking import MlflowClient

_LONGEST_PARAM, _LONGEST_TAG = 6000, 8000  # characters; MLflow too cuts what is longer
_RUNS, _PARAMS, _TAGS = models.SqlRun.__table__, models.SqlParam.__table__, models.SqlTag.__table__
_METRICS, _LATEST = models.SqlMetric.__table__, models.SqlLatestMetric.__table__
_NUMBER = {"run_uuid", "key", "value", "timestamp", "step", "is_nan"}
_KNOWN = {
    _RUNS: {
        *("run_uuid", "name", "source_type", "source_name", "entry_point_name", "user_id"),
        *("status", "start_time", "end_time", "deleted_time", "source_version"),
        *("lifecycle_stage", "artifact_uri", "experiment_id"),
    },
    _PARAMS: {"run_uuid", "key", "value"},
    _TAGS: {"run_uuid", "key", "value"},
    _METRICS: _NUMBER,
    _LATEST: _NUMBER,
}


class Tables:
    """Runs of a local MLflow store. Raises what SQLAlchemy raises."""

    def __init__(self, engine: sqlalchemy.Engine) -> None:
        self.engine = engine

    @classmethod
    def of(cls, client: MlflowClient) -> Self | None:
        """Return the tables behind a client, if there are such and they are as known."""
        engine = getattr(client._tracking_client.store, "engine", None)
        if engine is None or engine.dialect.name != "sqlite":
            return None
        same = all({c.name for c in table.columns} == names for table, names in _KNOWN.items())
        return cls(engine) if same else None

    def create(
        self,
        experiment: Experiment,
        name: str,
        tags: Mapping[str, str],
        params: Mapping[str, str],
    ) -> tuple[str, str]:
        """Start a run with all its params. Returns its id and where its artefacts go."""
        run = uuid.uuid4().hex
        place = f"{experiment.artifact_location.rstrip('/')}/{run}/artifacts"
        row = {
            "run_uuid": run,
            "name": name,
            "source_type": "UNKNOWN",
            "source_name": "",
            "entry_point_name": "",
            "user_id": "unknown",
            "status": "RUNNING",
            "start_time": int(time.time() * 1000),
            "end_time": None,
            "deleted_time": None,
            "source_version": "",
            "lifecycle_stage": "active",
            "artifact_uri": place,
            "experiment_id": int(experiment.experiment_id),
        }
        with self.engine.begin() as connection:
            connection.execute(_RUNS.insert(), row)
            _put(connection, _TAGS, run, {**tags, "mlflow.runName": name}, _LONGEST_TAG)
            _put(connection, _PARAMS, run, params, _LONGEST_PARAM)
        return run, place

    def close(
        self, run: str, status: str, metrics: Iterable[Metric], tags: Mapping[str, str]
    ) -> None:
        """Write what a run gave and end it, all or nothing. May be repeated."""
        rows, latest = [], dict[str, dict[str, Any]]()
        for metric in metrics:
            value, is_nan = metric.value, math.isnan(metric.value)
            if is_nan or math.isinf(value):
                value = 0.0 if is_nan else math.copysign(1.7976931348623157e308, value)
            row = {
                "run_uuid": run,
                "key": metric.key,
                "value": value,
                "timestamp": metric.timestamp,
                "step": metric.step,
                "is_nan": is_nan,
            }
            rows.append(row)
            if metric.key not in latest or _order(row) > _order(latest[metric.key]):
                latest[metric.key] = row
        end = {"status": status, "end_time": int(time.time() * 1000)}
        with self.engine.begin() as connection:
            if rows:
                connection.execute(_METRICS.insert().prefix_with("OR IGNORE"), rows)
                connection.execute(
                    _LATEST.insert().prefix_with("OR REPLACE"), list(latest.values())
                )
            _put(connection, _TAGS, run, tags, _LONGEST_TAG)
            connection.execute(_RUNS.update().where(_RUNS.c.run_uuid == run).values(**end))


def _put(
    connection: sqlalchemy.Connection,
    table: sqlalchemy.Table,
    run: str,
    values: Mapping[str, str],
    longest: int,
) -> None:
    rows = [{"run_uuid": run, "key": k, "value": v[:longest]} for k, v in values.items()]
    if rows:
        connection.execute(table.insert().prefix_with("OR REPLACE"), rows)


def _order(row: Mapping[str, Any]) -> tuple[int, int, float]:
    """What MLflow takes for later."""
    return row["step"], row["timestamp"], row["value"]
