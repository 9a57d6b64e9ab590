"""Errors that a person reads, each with the exit code the command line ends with."""

import difflib
from collections.abc import Iterable

DONE, SOME_FAILED, BAD_REQUEST, BAD_RECORD, STOPPED = 0, 1, 2, 3, 130


class LorasweepError(Exception):
    """Something the user can act on: shown as a sentence, never as a traceback."""

    exit_code = SOME_FAILED


class RequestError(LorasweepError):
    """The request was wrong. Holds every problem found; nothing has been started."""

    exit_code = BAD_REQUEST

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(dict.fromkeys(problems))


class RecordError(LorasweepError):
    """The record or the disk could not be used."""

    exit_code = BAD_RECORD


class RefusedError(RecordError):
    """The record can be used, but not for this run: it was deleted, and waiting does not help."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for the known word most like this one, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""
