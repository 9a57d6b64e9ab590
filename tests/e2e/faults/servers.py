"""Servers that a test starts and stops: MLflow's, and PostgreSQL."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.e2e.faults.conftest import wait_for


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class MlflowServer:
    """An MLflow server on localhost, over any store that SQLAlchemy knows."""

    def __init__(self, folder: Path, store: str | None = None) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.port = folder, free_port()
        self.store = store or f"sqlite:///{folder}/server.db"
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [
            str(Path(sys.executable).parent / "mlflow"), "server", "--workers", "1",
            "--host", "127.0.0.1", "--port", str(self.port), "--backend-store-uri", self.store,
            "--artifacts-destination", str(self.folder / "artifacts"),
        ]  # fmt: skip
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command,
                env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        wait_for(self._answers, "the MLflow server", 120)

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.folder / "server.log").read_text()
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def stop(self) -> None:
        """Take it away at once, with whatever it is doing."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """Start a PostgreSQL of our own; gives the address of an empty database."""
    tools = {name: _tool(name) for name in ("initdb", "postgres")}
    if not all(tools.values()):
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    pytest.importorskip("psycopg", reason="pip install 'lorasweep[server]'")
    user = _other_user(folder)
    data, port = folder / "data", free_port()

    def command(name: str, *arguments: str) -> list[str]:
        return [*user, str(tools[name]), "-D", str(data), *arguments]

    subprocess.run(
        command("initdb", "-U", "lorasweep", "-A", "trust", "--no-sync"),
        check=True, capture_output=True, cwd=folder,
    )  # fmt: skip
    with (folder / "postgres.log").open("wb") as log:
        arguments = ("-p", str(port), "-k", str(folder), "-h", "127.0.0.1", "-c", "fsync=off")
        process = subprocess.Popen(
            command("postgres", *arguments), stdout=log, stderr=subprocess.STDOUT, cwd=folder
        )
    try:
        uri = f"postgresql+psycopg://lorasweep@127.0.0.1:{port}/postgres"
        wait_for(lambda: _accepts(port), "PostgreSQL")
        yield uri
    finally:
        process.terminate()
        process.wait()


def _tool(name: str) -> str | None:
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(found[-1]) if found else None)


def _other_user(folder: Path) -> list[str]:
    """PostgreSQL refuses to be run by root."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("PostgreSQL does not run as root, and there is no setpriv to become another")
    os.chown(folder, 65534, 65534)
    for parent in folder.parents:  # pytest's own folders are closed to others
        if parent.stat().st_mode & 0o011 != 0o011 and parent.is_relative_to("/tmp"):
            parent.chmod(parent.stat().st_mode | 0o011)
    return ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]


def _accepts(port: int) -> bool:
    import psycopg

    try:
        psycopg.connect(host="127.0.0.1", port=port, user="lorasweep", dbname="postgres").close()
    except psycopg.OperationalError:
        return False
    return True
