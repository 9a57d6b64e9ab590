"""``from lorasweep import sweep``: the same words as on the command line, the tidy table back."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pandas as pd
import pytest

import lorasweep
from lorasweep.costs import devices
from lorasweep.errors import RequestError
from lorasweep.results.tidy import COLUMNS
from tests.conftest import ROOT, Sweep
from tests.e2e.conftest import rows_of

NOOP = ["model=tiny_bert", "engine.target=bench.noop.Noop", "executor.workers=2"]


@pytest.fixture
def env(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    extra = {
        "BENCH_LOG": str(tmp_path / "trials.log"),
        "LORASWEEP_CACHE": str(cache),
        "PYTHONPATH": str(ROOT),
    }
    for name, value in extra.items():
        monkeypatch.setenv(name, value)
    return {**os.environ, **extra}


def words(data: list[str], output: Path, *more: str) -> list[str]:
    return [*NOOP, *data, f"output_dir={output}", *more]


@pytest.mark.usefixtures("env")
def test_what_a_pack_has_done_is_measured_alone_where_that_is_asked(
    data: list[str], tmp_path: Path
) -> None:
    def engines_of(*more: str) -> list[str]:
        """Engine of each run that the sweep has made."""
        known = rows_of(tmp_path) if (tmp_path / "mlflow.db").exists() else []
        before = {row["run_id"] for row in known}
        table = lorasweep.sweep(*words(data, tmp_path, "lora.r=2,4", *more))
        assert set(table["state"]) == {"done"}
        runs = {r["run_id"]: r["lorasweep.engine"] for r in rows_of(tmp_path)}
        made = {run: engine for run, engine in runs.items() if run not in before}
        assert {*made} <= {*table["run_id"]}  # the newest counts
        return sorted(made.values())

    assert engines_of("engine=packed") == ["packed", "packed"]
    assert engines_of("engine=packed") == []
    assert engines_of("engine=trainer") == ["trainer", "trainer"]
    assert engines_of("engine=trainer") == []
    assert engines_of("engine=packed") == []  # a trial alone has all that a pack gives
    assert [r["lorasweep.engine"] for r in rows_of(tmp_path)].count("trainer") == 2


@pytest.mark.usefixtures("env")
def test_who_shares_a_gpu_is_told(
    data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "visible_gpus", lambda: ["0"])
    for rank, how, shared in (
        (2, ["executor.workers=2"], "another worker"),
        (4, ["executor.workers=1", "executor.shared_gpu=true"], "other programs"),
        (8, ["executor.workers=1"], None),
    ):
        one = words(data, tmp_path, f"lora.r={rank}", "seed=0,1", *how)
        told = lorasweep.sweep(*one)["shared"].to_numpy()
        assert [None if value != value else value for value in told] == [shared] * 2


@pytest.mark.usefixtures("env")
def test_the_table_is_that_of_the_command_line(
    sweep: Sweep, data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # from another folder: nothing depends on where one stands
    monkeypatch.chdir(tmp_path)
    one = words(data, tmp_path, "method=lora,qlora", "lora.r=1,2,...,8")
    table = lorasweep.sweep(*one)
    assert tuple(table.columns) == COLUMNS
    assert len(table) == 8
    assert set(table["state"]) == {"done"}
    assert sorted(table["r"].unique()) == [1, 2, 4, 8]
    assert sorted(table["key"]) == sorted(r["lorasweep.key"] for r in rows_of(tmp_path))

    # The record is shared: what is there is not run again, and other trials are not in the table.
    assert sweep("-m", *one).stdout.count("] tiny_bert") == 0
    few = lorasweep.sweep(*words(data, tmp_path, "lora.r=2,16"))
    assert list(few["r"]) == [2, 16]
    assert len(rows_of(tmp_path)) == 9
    kept = table[(table["r"] == 2) & (table["method"] == "lora")]
    assert list(kept["run_id"]) == list(few[few["r"] == 2]["run_id"])


@pytest.mark.usefixtures("env")
def test_a_study(data: list[str], tmp_path: Path) -> None:
    more = ["study=patil2025_rank", "lora.r=4,8", "seed=0", "train.max_length=64"]
    table = lorasweep.sweep(*words(data, tmp_path, *more))
    assert set(table["study"]) == {"patil2025"}
    assert set(table["r"].dropna()) == {4, 8}


@pytest.mark.usefixtures("env")
def test_a_search(data: list[str], tmp_path: Path) -> None:
    more = ["sampler=random", "sampler.trials=5", "lora.r=1,2,3,...,64"]
    table = lorasweep.sweep(*words(data, tmp_path, *more))
    assert len(table) == 5


def test_a_bad_request_raises_with_all_problems(tmp_path: Path) -> None:
    with pytest.raises(RequestError) as caught:
        lorasweep.sweep("methd=lora", "lora.r=0", "model=tiny_bert", f"output_dir={tmp_path}/out")
    said = "\n".join(caught.value.problems)
    assert "did you mean 'method'" in said
    assert "lora.r=0" in said
    assert not (tmp_path / "out").exists()
    with pytest.raises(RequestError):
        lorasweep.sweep("lora.r=[")


def test_a_plan_runs_nothing(
    data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = lorasweep.sweep(*words(data, tmp_path / "out", "plan=json", "lora.r=4,8"))
    assert isinstance(table, pd.DataFrame)
    assert table.empty
    assert tuple(table.columns) == COLUMNS
    assert json.loads(capsys.readouterr().out)["trials"]
    assert not (tmp_path / "out").exists()


def test_a_script_needs_no_guard(data: list[str], tmp_path: Path, env: dict[str, str]) -> None:
    script = tmp_path / "script.py"
    asked = words(data, tmp_path / "out", "lora.r=1,2")
    script.write_text(
        textwrap.dedent(
            f"""
            import sys
            print("the script runs")
            from lorasweep import sweep
            light = {{"torch", "transformers", "mlflow"}}.isdisjoint(sys.modules)
            table = sweep(*{asked!r})
            print(len(table), light, "torch" in sys.modules)
            """
        )
    )
    done = subprocess.run(
        [sys.executable, str(script)], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("the script runs") == 1
    assert done.stdout.rstrip().endswith("2 True False")


def test_an_interrupt_is_passed_on(data: list[str], tmp_path: Path, env: dict[str, str]) -> None:
    asked = words(data, tmp_path / "out", "lora.r=1,2,3,...,64")
    code = f"from lorasweep import sweep; sweep(*{asked!r}); print('went on')"
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", code],
        env={**env, "BENCH_SLEEP": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("[ 1/64]"):
            process.send_signal(signal.SIGINT)
            break
    rest = process.stdout.read()
    assert process.wait(timeout=120) != 0
    assert "KeyboardInterrupt" in rest
    assert "went on" not in rest
    assert all(r["lorasweep.state"] in ("done", "stopped") for r in rows_of(tmp_path / "out"))


def test_the_package_stays_light() -> None:
    code = "import sys, lorasweep; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"hydra", "pandas", "mlflow", "torch"}.isdisjoint(done.stdout.split())


@pytest.mark.usefixtures("env")
def test_a_search_that_goes_on_or_is_complete_shows_all_its_trials(
    data: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def search(trials: int) -> tuple[pd.DataFrame, str]:
        more = ["sampler=tpe", f"sampler.trials={trials}", "lora.r=interval(1,64)"]
        table = lorasweep.sweep(*words(data, tmp_path, *more))
        return table, capfd.readouterr().out

    search(3)
    table, said = search(5)
    assert len(table) == 5
    assert ": 5 trials, 3 already in the record" in said
    assert "[1/2]" in said
    assert "5 of 5 trials done" in said
    again, said = search(5)
    assert list(again["key"]) == list(table["key"])
    assert ": 5 trials, 5 already in the record" in said
    assert "5 of 5 trials done" in said
    assert said.count("│ tiny_bert") == 5
    fewer, said = search(4)
    assert len(fewer) == 4
    assert "4 of 4 trials done" in said
