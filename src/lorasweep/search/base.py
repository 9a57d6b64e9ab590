"""What a sampler is: something that names the next trial and learns from those that ended."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lorasweep.trial.result import State
from lorasweep.trial.trial import Trial

# A trial in these states has not ended: it is asked for again, under its own number.
UNENDED: tuple[State | None, ...] = (None, "stopped")


@dataclass(frozen=True)
class Suggestion:
    """The next trial to run.

    ``number`` counts from 0 in the order asked, over the whole life of the sweep, restarts
    included; ``values`` are the choices for the swept keys (JSON-able), enough to rebuild it.
    """

    number: int
    trial: Trial
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Past:
    """An earlier suggestion, read from the record at start; state None: it never ended."""

    number: int
    values: Mapping[str, Any]
    state: State | None
    metrics: Mapping[str, float]


class Sampler(Protocol):
    """Which trials come next. Not thread-safe: one scheduler asks and tells.

    Attributes:
        remembers: whether its suggestions must be in the record before their trials start.
        total: the most trials that the sweep will have.
        identity: names the sweep; the same request, typed anew, has the same identity.
        searched: the settings that it chooses; none where all trials are known beforehand.
    """

    remembers: bool
    total: int
    identity: str
    searched: frozenset[str]

    def restore(self, past: Sequence[Past]) -> None:
        """Take up where an earlier process left off. Call it once, before the first ``ask``."""
        ...

    def ask(self) -> Suggestion | None:
        """Return the next trial to start, or None where there is nothing more to start."""
        ...

    def tell(self, number: int, state: State, metrics: Mapping[str, float]) -> None:
        """Say how a suggestion ended."""
        ...
