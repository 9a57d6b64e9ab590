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
from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

# Both before mlflow is imported: nothing is reported anywhere, and no progress bars of its own.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import sqlalchemy
from filelock import FileLock
from mlflow.entities import Experiment, Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from requests.exceptions import RequestException

from lorasweep import glance, leases
from lorasweep.errors import RecordError
from lorasweep.tables import Tables
from lorasweep.trial import FINAL_STATES, Result, State, Trial

_PARENT = "mlflow.parentRunId"
_LEASE = "lorasweep.lease."  # on the run of a sweep, one for each controller: when it ends
_LEFT = "0"
_SUGGESTION = "lorasweep.suggestion."  # on the run of a sweep, one a number
_RUN_STATUS = {"done": "FINISHED", "pruned": "FINISHED", "stopped": "KILLED"}
_BATCH = 100  # the most params or tags MLflow takes at once
_METRICS_BATCH = 1000
_LOOK_S = 1.0  # how old a controller's picture of the others may be


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
    except (
        MlflowException,
        sqlalchemy.exc.SQLAlchemyError,
        sqlite3.Error,
        RequestException,
        OSError,
    ) as error:
        text = str(error).strip().splitlines() or [type(error).__name__]
        raise RecordError(f"the record at {uri} cannot be used: {text[0]}") from error


@sqlalchemy.event.listens_for(sqlalchemy.Engine, "connect")
def _tune_sqlite(connection: Any, _: Any) -> None:
    """Wait for other writers; leave the flush to the write-ahead log (a crash loses nothing)."""
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA busy_timeout=60000")
        connection.execute("PRAGMA synchronous=NORMAL")


class Record:
    """Writes trials into an MLflow store and says what is already there."""

    def __init__(self, uri: str, artifacts: Path) -> None:
        """Open the store at ``uri``, creating it where it does not exist.

        Raises:
            RecordError: the store cannot be opened or written.
        """
        self.uri, self.artifacts = absolute(uri), artifacts.resolve()
        self._places: dict[str, str] = {}  # run → where its artefacts lie
        self._experiments: dict[str, Experiment] = {}  # by study
        self._looked = 0.0
        self._others: frozenset[str] = frozenset()  # that lived when last looked up
        self._before: frozenset[str] = frozenset()  # that took part before this process did
        self._company = False  # whether another process took part since, be it gone by now
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # said in a sentence
        # A server that is away is waited for by the scheduler, which meanwhile goes on.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        with _sentences(self.uri):
            file = glance.file_of(self.uri)
            if file is not None:
                _prepare_sqlite(file)
                _check(self.uri, file)
            self.client = MlflowClient(self.uri, self.uri)
            self.client.search_experiments(max_results=1)
        self._tables = Tables.of(self.client)

    # ------------------------------------------------------------------ reading

    def states(self) -> dict[str, State]:
        """State of every trial in the record by its key; ``done`` wins over later attempts."""
        found: dict[str, State] = {}
        with _sentences(self.uri):
            for run in _runs(self.client, "tags.`lorasweep.key` != ''"):
                key, state = run.data.tags["lorasweep.key"], run.data.tags.get("lorasweep.state")
                if state is not None and found.get(key) != "done":
                    found[key] = state
        return found

    def rows(
        self, keys: Iterable[str], *, besides: Container[str] = ()
    ) -> dict[str, dict[str, Any]]:
        """Return the recorded rows of these trials by key: the last that is done, or the last.

        Args:
            keys: of the trials.
            besides: runs that do not count.
        """
        return glance.latest(read(self.uri), set(keys), besides)

    def all(self) -> list[dict[str, Any]]:
        """Return every trial of the record (see ``read``)."""
        return read(self.uri)

    def has(self, run: str) -> bool:
        """Whether there is such a run."""
        with _sentences(self.uri):
            try:
                return bool(self.client.get_run(run).info.lifecycle_stage == "active")
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return False
                raise

    def mark(self, run: str, tag: str, value: str) -> None:
        """Set a tag of a trial's run."""
        with _sentences(self.uri):
            self.client.set_tag(run, tag, value)

    def curve(self, run: str, metric: str) -> list[tuple[int, float]]:
        """Return (step, value) along a run."""
        with _sentences(self.uri):
            return [(m.step, m.value) for m in self.client.get_metric_history(run, metric)]

    def past(self, sweep: str) -> dict[int, dict[str, Any]]:
        """Return what a sampler has suggested in this sweep, by number (see ``suggest``)."""
        with _sentences(self.uri):
            tags = self.client.get_run(sweep).data.tags
        return {
            int(name.removeprefix(_SUGGESTION)): json.loads(value)
            for name, value in tags.items()
            if name.startswith(_SUGGESTION)
        }

    # ------------------------------------------------------------- who runs what

    def join(self, sweep: str, *, only: bool = False) -> None:
        """Take part in a sweep: from now on others in this record reckon with this process.

        Waits, where there are others, until they have seen it. Closes what dead ones left open.

        Args:
            sweep: its run.
            only: no other process may take part in it.

        Raises:
            RecordError: another one does.
        """
        with self._alone():
            others = self.working_on(sweep) if only else frozenset()
            if others:
                raise RecordError(
                    f"this search is being run by another process ({', '.join(sorted(others))}); "
                    "wait for it, or start another one with a different sampler.seed"
                )
            self.renew(sweep)
            self._before = frozenset(self._leases())
        if self.others():
            time.sleep(2 * _LOOK_S)
        with _sentences(self.uri):
            for name, until in self.client.get_run(sweep).data.tags.items():
                owner = name.removeprefix(_LEASE)
                if owner not in (name, str(leases.here())) and not _takes_part(owner, until):
                    with contextlib.suppress(MlflowException):  # two may tidy up at once
                        self.client.delete_tag(sweep, name)
            for run in _runs(self.client, "attributes.status = 'RUNNING'"):
                owner = run.data.tags.get("lorasweep.owner")
                if owner is not None and owner != str(leases.here()) and not self._lives(run):
                    self._bury(run)

    def renew(self, sweep: str) -> None:
        """Say that this process lives."""
        with _sentences(self.uri):
            until = f"{time.time() + leases.LEASE_S:.0f}"
            self.client.set_tag(sweep, f"{_LEASE}{leases.here()}", until)

    def leave(self, sweep: str) -> None:
        """Say that this process has ended its part in a sweep.

        It is not forgotten: who was at work meanwhile must learn that it is not alone. Runs
        whose start got lost on the way here (the server went away before it answered) are taken
        back: their trials were claimed again.
        """
        with _sentences(self.uri):
            owned = f"attributes.status = 'RUNNING' and tags.`lorasweep.owner` = '{leases.here()}'"
            for run in _runs(self.client, owned):
                self.client.delete_run(run.info.run_id)
            self.client.set_tag(sweep, f"{_LEASE}{leases.here()}", _LEFT)

    def others(self) -> frozenset[str]:
        """Other processes that may be claiming trials in this record, looked up each second."""
        if time.monotonic() - self._looked > _LOOK_S:
            found = self._leases()
            self._others = frozenset(o for o, until in found.items() if _takes_part(o, until))
            self._company |= bool(self._others or found.keys() - self._before)
            self._looked = time.monotonic()
        return self._others

    def _leases(self) -> dict[str, str]:
        """Return what every other process that takes or took part in a sweep said last."""
        with _sentences(self.uri):
            return {
                name.removeprefix(_LEASE): until
                for run in _runs(self.client, "tags.`lorasweep.sweep` != ''")
                for name, until in run.data.tags.items()
                if name.startswith(_LEASE) and name != f"{_LEASE}{leases.here()}"
            }

    def working_on(self, sweep: str) -> frozenset[str]:
        """Other living processes that take part in this very sweep."""
        with _sentences(self.uri):
            return frozenset(
                owner
                for name, until in self.client.get_run(sweep).data.tags.items()
                for owner in [name.removeprefix(_LEASE)]
                if owner not in (name, str(leases.here())) and _takes_part(owner, until)
            )

    def _lives(self, run: Run) -> bool:
        """Whether the owner of a trial's run still works on it."""
        owner, parent = run.data.tags["lorasweep.owner"], run.data.tags[_PARENT]
        until = self.client.get_run(parent).data.tags.get(_LEASE + owner, "0")
        return leases.alive(owner, float(until))

    def _bury(self, run: Run) -> None:
        """End the run of a controller that is gone, if it did not get to its last line itself."""
        number, state = run.info.run_id, run.data.tags.get("lorasweep.state")
        if state is None:
            state = "stopped"
            tags = {"lorasweep.state": state, "lorasweep.error": "its controller was lost"}
            self.client.log_batch(number, tags=[RunTag(k, v) for k, v in tags.items()])
        self.client.set_terminated(number, _RUN_STATUS.get(state, "FAILED"))

    def claim(
        self,
        sweep: str,
        trial: Trial,
        engine: str,
        *,
        again: bool = False,
        contested: bool = False,
    ) -> str | None:
        """Start the run of a trial, unless another process has it. Returns the run's id.

        A run is made first, then the record is searched for rivals: of two that see each other
        the one with the smaller id goes on, and waits until the other has withdrawn. Where no
        other process takes part, no search is needed: a newcomer makes itself known, and waits
        longer than the others take to look, before its first claim (`join`).

        Args:
            sweep: the run of the sweep.
            trial: what is to be run.
            engine: name of the engine that will run it.
            again: run it even though the record has it.
            contested: another process had it before, and may be dead by now.
        """
        # Who has gone may have ended trials since this process read what there was.
        careful = contested or bool(self.others()) or self._company
        with _sentences(self.uri):
            if contested and self._rivals(trial.key, again=again) is None:
                return None  # before a run is made in vain, each time that is asked
            run = self._create(sweep, trial, engine, "asking" if careful else "held")
            if careful and not self._wins(run, trial.key, again=again):
                self.client.delete_run(run)
                return None
            if careful:
                self.client.set_tag(run, "lorasweep.claim", "held")
            return run

    def _create(self, sweep: str, trial: Trial, engine: str, claim: str) -> str:
        tags = {
            _PARENT: sweep,
            "lorasweep.key": trial.key,
            "lorasweep.study": str(trial["name"]),
            "lorasweep.engine": engine,
            "lorasweep.pack": trial.key,
            "lorasweep.owner": str(leases.here()),
            "lorasweep.claim": claim,
            "mlflow.source.type": "LOCAL",
            "mlflow.source.name": "lorasweep",
        }
        params = {k: _text(v) for k, v in trial.config.items()}
        experiment = self._experiment(str(trial["name"]))
        if self._tables is not None:
            run, place = self._tables.create(experiment, trial.label, tags, params)
        else:
            info = self.client.create_run(experiment.experiment_id, tags=tags, run_name=trial.label)
            run, place = info.info.run_id, info.info.artifact_uri
            for chunk in _chunks([Param(k, v) for k, v in params.items()], _BATCH):
                self.client.log_batch(run, params=chunk)
        self._places[run] = place
        return str(run)

    def _wins(self, run: str, key: str, *, again: bool) -> bool:
        while True:
            rivals = self._rivals(key, again=again, mine=run)
            if rivals is None or any(other < run for other in rivals):
                return False
            if not rivals:
                return True
            time.sleep(0.05)

    def _rivals(self, key: str, *, again: bool, mine: str | None = None) -> set[str] | None:
        """Runs of living processes that ask for a trial; None where one has it, or it is done."""
        rivals = set()
        for run in _runs(self.client, f"tags.`lorasweep.key` = '{key}'"):
            if not again and run.data.tags.get("lorasweep.state") in FINAL_STATES:
                return None
            if run.info.status != "RUNNING" or run.info.run_id == mine:
                continue
            if run.data.tags["lorasweep.owner"] == str(leases.here()):
                self.client.delete_run(run.info.run_id)  # its start got lost on the way (`leave`)
            elif not self._lives(run):
                self._bury(run)
            elif run.data.tags["lorasweep.claim"] == "held":
                return None
            else:
                rivals.add(str(run.info.run_id))
        return rivals

    # ------------------------------------------------------------------ writing

    def open_sweep(self, study: str, name: str, description: str) -> str:
        """Return the run of a sweep, the one of an earlier call where there is one."""
        with _sentences(self.uri), self._alone():
            experiment = self._experiment(study).experiment_id
            query = f"tags.`lorasweep.sweep` = '{name}'"
            before = self.client.search_runs([experiment], query, max_results=1)
            if before:
                run = before[0].info.run_id
                self.client.update_run(run, status="RUNNING")
                return str(run)
            tags = {"lorasweep.sweep": name, "mlflow.note.content": description}
            made = self.client.create_run(experiment, run_name=f"sweep {name}", tags=tags)
            return str(made.info.run_id)

    def _alone(self) -> contextlib.AbstractContextManager[Any]:
        """Keep other processes of this machine from making the same sweep at the same moment."""
        if not self.uri.startswith("sqlite:///"):
            return contextlib.nullcontext()
        return FileLock(Path(self.uri.removeprefix("sqlite:///")).with_suffix(".lock"))

    def _experiment(self, study: str) -> Experiment:
        if study in self._experiments:
            return self._experiments[study]
        found = self.client.get_experiment_by_name(study)
        local = self.uri.startswith("sqlite:///")
        place = (self.artifacts / study).as_uri() if local else None
        if found is None:
            # opens the UI on the table of runs, not on its tools for chat applications
            tags = {"mlflow.experimentKind": "custom_model_development"}
            # Another process may have made it in this very moment.
            with contextlib.suppress(MlflowException):
                self.client.create_experiment(study, artifact_location=place, tags=tags)
            found = self.client.get_experiment_by_name(study)
            if found is None:
                raise RecordError(f"the study {study} cannot be made in the record at {self.uri}")
        if place is not None and not Path(found.artifact_location.removeprefix("file://")).exists():
            # The record was moved, perhaps from another machine: what comes now lies beside it.
            found = Experiment(found.experiment_id, study, place, found.lifecycle_stage)
        self._experiments[study] = found
        return found

    def suggest(self, sweep: str, number: int, suggestion: Mapping[str, Any]) -> None:
        """Keep what a sampler suggested, so that it can go on from there after a restart."""
        with _sentences(self.uri):
            self.client.set_tag(sweep, f"{_SUGGESTION}{number}", json.dumps(suggestion))

    def ping(self) -> None:
        """Ask for nothing.

        Raises:
            RecordError: the store does not answer.
        """
        with _sentences(self.uri):
            self.client.search_experiments(max_results=1)

    def close_trial(self, run: str, result: Result, extra: Mapping[str, str]) -> None:
        """Write what a trial gave, move its artefacts in, and end its run.

        May be repeated after an error: what was written already is written the same again.
        """
        with _sentences(self.uri):
            now = int(result.at * 1000)
            # The UI compares runs by the metric that was written first: let it be a score.
            ordered = sorted(result.metrics.items(), key=lambda m: not m[0].startswith("eval/"))
            metrics = [Metric(k, float(v), now, 0) for k, v in ordered]
            metrics += [Metric(k, v, now, step) for k, step, v in result.curve]
            tags = {"lorasweep.state": result.state, **_summary(result), **extra}
            if result.folder is not None:
                self._store(run, result.folder, result.environment)
            status = _RUN_STATUS.get(result.state, "FAILED")
            if self._tables is not None:
                self._tables.close(run, status, metrics, tags)
                return
            *full, last = _chunks(metrics, _METRICS_BATCH)
            for chunk in full:
                self.client.log_batch(run, metrics=chunk)
            # The state comes with the last numbers: a trial that has one has all of them.
            self.client.log_batch(run, metrics=last, tags=[RunTag(k, v) for k, v in tags.items()])
            self.client.set_terminated(run, status)

    def _store(self, run: str, folder: Path, environment: Mapping[str, Any]) -> None:
        """Move a trial's artefacts into the store; on one disk that copies nothing."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "environment.json").write_text(json.dumps(environment, indent=2, default=str))
        place = self._places.pop(run, None) or self.client.get_run(run).info.artifact_uri
        if place.startswith("file://"):
            to = Path(place.removeprefix("file://"))
            to.mkdir(parents=True, exist_ok=True)
            for item in folder.iterdir():
                shutil.move(item, to / item.name)
        else:
            self.client.log_artifacts(run, str(folder))
        shutil.rmtree(folder, ignore_errors=True)

    def abandon(self, sweep: str) -> None:
        """End this process's part in a sweep that could not be ended as usual."""
        self.leave(sweep)
        if not self.working_on(sweep):
            with _sentences(self.uri):
                self.client.set_terminated(sweep, "KILLED")

    def close_sweep(self, sweep: str, metrics: Mapping[str, float], *, whole: bool) -> None:
        """End the run of a sweep with its totals."""
        with _sentences(self.uri):
            now = int(time.time() * 1000)
            entries = [Metric(k, float(v), now, 0) for k, v in metrics.items()]
            self.client.log_batch(sweep, metrics=entries)
            self.client.set_terminated(sweep, "FINISHED" if whole else "KILLED")


def _takes_part(owner: str, until: str) -> bool:
    """Whether a process still takes part in a sweep, by what it said last."""
    return until != _LEFT and leases.alive(owner, float(until))


def _check(uri: str, file: Path) -> None:
    problem = glance.damage(file)
    if problem is not None:
        raise RecordError(f"the record at {uri} cannot be used: {problem}")


def _prepare_sqlite(file: Path) -> None:
    """Make the database whole before it gets its name: no one ever sees half of one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.exists():
        return
    with FileLock(file.with_suffix(".lock")):
        if file.exists():
            return
        draft = file.with_suffix(".new")
        for left in file.parent.glob(f"{draft.name}*"):  # of an attempt that was killed
            left.unlink()
        client = MlflowClient(f"sqlite:///{draft}", f"sqlite:///{draft}")
        client.search_experiments(max_results=1)
        with contextlib.closing(sqlite3.connect(draft, timeout=30)) as connection:
            # Readers (the UI) and the writer do not wait for each other.
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            connection.execute("PRAGMA journal_mode=WAL")
        draft.rename(file)


def _chunks(items: list[Any], size: int) -> list[list[Any]]:
    """Cut a list into parts; at least one, be it empty."""
    return [items[at : at + size] for at in range(0, max(1, len(items)), size)]


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
    file = glance.file_of(uri)
    if file is not None:
        if not file.exists():
            raise RecordError(f"no record at {uri}; run a sweep first (make sweep)")
        _check(uri, file)
        rows = glance.read(file)
        if rows is not None:
            return rows
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # said in a sentence
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
