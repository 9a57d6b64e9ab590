import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from analysis import __main__ as command
from lorasweep.errors import RecordError
from lorasweep.results import details, files

Run = dict[str, Any]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch, run: Callable[..., Run]) -> list[str]:
    """A record with one trial; the list tells which addresses were read."""
    asked: list[str] = []

    def read(uri: str) -> list[Run]:
        asked.append(uri)
        if "broken" in uri:
            raise RecordError("the record cannot be used")
        return [run(r=1)]

    client = SimpleNamespace(
        get_run=lambda run: SimpleNamespace(info=SimpleNamespace(artifact_uri="file:///nowhere"))
    )
    opened = SimpleNamespace(
        client=client, curve=lambda run, metric: [], commands=lambda: ["python sweep.py lora.r=1"]
    )
    monkeypatch.setattr("lorasweep.record.reading.read", read)
    monkeypatch.setattr("lorasweep.record.record.Record", lambda uri, artifacts: opened)
    return asked


def test_table_command_writes_the_parquet(
    here: Path, record: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["table", "--uri", "sqlite:///r.db", "--out", "new/t.parquet"]) == 0
    assert list(files.read(here / "new" / "t.parquet")["r"]) == [1]
    assert "1 trial, 1 finished" in capsys.readouterr().out


def test_figures_from_a_record_draw_everything(here: Path, record: list[str]) -> None:
    assert command.main(["figures", "--uri", "sqlite:///r.db"]) == 0
    assert record == [f"sqlite:///{here}/r.db"]
    assert (here / "results/trials.parquet").exists()
    assert (here / "results/figures/toy_stars/fig05_rank_all_linear.pdf").exists()
    assert (here / "results/figures/toy_stars/captions.md").exists()
    assert (here / "results/tables/table5.csv").exists()


def test_figures_prefer_the_default_record_and_leave_a_named_table_alone(
    here: Path, record: list[str], one_seed: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analysis.figures.draw_all", lambda *_: [])
    files.write(one_seed, here / "mine.parquet")
    (here / "outputs").mkdir()
    (here / "outputs/mlflow.db").touch()
    assert command.main(["figures", "--table", "mine.parquet"]) == 0
    assert record == []
    assert command.main(["figures"]) == 0
    assert record == [f"sqlite:///{here}/outputs/mlflow.db"]


def test_figures_without_a_record_use_the_table(
    here: Path, record: list[str], one_seed: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analysis.figures.draw_all", lambda *_: [])
    files.write(one_seed, here / "results/trials.parquet")
    assert command.main(["figures"]) == 0
    assert record == []


def test_claims_and_report_read_the_record_first(here: Path, record: list[str]) -> None:
    assert command.main(["claims", "--uri", "sqlite:///r.db"]) == 0
    assert record == [f"sqlite:///{here}/r.db"]
    assert (here / "results/claims/claims.csv").exists()
    Path("results/trials.commands.txt").write_text("python sweep.py study=patil2025\n")
    assert command.main(["report"]) == 0
    page = (here / "results/report/report.md").read_text()
    assert "    python sweep.py study=patil2025\n" in page
    assert command.main(["claims", "--uri", "sqlite:///broken.db"]) == 3


@pytest.mark.parametrize("name", ["table", "figures", "tables", "claims", "report"])
def test_results_of_another_record_are_left_alone(
    here: Path, record: list[str], one_seed: pd.DataFrame, name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("analysis.figures.draw_all", lambda *_: [])
    mine = here / "results/trials.parquet"
    files.write(one_seed, mine)
    items = pd.DataFrame({"key": [one_seed["key"][0]], "item": 1, "gold": 0, "predicted": 0})
    details.write(details.Details(items, details.empty().curves), mine)
    before = {f: f.read_bytes() for f in (here / "results").rglob("*") if f.is_file()}
    assert len(before) == 2
    (here / "other é").mkdir()

    # by its folder, by its file, and with a place for what is made
    (here / "other é/mlflow.db").touch()
    assert command.main([name, "--uri", "other é"]) == 0
    assert (here / "other é/results/trials.parquet").exists()
    out = here / "new" / ("trials.parquet" if name == "table" else "")
    assert command.main([name, "--uri", "other é/mlflow.db", "--out", str(out)]) == 0
    assert (here / "new/trials.parquet").exists()
    assert record == [f"sqlite:///{here}/other é/mlflow.db"] * 2
    assert {f: f.read_bytes() for f in (here / "results").rglob("*") if f.is_file()} == before
    assert {f.name for f in here.iterdir()} == {"results", "other é", "new"}


def test_figures_leave_no_answers_of_other_trials_beside_the_table(
    here: Path, record: list[str], one_seed: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analysis.figures.draw_all", lambda *_: [])
    assert command.main(["figures", "--uri", "outputs/mlflow.db"]) == 0
    mine = here / "results/trials.parquet"
    keys = [files.read(mine)["key"][0], one_seed["key"][0]]
    items = pd.DataFrame({"key": keys, "item": 1, "gold": 0, "predicted": 0})
    details.write(details.Details(items, details.empty().curves), mine)
    assert command.main(["figures", "--uri", "outputs/mlflow.db"]) == 0
    assert list(details.read(mine).items["key"]) == keys[:1]


def test_troubles_are_a_sentence_and_a_code(
    here: Path, record: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["figures"]) == 3
    assert "make sweep" in capsys.readouterr().err
    assert command.main(["table", "--uri", "sqlite:///broken.db"]) == 3
    assert "cannot be used" in capsys.readouterr().err
    with pytest.raises(SystemExit) as wrong:
        command.main(["figure"])
    assert wrong.value.code == 2


def test_analysis_needs_no_torch() -> None:
    code = (
        "import sys, analysis.__main__; print({'torch', 'transformers', 'mlflow'} & {*sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "set()"
