"""What goes straight into MLflow's tables, and comes from there, is as through its own client."""

import math
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import mlflow
import pytest

from lorasweep.errors import RecordError
from lorasweep.record import reading, sqlite_reader
from lorasweep.record.mlflow_store import prepare
from lorasweep.record.record import Record
from lorasweep.record.sqlite_store import Tables
from lorasweep.results.tidy import outdated
from lorasweep.space.composition import Composer
from lorasweep.trial import key
from lorasweep.trial.result import Result
from lorasweep.trial.trial import Trial

# One of a run's own: times, names and what follows from them.
OWN = {"run_id", "run_uuid", "start_time", "end_time", "artifact_uri", "lorasweep.study"}


@pytest.fixture
def trial(composer: Composer) -> Trial:
    return Trial({**composer([]).flat, "lora.alpha": 16, "name": "ours", "long": "x" * 7000})


def result(folder: Path) -> Result:
    curve = [("train/loss", 1, 3.0), ("train/loss", 3, 1.0), ("train/loss", 2, 2.0)]
    # the same number twice, and what SQL has no word for
    curve += [("train/loss", 3, 1.0), ("nan", 1, math.nan), ("inf", 1, math.inf)]
    return Result("done", {"eval/accuracy": 0.5, "a": -math.inf}, curve, folder=folder)


@pytest.fixture
def through_mlflow(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Have MLflow's client used from now on, as where its tables are not as known."""

    def act() -> None:
        monkeypatch.setattr(Tables, "of", lambda file: None)
        monkeypatch.setattr(sqlite_reader, "read", lambda file: None)

    return act


def written(place: Path, trial: Trial) -> tuple[Record, mlflow.entities.Run]:
    record = Record(f"sqlite:///{place}/mlflow.db", place / "artifacts")
    run = record.claim(record.open_sweep("ours", "s", "a test"), trial, "trainer")
    assert run is not None
    gave = result(place / "folder")
    for _ in range(2):  # a repeat changes nothing
        record.close_trial(run, gave, {"lorasweep.retries": "1"})
    return record, record.client.get_run(run)


def bare(run: mlflow.entities.Run) -> dict[str, Any]:
    tags = {k: v for k, v in run.data.tags.items() if k not in ("mlflow.parentRunId",)}
    info = {k: v for k, v in dict(run.info).items() if k not in OWN}
    return {"info": info, "tags": tags, "params": run.data.params}


def test_the_tables_are_as_known(tmp_path: Path) -> None:
    prepare(f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "mlflow.db")
    assert Tables.of(tmp_path / "mlflow.db"), (
        "MLflow's tables have changed: see lorasweep.record.sqlite_store"
    )


def test_where_they_are_not_mlflow_is_asked(tmp_path: Path, trial: Trial) -> None:
    file = tmp_path / "mlflow.db"
    prepare(f"sqlite:///{file}", file)
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("ALTER TABLE runs ADD COLUMN news TEXT")
    assert Tables.of(file) is None
    record, _ = written(tmp_path, trial)
    assert record.states() == {trial.key: "done"}


def test_a_record_of_another_mlflow_is_refused_with_what_to_do(tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    prepare(f"sqlite:///{file}", file)
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("ALTER TABLE runs RENAME COLUMN start_time TO began")
        connection.execute("UPDATE alembic_version SET version_num = 'abcdef012345'")
        connection.commit()
    for use in (lambda uri: Record(uri, tmp_path / "artifacts"), reading.read):
        with pytest.raises(RecordError, match="another version of MLflow made it; make a copy"):
            use(f"sqlite:///{file}")


def test_a_run_is_the_one_that_mlflow_writes(
    tmp_path: Path, trial: Trial, through_mlflow: Callable[[], None]
) -> None:
    ours, run = written(tmp_path / "a", trial)
    through_mlflow()
    theirs, other = written(tmp_path / "b", trial)
    assert bare(run) == bare(other)
    assert run.data.metrics.keys() == other.data.metrics.keys()
    for name, value in other.data.metrics.items():
        assert run.data.metrics[name] == pytest.approx(value, nan_ok=True), name
        history, expected = ours.curve(run.info.run_id, name), theirs.curve(other.info.run_id, name)
        assert list(map(str, history)) == list(map(str, expected)), name
    assert run.data.metrics["train/loss"] == 1.0
    assert (tmp_path / "a/artifacts/ours" / run.info.run_id / "artifacts").is_dir()
    assert run.info.artifact_uri.endswith(f"/ours/{run.info.run_id}/artifacts")


def sweeps(place: Path) -> tuple[Any, ...]:
    """Do to a study and its sweeps all that is ever done. Returns what MLflow says of them."""
    record = Record(f"sqlite:///{place}/mlflow.db", place / "artifacts")
    for _ in range(2):  # the second time it is there
        run = record.open_sweep("ours", "s", "a test")
        record.join(run)
        record.suggest(run, 0, {"values": {"lora.r": 4}})
        record.mark(run, "lorasweep.front", "accuracy")
        record.leave(run)
        record.close_sweep(run, {"sweep/done": 1}, whole=True)
    other = record.open_sweep("ours", "another", "a test")
    record.abandon(other)
    study = record.client.get_experiment_by_name("ours")
    told = {k: v for k, v in dict(study).items() if not k.endswith("_time")}
    told["artifact_location"] = Path(told["artifact_location"]).name
    found = [record.client.get_run(number) for number in (run, other)]
    assert record.past(run) == {0: {"values": {"lora.r": 4}}}
    assert record.searches("ours") == {"s": record.past(run), "another": {}}
    assert all(one.info.end_time >= one.info.start_time for one in found)
    return told, [(bare(one), one.data.metrics) for one in found]


def test_studies_and_sweeps_are_those_that_mlflow_writes(
    tmp_path: Path, through_mlflow: Callable[[], None]
) -> None:
    ours = sweeps(tmp_path / "a")
    through_mlflow()
    assert ours == sweeps(tmp_path / "b")


def test_a_study_that_was_deleted_is_not_written_to(tmp_path: Path) -> None:
    record = Record(f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "artifacts")
    record.open_sweep("ours", "s", "a test")
    record.client.delete_experiment(record.client.get_experiment_by_name("ours").experiment_id)
    again = Record(record.uri, tmp_path / "artifacts")
    with pytest.raises(RecordError, match="study ours was deleted"):
        again.open_sweep("ours", "s", "a test")


def test_what_changes_after_a_record_was_read_is_seen(tmp_path: Path, trial: Trial) -> None:
    record, run = written(tmp_path, trial)
    (before,) = record.all()
    other = record.claim("none", Trial({**trial.config, "seed": 1}), "trainer")
    assert other is not None
    assert [row.get("lorasweep.state") for row in record.all()] == ["done", None]
    record.close_trial(other, Result("stopped", {"eval/accuracy": 0.1}), {})
    assert [row["eval/accuracy"] for row in record.all()] == [0.5, 0.1]
    time.sleep(0.002)  # a result that waited on disk
    record.close_trial(other, Result("done", {"eval/accuracy": 0.9}), {})
    assert [row["eval/accuracy"] for row in record.all()] == [0.5, 0.9]
    record.mark(run.info.run_id, "lorasweep.front", "accuracy")
    assert record.all()[0] == {**before, "lorasweep.front": "accuracy"}
    record.client.delete_run(run.info.run_id)
    assert [row["run_id"] for row in record.all()] == [other]


def test_a_record_knows_whose_numbers_a_later_release_changed(
    tmp_path: Path, trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key, "NUMERICS", [("one", lambda c: c["train.batch_size"] == 8)])
    record, _ = written(tmp_path, trial)
    record.claim("none", Trial({**trial.config, "train.batch_size": 4}), "trainer")
    assert [outdated(row) for row in record.all()] == [False, False]
    key.NUMERICS.append(("two", lambda c: c["train.order"] == "by_length"))
    assert [outdated(row) for row in record.all()] == [True, True]


def test_rows_are_read_as_through_the_client(
    tmp_path: Path, trial: Trial, through_mlflow: Callable[[], None]
) -> None:
    record, run = written(tmp_path, trial)
    for seed in range(1, 4):  # under way, and one withdrawn
        record.claim("none", Trial({**trial.config, "seed": seed}), "trainer")
    record.client.delete_run(reading.read(record.uri)[-1]["run_id"])
    direct = reading.read(record.uri)
    through_mlflow()
    through = reading.read(record.uri)
    assert len(direct) == 3
    assert [r["run_id"] for r in direct] == [r["run_id"] for r in through]
    assert run.info.run_id == direct[0]["run_id"]
    for row, expected in zip(direct, through, strict=True):
        assert row.keys() == expected.keys()
        assert all(row[k] == v or v != v for k, v in expected.items())
        assert all(math.isnan(row[k]) for k, v in expected.items() if v != v)
