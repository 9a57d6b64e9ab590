"""How long a sweep takes to go on, or to end, whose trials are in the record already.

    python bench/resume.py               a record of 2,000 trials
    python bench/resume.py --trials 200 --repeat 5 --left 3

Fills a record through its own record with what a training leaves (all settings, 20 numbers,
a curve), then runs the sweep's own command line on it and tells its seconds of the clock and of
a core, Python's start included:

    done                until it ends, where the same sweep has done all of its trials
    done by another     until it ends, where another study has
    left, no engine     until the first trial that is left has begun, with ``bench.noop``
    left                the same with the engine that users have, which loads its libraries
"""

import argparse
import contextlib
import json
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from lorasweep.record.record import Record
from lorasweep.trial.result import Result
from lorasweep.trial.trial import Trial

ROOT = Path(__file__).resolve().parents[1]
RANKS = 100
CURVE = [("train/loss", step, 1 / step) for step in range(1, 21)]
NUMBERS = [
    *(f"eval/{n}" for n in ("accuracy", "f1_macro", "f1_micro", "precision_macro", "loss")),
    *(f"time/{n}_s" for n in ("train", "eval", "load", "total")),
    *("train/steps", "train/total_steps", "memory/peak_rss_gib", "params/trainable"),
    *("params/total", "speed/samples_per_s", "speed/tokens_per_s", "adapter/bytes"),
]
LOOK_S = 0.02


@dataclass(frozen=True)
class Took:
    """Seconds of a command: of the clock until its first line and until its end, and of cores."""

    line: float
    end: float
    core: float


def command(folder: Path, trials: int) -> list[str]:
    """Return the command line of the sweep."""
    for name, rows in (("train", 40), ("eval", 20)):
        lines = [f"a text number {i},{'good' if i % 2 else 'bad'}" for i in range(rows)]
        (folder / f"{name}.csv").write_text("\n".join(["text,label", *lines, ""]))
    return [
        sys.executable, str(ROOT / "sweep.py"), "-m", "model=tiny_bert", "task=local",
        f"task.train_file={folder}/train.csv", f"task.eval_file={folder}/eval.csv",
        f"lora.r=range(1,{RANKS + 1})", f"seed=range({max(1, trials // RANKS)})",
    ]  # fmt: skip


def at(output: Path) -> str:
    """Return the option that sets where the record lies."""
    return f"output_dir={output}"


def fill(output: Path, line: list[str], left: int) -> int:
    """Record the trials of the sweep as done but for the last ones. Returns how many there are."""
    said = subprocess.run(
        [*line, at(output), "plan=json"], check=True, capture_output=True, text=True
    )
    trials = [Trial(t["config"]) for t in json.loads(said.stdout)["trials"]]
    record = Record(f"sqlite:///{output}/mlflow.db", output / "artifacts")
    sweep = record.open_sweep(str(trials[0]["name"]), "filled", "by bench/resume.py")
    for number, trial in enumerate(trials[: len(trials) - left]):
        run = record.claim(sweep, trial, "trainer")
        assert run is not None
        metrics = {name: number / len(trials) for name in NUMBERS}
        record.close_trial(run, Result("done", metrics, CURVE), {})
    record.close_sweep(sweep, {}, whole=left == 0)
    return len(trials)


def copied(record: Path, output: Path) -> Path:
    """Copy a record into a folder that has none. Returns the folder."""
    output.mkdir()
    with (
        contextlib.closing(sqlite3.connect(record)) as source,
        contextlib.closing(sqlite3.connect(output / "mlflow.db")) as target,
    ):
        source.backup(target)
        target.execute("PRAGMA journal_mode=WAL")
    return output


def begun(record: Path) -> int:
    """Return how many trials of a record have begun."""
    with contextlib.closing(sqlite3.connect(record, timeout=60)) as connection:
        query = "SELECT count(*) FROM tags WHERE key = 'lorasweep.key'"
        return int(connection.execute(query).fetchone()[0])


def cores(process: psutil.Process) -> float:
    """Return seconds of a core that a living process and its children have used."""
    total = 0.0
    for one in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = one.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def timed(line: list[str], log: Path, over: Callable[[], bool], expected: str) -> Took:
    """Run a command to its end. Returns what it took until ``over``, or until the end.

    It must say what is expected of it.
    """
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    start, first, core = time.perf_counter(), None, 0.0
    with log.open("wb") as stream:
        process = psutil.Popen(line, stdout=stream, stderr=subprocess.STDOUT, env=env, cwd=ROOT)
    while process.status() != psutil.STATUS_ZOMBIE and not over():
        core = cores(process)
        if first is None and log.stat().st_size:
            first = time.perf_counter() - start
        time.sleep(LOOK_S)
    end = time.perf_counter() - start
    assert process.wait() == 0, log.read_text()
    assert expected in log.read_text(), log.read_text()
    return Took(first or end, end, core)


def cases(folder: Path, trials: int, left: int) -> dict[str, Callable[[int], Took]]:
    """Fill a record. Returns what is to be timed; each is called with a number of its own."""
    line, output = command(folder, trials), folder / "out"
    start = time.perf_counter()
    trials = fill(output, line, left)
    print(f"{trials - left} trials recorded in {time.perf_counter() - start:.1f} s", flush=True)
    interrupted = copied(output / "mlflow.db", folder / "interrupted") / "mlflow.db"
    expected, log = f"{trials} of {trials} trials done", folder / "log"
    noop = "engine.target=bench.noop.Noop"
    os.environ |= {"PYTHONPATH": f"{ROOT}/src:{ROOT}", "BENCH_LOG": str(folder / "bench.log")}
    subprocess.run([*line, at(output), noop], check=True, capture_output=True, cwd=ROOT)

    def done(number: int) -> Took:
        return timed([*line, at(output)], log, lambda: False, expected)

    def by_another(number: int) -> Took:
        other = [*line, at(output), f"name=other_{number}"]
        return timed(other, log, lambda: False, expected)

    def goes_on(number: int, *more: str) -> Took:
        with tempfile.TemporaryDirectory() as name:
            place = copied(interrupted, Path(name) / "out")
            record = place / "mlflow.db"
            full = [*line, at(place), *more]
            return timed(full, log, lambda: begun(record) > trials - left, expected)

    return {
        "done": done,
        "done by another": by_another,
        "left, no engine": lambda number: goes_on(number, noop),
        "left": goes_on,
    }


def main() -> None:
    """Fill a record and time the sweep on it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--left", type=int, default=10)
    parser.add_argument("--repeat", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        todo = cases(Path(name), asked.trials, asked.left)
        found: dict[str, list[Took]] = {name: [] for name in todo}
        for number in range(asked.repeat):  # in turns: a busy minute falls on all of them
            for name, take in todo.items():
                found[name].append(take(number))
    print(
        "| | seconds, median (least to most) | first line | seconds of a core |\n|---|---|---|---|"
    )
    for name, took in found.items():
        parts = [[getattr(t, part) for t in took] for part in ("end", "line", "core")]
        end, line, core = (
            f"{statistics.median(p):.2f} ({min(p):.2f} to {max(p):.2f})" for p in parts
        )
        print(f"| {name} | {end} | {line} | {core} |")


if __name__ == "__main__":
    main()
