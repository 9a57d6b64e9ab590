"""Trials on tiny bases, and someone who watches them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from lorasweep.engines.base import Engine
from lorasweep.space import expand, grammar
from lorasweep.space.composition import Composer
from lorasweep.trial.result import Result
from lorasweep.trial.trial import Trial

Make = Callable[..., list[Trial]]
SMALL = ["train.batch_size=8", "train.max_length=48", "train.learning_rate=5e-3", "lora.r=4"]


class Watch:
    """Notes what it is told; prunes, stops and hands out further trials as it was told to."""

    def __init__(self, more: Sequence[Trial] = ()) -> None:
        self.stopping = False
        self.more = list(more)
        self.results: dict[str, Result] = {}
        self.steps: list[tuple[str, int]] = []
        self.stop_after: int | None = None
        self.prune: Callable[[Trial, int], bool] = lambda trial, step: False

    def step(self, trial: Trial, step: int, total: int, loss: float | None) -> None:
        self.steps.append((trial.key, step))
        if self.stop_after is not None and step >= self.stop_after:
            self.stopping = True

    def report(self, trial: Trial, step: int, scores: Mapping[str, float]) -> bool:
        assert 0 <= scores["eval/accuracy"] <= 1
        return self.prune(trial, step)

    def end(self, trial: Trial, result: Result) -> None:
        assert trial.key not in self.results, "a trial ends once"
        self.results[trial.key] = result

    def next(self) -> Trial | None:
        return self.more.pop(0) if self.more else None


@pytest.fixture(autouse=True)
def _cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORASWEEP_CACHE", str(cache))


@pytest.fixture(scope="session")
def make(composer: Composer, data: list[str]) -> Make:
    """Trials as the command line would make them."""

    def made(*overrides: str) -> list[Trial]:
        problems: list[str] = []
        described = grammar.read([*data, *SMALL, *overrides], {}, composer, problems)
        trials = expand.expand(described, composer, problems)
        assert not problems
        return trials

    return made


def place(root: Path) -> Callable[[Trial], Path]:
    return lambda trial: root / trial.key / "artifacts"


def run(engine: Engine, trials: Sequence[Trial], root: Path, watch: Watch | None = None) -> Watch:
    watch = watch or Watch()
    engine.run(trials, place(root), watch)
    return watch
