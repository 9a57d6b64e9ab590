"""Ctrl-C and SIGTERM while a sweep is under way: counted, and told to who knows what to end.

They never break off what is being written to the record. Only the second one, where nobody
listens, ends as Python would.
"""

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any, Self

import psutil

from lorasweep import errors

_CAUGHT = (signal.SIGINT, signal.SIGTERM)
_GRACE_S = 10.0  # after the second one: for the last words in the record
_raised: list[int] = []  # interrupts of this process before anybody counted them

_own: list[bool] = []  # whether this process is the command line's, and may be ended by it


def attend() -> None:
    """From now on let interrupts end the program, and remember them, should it not end.

    Scripts start their background jobs with interrupts ignored; and a library may swallow one
    that comes while it is being loaded.
    """
    signal.signal(signal.SIGINT, _raise)
    _own.append(True)


def _raise(number: int, frame: FrameType | None) -> None:
    _raised.append(number)
    raise KeyboardInterrupt


def _alone(count: int) -> None:
    """Let the first one wait until somebody listens."""
    if count > 1:
        raise KeyboardInterrupt


@contextmanager
def _ended_at_the_second() -> Iterator[None]:
    """End this process some seconds after the second signal if it has not ended by itself.

    Python tells handlers only between two of its instructions: a call into a library that does
    not return would never let it hear.
    """
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    left = threading.Event()

    def watch() -> None:
        count = 0
        while count < 2:
            count += sum(number in _CAUGHT for number in ours.recv(64))
            if left.is_set():
                return
        if not left.wait(_GRACE_S):
            for child in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    child.kill()
            os.write(2, b"ended in the midst of a call that hung; the same command goes on\n")
            os._exit(errors.STOPPED)

    thread = threading.Thread(target=watch, daemon=True)
    before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        left.set()
        theirs.close()
        thread.join()
        ours.close()


class Signals:
    """Catches signals from the first look at the record to the last word in it."""

    def __init__(self) -> None:
        self.count = len(_raised)
        self._listener: Callable[[int], None] = _alone
        self._before: dict[signal.Signals, Any] = {}
        self._watch = ExitStack()

    def __enter__(self) -> Self:
        # In a thread other than the first (a notebook's) there is nothing to catch.
        try:
            self._before = {s: signal.signal(s, self._take) for s in _CAUGHT}
        except ValueError:
            self._before = {}
        if self._before and _own:
            self._watch.enter_context(_ended_at_the_second())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._watch.close()
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
