"""What fails is tried again within its limits, and limits end a sweep as they should."""

from collections.abc import Callable

from lorasweep import record
from tests.e2e.faults.conftest import ENGINE, TWO, Sandbox

FOUR = ("lora.r=1,2,3,4", ENGINE.format("NoTorch"), TWO)
EIGHT = ("lora.r=1,2,3,...,8", *FOUR[1:])


def tags(box: Sandbox, name: str) -> dict[str, str]:
    return {r["lora.r"]: r[name] for r in record.read(box.uri) if name in r}


def test_what_fails_once_is_run_again_and_the_record_is_as_if_nothing_had_been(
    box: Sandbox, like_calm: Callable[[Sandbox, int], None]
) -> None:
    said = box.call(
        *FOUR, "executor.timeout=0.1", "executor.retries.timeout=1",
        FAULTY_CRASH="1:1", FAULTY_KILL="2:1", FAULTY_OOM="3:2", FAULTY_SLOW="4:1",
    )  # fmt: skip
    like_calm(box, 4)
    assert set(box.attempts().values()) == {1}  # an attempt is no run of its own
    assert box.starts() == {"1": 2, "2": 2, "3": 3, "4": 2}
    assert tags(box, "lorasweep.retries") == {"1": "1", "2": "1", "3": "2", "4": "1"}
    assert tags(box, "lorasweep.changed") == {"3": "train.checkpointing=true"}
    for reason in ("ValueError: injected", "exit code -9", "not done after executor.timeout=0.1"):
        assert reason in said


def test_what_fails_again_and_again_is_given_up_and_resumed_as_asked(
    box: Sandbox, like_calm: Callable[[Sandbox, int], None]
) -> None:
    faults = {"FAULTY_CRASH": "1:99", "FAULTY_KILL": "2:99", "FAULTY_OOM": "3:99"}
    box.call(*FOUR, "executor.oom=[alone]", code=1, **faults)
    assert box.states() == {"failed": 2, "oom": 1, "done": 1}
    assert box.starts() == {"1": 2, "2": 3, "3": 2, "4": 1}

    said = box.call(*FOUR, "resume=only_missing", code=1)
    assert "4 already in the record" in said
    assert box.starts().total() == 8

    box.call(*FOUR)  # resume=retry_failed
    like_calm(box, 4)
    assert box.starts() == {"1": 3, "2": 4, "3": 3, "4": 1}

    box.call(*FOUR, "resume=fresh")
    like_calm(box, 4)
    assert box.starts() == {"1": 4, "2": 5, "3": 4, "4": 2}


def test_a_sweep_ends_after_too_many_failures(box: Sandbox) -> None:
    faults = {"FAULTY_CRASH": "1:9,2:9,3:9", "FAULTY_STEP_S": 0.3}
    common = (*EIGHT, "executor.retries.crash=0", "executor.max_in_flight=1")
    said = box.call(*common, "executor.max_failures=2", code=1, **faults)
    assert "stopping: 2 failed" in said
    assert box.states() == {"failed": 2}
    said = box.call(*common, "executor.fail_fast=true", "resume=only_missing", code=1, **faults)
    assert "stopping: 1 failed" in said
    assert box.states() == {"failed": 3}


def test_nothing_is_started_that_would_end_too_late_nor_more_at_once_than_allowed(
    box: Sandbox,
) -> None:
    said = box.call(
        *EIGHT, "executor.time_budget=0.15", "executor.max_in_flight=1", code=130,
        FAULTY_STEP_S=0.5,
    )  # fmt: skip
    assert "would not end in time" in said
    assert set(box.states()) <= {"done"}
    assert box.states()["done"] < 8
    assert not (box.home / "overlaps").exists()
