"""A record that is carried elsewhere without its artefacts goes on there."""

import shutil
from pathlib import Path

import pytest

from lorasweep.record.record import Record
from lorasweep.space.composition import Composer
from lorasweep.trial.result import Result
from lorasweep.trial.trial import Trial


@pytest.fixture
def trials(composer: Composer) -> list[Trial]:
    flat = {**composer([]).flat, "lora.alpha": 16, "name": "ours"}
    return [Trial({**flat, "seed": seed}) for seed in (0, 1)]


def close(record: Record, trial: Trial, place: Path) -> str:
    run = record.claim(record.open_sweep("ours", "s", "a test"), trial, "trainer")
    assert run is not None
    (place / "folder").mkdir(parents=True)
    (place / "folder/predictions.parquet").write_text("answers")
    record.close_trial(run, Result("done", {}, folder=place / "folder"), {})
    return run


def test_new_artefacts_lie_beside_the_moved_record(trials: list[Trial], tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    close(Record(f"sqlite:///{here}/mlflow.db", here / "artifacts"), trials[0], here)
    there.mkdir()
    for file in here.glob("mlflow.db*"):
        shutil.move(file, there)
    shutil.rmtree(here)

    moved = Record(f"sqlite:///{there}/mlflow.db", there / "artifacts")
    assert moved.states() == {trials[0].key: "done"}
    run = close(moved, trials[1], there)
    assert (there / f"artifacts/ours/{run}/artifacts/predictions.parquet").exists()
    assert not here.exists()
    assert moved.states() == {trial.key: "done" for trial in trials}
