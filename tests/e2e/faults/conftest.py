"""A sweep to be disturbed: started as users do, watched, killed, and compared with a calm one."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pytest

from lorasweep.record import reading
from tests.conftest import ROOT

# key → state and what was measured
Table = dict[str, tuple[str, dict[str, float]]]

ENGINE = "engine.target=tests.e2e.faulty.{}"
TWO = "executor.workers=2"


def table(uri: str) -> Table:
    """What a record says of its trials: of each key the run that is done, or the last."""
    found: dict[str, dict[str, Any]] = {}
    for row in reading.read(uri):
        key = row["lorasweep.key"]
        if found.get(key, {}).get("lorasweep.state") != "done":
            found[key] = row
    return {
        key: (row["lorasweep.state"], {k: v for k, v in row.items() if is_result(k)})
        for key, row in found.items()
    }


def is_result(name: str) -> bool:
    return name.startswith("eval/") or name == "train/loss"


def wait_for(true: Callable[[], Any], what: str, seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"waited {seconds:.0f} s in vain: {what}"
        time.sleep(0.05)


@dataclass
class Started:
    """A controller that was started."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def said(self) -> str:
        return self.log.read_text()

    def hears(self, text: str, seconds: float = 90.0) -> None:
        """Wait until it has said this."""

        def heard() -> bool:
            assert self.process.poll() is None or text in self.said, self.said
            return text in self.said

        wait_for(heard, text, seconds)

    def tell(self, number: signal.Signals) -> None:
        """Send a signal, as a terminal does: to the controller and to all its children."""
        os.killpg(self.process.pid, number)

    def ends(self, seconds: float = 120.0) -> int:
        return self.process.wait(seconds)


@dataclass
class Sandbox:
    """A folder with one record, and the processes that were started on it."""

    folder: Path
    common: list[str]
    env: dict[str, str]
    uri: str
    started: list[Started] = field(default_factory=list)

    @property
    def output(self) -> Path:
        return self.folder / "out"

    @property
    def home(self) -> Path:
        return self.folder / "faulty"

    def start(self, *arguments: str, **env: Any) -> Started:
        """Start ``python sweep.py …`` in a process group of its own."""
        self.home.mkdir(exist_ok=True)
        log = self.folder / f"controller_{len(self.started)}.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, str(ROOT / "sweep.py"), *self.common, *arguments],
                cwd=ROOT,
                env={**self.env, **{k: str(v) for k, v in env.items()}},
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.started.append(Started(process, log))
        return self.started[-1]

    def call(self, *arguments: str, code: int = 0, **env: Any) -> str:
        """Run it to its end, which must have this exit code. Returns what it said."""
        one = self.start(*arguments, **env)
        assert one.ends(300) == code, one.said
        self.is_left_clean()
        assert "Traceback" not in one.said
        return one.said

    # ------------------------------------------------------------- looking at it

    def processes(self) -> list[psutil.Process]:
        """Living processes that any of our controllers, or they themselves, have started."""
        found = []
        for process in psutil.process_iter():
            try:
                ours = process.environ().get("FAULTY") == str(self.home)
                if ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def workers(self) -> list[psutil.Process]:
        return [p for p in self.processes() if "spawn_main" in " ".join(p.cmdline())]

    def no_process_is_left(self) -> None:
        wait_for(lambda: not self.processes(), f"orphans: {self.processes()}", 15)

    def running(self) -> list[str]:
        """Names of runs that the record says are under way."""
        client = mlflow.MlflowClient(self.uri, self.uri)
        experiments = [e.experiment_id for e in client.search_experiments()]
        runs = client.search_runs(experiments, "attributes.status = 'RUNNING'")
        return [r.info.run_name for r in runs]

    def is_left_clean(self) -> None:
        self.no_process_is_left()
        assert self.running() == []

    def table(self) -> Table:
        return table(self.uri)

    def states(self) -> Counter[str]:
        return Counter(state for state, _ in self.table().values())

    def attempts(self) -> Counter[str]:
        """How many runs each trial has in the record."""
        return Counter(row["lora.r"] for row in reading.read(self.uri))

    def starts(self) -> Counter[str]:
        """How often each rank was started by an engine."""
        return Counter((self.home / "starts").read_text().split())

    def end(self) -> None:
        for process in self.processes():
            process.kill()


Sandboxes = Callable[..., Sandbox]


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """Let our processes be interrupted, even if these tests are a script's background job."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def sandboxes(data: list[str], cache: Path) -> Callable[[Path], Sandbox]:
    def make(folder: Path, uri: str | None = None, **env: Any) -> Sandbox:
        folder.mkdir(exist_ok=True)
        output = folder / "out"
        common = ["-m", "model=tiny_bert", *data, f"output_dir={output}"]
        everything = {
            **os.environ,
            "LORASWEEP_CACHE": str(cache),
            "PYTHONUNBUFFERED": "1",
            "FAULTY": str(folder / "faulty"),
            "FAULTY_STEPS": "8",
            "FAULTY_STEP_S": "0.03",
            **{k: str(v) for k, v in env.items()},
        }
        return Sandbox(folder, common, everything, uri or f"sqlite:///{output}/mlflow.db")

    return make


@pytest.fixture
def box(sandboxes: Sandboxes, tmp_path: Path) -> Iterator[Sandbox]:
    """A record of the test's own."""
    made = sandboxes(tmp_path)
    yield made
    made.end()


@pytest.fixture(scope="session")
def calm(sandboxes: Sandboxes, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Table]:
    """Return the record of a sweep that nothing disturbs, run once for all who ask."""
    known: dict[tuple[str, ...], Table] = {}

    def run(*arguments: str, **env: Any) -> Table:
        request = (*arguments, *map(str, env.items()))
        if request not in known:
            box = sandboxes(tmp_path_factory.mktemp("calm"))
            box.call(*arguments, **env)
            known[request] = box.table()
        return known[request]

    return run


@pytest.fixture(scope="session")
def like_calm(calm: Callable[..., Table]) -> Callable[[Sandbox, int], None]:
    """Check that a record is that of the ``NoTorch`` trials of ranks 1 to n, undisturbed."""

    def check(box: Sandbox, ranks: int) -> None:
        expected, found = calm("lora.r=1,2,3,...,16", ENGINE.format("NoTorch"), TWO), box.table()
        assert len(found) == ranks
        assert set(box.attempts()) == set(map(str, range(1, ranks + 1)))
        assert found == {key: expected[key] for key in found}

    return check
