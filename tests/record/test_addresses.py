"""Paths and MLflow's addresses, turned into each other."""

import shutil
from pathlib import Path

import mlflow
import pytest

from lorasweep import addresses, ui
from lorasweep.errors import RecordError
from lorasweep.record.reading import read
from lorasweep.record.record import Record
from lorasweep.space.composition import Composer
from lorasweep.trial.result import Result
from lorasweep.trial.trial import Trial

NAMES = ["plain", "my study", "étude", "a#b", "50%", "50%20", "a?b", "x[1] (2)", "it's; a=b&c+d"]


@pytest.mark.parametrize("name", NAMES)
def test_there_and_back(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    assert addresses.artifacts_folder(addresses.artifacts_at(folder)) == folder
    assert addresses.record_file(addresses.record_at(folder / "r.db")) == folder / "r.db"


def test_what_lies_elsewhere() -> None:
    assert addresses.record_file("http://127.0.0.1:5000") is None
    assert addresses.artifacts_folder("mlflow-artifacts:/1/2/artifacts") is None
    assert addresses.absolute("http://127.0.0.1:5000") == "http://127.0.0.1:5000"


def test_addresses_as_people_type_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert addresses.absolute("sqlite:///my é #1/r.db") == f"sqlite:///{tmp_path}/my é #1/r.db"
    assert addresses.absolute("sqlite:///my%20x/r.db") == f"sqlite:///{tmp_path}/my x/r.db"


def keep(record: Record, trial: Trial, folder: Path) -> str:
    """Record a trial with an artefact; return its run."""
    run = record.claim(record.open_sweep(str(trial["name"]), "s", "a test"), trial, "trainer")
    assert run is not None
    (folder / "artifacts").mkdir(parents=True)
    (folder / "artifacts/predictions.parquet").write_text(trial.key)
    record.close_trial(run, Result("done", {}, folder=folder / "artifacts"), {})
    return run


@pytest.mark.parametrize("name", ["my étude #1", "50%20", "a?b", "x[1] (2); it's & so+on"])
def test_mlflow_finds_artefacts_where_they_were_put(
    composer: Composer, name: str, tmp_path: Path
) -> None:
    output = tmp_path / f"out {name}"
    settings = composer([f"output_dir='{tmp_path}'"]).flat
    trial = Trial({**settings, "lora.alpha": 16, "name": name})
    record = Record(addresses.record_at(output / "mlflow.db"), output / "artifacts")
    run = keep(record, trial, output / name / trial.key)
    listed = mlflow.artifacts.list_artifacts(run_id=run, tracking_uri=record.uri)
    assert [file.path for file in listed] == ["environment.json", "predictions.parquet"]
    assert (output / "artifacts" / name / run / "artifacts/predictions.parquet").exists()
    assert [row["study"] for row in read(record.uri)] == [name]
    # nothing lies anywhere else
    assert {f.name for f in tmp_path.iterdir()} == {output.name}
    assert {f.name for f in (output / "artifacts").iterdir()} == {name}


def test_the_default_record_is_in_the_output_folder_whatever_its_name(composer: Composer) -> None:
    for name in NAMES:
        folder = name.replace("'", "")
        uri = composer([f"output_dir='{folder}'"]).flat["tracking.uri"]
        assert addresses.record_file(uri) == Path(folder) / "mlflow.db"


def test_browsing_a_copy_shows_its_own_artefacts(composer: Composer, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there é 5%20"
    trial = Trial({**composer([]).flat, "lora.alpha": 16, "name": "ours"})
    run = keep(Record(f"sqlite:///{here}/mlflow.db", here / "artifacts"), trial, here / "ours/a")
    shutil.copytree(here, there)
    uri = ui.ready(str(there))
    assert mlflow.MlflowClient(uri).get_run(run).info.artifact_uri == addresses.artifacts_at(
        there / f"artifacts/ours/{run}/artifacts"
    )
    with pytest.raises(RecordError, match="no record at"):
        ui.ready(str(tmp_path / "none"))


def test_a_copied_record_has_its_own_artefacts(composer: Composer, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    settings = {**composer([]).flat, "lora.alpha": 16, "name": "ours"}
    first, second = (Trial({**settings, "seed": seed}) for seed in (0, 1))
    old = keep(Record(f"sqlite:///{here}/mlflow.db", here / "artifacts"), first, here / "ours/a")
    shutil.copytree(here, there)

    copy = Record(f"sqlite:///{there}/mlflow.db", there / "artifacts")
    new = keep(copy, second, there / "ours/b")
    for run in (old, new):
        place = addresses.artifacts_folder(copy.client.get_run(run).info.artifact_uri)
        assert place == there / f"artifacts/ours/{run}/artifacts"
        assert (place / "predictions.parquet").exists()
    assert [f.name for f in (here / "artifacts/ours").iterdir()] == [old]
    kept = Record(f"sqlite:///{here}/mlflow.db", here / "artifacts")
    assert kept.client.get_run(old).info.artifact_uri.startswith(f"file://{here}/")
