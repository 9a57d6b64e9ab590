"""Bad input gets a clear sentence and exit code 2, and costs nothing."""

import json
import os
import shutil
from pathlib import Path

import pytest
from filelock import FileLock

from tests.conftest import Sweep

OFFLINE = {"HF_HUB_OFFLINE": "1"}


def refused(sweep: Sweep, *arguments: str, **env: str) -> str:
    done = sweep(*arguments, **env)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "nothing was started" in done.stderr
    return done.stderr


def test_several_problems_are_reported_together(sweep: Sweep, tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,stars\ngood,1\nbad,0\n")
    said = refused(
        sweep, "-m", "methd=lora", "model=tiny_bert", "lora.r=0,1,...,-5", "lora.alpha=0",
        "target.roles=[gate]", "task=local", f"task.train_file={tmp_path}/train.csv",
        f"output_dir={tmp_path}/train.csv/out", "train.batch_size=many",
    )  # fmt: skip
    for part in (
        "did you mean 'method'?", "lora.r=0,1,...,-5", "lora.alpha=0", "no 'gate' layer",
        "label", "stars", "output_dir", "train.batch_size=many",
    ):  # fmt: skip
        assert part in said, part


def test_a_name_that_leads_elsewhere_makes_no_folder(
    sweep: Sweep, data: list[str], tmp_path: Path
) -> None:
    asked = ["model=tiny_bert", *data, f"output_dir={tmp_path}/out", "name=../x", "lora.r=0"]
    said = refused(sweep, *asked)
    assert "name='../x'" in said
    assert "lora.r=0" in said
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"text,label\n", "row"),
        (b"text,stars\na,1\n", "'label'"),
        (b"text,label\na,1\nb,1\n", "class"),
        (b"text,label\ngr\xfc\xdfe,1\nb,2\n", "UTF-8"),
    ],
)
def test_data_files(sweep: Sweep, tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "train.csv").write_bytes(content)
    said = refused(
        sweep, "model=tiny_bert", "task=local", f"task.train_file={tmp_path}/train.csv",
        f"output_dir={tmp_path}/out",
    )  # fmt: skip
    assert says in said
    assert not (tmp_path / "out" / "mlflow.db").exists()


def test_labels_unseen_in_training(sweep: Sweep, tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\na,1\nb,2\n")
    (tmp_path / "eval.csv").write_text("text,label\na,1\nb,7\n")
    said = refused(
        sweep, "model=tiny_bert", "task=local", f"task.train_file={tmp_path}/train.csv",
        f"task.eval_file={tmp_path}/eval.csv", f"output_dir={tmp_path}/out",
    )  # fmt: skip
    assert "7" in said


def test_a_list_without_m(sweep: Sweep) -> None:
    assert "needs -m" in refused(sweep, "lora.r=1,2")


def test_a_hub_that_cannot_be_reached(sweep: Sweep, data: list[str], tmp_path: Path) -> None:
    said = refused(
        sweep, "model=llama3_8b", *data, f"output_dir={tmp_path}",
        HF_HOME=str(tmp_path / "hub"), **OFFLINE,
    )  # fmt: skip
    assert "meta-llama/Meta-Llama-3-8B" in said
    assert "HF_HOME" in said


def test_damaged_and_quantised_checkpoints(sweep: Sweep, data: list[str], tmp_path: Path) -> None:
    model = ["model=tiny_bert", "model.source=path"]
    good = tmp_path / "good"
    good.mkdir()
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    whole = len(header).to_bytes(8, "little") + header + bytes(8)
    (good / "config.json").write_text(
        '{"model_type": "bert", "quantization_config": {"quant_method": "gptq"}}'
    )
    (good / "model.safetensors").write_bytes(whole)
    twice = refused(
        sweep, *model, f"model.path={good}", "method=qlora", *data, f"output_dir={tmp_path}/out"
    )
    assert "already quantised (gptq)" in twice
    bad = tmp_path / "bad"
    shutil.copytree(good, bad)
    (bad / "model.safetensors").write_bytes(whole[:-3])
    said = refused(
        sweep, *model, f"model.path={bad}", "method=lora", *data, f"output_dir={tmp_path}/out"
    )
    assert "damaged" in said
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + bytes(3))
    said = refused(
        sweep, *model, f"model.path={tmp_path}/x.gguf", *data, f"output_dir={tmp_path}/out"
    )
    assert "damaged" in said


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_folder_without_permission(sweep: Sweep, data: list[str], tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    said = refused(sweep, "model=tiny_bert", *data, f"output_dir={tmp_path}/locked/out")
    assert "may not be written to" in said


def test_a_broken_record_is_exit_code_3(sweep: Sweep, data: list[str], tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("this is no database, and long enough to be read as one")
    done = sweep("model=tiny_bert", *data, f"output_dir={tmp_path}")
    assert done.returncode == 3, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert str(tmp_path) in done.stderr


def test_a_gpu_that_another_sweep_uses(sweep: Sweep, data: list[str], tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        f'#!/bin/sh\ncase "$*" in *uuid*) echo "GPU-1234, $(cat {tmp_path}/used)";; '
        "*index*) echo 0;; "
        "*) echo 'NVIDIA H100 80GB HBM3, 81559';; esac\n"
    )
    tool.chmod(0o755)
    env = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "LORASWEEP_CACHE": str(tmp_path)}
    asked = ["-m", "model=tiny_bert", *data, "lora.r=4,8", "train.max_steps=9"]
    asked += ["train.learning_rate=5e-3", f"output_dir={tmp_path}/out"]
    (tmp_path / "gpus").mkdir()
    used = tmp_path / "used"
    used.write_text("5")
    with FileLock(tmp_path / "gpus" / "GPU-1234.lock"):
        said = refused(sweep, *asked, **env)
        assert "GPU 0: another sweep uses it" in said
        assert "executor.shared_gpu=true" in said
    used.write_text("20480")
    assert "GPU 0: others use 20.0 GiB of it" in refused(sweep, *asked, **env)
    used.write_text("[N/A]")
    assert "2 of 2 trials done" in sweep(*asked, **env).stdout
