"""One attempt at a trial: running, or waiting to run again."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lorasweep.planning import packs
from lorasweep.running import retries
from lorasweep.search.base import Suggestion
from lorasweep.trial.result import Failure
from lorasweep.trial.trial import Trial


@dataclass
class Attempt:
    """A trial that is being run, or waits to be run again."""

    suggestion: Suggestion
    run: str  # its run in the record
    change: dict[str, Any] = field(default_factory=dict)  # to its settings, after a failure
    failures: Counter[Failure] = field(default_factory=Counter)
    company: int | None = None  # most trials of a pack that it is tried again in; None: any pack
    began: float = 0.0
    moved: float = 0.0  # when it was last heard of
    used: float = 0.0  # seconds of its process: trials of a pack divide theirs
    worker: int | None = None
    pack: str = ""  # key of the trial that its pack began with

    @property
    def trial(self) -> Trial:
        """Return the trial as it was asked for."""
        return self.suggestion.trial

    @property
    def job(self) -> Trial:
        """Return the trial as it is run."""
        changed = Trial({**self.trial.config, **self.change}) if self.change else self.trial
        return packs.settled(changed)

    @property
    def tags(self) -> dict[str, str]:
        """Return what the record says of how the trial was run."""
        tags = {"lorasweep.engine": str(self.job["engine.name"]), "lorasweep.pack": self.pack}
        if self.failures:
            tags["lorasweep.retries"] = str(sum(self.failures.values()))
        if self.change:
            tags["lorasweep.changed"] = retries.typed(self.change)
        return tags

    def suspected(self, size: int, *, whole: bool) -> None:
        """Note that one of ``size`` trials ended the process of all; nobody knows which.

        They are tried again together, and if that ends so again in halves, down to one alone.

        Args:
            size: how many they are.
            whole: the first time may have come from outside.
        """
        self.company = size if whole and self.company is None else -(-size // 2)

    def may_join(self, pack: Sequence["Attempt"]) -> bool:
        """Whether it is let into a pack: who may end a process is kept from those who don't."""
        limits = [a.company for a in (self, *pack) if a.company is not None]
        if not pack or not limits:
            return True
        return len(limits) == 1 + len(pack) <= min(limits)
