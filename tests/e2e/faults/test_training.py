"""Real trainings that are killed, run out of memory, diverge, or stop half-way."""

import signal
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlparse

import mlflow
import pandas as pd
import pytest
import safetensors.numpy

from lorasweep.record import reading
from tests.e2e.faults.conftest import ENGINE, Sandbox, Sandboxes, Table, wait_for

QUICK = ("train.max_length=32", "train.batch_size=8", "train.epochs=1", "executor.workers=1")
FOUR = ("lora.r=1,2,3,4", *QUICK)
# Dropout draws at each step, evaluation comes between steps, and patience remembers them.
LONG = (
    "lora.r=2", "lora.dropout=0.1", "train.max_length=32", "train.batch_size=8",
    "train.epochs=2", "train.eval_every=4", "train.patience=null,4", "executor.workers=1",
)  # fmt: skip


def test_kills_memory_and_nan_in_training(box: Sandbox, calm: Callable[..., Table]) -> None:
    broken = (*FOUR, ENGINE.format("Trainer"))
    said = box.call(
        *broken, "executor.oom=[checkpointing]", code=1,
        FAULTY_STEP_S=0, FAULTY_KILL="1:1", FAULTY_OOM="2:1,3:2", FAULTY_NAN="4:1",
    )  # fmt: skip
    assert box.starts() == {"1": 2, "2": 2, "3": 2, "4": 1}
    rows = {r["lora.r"]: r for r in reading.read(box.uri)}
    states = [rows[str(r)]["lorasweep.state"] for r in (1, 2, 3, 4)]
    assert states == ["done", "done", "oom", "diverged"]
    assert "diverged (the loss was nan" in said
    assert rows["2"]["lorasweep.retries"] == "1"
    assert rows["2"]["lorasweep.changed"] == "train.checkpointing=true"
    assert rows["2"]["train.checkpointing"] == "False"  # what was asked for, as the key says

    # What did not fit fits in smaller device steps; what diverged is a result, and stays.
    said = box.call(*broken, "executor.oom=[accumulate]", FAULTY_STEP_S=0, FAULTY_OOM="3:3")
    assert "3 of 4 trials done, 1 diverged, 0 failed" in said
    assert box.starts() == {"1": 2, "2": 2, "3": 4, "4": 1}
    third = {r["lorasweep.state"]: r for r in reading.read(box.uri) if r["lora.r"] == "3"}
    assert third["done"]["lorasweep.changed"] == "train.batch_size=4 train.accumulation=2"

    expected, found = calm(*FOUR), box.table()
    assert found.keys() == expected.keys()
    for rank in ("1", "2"):  # checkpointing computes the same again
        key = rows[rank]["lorasweep.key"]
        assert found[key] == expected[key]
    _, scores = expected[rows["3"]["lorasweep.key"]]  # smaller device steps round otherwise
    assert third["done"]["eval/loss"] == pytest.approx(scores["eval/loss"], rel=1e-3)


def test_a_trial_that_was_stopped_ends_as_one_that_never_was(
    sandboxes: Sandboxes, tmp_path: Path
) -> None:
    calm, box = sandboxes(tmp_path / "calm"), sandboxes(tmp_path / "box")
    calm.call(*LONG)
    slow = (*LONG, ENGINE.format("Trainer"))
    for steps in (5, 34):  # 24 are those of the first trial
        one = box.start(*slow, FAULTY_STEP_S=0.3)
        wait_for(lambda n=steps: _steps(box) >= n, f"{steps} steps")
        one.tell(signal.SIGINT)
        assert one.ends() == 130, one.said
        box.is_left_clean()
        assert list(box.output.glob("sweep/*/state/checkpoint-*"))
    stopped = [r for r in reading.read(box.uri) if r["lorasweep.state"] == "stopped"]
    assert [r["train.patience"] for r in stopped] == ["None", "4"]
    assert all(r["train/steps"] > 4 and "lorasweep.error" not in r for r in stopped)
    box.call(*slow, FAULTY_STEP_S=0)
    assert box.table() == calm.table()
    for key in calm.table():
        ours, theirs = _artifacts(box, key), _artifacts(calm, key)
        name = "adapter/adapter_model.safetensors"
        trained, expected = (safetensors.numpy.load_file(f / name) for f in (ours, theirs))
        assert trained.keys() == expected.keys()
        assert all((trained[n] == expected[n]).all() for n in expected)
        pd.testing.assert_frame_equal(
            *(pd.read_parquet(f / "predictions.parquet") for f in (ours, theirs))
        )
    assert not list(box.output.glob("sweep/*/state"))


def _steps(box: Sandbox) -> int:
    log = box.home / "steps"
    return len(log.read_text().split()) if log.exists() else 0


def _artifacts(box: Sandbox, key: str) -> Path:
    (run,) = (
        r["run_id"] for r in reading.read(box.uri)
        if r["lorasweep.key"] == key and r["lorasweep.state"] == "done"
    )  # fmt: skip
    return Path(urlparse(mlflow.MlflowClient(box.uri).get_run(run).info.artifact_uri).path)
