"""MLflow's client as a store: of a server, or of a local file whose tables are not as known."""

import contextlib
import logging
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

# Both before mlflow is imported: nothing is reported anywhere, and no progress bars of its own.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import sqlalchemy
from filelock import FileLock
from mlflow.entities import Metric, Param, RunTag, ViewType
from mlflow.entities import Run as Found
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from lorasweep.addresses import record_at
from lorasweep.record.store import Point, Run, Study, sentences

_BATCH = 100  # the most params or tags MLflow takes at once
_METRICS_BATCH = 1000
_ERRORS = (MlflowException, sqlalchemy.exc.SQLAlchemyError, sqlite3.Error)


@sqlalchemy.event.listens_for(sqlalchemy.Engine, "connect")
def _tune_sqlite(connection: Any, _: Any) -> None:
    """Wait for other writers; leave the flush to the write-ahead log (a crash loses nothing)."""
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA busy_timeout=60000")
        connection.execute("PRAGMA synchronous=NORMAL")


def connect(uri: str) -> MlflowClient:
    """Return MLflow's own client, which says what is wrong by raising it, and no more."""
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # A server that is away is waited for by the scheduler, which meanwhile goes on.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    return MlflowClient(uri, uri)


def prepare(uri: str, file: Path) -> None:
    """Make a local record whole before it gets its name: no one ever sees half of one.

    Raises:
        RecordError: it cannot be made.
    """
    with sentences(uri, _ERRORS):
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_suffix(".lock")):
            if file.exists():
                return
            draft = file.with_suffix(".new")
            for left in [f for f in file.parent.iterdir() if f.name.startswith(draft.name)]:
                left.unlink()  # of an attempt that was killed
            connect(record_at(draft)).search_experiments(max_results=1)
            with contextlib.closing(sqlite3.connect(draft, timeout=30)) as connection:
                # Readers (the UI) and the writer do not wait for each other.
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                connection.execute("PRAGMA journal_mode=WAL")
            draft.rename(file)


class Client:
    """Any store that MLflow knows (a ``Store``)."""

    errors: tuple[type[Exception], ...] = _ERRORS

    def __init__(self, uri: str) -> None:
        """Open it.

        Raises:
            RecordError: it cannot be opened, or does not answer.
        """
        with sentences(uri, _ERRORS):
            self._client = connect(uri)
            self._client.search_experiments(max_results=1)  # whether it answers

    # ------------------------------------------------------------------ reading

    def study(self, name: str) -> Study | None:
        """Find it (``Store``)."""
        found = self._client.get_experiment_by_name(name)
        if found is None:
            return None
        active = found.lifecycle_stage == "active"
        return Study(str(found.experiment_id), str(found.artifact_location), active)

    def run(self, number: str) -> Run | None:
        """Find it (``Store``)."""
        try:
            return _run(self._client.get_run(number))
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise

    def runs(
        self,
        tags: Mapping[str, str | None],
        *,
        running: bool = False,
        study: Study | None = None,
    ) -> list[Run]:
        """Find them (``Store``)."""
        tests = ["attributes.status = 'RUNNING'"] if running else []
        tests += [f"tags.`{k}` " + ("!= ''" if v is None else f"= '{v}'") for k, v in tags.items()]
        within = None if study is None else [study.number]
        return [_run(found) for found in _search(self._client, " and ".join(tests), within)]

    def curve(self, run: str, metric: str) -> list[tuple[int, float]]:
        """Read it (``Store``)."""
        return [(m.step, m.value) for m in self._client.get_metric_history(run, metric)]

    # ------------------------------------------------------------------ writing

    def make_study(self, name: str, place: str | None, tags: Mapping[str, str]) -> None:
        """Make it (``Store``)."""
        with contextlib.suppress(MlflowException):
            self._client.create_experiment(name, artifact_location=place, tags=dict(tags))

    def relocate(self, artifacts: Path) -> None:
        """Nothing: MLflow's client cannot (``Store``)."""

    def create(
        self, study: Study, name: str, tags: Mapping[str, str], params: Mapping[str, str]
    ) -> Run:
        """Start it (``Store``)."""
        run = self._client.create_run(study.number, tags=dict(tags), run_name=name)
        for chunk in _chunks([Param(k, v) for k, v in params.items()], _BATCH):
            self._client.log_batch(run.info.run_id, params=chunk)
        return _run(run)

    def tag(self, run: str, name: str, value: str | None) -> None:
        """Set or remove it (``Store``)."""
        if value is not None:
            self._client.set_tag(run, name, value)
            return
        with contextlib.suppress(MlflowException):  # two may tidy up at once
            self._client.delete_tag(run, name)

    def resume(self, run: str) -> None:
        """Set its status (``Store``)."""
        self._client.update_run(run, status="RUNNING")

    def close(
        self, run: str, status: str, at: float, points: Sequence[Point], tags: Mapping[str, str]
    ) -> None:
        """Write and end it (``Store``)."""
        metrics = [Metric(name, value, int(at * 1000), step) for name, step, value in points]
        *full, last = _chunks(metrics, _METRICS_BATCH)
        for chunk in full:
            self._client.log_batch(run, metrics=chunk)
        # The state comes with the last numbers: a trial that has one has all of them.
        self._client.log_batch(run, metrics=last, tags=[RunTag(k, v) for k, v in tags.items()])
        self._client.set_terminated(run, status)

    def delete(self, run: str) -> None:
        """Mark it (``Store``)."""
        self._client.delete_run(run)


def read(uri: str) -> list[dict[str, Any]]:
    """Every trial run, oldest first (see ``lorasweep.record.read``).

    Raises:
        RecordError: the record cannot be read.
    """
    with sentences(uri, _ERRORS):
        client = connect(uri)
        names = {e.experiment_id: e.name for e in client.search_experiments(ViewType.ACTIVE_ONLY)}
        return [
            {
                **{k: v for k, v in run.data.tags.items() if k.startswith("lorasweep.")},
                **run.data.params,
                **run.data.metrics,
                "run_id": run.info.run_id,
                "start_time": run.info.start_time,
                "study": names[run.info.experiment_id],
            }
            for run in _search(client, "tags.`lorasweep.key` != ''")
        ]


def _search(
    client: MlflowClient, query: str, experiments: Sequence[str] | None = None
) -> Iterator[Found]:
    """Every run that matches, oldest first."""
    if experiments is None:
        experiments = [e.experiment_id for e in client.search_experiments(ViewType.ACTIVE_ONLY)]
    token = None
    while experiments:
        page = client.search_runs(
            list(experiments),
            query,
            max_results=1000,
            order_by=["attributes.start_time ASC"],
            page_token=token,
        )
        yield from page
        token = page.token
        if not token:
            return


def _run(found: Found) -> Run:
    info = found.info
    return Run(
        str(info.run_id),
        str(info.status),
        str(info.artifact_uri),
        found.data.tags,
        info.lifecycle_stage == "active",
    )


def _chunks(items: list[Any], size: int) -> list[list[Any]]:
    """Cut a list into parts; at least one, be it empty."""
    return [items[at : at + size] for at in range(0, max(1, len(items)), size)]
