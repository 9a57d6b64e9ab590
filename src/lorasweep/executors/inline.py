"""Trials in this process, one pack after another (``python sweep.py`` without ``-m``)."""

import time
from collections.abc import Sequence

from lorasweep.executors.base import Handler, Job
from lorasweep.executors.link import Link


class Inline:
    """One worker, this process; ``submit`` returns when the pack has ended."""

    workers = 1

    def __init__(self) -> None:
        self.link: Link | None = None
        self._stopping = self._running = False

    @property
    def stopping(self) -> bool:
        """Whether running trials are to save what they need to go on, and stop."""
        return self._stopping

    @stopping.setter
    def stopping(self, value: bool) -> None:
        self._stopping = value
        if self.link is not None:
            self.link.stopping = value

    def start(self, handler: Handler) -> None:
        """Tell ``handler`` from now on."""
        self.link = Link(handler, 0)
        self.link.stopping = self._stopping

    def idle(self) -> list[int]:
        """Return this process; a pack that runs keeps the caller busy."""
        return [0]

    def submit(self, worker: int, pack: Sequence[Job]) -> None:
        """Run the pack."""
        assert self.link is not None
        self._running = True
        try:
            self.link.run(pack)
        finally:
            self._running = False

    def poll(self, seconds: float) -> None:
        """Nothing happens between packs; but where nothing can be started, the loop is slow."""
        time.sleep(seconds / 10)

    def interrupt(self) -> None:
        """Break off the pack that runs."""
        if self._running:
            raise KeyboardInterrupt

    def kill(self, worker: int) -> list[str]:
        """Forget the engine and its base: the process itself is the caller's."""
        if self.link is not None:
            self.link.engine = None
        return []

    def close(self) -> None:
        """Forget the engine and its base."""
        self.link = None
