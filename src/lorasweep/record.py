"""The record: MLflow, and only here. The one truth of what is done, what failed, what it cost.

One experiment a study, a parent run a sweep, a child run a trial.
"""

import contextlib
import json
import logging
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

# Both before mlflow is imported: nothing is reported anywhere, and no progress bars of its own.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

from mlflow.entities import Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import SQLAlchemyError

from lorasweep.errors import RecordError
from lorasweep.trial import Result, State, Trial

_PARENT = "mlflow.parentRunId"
_RUN_STATUS = {"done": "FINISHED", "pruned": "FINISHED", "stopped": "KILLED"}
_BATCH = 100  # the most params or tags MLflow takes at once
_METRICS_BATCH = 1000


def absolute(uri: str) -> str:
    """Make a SQLite address independent of the folder it is used from."""
    prefix = "sqlite:///"
    if not uri.startswith(prefix):
        return uri
    return prefix + str(Path(uri.removeprefix(prefix)).resolve())


@contextlib.contextmanager
def _sentences(uri: str) -> Iterator[None]:
    """Turn what the store raises into one sentence."""
    try:
        yield
    except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError) as error:
        text = str(error).strip().splitlines() or [type(error).__name__]
        raise RecordError(f"the record at {uri} cannot be used: {text[0]}") from error


class Record:
    """Writes trials into an MLflow store and says what is already there."""

    def __init__(self, uri: str, artifacts: Path) -> None:
        """Open the store at ``uri``, creating it where it does not exist.

        Raises:
            RecordError: the store cannot be opened or written.
        """
        self.uri, self.artifacts = absolute(uri), artifacts.resolve()
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)
        with _sentences(self.uri):
            if self.uri.startswith("sqlite:///"):
                self._prepare_sqlite(Path(self.uri.removeprefix("sqlite:///")))
            self.client = MlflowClient(self.uri, self.uri)
            self.client.search_experiments(max_results=1)

    @staticmethod
    def _prepare_sqlite(file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(sqlite3.connect(file, timeout=30)) as connection:
            # Readers (the UI) and the writer do not wait for each other.
            connection.execute("PRAGMA journal_mode=WAL")

    # ------------------------------------------------------------------ reading

    def states(self) -> dict[str, State]:
        """State of every trial in the record by its key; ``done`` wins over later attempts."""
        found: dict[str, State] = {}
        for run in _runs(self.client, "tags.`lorasweep.key` != ''"):
            key, state = run.data.tags["lorasweep.key"], run.data.tags.get("lorasweep.state")
            if state is not None and found.get(key) != "done":
                found[key] = state
        return found

    def rows(self, keys: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return the recorded rows of these trials by key."""
        wanted = set(keys)
        found: dict[str, dict[str, Any]] = {}
        for row in read(self.uri):
            key = row.get("lorasweep.key")
            if key in wanted and found.get(key, {}).get("lorasweep.state") != "done":
                found[key] = row
        return found

    # ------------------------------------------------------------------ writing

    def open_sweep(self, study: str, name: str, description: str) -> str:
        """Return the run of a sweep, the one of an earlier call where there is one."""
        with _sentences(self.uri):
            experiment = self._experiment(study)
            query = f"tags.`lorasweep.sweep` = '{name}'"
            before = self.client.search_runs([experiment], query, max_results=1)
            if before:
                run = before[0].info.run_id
                self.client.update_run(run, status="RUNNING")
                return str(run)
            tags = {"lorasweep.sweep": name, "mlflow.note.content": description}
            made = self.client.create_run(experiment, run_name=f"sweep {name}", tags=tags)
            return str(made.info.run_id)

    def _experiment(self, study: str) -> str:
        found = self.client.get_experiment_by_name(study)
        if found is not None:
            return str(found.experiment_id)
        local = self.uri.startswith("sqlite:///")
        place = (self.artifacts / study).as_uri() if local else None
        # opens the UI on the table of runs, not on its tools for chat applications
        tags = {"mlflow.experimentKind": "custom_model_development"}
        return str(self.client.create_experiment(study, artifact_location=place, tags=tags))

    def open_trial(self, sweep: str, trial: Trial, engine: str) -> str:
        """Start the run of a trial. Returns its id."""
        with _sentences(self.uri):
            experiment = self.client.get_run(sweep).info.experiment_id
            tags = {
                _PARENT: sweep,
                "lorasweep.key": trial.key,
                "lorasweep.study": str(trial["name"]),
                "lorasweep.engine": engine,
                "lorasweep.pack": trial.key,
                "mlflow.source.type": "LOCAL",
                "mlflow.source.name": "lorasweep",
            }
            run = self.client.create_run(experiment, tags=tags, run_name=trial.label)
            params = [Param(k, _text(v)) for k, v in trial.config.items()]
            for at in range(0, len(params), _BATCH):
                self.client.log_batch(run.info.run_id, params=params[at : at + _BATCH])
            return str(run.info.run_id)

    def close_trial(self, run: str, result: Result) -> None:
        """Write what a trial gave, move its artefacts in, and end its run."""
        with _sentences(self.uri):
            now = int(time.time() * 1000)
            # The UI compares runs by the metric that was written first: let it be a score.
            ordered = sorted(result.metrics.items(), key=lambda m: not m[0].startswith("eval/"))
            metrics = [Metric(k, float(v), now, 0) for k, v in ordered]
            metrics += [Metric(k, v, now, step) for k, step, v in result.curve]
            for at in range(0, len(metrics), _METRICS_BATCH):
                self.client.log_batch(run, metrics=metrics[at : at + _METRICS_BATCH])
            if result.folder is not None:
                self._store(run, result.folder, result.environment)
            tags = {"lorasweep.state": result.state, **_summary(result)}
            self.client.log_batch(run, tags=[RunTag(k, v) for k, v in tags.items()])
            self.client.set_terminated(run, _RUN_STATUS.get(result.state, "FAILED"))

    def _store(self, run: str, folder: Path, environment: Mapping[str, Any]) -> None:
        """Move a trial's artefacts into the store; on one disk that copies nothing."""
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        (folder / "environment.json").write_text(json.dumps(environment, indent=2, default=str))
        place = self.client.get_run(run).info.artifact_uri
        if place.startswith("file://"):
            to = Path(place.removeprefix("file://"))
            to.mkdir(parents=True, exist_ok=True)
            for item in folder.iterdir():
                shutil.move(item, to / item.name)
        else:
            self.client.log_artifacts(run, str(folder))
        shutil.rmtree(folder, ignore_errors=True)

    def close_sweep(self, sweep: str, metrics: Mapping[str, float], *, whole: bool) -> None:
        """End the run of a sweep with its totals."""
        with _sentences(self.uri):
            now = int(time.time() * 1000)
            entries = [Metric(k, float(v), now, 0) for k, v in metrics.items()]
            self.client.log_batch(sweep, metrics=entries)
            self.client.set_terminated(sweep, "FINISHED" if whole else "KILLED")


def _text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, list | dict) else str(value)


def _summary(result: Result) -> dict[str, str]:
    tags = {}
    if result.error:
        tags["lorasweep.error"] = result.error[:5000]
    for name in ("device", "git_commit", "git_dirty"):
        if result.environment.get(name) is not None:
            tags[f"lorasweep.{name}"] = str(result.environment[name])
    return tags


def _runs(client: MlflowClient, query: str) -> Iterator[Run]:
    """Every run that matches, oldest first."""
    experiments = [e.experiment_id for e in client.search_experiments(ViewType.ACTIVE_ONLY)]
    token = None
    while experiments:
        page = client.search_runs(
            experiments,
            query,
            max_results=1000,
            order_by=["attributes.start_time ASC"],
            page_token=token,
        )
        yield from page
        token = page.token
        if not token:
            return


def read(uri: str) -> list[dict[str, Any]]:
    """Every trial run in a record, oldest first: tags, params and metrics in one flat dict each.

    Raises:
        RecordError: there is no record at ``uri``, or it cannot be read.
    """
    uri = absolute(uri)
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        raise RecordError(f"no record at {uri}; run a sweep first (make sweep)")
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with _sentences(uri):
        client = MlflowClient(uri, uri)
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
            for run in _runs(client, "tags.`lorasweep.key` != ''")
        ]
