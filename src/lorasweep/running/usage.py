"""Where the seconds of a sweep went."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class Use:
    """Seconds of start, of busy workers, and of load, train, eval and record over all of them."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = {}
        self.busy = 0.0  # seconds over all workers with at least one trial
        self.first: float | None = None
        self.last = 0.0
        self._on: dict[int, set[str]] = {}
        self._since: dict[int, float] = {}

    def begin(self, worker: int, key: str) -> None:
        """A trial starts on a worker."""
        now = time.time()
        self.first = self.first or now
        keys = self._on.setdefault(worker, set())
        if not keys:
            self._since[worker] = now
        keys.add(key)

    def end(self, key: str) -> None:
        """A trial has left its worker."""
        self.last = time.time()
        for worker, keys in self._on.items():
            if key in keys:
                keys.remove(key)
                if not keys:
                    self.busy += self.last - self._since[worker]

    def add(self, metrics: Mapping[str, float]) -> None:
        """Count a trial's own times."""
        for stage in ("load", "train", "eval", "pack_share"):
            seconds = metrics.get(f"time/{stage}_s", 0.0)
            if seconds:
                self.parts[stage] = self.parts.get(stage, 0.0) + seconds

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Count the time that the record takes."""
        start = time.time()
        yield
        self.parts["record"] = self.parts.get("record", 0.0) + time.time() - start

    def idle_share(self, workers: int) -> float:
        """Share of the workers' time between first start and last end in which they had nothing."""
        if self.first is None or self.last <= self.first:
            return 0.0
        return max(0.0, 1 - self.busy / (workers * (self.last - self.first)))

    def __str__(self) -> str:
        """Return the parts in seconds, largest first."""
        parts = sorted(self.parts.items(), key=lambda p: -p[1])
        return ", ".join(f"{name} {seconds:.1f}" for name, seconds in parts)
