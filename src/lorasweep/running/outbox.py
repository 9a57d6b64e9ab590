"""Results on their way into the record. What can't be written waits on disk until it can.

A result waits as ``result.json`` in the folder of its trial. One that the record does not take
while it can be used otherwise (its run was deleted, its artefacts cannot be written) is put
aside: as ``refused/RUN/result.json`` there, its artefacts beside it. Either is tried again
when the next command of the study starts.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from lorasweep.errors import RecordError, RefusedError
from lorasweep.record import leases
from lorasweep.record.record import Record
from lorasweep.trial.result import Result

RETRY_S = 2.0
_TRIES = 3  # of a result before it is put aside, if the record can be written meanwhile
_APART_S = 60.0  # a failure so long after the last one begins a new count
_FILE = "result.json"
_REFUSED = "refused"


@dataclass
class Letter:
    """One result, the run it belongs to, and tags of the scheduler's own."""

    run: str
    folder: Path  # where it waits: its trial's, or one below
    result: Result
    tags: dict[str, str]
    tries: int = 0

    @property
    def file(self) -> Path:
        """Where it waits."""
        return self.folder / _FILE

    def keep(self, record: str) -> None:
        """Write it to disk; a controller that comes later can send it too."""
        content = {
            "record": record,
            "run": self.run,
            "owner": str(leases.here()),
            "tags": self.tags,
            "result": {**asdict(self.result), "folder": str(self.result.folder or "")},
        }
        draft = self.file.with_suffix(".new")
        draft.write_text(json.dumps(content, default=str))
        draft.replace(self.file)

    def put_aside(self, record: str) -> None:
        """Move it and its artefacts to where another run of the trial does not clear them."""
        if self.folder.parent.name == _REFUSED:
            return
        before, self.folder = self.file, self.folder / _REFUSED / self.run
        self.folder.mkdir(parents=True, exist_ok=True)
        artifacts = self.result.folder
        if artifacts is not None and artifacts.exists():
            self.result.folder = artifacts.rename(self.folder / artifacts.name)
        self.keep(record)
        before.unlink(missing_ok=True)

    @classmethod
    def read(cls, file: Path, record: str) -> "Letter | None":
        """Read what another controller left for this record; None while that one lives.

        Raises:
            ValueError: the file is none of this version's.
        """
        try:
            content = json.loads(file.read_text())
            if content["record"] != record:
                return None
            if content["owner"] != str(leases.here()) and leases.alive(content["owner"], 0.0):
                return None
            result = Result(**content["result"])
            result.curve = [(str(n), int(s), float(v)) for n, s, v in content["result"]["curve"]]
            folder = content["result"]["folder"]
            result.folder = file.parent / Path(folder).name if folder else None
            return cls(str(content["run"]), file.parent, result, dict(content["tags"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{file} is no result as this version writes them") from error


class Outbox:
    """Sends results to the record, in order; keeps them while the record can't be used."""

    def __init__(
        self, record: Record, ping: Callable[[], None], say: Callable[[str], None]
    ) -> None:
        """Start with nothing to send.

        Args:
            record: where results go.
            ping: writes something small to the record; raises RecordError where it can't.
            say: tells the user of a result that is put aside.
        """
        self.record, self.ping, self.say = record, ping, say
        self.waiting: list[Letter] = []
        self.refused = 0  # results that were put aside
        self.away = False  # whether the record could not be used when last tried
        self.error: RecordError | None = None  # the last
        self._first: float | None = None  # failure since a result was last written
        self._last = 0.0
        self._refusing = False  # whether one was put aside since

    def send(self, run: str, folder: Path, result: Result, tags: dict[str, str]) -> None:
        """Write a result into the record, or keep it.

        Raises:
            OSError: it could not even be kept on disk; only in memory.
        """
        letter = Letter(run, folder, result, tags)
        if self.away or not self._settle(letter):
            self.waiting.append(letter)
            letter.keep(self.record.uri)

    def _settle(self, letter: Letter) -> bool:
        """Deliver a letter or put it aside. Returns whether it waits no longer."""
        try:
            self.record.close_trial(letter.run, letter.result, letter.tags)
        except RefusedError as error:
            self._put_aside(letter, error)
        except RecordError as error:
            self.failed(error)
            letter.tries += 1
            if letter.tries < _TRIES:
                return False
            self._put_aside(letter, error)
            self._refusing = True
        else:
            letter.file.unlink(missing_ok=True)
            self._first, self._refusing = None, False
        return True

    def _put_aside(self, letter: Letter, error: RecordError) -> None:
        if letter.result.state == "stopped":  # what it goes on from lies in its own folder
            letter.file.unlink(missing_ok=True)
            return
        key = letter.folder.name
        letter.put_aside(self.record.uri)
        self.refused += 1
        self.say(f"the result of trial {key} is not in the record but in {letter.file}: {error}")
        ended = Result("stopped", error=f"its result could not be recorded; see {letter.file}")
        with suppress(RecordError):
            self.record.close_trial(letter.run, ended, {})

    def failed(self, error: RecordError) -> None:
        """Note that the record could not be used just now."""
        now = time.monotonic()
        apart = now - self._last > _APART_S and not self.waiting and not self._refusing
        if self._first is None or apart:
            self._first = now
        self.error, self.away, self._last = error, True, now

    def flush(self, *, now: bool = False) -> bool:
        """Try again what waits, now and then. Returns whether the record can be used."""
        if not self.away:
            return True
        if not now and time.monotonic() - self._last < RETRY_S:
            return False
        try:
            self.ping()
            while self.waiting and self._settle(self.waiting[0]):
                self.waiting.pop(0)
        except RecordError as error:
            self.failed(error)
            return False
        except OSError as error:
            self.failed(RecordError(f"{self.waiting[0].folder}: {error}"))
            return False
        self.away = bool(self.waiting)
        return not self.away

    def hopeless(self, patience: float) -> str | None:
        """Say why to give up, if so: the sweep was deleted, or all failed for so many minutes."""
        if self.away and isinstance(self.error, RefusedError):
            return str(self.error)
        if self._first is None or self._last - self._first <= patience * 60:
            return None
        return f"{self.error}; gave up after {patience:g} min"


def collect(record: Record, study: Path) -> Iterator[str]:
    """Send what controllers that are gone left behind; gives a sentence for what stays there.

    Args:
        record: where it goes.
        study: the folder of the trials' folders.
    """
    for file in [*study.glob(f"*/{_FILE}"), *study.glob(f"*/{_REFUSED}/*/{_FILE}")]:
        try:
            letter = Letter.read(file, record.uri)
            if letter is None:
                continue
            try:
                record.close_trial(letter.run, letter.result, letter.tags)
            except RecordError as error:
                letter.put_aside(record.uri)
                yield (
                    f"a result that is not in the record stays in {letter.folder}: {error}; "
                    "its trial is run again, the folder can be deleted"
                )
                continue
            file.unlink(missing_ok=True)
            if file.parent.parent.name == _REFUSED:
                shutil.rmtree(file.parent)
        except (OSError, ValueError) as error:
            yield f"{error}; it is left as it is"
