"""What a sweep costs besides its trials: lorasweep beside what users would otherwise run.

    python bench/sweep_overhead.py                            all arms: 200, 2,000, and sleeping
    python bench/sweep_overhead.py --arms lorasweep,ray --trials 200 --sleeping 0

Trials that do nothing but record 60 settings, 20 numbers and a curve in MLflow (a SQLite file),
two workers. Every arm but lorasweep gets a virtual environment of its own in --cache, made on
the first call (some GB from the package index). One after another, on one machine, in one run:
compare ratios. Rows are added to --out as arms end.
"""

import argparse
import csv
import os
import platform
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ARMS = ROOT / "bench" / "arms"
RANKS = 10  # times as many seeds as the number of trials asks for
MLFLOW = f"mlflow=={version('mlflow')}"
HYDRA = f"hydra-core=={version('hydra-core')}"


@dataclass(frozen=True)
class Arm:
    """One way to run a sweep: what it needs, how many work, and its command line."""

    name: str
    workers: int
    command: tuple[str, ...]  # {seeds}, {trials}, {folder} are filled in
    packages: tuple[str, ...] = ()

    def line(self, python: str, trials: int, folder: Path) -> list[str]:
        """Return the command line."""
        seeds = trials // RANKS
        return [python] + [
            part.format(seeds=seeds, trials=trials, folder=folder) for part in self.command
        ]


def hydra(*words: str) -> tuple[str, ...]:
    """Return the command line of a Hydra application."""
    return (str(ARMS / "hydra_app.py"), "-m", "hydra.sweep.dir={folder}/hydra", *words)


GRID = ("rank=range(1,11)", "seed=range({seeds})")
JOBLIB = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
OPTUNA = ("hydra/sweeper=optuna", "hydra/sweeper/sampler=random", "hydra.sweeper.n_jobs=2")
EVERY = (
    Arm(
        "lorasweep",
        2,
        (
            *("sweep.py", "-m", "model=tiny_llama", "lora.r=1,2,3,...,10", "seed=range({seeds})"),
            *("task=local", "task.train_file={folder}/data.csv", "output_dir={folder}/out"),
            *("engine.target=bench.noop.Noop", "executor.workers=2", "name=bench"),
            "tracking.uri=sqlite:///{folder}/mlflow.db",
        ),
    ),
    Arm("hydra basic launcher", 1, hydra(*GRID), (HYDRA, MLFLOW)),
    Arm(
        "hydra joblib launcher", 2, hydra(*GRID, *JOBLIB), (HYDRA, "hydra-joblib-launcher", MLFLOW)
    ),
    Arm(
        "hydra optuna sweeper",
        2,
        hydra(*GRID, *JOBLIB, *OPTUNA, "hydra.sweeper.n_trials={trials}"),
        (HYDRA, "hydra-optuna-sweeper", "hydra-joblib-launcher", MLFLOW),
    ),
    Arm(
        "optuna, two processes",
        2,
        (str(ARMS / "optuna_app.py"), "{trials}", "{seeds}", "{folder}"),
        (f"optuna=={version('optuna')}", MLFLOW),
    ),
    Arm(
        "ray tune",
        2,
        (str(ARMS / "ray_app.py"), str(RANKS), "{seeds}", "{folder}"),
        ("ray[tune]", MLFLOW),
    ),
)


@dataclass
class Row:
    """A line of the results. Seconds and shares; ``running``: first trial's start to last's end."""

    arm: str
    trials: int
    sleeping: bool
    workers: int
    state: str = "done"
    recorded: int = 0  # runs that MLflow has as FINISHED
    whole_s: float = 0.0
    start_s: float = 0.0  # until the first trial starts
    running_s: float = 0.0
    end_s: float = 0.0  # after the last trial
    trials_per_s: float = 0.0
    trials_per_s_running: float = 0.0
    seconds_per_trial: float = 0.0  # running
    idle_share: float = 0.0  # of the workers' time while running; recording counts as idle
    load_before: float = field(default_factory=lambda: os.getloadavg()[0])
    load_after: float = 0.0
    cores: int = field(default_factory=lambda: os.cpu_count() or 0)
    python: str = field(default_factory=platform.python_version)
    versions: str = ""


def environment(arm: Arm, cache: Path) -> str:
    """Return the interpreter of an arm, making its environment where there is none."""
    if not arm.packages:
        return sys.executable
    folder = cache / arm.name.replace(",", "").replace(" ", "_")
    ready, wanted = folder / "ready", "\n".join(arm.packages)
    python = folder / "bin" / "python"
    if not ready.exists() or ready.read_text() != wanted:
        print(f"installing {', '.join(arm.packages)} into {folder}", flush=True)
        venv.create(folder, with_pip=True)
        pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, "--progress-bar", "off", *arm.packages], check=True)
        ready.write_text(wanted)
    return str(python)


@cache
def versions(arm: Arm, python: str) -> str:
    """Return what is installed of an arm's own packages."""
    names = [p.split("=")[0].split("[")[0] for p in arm.packages] or ["lorasweep", "mlflow"]
    code = "import sys, importlib.metadata as m\nfor n in sys.argv[1:]: print(n, m.version(n))"
    done = subprocess.run([python, "-c", code, *names], capture_output=True, text=True, check=True)
    return ", ".join(done.stdout.splitlines())


def run(arm: Arm, python: str, trials: int, limit: float, *, sleeping: bool) -> Row:
    """Run an arm in a folder of its own, from process start to process end."""
    row = Row(arm.name, trials, sleeping, arm.workers, versions=versions(arm, python))
    with tempfile.TemporaryDirectory(prefix="lorasweep-bench-") as scratch:
        folder = Path(scratch)
        lines = [f"some words {n},{n % 2}\n" for n in range(40)]
        (folder / "data.csv").write_text("text,label\n" + "".join(lines))
        log = folder / "trials.log"
        extra = {
            "BENCH_LOG": str(log),
            "BENCH_SLEEP": "1" if sleeping else "",
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            # The others get nothing of lorasweep's, not even a plugin to look at.
            "PYTHONPATH": str(ARMS) if arm.packages else f"{ROOT}{os.pathsep}{ROOT / 'src'}",
            "GIT_PYTHON_REFRESH": "quiet",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        with (folder / "output.txt").open("w") as output:
            start = time.time()
            process = subprocess.Popen(
                arm.line(python, trials, folder),
                cwd=ROOT if not arm.packages else folder,
                env={**os.environ, **extra},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code = process.wait(limit)
                row.state = "done" if code == 0 else f"failed (exit code {code})"
            except subprocess.TimeoutExpired:
                row.state = f"not finished in {limit:g} s"
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            end = time.time()
        if row.state.startswith("failed"):
            print((folder / "output.txt").read_text()[-3000:])
        row.recorded = recorded(folder / "mlflow.db")
        measure(row, list(spans(log)), start, end)
    row.load_after = os.getloadavg()[0]
    return row


def spans(log: Path) -> Iterator[tuple[float, float]]:
    """Start and end of each trial, in seconds since 1970."""
    for line in log.read_text().splitlines() if log.exists() else ():
        _, start, end = line.split()
        yield float(start), float(end)


def recorded(database: Path) -> int:
    """Return how many trials are in the record, whole."""
    query = """select count(*) from runs where status = 'FINISHED' and run_uuid in
               (select run_uuid from params group by run_uuid having count(*) >= 60) and run_uuid in
               (select run_uuid from metrics group by run_uuid having count(*) >= 40)"""
    if not database.exists():
        return 0
    connection = sqlite3.connect(database)
    try:
        return int(connection.execute(query).fetchone()[0])
    finally:
        connection.close()


def measure(row: Row, found: list[tuple[float, float]], start: float, end: float) -> None:
    """Work out the figures of a row from when its trials ran."""
    row.whole_s = end - start
    if not found:
        return
    first, last = min(s for s, _ in found), max(e for _, e in found)
    row.start_s, row.running_s, row.end_s = first - start, last - first, end - last
    row.trials_per_s = len(found) / row.whole_s
    row.trials_per_s_running = len(found) / row.running_s
    row.seconds_per_trial = row.running_s / len(found)
    row.idle_share = 1 - sum(e - s for s, e in found) / (row.workers * row.running_s)
    # Two of Optuna's processes may each start what is the last one.
    if row.state == "done" and not len(found) == row.recorded >= row.trials:
        row.state = f"{len(found)} trials ran, {row.recorded} are recorded"


def add(row: Row, file: Path) -> None:
    """Add a row to the results."""
    new = not file.exists()
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", newline="") as stream:
        writer = csv.DictWriter(stream, [f.name for f in fields(Row)], lineterminator="\n")
        if new:
            writer.writeheader()
        values = asdict(row).items()
        writer.writerow({k: round(v, 4) if isinstance(v, float) else v for k, v in values})


def main() -> None:
    """Run every arm at every size."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arms", default=",".join(a.name.replace(",", "") for a in EVERY))
    parser.add_argument("--trials", default="200,2000", help="of no length; multiples of 10")
    parser.add_argument("--sleeping", type=int, default=200, help="trials of 0.2 to 2 s; 0: none")
    parser.add_argument("--limit", type=float, default=600, help="seconds for one arm at one size")
    parser.add_argument("--cache", type=Path, default=home / "lorasweep" / "bench")
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results/sweep_overhead.csv")
    options = parser.parse_args()
    wanted = options.arms.split(",")
    arms = [a for a in EVERY if any(a.name.replace(",", "").startswith(w) for w in wanted)]
    pythons = {arm.name: environment(arm, options.cache) for arm in arms}
    sizes = [(int(n), False) for n in options.trials.split(",") if n]
    sizes += [(options.sleeping, True)] if options.sleeping else []
    for arm in arms:  # not counted: compiles bytecode, fills the caches of the system
        run(arm, pythons[arm.name], RANKS, options.limit, sleeping=False)
    for trials, sleeping in sizes:
        for arm in arms:
            row = run(arm, pythons[arm.name], trials, options.limit, sleeping=sleeping)
            add(row, options.out)
            kind = "sleeping" if sleeping else "trials"
            print(
                f"{row.arm:24} {trials:5} {kind}: {row.state}; {row.whole_s:.1f} s "
                f"({row.start_s:.1f} to start), {row.trials_per_s:.1f} a second, "
                f"{row.trials_per_s_running:.1f} running, {100 * row.idle_share:.1f} % idle",
                flush=True,
            )


if __name__ == "__main__":
    main()
