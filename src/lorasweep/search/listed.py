"""Samplers that know every trial beforehand: ``grid`` and ``zip``."""

import hashlib
from collections.abc import Mapping, Sequence

from lorasweep.search.base import Past, Suggestion
from lorasweep.trial.result import State
from lorasweep.trial.trial import Trial


class Listed:
    """Hands out trials in order. What is done is known by key, so it keeps no history."""

    remembers = False
    searched: frozenset[str] = frozenset()

    def __init__(self, trials: Sequence[Trial]) -> None:
        self.trials = list(trials)
        self.total = len(self.trials)
        keys = "".join(sorted(t.key for t in self.trials))
        # The same set of trials is the same sweep, however it was typed.
        self.identity = hashlib.sha256(keys.encode()).hexdigest()[:8]
        self._next = 0

    def restore(self, past: Sequence[Past]) -> None:
        """Nothing to restore."""

    def ask(self) -> Suggestion | None:
        """Return the next trial in order."""
        if self._next >= self.total:
            return None
        number, self._next = self._next, self._next + 1
        return Suggestion(number, self.trials[number], {})

    def tell(self, number: int, state: State, metrics: Mapping[str, float]) -> None:
        """Nothing to learn."""
