"""Bad input gets a clear sentence and exit code 2, and costs nothing."""

import json
import os
import shutil
import sys
from collections.abc import Callable
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


DRIVER = """#!{python}
import sys
from pathlib import Path
rows = [line.split(", ") for line in Path("{folder}/driver.txt").read_text().splitlines()]
names = ["index", "uuid", "name", "memory.total", "memory.used"]
words = sys.argv[1:]
asked = words[words.index("-i") + 1] if "-i" in words else None
(query,) = (w.split("=")[1] for w in words if w.startswith("--query-gpu="))
for row in rows:
    if asked in (None, *row[:2]):
        print(", ".join(row[names.index(name)] for name in query.split(",")))
"""


@pytest.fixture
def driver(tmp_path: Path) -> Callable[..., None]:
    """A driver that tells of GPUs, whatever this machine has, and how much others use of each."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text(DRIVER.format(python=sys.executable, folder=tmp_path))
    tool.chmod(0o755)
    (tmp_path / "gpus").mkdir()

    def uses(*mib: str) -> None:
        rows = [
            f"{number}, GPU-{number}234, NVIDIA H100 80GB HBM3, 81559, {used}\n"
            for number, used in enumerate(mib)
        ]
        (tmp_path / "driver.txt").write_text("".join(rows))

    return uses


@pytest.mark.parametrize("multirun", [[], ["-m"]], ids=["in this process", "in workers"])
def test_gpus_that_others_use(
    sweep: Sweep, data: list[str], tmp_path: Path, driver: Callable[..., None], multirun: list[str]
) -> None:
    env = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "LORASWEEP_CACHE": str(tmp_path)}
    env |= {"FAULTY": str(tmp_path), "FAULTY_STEPS": "1", "FAULTY_STEP_S": "0"}
    ranks = "lora.r=4,8" if multirun else "lora.r=4"
    asked = [*multirun, "model=tiny_bert", *data, ranks, "engine.target=tests.e2e.faulty.NoTorch"]
    asked += [f"output_dir={tmp_path}/out", "engine=trainer"]
    driver("5", "[N/A]")
    with FileLock(tmp_path / "gpus" / "GPU-0234.lock"):
        said = refused(sweep, *asked, **env)
        assert "GPU 0: another sweep uses it" in said
        assert "GPU 1" not in said
        assert "executor.shared_gpu=true" in said
    driver("20480", "5")
    assert "GPU 0: others use 20.0 GiB of it" in refused(sweep, *asked, **env)
    driver("[N/A]", "5")
    with FileLock(tmp_path / "gpus" / ("GPU-0234.lock" if multirun else "GPU-1234.lock")):
        # One that the sweep does not take may be used by others.
        wanted = ["executor.workers=1"] if multirun else []
        visible = {"CUDA_VISIBLE_DEVICES": "1,0"} if multirun else {}
        done = sweep(*asked, *wanted, **env, **visible)
    assert done.returncode == 0, done.stdout + done.stderr
    devices = set((tmp_path / "devices").read_text().split())
    assert devices == {"GPU-1234" if multirun else "GPU-0234"}
