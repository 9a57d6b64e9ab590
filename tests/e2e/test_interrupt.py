"""Ctrl-C once stops cleanly and leaves the record true; the same command goes on."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import mlflow

from tests.conftest import ROOT, Sweep
from tests.e2e.conftest import rows_of


def test_an_interrupted_sweep_goes_on(
    sweep: Sweep, data: list[str], cache: Path, tmp_path: Path
) -> None:
    command = [
        "-m", "model=tiny_bert", "lora.r=1,2,4", "train.epochs=20", *data, f"output_dir={tmp_path}",
    ]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "sweep.py"), *command],
        env={**os.environ, "LORASWEEP_CACHE": str(cache), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("[1/3]"):
            process.send_signal(signal.SIGINT)
            break
    rest = process.stdout.read()
    assert process.wait(timeout=120) == 130, rest
    assert "stopped; the same command goes on from here" in rest
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiments = [e.experiment_id for e in client.search_experiments()]
    assert "RUNNING" not in {r.info.status for r in client.search_runs(experiments)}
    assert sum(r["lorasweep.state"] == "done" for r in rows_of(tmp_path)) < 3

    again = sweep(*command)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "already in the record" in again.stdout
    done = [r["lora.r"] for r in rows_of(tmp_path) if r["lorasweep.state"] == "done"]
    assert sorted(done) == ["1", "2", "4"]
