"""What is tried again after a failure, and in which order."""

import pytest

from lorasweep.running import retries
from lorasweep.space.composition import Composer
from lorasweep.trial.result import Failure
from lorasweep.trial.trial import Trial

POLICY = {
    "retries.crash": 1, "retries.lost": 2, "retries.timeout": 0,
    "oom": ["alone", "checkpointing", "accumulate"],
}  # fmt: skip


@pytest.fixture
def trial(composer: Composer) -> Trial:
    return Trial({**composer([]).flat, "train.batch_size": 12, "train.accumulation": 2})


def test_memory_is_saved_step_by_step_at_the_same_effective_batch(trial: Trial) -> None:
    ways = list(retries.ladder(trial, POLICY["oom"]))
    assert ways == [
        {},
        {"train.checkpointing": True},
        {"train.checkpointing": True, "train.batch_size": 6, "train.accumulation": 4},
        {"train.checkpointing": True, "train.batch_size": 3, "train.accumulation": 8},
    ]
    for way in ways:
        tried = {**trial.config, **way}
        assert tried["train.batch_size"] * tried["train.accumulation"] == 24


def test_only_what_is_allowed_and_new_is_tried(trial: Trial) -> None:
    assert list(retries.ladder(trial, [])) == []
    already = Trial({**trial.config, "train.checkpointing": True, "train.batch_size": 1})
    assert list(retries.ladder(already, POLICY["oom"])) == [{}]


@pytest.mark.parametrize(
    ("failure", "tries"), [("crash", 1), ("lost", 2), ("timeout", 0), ("oom", 4), ("disk", 0)]
)
def test_each_kind_of_failure_has_its_limit(trial: Trial, failure: Failure, tries: int) -> None:
    found = [retries.again(trial, failure, n, POLICY) is not None for n in range(1, 7)]
    assert found == [n <= tries for n in range(1, 7)]


def test_changes_are_written_as_one_would_type_them() -> None:
    change = {"train.checkpointing": True, "train.batch_size": 4}
    assert retries.typed(change) == "train.checkpointing=true train.batch_size=4"
