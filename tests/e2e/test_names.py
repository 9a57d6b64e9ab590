"""Blanks, accents, brackets, # and % in every name and folder, from the sweep to the report."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest

from analysis import __main__ as analysis
from lorasweep import addresses
from lorasweep.models import source
from lorasweep.record import reading
from lorasweep.space.composition import Composer
from lorasweep.trial.trial import Trial
from tests.conftest import Sweep


def test_any_name_from_the_sweep_to_the_report(
    sweep: Sweep, data: list[str], cache: Path, composer: Composer, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    here = tmp_path / "mon dossier été"
    here.mkdir()
    for word, name in zip(data[1:], ("train (1).csv", "c#.csv"), strict=True):
        shutil.copy(word.split("=")[1], here / name)
    base = source.settings(Trial(composer(["model=tiny_bert"]).flat))
    shutil.copytree(source.locate(base, cache).folder, here / "modèle [1]")

    output, study = "résultats 100%20 #1 $x", "étude [1] #2 $x"
    done = sweep(
        "-m", "model=tiny_bert", "model.source=path", "model.path=modèle [1]", "model.name=mod [è]",
        "task=local", "task.name=vu (1) $y_z", "task.train_file=train (1).csv",
        "task.eval_file=c#.csv", f"output_dir={output}", f"name={study}", "method=lora",
        "lora.r=1,2", "train.max_steps=2", "train.max_length=16", cwd=here,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert {f.name for f in here.iterdir()} == {"train (1).csv", "c#.csv", "modèle [1]", output}
    assert {f.name for f in (here / output / "artifacts").iterdir()} == {study}

    uri = addresses.record_at(here / output / "mlflow.db")
    rows = reading.read(uri)
    for row in rows:
        found = mlflow.artifacts.list_artifacts(run_id=row["run_id"], tracking_uri=uri)
        assert {"adapter", "predictions.parquet"} <= {file.path for file in found}
    assert len(rows) == 2

    _, ui, _, draw, _ = done.stdout.splitlines()[-1].split("`")
    make, *words = shlex.split(draw)
    assert shlex.split(ui) == [make, *words[:2], "ui", *words[3:]]
    ours = ["-o", ".venv/.ready", f"BIN={Path(sys.executable).parent}"]
    subprocess.run([make, *ours, *words], cwd=here, check=True, timeout=300)
    results = here / output / "results"
    assert list(results.glob("figures/*/overview.png"))

    monkeypatch.chdir(here)
    assert analysis.main(["report", "--uri", output]) == 0
    page = (results / "report/report.html").read_text()
    pictures = list((results / "report/figures").iterdir())
    assert len(pictures) == page.count('<img src="data:image/png') >= 3
    assert "mod [è] on vu (1) $y_z" in page
