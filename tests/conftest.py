"""Small fixtures of our own making, and the command line as users type it."""

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from lorasweep.space import schema
from lorasweep.space.composition import Composer

# Tiny models are several times as fast on one thread; what a test starts inherits it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]
Sweep = Callable[..., subprocess.CompletedProcess[str]]

# Letters tell the classes apart: a frozen random base of two layers has nothing else to go by.
LETTERS = {"bad": "xyz", "good": "abc", "neutral": "mno"}


def sentences(rows: int, seed: int) -> list[tuple[str, str]]:
    """Made-up texts of three classes, a few words each."""
    draw = random.Random(seed)
    labels = [list(LETTERS)[i % 3] for i in range(rows)]
    return [
        (" ".join("".join(draw.choices(LETTERS[n], k=4)) for _ in range(draw.randint(2, 7))), n)
        for n in labels
    ]


def write_csv(file: Path, rows: list[tuple[str, str]]) -> Path:
    file.write_text("text,label\n" + "".join(f"{t},{label}\n" for t, label in rows))
    return file


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides for a small local task."""
    folder = tmp_path_factory.mktemp("data")
    train = write_csv(folder / "train.csv", sentences(96, 0))
    evaluation = write_csv(folder / "eval.csv", sentences(48, 1))
    return ["task=local", f"task.train_file={train}", f"task.eval_file={evaluation}"]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def sweep(cache: Path) -> Sweep:
    """Run ``python sweep.py …`` from the repository, as a user does."""

    def run(*arguments: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(ROOT / "sweep.py"), *arguments],
            cwd=cwd,
            env={**os.environ, "LORASWEEP_CACHE": str(cache), **env},
            capture_output=True,
            text=True,
            timeout=800,
        )

    return run


@pytest.fixture(scope="session")
def composer() -> Iterator[Composer]:
    """Hydra's composition over the real ``conf/``."""
    schema.register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield Composer(GlobalHydra.instance().config_loader())
