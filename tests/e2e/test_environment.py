"""What other tools left in the environment changes no number, and hangs nothing."""

from pathlib import Path

import pytest

from lorasweep import cli
from lorasweep.executors import environ
from lorasweep.models import source
from tests.conftest import Sweep
from tests.e2e.conftest import rows_of

LEFT = {
    "RANK": "0",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "0",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29511",
    "ACCELERATE_MIXED_PRECISION": "bf16",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
    "PYTHONIOENCODING": "ascii",
    "PYTHONWARNINGS": "error::FutureWarning",
    "ALL_PROXY": "socks5://127.0.0.1:9",
}
ASKED = ["model=tiny_bert", "lora.r=4", "train.max_length=32", "train.max_steps=6"]


@pytest.mark.parametrize("multirun", [[], ["-m"]], ids=["in this process", "in a worker"])
def test_what_other_tools_left_changes_nothing(
    sweep: Sweep, data: list[str], tmp_path: Path, multirun: list[str]
) -> None:
    found = []
    for name, env in (("calm", {}), ("left", LEFT)):
        done = sweep(*multirun, *ASKED, *data, f"output_dir={tmp_path}/{name}", **env)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "gemm_4bit" not in done.stdout + done.stderr
        (row,) = rows_of(tmp_path / name)
        found.append((row["lorasweep.key"], row["eval/loss"], row["train/loss"]))
    assert found[0] == found[1]


def test_a_trials_process_has_what_is_the_users_and_nothing_of_launchers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {**LEFT, "HF_HOME": "/hub", "OMP_NUM_THREADS": "3"}.items():
        monkeypatch.setenv(name, value)
    place = {"CUDA_VISIBLE_DEVICES": "GPU-1"}
    apart = environ.of_trials(place, apart=True)
    assert not apart.keys() & LEFT.keys()
    assert apart["HF_HOME"] == "/hub"
    assert apart["OMP_NUM_THREADS"] == "3"
    assert apart["CUDA_VISIBLE_DEVICES"] == "GPU-1"
    # The record may be a server beyond the proxy, and is written from this process.
    here = environ.of_trials(place, apart=False)
    assert here.keys() & LEFT.keys() == {"ALL_PROXY"}


def test_a_proxy_that_cannot_be_used_is_told_in_a_sentence(
    sweep: Sweep, data: list[str], tmp_path: Path
) -> None:
    done = sweep(
        "model=llama3_8b", *data, f"output_dir={tmp_path}", ALL_PROXY="socks5://127.0.0.1:9",
        HF_HOME=str(tmp_path / "hub"),
    )  # fmt: skip
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "the hub cannot be reached" in done.stderr


def test_without_a_home_folder_the_cache_has_to_be_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in a container with a user that nobody knows."""

    def home(cls: type[Path]) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", classmethod(home))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("LORASWEEP_CACHE", raising=False)

    def act() -> int:
        return len(str(source.cache_home()))

    assert cli.guarded(act) == 2
    assert "set HOME, or LORASWEEP_CACHE" in capsys.readouterr().err
    monkeypatch.setenv("LORASWEEP_CACHE", "/kept")
    assert cli.guarded(act) == len("/kept")
