"""Hydra's own checks of sweepers, and what they stand for in lorasweep's own application.

Hydra's suites run applications of theirs: the sweeper is to compose a configuration for each
job, call the application's task function through the launcher, and return what it returned. In
such an application the sweeper does that. In lorasweep's own it differs, on purpose:

- a trial is run by an engine in a worker that keeps its base, not by the task function, so there
  is no launcher, no return value, and no ``hydra.job.num`` (trials have keys, not numbers);
- a trial's folder is named by its key and ``hydra.sweep.subdir`` plays no part: the same trial
  is found again, whatever command asks for it;
- nothing is batched: ``max_batch_size`` would be a barrier.

What the suites check is checked there on the real command line, below.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.plugins.sweeper import Sweeper
from hydra.test_utils.launcher_common_tests import (
    BatchedSweeperTestSuite,
    IntegrationTestSuite,
    LauncherTestSuite,
)
from hydra.test_utils.test_utils import TSweepRunner
from hydra.version import VersionBase

from tests.conftest import ROOT, Sweep
from tests.e2e.conftest import rows_of

SWEEPER = "hydra/sweeper=lorasweep"


@pytest.fixture(autouse=True)
def own_hydra() -> Iterator[None]:
    """Hydra as at the start of a process; other tests keep theirs for the whole session."""
    ours = GlobalHydra, VersionBase
    theirs = {kind: Singleton._instances.pop(kind, None) for kind in ours}
    yield
    for kind, instance in theirs.items():
        Singleton._instances.pop(kind, None)
        if instance is not None:
            Singleton._instances[kind] = instance


def test_hydra_finds_the_sweeper() -> None:
    assert "LorasweepSweeper" in [found.__name__ for found in Plugins.instance().discover(Sweeper)]


@pytest.mark.parametrize(("launcher_name", "overrides"), [("basic", [SWEEPER])])
class TestLauncher(LauncherTestSuite):
    """Single jobs, lists, groups, overrides within groups, resolvers, refusals."""


@pytest.mark.parametrize(
    ("launcher_name", "overrides"), [("basic", [SWEEPER, "hydra.sweeper.max_batch_size=2"])]
)
class TestBatches(BatchedSweeperTestSuite):
    """Jobs in batches, in order."""


@pytest.mark.parametrize(("task_launcher_cfg", "extra_flags"), [({}, ["-m", SWEEPER])])
class TestApplications(IntegrationTestSuite):
    """Scripts in processes of their own: job names, folders, paths."""


def test_params_of_a_sweeper_are_swept(hydra_sweep_runner: TSweepRunner, tmp_path: Path) -> None:
    sweep = hydra_sweep_runner(
        calling_file=None,
        calling_module="hydra.test_utils.a_module",
        task_function=None,
        config_path="configs",
        config_name="compose.yaml",
        overrides=[SWEEPER, "+hydra.sweeper.params.bar='1,2'"],
        temp_dir=tmp_path,
    )
    with sweep:
        assert sweep.returns is not None
        assert [job.overrides for job in sweep.returns[0]] == [["bar=1"], ["bar=2"]]


# ------------------------------------------------------------ in lorasweep's application


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return {"PYTHONPATH": str(ROOT), "BENCH_LOG": str(tmp_path / "trials.log")}


def swept(
    sweep: Sweep, data: list[str], output: Path, env: dict[str, str], *words: str
) -> list[dict[str, Any]]:
    quick = ["model=tiny_bert", "engine.target=bench.noop.Noop", f"output_dir={output}"]
    done = sweep("-m", *quick, *data, *words, **env)
    assert done.returncode == 0, done.stdout + done.stderr
    return rows_of(output)


def test_one_job(sweep: Sweep, data: list[str], tmp_path: Path, env: dict[str, str]) -> None:
    (row,) = swept(sweep, data, tmp_path, env)
    written = yaml.safe_load(
        (tmp_path / "sweep" / row["lorasweep.key"] / ".hydra/config.yaml").read_text()
    )
    assert written["model"]["name"] == row["model.name"] == "tiny_bert"
    assert (row["lora.r"], row["lora.alpha"]) == ("8", "16")


def test_groups_and_overrides_within_them(
    sweep: Sweep, data: list[str], tmp_path: Path, env: dict[str, str]
) -> None:
    rows = swept(
        sweep, data, tmp_path, env, "method=lora,qlora", "method.double_quant=false", "seed=0,1"
    )
    found = {(r["method.name"], r["seed"]) for r in rows}
    assert found == {("lora", "0"), ("lora", "1"), ("qlora", "0"), ("qlora", "1")}
    assert {r["method.double_quant"] for r in rows} == {"False"}
    assert len({r["lorasweep.key"] for r in rows}) == 4


@pytest.mark.parametrize(
    ("word", "says"),
    [("hydra.verbose=true,false", "not supported"), ("boo=bar", "no setting is called 'boo'")],
)
def test_what_hydra_refuses_is_refused(
    sweep: Sweep, data: list[str], tmp_path: Path, word: str, says: str
) -> None:
    done = sweep("-m", "model=tiny_bert", *data, f"output_dir={tmp_path}/out", word)
    assert done.returncode == 2
    assert says in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_task_without_its_mandatory_value_is_refused(sweep: Sweep, tmp_path: Path) -> None:
    done = sweep("-m", "model=tiny_bert", "task=local", f"output_dir={tmp_path}/out")
    assert done.returncode == 2
    assert "task.train_file" in done.stderr
