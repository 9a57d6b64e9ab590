import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from analysis import __main__ as command
from analysis import table
from lorasweep.errors import RecordError

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
    opened = SimpleNamespace(client=client, curve=lambda run, metric: [])
    fake: Any = SimpleNamespace(read=read, Record=lambda uri, artifacts: opened)
    monkeypatch.setitem(sys.modules, "lorasweep.record", fake)
    return asked


def test_table_command_writes_the_parquet(
    here: Path, record: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["table", "--uri", "sqlite:///r.db", "--out", "new/t.parquet"]) == 0
    assert list(table.read(here / "new" / "t.parquet")["r"]) == [1]
    assert "1 trial, 1 finished" in capsys.readouterr().out


def test_figures_from_a_record_draw_everything(here: Path, record: list[str]) -> None:
    assert command.main(["figures", "--uri", "sqlite:///r.db"]) == 0
    assert record == ["sqlite:///r.db"]
    assert (here / "results/trials.parquet").exists()
    assert (here / "results/figures/toy_stars/fig05_rank_all_linear.pdf").exists()
    assert (here / "results/figures/toy_stars/captions.md").exists()
    assert (here / "results/tables/table5.csv").exists()


def test_figures_prefer_the_default_record_and_leave_a_named_table_alone(
    here: Path, record: list[str], one_seed: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analysis.figures.draw_all", lambda *_: [])
    table.write(one_seed, here / "mine.parquet")
    (here / "outputs").mkdir()
    (here / "outputs/mlflow.db").touch()
    assert command.main(["figures", "--table", "mine.parquet"]) == 0
    assert record == []
    assert command.main(["figures"]) == 0
    assert record == ["sqlite:///outputs/mlflow.db"]


def test_figures_without_a_record_use_the_table(
    here: Path, record: list[str], one_seed: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analysis.figures.draw_all", lambda *_: [])
    table.write(one_seed, here / "results/trials.parquet")
    assert command.main(["figures"]) == 0
    assert record == []


def test_claims_and_report_read_the_record_first(here: Path, record: list[str]) -> None:
    assert command.main(["claims", "--uri", "sqlite:///r.db"]) == 0
    assert record == ["sqlite:///r.db"]
    assert (here / "results/claims/claims.csv").exists()
    Path("results/trials.commands.txt").write_text("python sweep.py study=patil2025\n")
    assert command.main(["report"]) == 0
    page = (here / "results/report/report.md").read_text()
    assert "    python sweep.py study=patil2025\n" in page
    assert command.main(["claims", "--uri", "sqlite:///broken.db"]) == 3


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
