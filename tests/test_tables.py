"""What goes straight into MLflow's tables is what its own client would have written."""

import math
from pathlib import Path
from typing import Any

import mlflow
import pytest

from lorasweep import record as records
from lorasweep.record import Record
from lorasweep.space import Composer
from lorasweep.trial import Result, Trial

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


def written(place: Path, trial: Trial, *, direct: bool) -> tuple[Record, mlflow.entities.Run]:
    record = Record(f"sqlite:///{place}/mlflow.db", place / "artifacts")
    assert record._tables is not None, "MLflow's tables have changed: see lorasweep.tables"
    if not direct:
        record._tables = None
    sweep = record.open_sweep("ours", "s", "a test")
    run = record.claim(sweep, trial, "trainer")
    assert run is not None
    gave = result(place / "folder")
    for _ in range(2):  # a repeat changes nothing
        record.close_trial(run, gave, {"lorasweep.retries": "1"})
    return record, record.client.get_run(run)


def bare(run: mlflow.entities.Run) -> dict[str, Any]:
    tags = {k: v for k, v in run.data.tags.items() if k not in ("mlflow.parentRunId",)}
    info = {k: v for k, v in dict(run.info).items() if k not in OWN}
    return {"info": info, "tags": tags, "params": run.data.params}


def test_a_run_is_the_one_that_mlflow_writes(tmp_path: Path, trial: Trial) -> None:
    ours, run = written(tmp_path / "a", trial, direct=True)
    theirs, other = written(tmp_path / "b", trial, direct=False)
    assert bare(run) == bare(other)
    assert run.data.metrics.keys() == other.data.metrics.keys()
    for name, value in other.data.metrics.items():
        assert run.data.metrics[name] == pytest.approx(value, nan_ok=True), name
        history, expected = ours.curve(run.info.run_id, name), theirs.curve(other.info.run_id, name)
        assert sorted(map(str, history)) == sorted(map(str, expected)), name
    assert run.data.metrics["train/loss"] == 1.0
    assert (tmp_path / "a/artifacts/ours" / run.info.run_id / "artifacts").is_dir()
    assert run.info.artifact_uri.endswith(f"/ours/{run.info.run_id}/artifacts")


def test_rows_are_read_as_through_the_client(
    tmp_path: Path, trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, run = written(tmp_path, trial, direct=True)
    for seed in range(1, 4):  # under way, and one withdrawn
        record.claim("none", Trial({**trial.config, "seed": seed}), "trainer")
    record.client.delete_run(records.read(record.uri)[-1]["run_id"])
    direct = records.read(record.uri)
    monkeypatch.setattr(records.glance, "read", lambda file: None)
    through = records.read(record.uri)
    assert len(direct) == 3
    assert [r["run_id"] for r in direct] == [r["run_id"] for r in through]
    assert run.info.run_id == direct[0]["run_id"]
    for row, expected in zip(direct, through, strict=True):
        assert row.keys() == expected.keys()
        assert all(row[k] == v or v != v for k, v in expected.items())
        assert all(math.isnan(row[k]) for k, v in expected.items() if v != v)
