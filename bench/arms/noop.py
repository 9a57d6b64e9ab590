"""The trial that every arm runs: sleep or not, then 60 settings, 20 numbers and a curve.

Plain Python: it is imported in the environment of each arm.
"""

import math
import os
import time
from pathlib import Path

PARAMS, METRICS, POINTS = 60, 20, 20
SHORT_S, LONG_S = 0.2, 2.0  # with BENCH_SLEEP


def params(rank: int, seed: int) -> dict[str, object]:
    """Return as many settings as a fine-tuning run has."""
    found: dict[str, object] = {"lora.r": rank, "lora.alpha": 2 * rank, "seed": seed}
    return found | {f"group{n % 6}.setting_{n}": f"value {n}" for n in range(PARAMS - len(found))}


def metrics(rank: int, seed: int) -> dict[str, float]:
    """Return made-up results."""
    score = math.sin(rank + seed) ** 2
    named = {"eval/accuracy": score, "eval/f1_macro": score / 2, "time/total_s": 1.0}
    return named | {f"eval/number_{n}": score + n for n in range(METRICS - len(named))}


def curve(rank: int) -> list[tuple[int, float]]:
    """Return a loss that falls."""
    return [(step, 2.0 / (step + rank)) for step in range(1, POINTS + 1)]


def seconds(rank: int, seed: int) -> float:
    """Return how long a trial sleeps: 10-fold differences, evenly spread on a log scale."""
    share = (rank * 0.6180339887 + seed * 0.7548776662) % 1.0
    return SHORT_S * (LONG_S / SHORT_S) ** share


def work(rank: int, seed: int) -> None:
    """Do the trial's work; a line in the file ``BENCH_LOG`` says by which process, and when."""
    start = time.time()
    if os.environ.get("BENCH_SLEEP"):
        time.sleep(seconds(rank, seed))
    line = f"{os.getpid()} {start:.6f} {time.time():.6f}\n"
    with Path(os.environ["BENCH_LOG"]).open("a") as file:  # short appends are not torn
        file.write(line)
