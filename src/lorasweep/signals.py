"""Ctrl-C and SIGTERM while a sweep is under way: counted, and told to who knows what to end.

They never break off what is being written to the record. Only the second one, where nobody
listens, ends as Python would.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

_CAUGHT = (signal.SIGINT, signal.SIGTERM)
_raised: list[int] = []  # interrupts of this process before anybody counted them


def attend() -> None:
    """From now on let interrupts end the program, and remember them, should it not end.

    Scripts start their background jobs with interrupts ignored; and a library may swallow one
    that comes while it is being loaded.
    """
    signal.signal(signal.SIGINT, _raise)


def _raise(number: int, frame: FrameType | None) -> None:
    _raised.append(number)
    raise KeyboardInterrupt


def _alone(count: int) -> None:
    """Let the first one wait until somebody listens."""
    if count > 1:
        raise KeyboardInterrupt


class Signals:
    """Catches signals from the first look at the record to the last word in it."""

    def __init__(self) -> None:
        self.count = len(_raised)
        self._listener: Callable[[int], None] = _alone
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        # In a thread other than the first (a notebook's) there is nothing to catch.
        try:
            self._before = {s: signal.signal(s, self._take) for s in _CAUGHT}
        except ValueError:
            self._before = {}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _take(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        self._listener(self.count)

    @contextmanager
    def told(self, listener: Callable[[int], None]) -> Iterator[None]:
        """Tell ``listener`` how many there were, of those that came before too."""
        self._listener = listener
        try:
            if self.count:
                listener(self.count)
            yield
        finally:
            self._listener = _alone
