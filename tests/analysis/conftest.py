"""A synthetic record: no number here was ever measured."""

import hashlib
import math
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest

from lorasweep.results import tidy

Run = dict[str, Any]

RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


def noise(*parts: object) -> float:
    """Something between -1 and 1 that is the same every time."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:4]) / 2**31 - 1


def scores(method: str, target: str, r: float, alpha: float, seed: int) -> dict[str, float]:
    """Invented scores with roughly the paper's shape: flat, then worse at high ranks."""
    if method == "base":
        level = 0.21
    else:
        limit = 64 if target == "all_linear" else 256
        level = 0.67 - 0.05 * max(0.0, math.log2(r / limit)) - 0.01 * (method == "qlora")
        level -= 0.02 * abs(math.log2(alpha / (2 * r)))
    return {
        f"eval/{name}": level - drop + 0.008 * noise(method, target, r, alpha, seed, name)
        for name, drop in (
            ("accuracy", 0.0),
            ("f1_macro", 0.006),
            ("f1_micro", 0.0),
            ("precision_macro", 0.004),
            ("recall_macro", 0.0),
        )
    }


def make_run(
    method: str = "lora",
    target: str = "all_linear",
    r: int = 8,
    alpha: float | None = None,
    seed: int = 0,
    state: str = "done",
    **changes: Any,
) -> Run:
    """One flat run as the record gives it: every param is text."""
    alpha = 2 * r if alpha is None else alpha
    run: Run = {
        "study": "patil2025",
        "start_time": 1_000,
        "lorasweep.state": state,
        "lorasweep.engine": "trainer",
        "lorasweep.device": "synthetic GPU",
        "lorasweep.git_commit": "0000000",
        "model.name": "toy",
        "model.source": "package",
        "task.name": "stars",
        "task.train_size": "640",
        "task.eval_size": "1000",
        "method.name": method,
        "method.trains": {"base": "None", "fft": "everything"}.get(method, "adapter"),
        "method.quant": "nf4" if method == "qlora" else "None",
        "method.double_quant": "False",
        "target.name": target,
        "target.head": "full",
        "train.learning_rate": "0.002",
        "train.epochs": "1.0",
        "train.batch_size": "16",
        "train.max_length": "128",
        "train.precision": "fp32",
        "lora.r": str(r),
        "lora.alpha": str(alpha),
        "lora.dropout": "0.05",
        "seed": str(seed),
    }
    if state == "done":
        run |= scores(method, target, r, alpha, seed)
        run |= {
            "time/train_s": (90.0 if method == "qlora" else 40.0) + r / 32,
            "memory/peak_allocated_gib": (0.6 if method == "qlora" else 1.5) + r / 600,
        }
    run |= changes
    identity = repr(sorted((k, v) for k, v in run.items() if k.split(".")[0] in _IDENTITY))
    run.setdefault("lorasweep.key", hashlib.sha256(identity.encode()).hexdigest()[:12])
    run.setdefault("run_id", hashlib.sha256(repr(run).encode()).hexdigest()[:16])
    return run


_IDENTITY = ("model", "task", "method", "target", "train", "lora", "seed")


def paper_runs(seeds: int = 1) -> list[Run]:
    """The rank study, the alpha study and the base model."""
    runs = [make_run("base", seed=seed) for seed in range(seeds)]
    for method in ("lora", "qlora"):
        for target in ("all_linear", "attention"):
            for seed in range(seeds):
                runs += [make_run(method, target, r, seed=seed) for r in RANKS]
                runs += [make_run(method, target, 8, alpha, seed) for alpha in (8, 32, 64)]
    return runs


@pytest.fixture
def run() -> Callable[..., Run]:
    return make_run


@pytest.fixture
def paper() -> Callable[[int], list[Run]]:
    return paper_runs


@pytest.fixture
def one_seed() -> pd.DataFrame:
    return tidy.tidy(paper_runs())


@pytest.fixture
def three_seeds() -> pd.DataFrame:
    return tidy.tidy(paper_runs(3))
