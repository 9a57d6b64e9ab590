"""Results on their way into the record. What can't be written waits on disk until it can."""

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from lorasweep import leases
from lorasweep.errors import RecordError
from lorasweep.record import Record
from lorasweep.trial import Result

RETRY_S = 2.0
_FILE = "result.json"


@dataclass
class Letter:
    """One result, the run it belongs to, and tags of the scheduler's own."""

    run: str
    folder: Path  # of the trial
    result: Result
    tags: dict[str, str]

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

    @classmethod
    def read(cls, file: Path, record: str) -> "Letter | None":
        """Read what another controller left for this record; None while that one lives."""
        content = json.loads(file.read_text())
        if content["record"] != record:
            return None
        if content["owner"] != str(leases.here()) and leases.alive(content["owner"], 0.0):
            return None
        result = Result(**content["result"])
        result.curve = [(str(n), int(s), float(v)) for n, s, v in content["result"]["curve"]]
        result.folder = Path(content["result"]["folder"]) if content["result"]["folder"] else None
        return cls(content["run"], file.parent, result, content["tags"])


class Outbox:
    """Sends results to the record, in order; keeps them while the record can't be reached."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.waiting: list[Letter] = []
        self.reason = ""
        self.since: float | None = None  # when the record was first out of reach
        self._tried = 0.0

    def send(self, run: str, folder: Path, result: Result, tags: Mapping[str, str]) -> bool:
        """Write a result into the record, or keep it. Returns whether it was written.

        Raises:
            OSError: it could not even be kept on disk; only in memory.
        """
        letter = Letter(run, folder, result, dict(tags))
        if self.since is None and self._deliver(letter):
            return True
        self.waiting.append(letter)
        letter.keep(self.record.uri)
        return False

    def _deliver(self, letter: Letter) -> bool:
        try:
            self.record.close_trial(letter.run, letter.result, letter.tags)
        except RecordError as error:
            self.failed(error)
            return False
        letter.file.unlink(missing_ok=True)
        return True

    def failed(self, error: RecordError) -> None:
        """Note that the record could not be used just now."""
        self.since, self.reason = self.since or time.monotonic(), str(error)
        self._tried = time.monotonic()

    def flush(self, *, now: bool = False) -> bool:
        """Try again what waits, now and then. Returns whether the record is in reach."""
        if self.since is None:
            return True
        if not now and time.monotonic() - self._tried < RETRY_S:
            return False
        self._tried = time.monotonic()
        try:
            self.record.ping()
        except RecordError as error:
            self.failed(error)
            return False
        self.since = None
        while self.waiting and self._deliver(self.waiting[0]):
            self.waiting.pop(0)
        return self.since is None

    @property
    def away_s(self) -> float:
        """Seconds for which the record has been out of reach."""
        return 0.0 if self.since is None else time.monotonic() - self.since

    def collect(self, folders: Iterable[Path]) -> int:
        """Send what controllers that are gone left behind. Returns how many.

        Raises:
            RecordError: the record can't be used.
        """
        sent = 0
        for file in (f / _FILE for f in folders):
            letter = Letter.read(file, self.record.uri) if file.exists() else None
            if letter is None:
                continue
            if self.record.has(letter.run):  # unless it was deleted meanwhile
                self.record.close_trial(letter.run, letter.result, letter.tags)
                sent += 1
            file.unlink(missing_ok=True)
        return sent
