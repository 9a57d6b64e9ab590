"""How long a sweep takes whose trials are all in the record already.

    python bench/resume.py               a record of 2,000 trials
    python bench/resume.py --trials 200 --repeat 5

Fills a record through ``lorasweep.record`` with what a training leaves (all settings, 20 numbers,
a curve), then runs the sweep's own command line on it and tells its seconds of the clock and of
a core, Python's start included.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lorasweep.record import Record
from lorasweep.trial import Result, Trial

ROOT = Path(__file__).resolve().parents[1]
RANKS = 100
CURVE = [("train/loss", step, 1 / step) for step in range(1, 21)]
NUMBERS = [
    *(f"eval/{n}" for n in ("accuracy", "f1_macro", "f1_micro", "precision_macro", "loss")),
    *(f"time/{n}_s" for n in ("train", "eval", "load", "total")),
    *("train/steps", "train/total_steps", "memory/peak_rss_gib", "params/trainable"),
    *("params/total", "speed/samples_per_s", "speed/tokens_per_s", "adapter/bytes"),
]


def command(folder: Path, trials: int) -> list[str]:
    """Return the command line of the sweep."""
    for name, rows in (("train", 40), ("eval", 20)):
        lines = [f"a text number {i},{'good' if i % 2 else 'bad'}" for i in range(rows)]
        (folder / f"{name}.csv").write_text("\n".join(["text,label", *lines, ""]))
    return [
        sys.executable, str(ROOT / "sweep.py"), "-m", "model=tiny_bert", "task=local",
        f"task.train_file={folder}/train.csv", f"task.eval_file={folder}/eval.csv",
        f"output_dir={folder}/out", f"lora.r=range(1,{RANKS + 1})",
        f"seed=range({max(1, trials // RANKS)})",
    ]  # fmt: skip


def fill(folder: Path, line: list[str]) -> int:
    """Record every trial of the sweep as done. Returns how many there are."""
    said = subprocess.run([*line, "plan=json"], check=True, capture_output=True, text=True)
    trials = [Trial(t["config"]) for t in json.loads(said.stdout)["trials"]]
    record = Record(f"sqlite:///{folder}/out/mlflow.db", folder / "out" / "artifacts")
    sweep = record.open_sweep(str(trials[0]["name"]), "filled", "by bench/resume.py")
    for number, trial in enumerate(trials):
        run = record.claim(sweep, trial, "trainer")
        assert run is not None
        metrics = {name: number / len(trials) for name in NUMBERS}
        record.close_trial(run, Result("done", metrics, CURVE), {})
    record.close_sweep(sweep, {}, whole=True)
    return len(trials)


def measure(line: list[str], trials: int) -> tuple[float, float]:
    """Run the sweep. Returns seconds of the clock and of a core."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    said = subprocess.run(line, check=True, capture_output=True, text=True).stdout
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    assert f"{trials} of {trials} trials done" in said, said
    core = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, core


def main() -> None:
    """Fill a record and time the sweep on it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--repeat", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        line = command(folder, asked.trials)
        start = time.perf_counter()
        trials = fill(folder, line)
        print(f"{trials} trials recorded in {time.perf_counter() - start:.1f} s")
        for _ in range(asked.repeat):
            seconds, core = measure(line, trials)
            print(f"resumed in {seconds:.2f} s ({core:.2f} s of a core)")


if __name__ == "__main__":
    main()
