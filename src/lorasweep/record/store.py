"""What the record asks of the store that holds it: a local file's tables, or MLflow's client."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lorasweep.errors import RecordError

Point = tuple[str, int, float]  # metric, step, value


@dataclass(frozen=True)
class Study:
    """An experiment of MLflow's, and where the artefacts of its runs go."""

    number: str
    place: str
    active: bool = True  # not deleted


@dataclass(frozen=True)
class Run:
    """A run of a sweep or of a trial, without its params and metrics."""

    number: str
    status: str
    place: str  # of its artefacts
    tags: Mapping[str, str]
    active: bool = True  # not deleted


class Store(Protocol):
    """Runs and their contents. Each call is whole or is not at all; any may raise ``errors``."""

    errors: tuple[type[Exception], ...]

    def study(self, name: str) -> Study | None:
        """Return a study, be it deleted."""

    def make_study(self, name: str, place: str | None, tags: Mapping[str, str]) -> None:
        """Make a study, unless another process does in this very moment."""

    def relocate(self, artifacts: Path) -> None:
        """Have runs point to their artefacts below a folder, where those are found there.

        That is where a record's artefacts lie (``STUDY/RUN/artifacts``), also after it was copied
        or moved; its runs still name the folder that they were written to.
        """

    def create(
        self, study: Study, name: str, tags: Mapping[str, str], params: Mapping[str, str]
    ) -> Run:
        """Start a run with all its params."""

    def run(self, number: str) -> Run | None:
        """Return a run, be it deleted."""

    def runs(
        self,
        tags: Mapping[str, str | None],
        *,
        running: bool = False,
        study: Study | None = None,
    ) -> list[Run]:
        """Return runs that are not deleted, oldest first.

        Args:
            tags: what they have; None for any value but an empty one.
            running: only those under way.
            study: only those in it.
        """

    def tag(self, run: str, name: str, value: str | None) -> None:
        """Set a tag, or with None remove it, if it is there."""

    def resume(self, run: str) -> None:
        """Say that a run is under way again."""

    def close(
        self, run: str, status: str, at: float, points: Sequence[Point], tags: Mapping[str, str]
    ) -> None:
        """Write what a run gave, seconds since 1970 beside it, and end it. May be repeated."""

    def delete(self, run: str) -> None:
        """Take back a run that was started in vain and holds nothing."""

    def curve(self, run: str, metric: str) -> list[tuple[int, float]]:
        """Return (step, value) along a run."""


@contextlib.contextmanager
def sentences(uri: str, errors: tuple[type[Exception], ...]) -> Iterator[None]:
    """Turn what a store raises into one sentence."""
    known: tuple[type[Exception], ...] = (*errors, OSError)
    try:
        yield
    except known as error:
        text = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if "database schema" in text:
            text = (
                "another version of MLflow made it; make a copy, then 'mlflow db upgrade' with "
                "this address brings one of an older version up to date, and one of a newer "
                "version needs that MLflow (pip install --upgrade mlflow)"
            )
        raise RecordError(f"the record at {uri} cannot be used: {text}") from error
