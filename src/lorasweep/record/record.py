"""The record: MLflow, and only here. The one truth of what is done, what failed, what it cost.

One experiment a study, a parent run a sweep, a child run a trial.
"""

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Container, Iterable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

from filelock import FileLock

from lorasweep import addresses
from lorasweep.errors import RecordError, RefusedError
from lorasweep.record import latest, leases
from lorasweep.record.reading import check, read
from lorasweep.record.sqlite_store import Tables
from lorasweep.record.store import Run, Store, Study, sentences
from lorasweep.trial import naming
from lorasweep.trial.key import numerics
from lorasweep.trial.result import FINAL_STATES, Result, State
from lorasweep.trial.trial import ADAPTER_NOT_KEPT, Trial

_PARENT = "mlflow.parentRunId"
_LEASE = "lorasweep.lease."  # on the run of a sweep, one for each controller: when it ends
_LEFT = "0"
_ANEW = "lorasweep.anew"  # on the run of a sweep that runs all again: since when
_SUGGESTION = "lorasweep.suggestion."  # on the run of a sweep, one a number
_RUN_STATUS = {"done": "FINISHED", "pruned": "FINISHED", "stopped": "KILLED"}
_LOOK_S = 1.0  # how old a controller's picture of the others may be


def _has_ended(tags: Mapping[str, Any]) -> bool:
    return tags.get("lorasweep.state") in FINAL_STATES


class Record:
    """Writes trials into an MLflow store and says what is already there."""

    def __init__(self, uri: str, artifacts: Path) -> None:
        """Open the store at ``uri``, creating it where it does not exist.

        Raises:
            RecordError: the store cannot be opened or written.
        """
        self.uri, self.artifacts = addresses.absolute(uri), artifacts.resolve()
        self._studies: dict[str, Study] = {}  # by name
        self._looked = 0.0
        self._others: frozenset[str] = frozenset()  # that lived when last looked up
        self._before: frozenset[str] = frozenset()  # that took part before this process did
        self._company = False  # whether another process took part since, be it gone by now
        self._store = _open(self.uri)

    @cached_property
    def client(self) -> Any:
        """MLflow's own client, for what is not done here; it takes seconds to load."""
        from lorasweep.record import mlflow_store

        return mlflow_store.connect(self.uri)

    def _sentences(self) -> contextlib.AbstractContextManager[None]:
        """Turn what the store raises into one sentence."""
        return sentences(self.uri, self._store.errors)

    # ------------------------------------------------------------------ reading

    def states(self) -> dict[str, State]:
        """State of every trial in the record by its key; ``done`` wins over later attempts."""
        found: dict[str, State] = {}
        with self._sentences():
            for run in self._store.runs({"lorasweep.key": None}):
                key, state = run.tags["lorasweep.key"], run.tags.get("lorasweep.state")
                if state is not None and found.get(key) != "done":
                    found[key] = cast(State, state)
        return found

    def rows(
        self,
        keys: Iterable[str],
        *,
        counts: Callable[[Mapping[str, Any]], bool] = lambda row: True,
    ) -> dict[str, dict[str, Any]]:
        """Return the recorded rows of these trials by key: the last that is done, or the last.

        Args:
            keys: of the trials.
            counts: which rows are looked at.
        """
        return latest.latest(read(self.uri), set(keys), counts)

    def all(self) -> list[dict[str, Any]]:
        """Return every trial of the record (see ``read``)."""
        return read(self.uri)

    def mark(self, run: str, tag: str, value: str) -> None:
        """Set a tag of a trial's run."""
        with self._sentences():
            self._store.tag(run, tag, value)

    def curve(self, run: str, metric: str) -> list[tuple[int, float]]:
        """Return (step, value) along a run."""
        with self._sentences():
            return self._store.curve(run, metric)

    def commands(self) -> list[str]:
        """Return what was typed for the sweeps of this record, the first time of each."""
        with self._sentences():
            runs = self._store.runs({"lorasweep.sweep": None})
        notes = (run.tags.get("mlflow.note.content", "").strip("`") for run in runs)
        return list(dict.fromkeys(filter(None, notes)))

    def past(self, sweep: str) -> dict[int, dict[str, Any]]:
        """Return what a sampler has suggested in this sweep, by number (see ``suggest``)."""
        with self._sentences():
            return _suggestions(self._run(sweep))

    def searches(self, study: str) -> dict[str, dict[int, dict[str, Any]]]:
        """Return what was suggested in every sweep of a study (see ``past``), by its name."""
        with self._sentences():
            runs = self._store.runs({"lorasweep.sweep": None}, study=self._study(study))
            return {run.tags["lorasweep.sweep"]: _suggestions(run) for run in runs}

    def _run(self, run: str) -> Run:
        found = self._store.run(run)
        if found is None:
            raise RecordError(f"the record at {self.uri} has no run {run} any more")
        return found

    def _active(self, run: str, name: str) -> Run:
        """Return a run that can still be written to; ``name`` is what people call it."""
        found = self._store.run(run)
        if found is None or not found.active:
            raise RefusedError(f"{name} was deleted from the record at {self.uri}")
        return found

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
        with self._sentences():
            for name, until in self._run(sweep).tags.items():
                owner = name.removeprefix(_LEASE)
                if owner not in (name, str(leases.here())) and not _takes_part(owner, until):
                    self._store.tag(sweep, name, None)
            for run in self._store.runs({}, running=True):
                owner = run.tags.get("lorasweep.owner", str(leases.here()))
                if owner != str(leases.here()) and not self._lives(run):
                    self._bury(run)

    def renew(self, sweep: str) -> None:
        """Say that this process lives.

        Raises:
            RefusedError: the run of the sweep was deleted.
            RecordError: the store does not answer, or cannot be written.
        """
        with self._sentences():
            self._active(sweep, "the run of this sweep")
            until = f"{time.time() + leases.LEASE_S:.0f}"
            self._store.tag(sweep, f"{_LEASE}{leases.here()}", until)

    def leave(self, sweep: str) -> None:
        """Say that this process has ended its part in a sweep.

        It is not forgotten: who was at work meanwhile must learn that it is not alone. Runs
        still under way are ended, not deleted: their results may wait on disk (`Outbox`), or
        their start got lost on the way here (the server went away before it answered).
        """
        with self._sentences():
            self._active(sweep, "the run of this sweep")
            for run in self._store.runs({"lorasweep.owner": str(leases.here())}, running=True):
                self._bury(run)
            self._store.tag(sweep, f"{_LEASE}{leases.here()}", _LEFT)

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
        with self._sentences():
            return {
                name.removeprefix(_LEASE): until
                for run in self._store.runs({"lorasweep.sweep": None})
                for name, until in run.tags.items()
                if name.startswith(_LEASE) and name != f"{_LEASE}{leases.here()}"
            }

    def working_on(self, sweep: str) -> frozenset[str]:
        """Other living processes that take part in this very sweep."""
        with self._sentences():
            return frozenset(
                owner
                for name, until in self._run(sweep).tags.items()
                for owner in [name.removeprefix(_LEASE)]
                if owner not in (name, str(leases.here())) and _takes_part(owner, until)
            )

    def _lives(self, run: Run) -> bool:
        """Whether the owner of a trial's run still works on it."""
        parent = self._store.run(run.tags[_PARENT])
        owner = run.tags["lorasweep.owner"]
        until = "0" if parent is None else parent.tags.get(_LEASE + owner, "0")
        return leases.alive(owner, float(until))

    def _bury(self, run: Run) -> None:
        """End the run of a controller that is gone, unless it has ended it itself."""
        state, tags = run.tags.get("lorasweep.state"), dict[str, str]()
        if state is None:
            state = "stopped"
            tags = {"lorasweep.state": state, "lorasweep.error": "its controller was lost"}
        self._store.close(run.number, _RUN_STATUS.get(state, "FAILED"), time.time(), [], tags)

    def claim(
        self,
        sweep: str,
        trial: Trial,
        engine: str,
        *,
        name: str | None = None,
        enough: Callable[[Mapping[str, Any]], bool] = _has_ended,
        besides: Container[str] = (),
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
            name: what people call it; without, what it is called where nothing else varies.
            enough: of the tags of a run of it, whether the trial need not be run again.
            besides: runs that do not count.
            contested: another process had it before, and may be dead by now.
        """
        # Who has gone may have ended trials since this process read what there was.
        careful = contested or bool(self.others()) or self._company
        rivals = partial(self._rivals, trial.key, enough, besides)
        with self._sentences():
            if careful and rivals() is None:
                return None  # before a run is made in vain
            called = name or naming.label(trial)
            run = self._create(sweep, trial, engine, called, "asking" if careful else "held")
            if careful and not _wins(run, rivals):
                self._store.delete(run)
                return None
            if careful:
                self._store.tag(run, "lorasweep.claim", "held")
            return run

    def _create(self, sweep: str, trial: Trial, engine: str, name: str, claim: str) -> str:
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
        if numerics(trial.config):
            tags["lorasweep.numerics"] = str(numerics(trial.config))
        if trial.adapts and not trial["engine.save_adapter"]:
            tags |= ADAPTER_NOT_KEPT
        params = {k: _text(v) for k, v in trial.config.items()}
        study = self._study(str(trial["name"]))
        return self._store.create(study, name, tags, params).number

    def _rivals(
        self,
        key: str,
        enough: Callable[[Mapping[str, Any]], bool],
        besides: Container[str],
        mine: str | None = None,
    ) -> set[str] | None:
        """Runs of living processes that ask for a trial; None where one has it, or it is done."""
        rivals = set()
        for run in self._store.runs({"lorasweep.key": key}):
            if run.number not in besides and enough(run.tags):
                return None
            if run.status != "RUNNING" or run.number == mine:
                continue
            if run.tags["lorasweep.owner"] == str(leases.here()):
                self._store.delete(run.number)  # its start got lost on the way (`leave`)
            elif not self._lives(run):
                self._bury(run)
            elif run.tags["lorasweep.claim"] == "held":
                return None
            else:
                rivals.add(run.number)
        return rivals

    # ------------------------------------------------------------------ writing

    def relocate(self) -> None:
        """Have the runs of a record that was copied or moved point to the artefacts beside it."""
        if addresses.record_file(self.uri) is not None:
            with self._sentences():
                self._store.relocate(self.artifacts)

    def open_sweep(self, study: str, name: str, description: str) -> str:
        """Return the run of a sweep, the one of an earlier call where there is one."""
        with self._sentences(), self._alone():
            self.relocate()
            place = self._study(study)
            before = self._store.runs({"lorasweep.sweep": name}, study=place)
            if before:
                self._store.resume(before[-1].number)
                return before[-1].number
            tags = {"lorasweep.sweep": name, "mlflow.note.content": description}
            return self._store.create(place, f"sweep {name}", tags, {}).number

    def anew(self, sweep: str) -> float:
        """Return since when a sweep runs all of its trials again, in seconds since 1970.

        That is now, or when a call began it that did not get to its end.
        """
        with self._sentences():
            since = self._run(sweep).tags.get(_ANEW)
            if since is None:
                since = f"{time.time():.3f}"
                self._store.tag(sweep, _ANEW, since)
        return float(since)

    def _alone(self) -> contextlib.AbstractContextManager[Any]:
        """Keep other processes of this machine from making the same sweep at the same moment."""
        file = addresses.record_file(self.uri)
        return contextlib.nullcontext() if file is None else FileLock(file.with_suffix(".lock"))

    def _study(self, name: str) -> Study:
        if name in self._studies:
            return self._studies[name]
        local = addresses.record_file(self.uri) is not None
        place = addresses.artifacts_at(self.artifacts / name) if local else None
        found = self._store.study(name)
        if found is None:
            # opens the UI on the table of runs, not on its tools for chat applications
            tags = {"mlflow.experimentKind": "custom_model_development"}
            self._store.make_study(name, place, tags)
            found = self._store.study(name)
            if found is None:
                raise RecordError(f"the study {name} cannot be made in the record at {self.uri}")
        if not found.active:
            raise RecordError(
                f"the study {name} was deleted from the record at {self.uri}; choose another "
                f"name=, or bring it back (mlflow experiments restore -x {found.number})"
            )
        if place is not None:
            # The record may have been moved or copied: what comes now lies beside it.
            found = Study(found.number, place)
        self._studies[name] = found
        return found

    def suggest(self, sweep: str, number: int, suggestion: Mapping[str, Any]) -> None:
        """Keep what a sampler suggested, so that it can go on from there after a restart."""
        with self._sentences():
            self._store.tag(sweep, f"{_SUGGESTION}{number}", json.dumps(suggestion))

    def close_trial(self, run: str, result: Result, extra: Mapping[str, str]) -> None:
        """Write what a trial gave, move its artefacts in, and end its run.

        May be repeated after an error: what was written already is written the same again.

        Raises:
            RefusedError: the run was deleted.
            RecordError: the store cannot be used, or does not take this result.
        """
        with self._sentences():
            place = self._active(run, "its run").place
            # The UI compares runs by the metric that was written first: let it be a score.
            ordered = sorted(result.metrics.items(), key=lambda m: not m[0].startswith("eval/"))
            points = [*((name, 0, float(value)) for name, value in ordered), *result.curve]
            tags = {"lorasweep.state": result.state, **_summary(result), **extra}
            if result.folder is not None:
                self._keep(run, place, result.folder, result.environment)
            status = _RUN_STATUS.get(result.state, "FAILED")
            self._store.close(run, status, result.at, points, tags)

    def _keep(self, run: str, place: str, folder: Path, environment: Mapping[str, Any]) -> None:
        """Move a trial's artefacts into the store; on one disk that copies nothing."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "environment.json").write_text(json.dumps(environment, indent=2, default=str))
        to = addresses.artifacts_folder(place)
        if to is not None:
            to.mkdir(parents=True, exist_ok=True)
            for item in folder.iterdir():
                if (to / item.name).is_dir():  # half of it, from an attempt that broke off
                    shutil.rmtree(to / item.name)
                shutil.move(item, to / item.name)
        else:
            self.client.log_artifacts(run, str(folder))
        shutil.rmtree(folder, ignore_errors=True)

    def abandon(self, sweep: str) -> None:
        """End this process's part in a sweep that could not be ended as usual."""
        self.leave(sweep)
        if not self.working_on(sweep):
            with self._sentences():
                self._store.close(sweep, "KILLED", time.time(), [], {})

    def close_sweep(self, sweep: str, metrics: Mapping[str, float], *, whole: bool) -> None:
        """End the run of a sweep with its totals."""
        with self._sentences():
            points = [(name, 0, float(value)) for name, value in metrics.items()]
            status = "FINISHED" if whole else "KILLED"
            self._store.close(sweep, status, time.time(), points, {})
            if whole:
                self._store.tag(sweep, _ANEW, None)


def _suggestions(sweep: Run) -> dict[int, dict[str, Any]]:
    return {
        int(name.removeprefix(_SUGGESTION)): json.loads(value)
        for name, value in sweep.tags.items()
        if name.startswith(_SUGGESTION)
    }


def _open(uri: str) -> Store:
    """Open the store at a place, MLflow only where it is needed."""
    file = addresses.record_file(uri)
    if file is not None:
        if not file.exists():
            from lorasweep.record import mlflow_store

            mlflow_store.prepare(uri, file)
        check(uri, file)
        with sentences(uri, Tables.errors):
            tables = Tables.of(file)
        if tables is not None:
            return tables
    from lorasweep.record.mlflow_store import Client

    return Client(uri)


def _wins(run: str, rivals: Callable[..., set[str] | None]) -> bool:
    """Whether a run gets the trial that it asks for; waits for those that have to withdraw."""
    while True:
        others = rivals(mine=run)
        if others is None or any(other < run for other in others):
            return False
        if not others:
            return True
        time.sleep(0.05)


def _takes_part(owner: str, until: str) -> bool:
    """Whether a process still takes part in a sweep, by what it said last."""
    return until != _LEFT and leases.alive(owner, float(until))


def _text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, list | dict) else str(value)


def _summary(result: Result) -> dict[str, str]:
    tags = {}
    if result.error:
        tags["lorasweep.error"] = result.error[:5000]
    if notes := result.environment.get("notes"):
        tags["lorasweep.notes"] = "; ".join(notes)[:5000]
    for name in ("device", "git_commit", "git_dirty"):
        if result.environment.get(name) is not None:
            tags[f"lorasweep.{name}"] = str(result.environment[name])
    return tags
