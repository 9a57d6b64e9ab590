"""One sweep over everything that a CPU can run, shared by the tests that look at what it left."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from lorasweep.record import reading
from tests.conftest import Sweep

TARGETS = "attention,all_linear,qv,q,k,v,o,mlp"
TINY = ["model=tiny_llama,tiny_bert", "lora.r=4", "train.max_length=64", "train.batch_size=8"]


def rows_of(output: Path) -> list[dict[str, Any]]:
    return reading.read(f"sqlite:///{output}/mlflow.db")


@pytest.fixture(scope="session")
def matrix(
    sweep: Sweep, data: list[str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Every model family × method × target, QLoRA included."""
    output = tmp_path_factory.mktemp("matrix")
    done = sweep(
        "-m", *TINY, "method=base,fft,lora,qlora", f"target={TARGETS}", *data,
        f"output_dir={output}", "name=matrix",
    )  # fmt: skip
    return output, done
