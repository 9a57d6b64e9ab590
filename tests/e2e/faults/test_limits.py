"""What fails is tried again within its limits, and limits end a sweep as they should."""

from collections.abc import Callable

import pytest

from lorasweep.record import reading
from tests.e2e.faults.conftest import ENGINE, TWO, Sandbox

FOUR = ("lora.r=1,2,3,4", ENGINE.format("NoTorch"), TWO)
EIGHT = ("lora.r=1,2,3,...,8", *FOUR[1:])


def tags(box: Sandbox, name: str) -> dict[str, str]:
    return {r["lora.r"]: r[name] for r in reading.read(box.uri) if name in r}


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


def test_after_a_crash_the_next_trial_gets_a_clean_process(
    box: Sandbox, like_calm: Callable[[Sandbox, int], None]
) -> None:
    said = box.call(*EIGHT[:2], "executor.workers=1", FAULTY_STICK="2:1")
    like_calm(box, 8)
    assert box.starts() == {**{str(r): 1 for r in range(1, 9)}, "2": 2}
    assert said.count("again: ") == 1


def test_a_sweep_stops_after_several_crashes_without_a_success_and_says_why(box: Sandbox) -> None:
    every = ",".join(f"{rank}:99" for rank in range(1, 9))
    said = box.call(*EIGHT, code=1, FAULTY_CRASH=every)
    assert "stopping: 6 crashes one after another" in said
    assert "ValueError: injected" in said
    assert box.starts().total() <= 7
    assert set(box.states()) <= {"failed", "stopped"}
    box.call(*EIGHT)
    assert box.states() == {"done": 8}


PACK = ("lora.r=1,2,3,...,8", ENGINE.format("Packed"), "engine=packed", "engine.gpu_only=false")


def packs_of(box: Sandbox) -> list[list[int]]:
    return [[*map(int, line.split())] for line in (box.home / "packs").read_text().splitlines()]


def test_the_trials_of_a_worker_that_died_go_on_as_a_pack(box: Sandbox) -> None:
    said = box.call(*PACK, "executor.workers=1", FAULTY_KILL="3:1")
    assert packs_of(box) == [[*range(1, 9)]] * 2
    assert box.states() == {"done": 8}
    assert "8 trials of a pack, together: the worker process ended by itself" in said
    assert tags(box, "lorasweep.retries") == {}


@pytest.mark.parametrize("fault", ["KILL", "STICK"])
def test_a_trial_that_ends_each_of_its_processes_is_soon_alone(box: Sandbox, fault: str) -> None:
    box.call(*PACK, "executor.workers=1", code=1, **{f"FAULTY_{fault}": "3:99"})
    assert box.states() == {"done": 7, "failed": 1}
    packs = packs_of(box)
    assert packs[:2] == [[*range(1, 9)]] * 2
    assert [len(pack) for pack in packs if 3 in pack] == [8, 8, 4, 2] + [1] * (
        3 if fault == "KILL" else 2
    )
    assert [5, 6, 7, 8] in packs
    assert set(box.starts().values()) == {3, 4, 5, len([p for p in packs if 3 in p])}


def test_a_healthy_pack_is_not_ended_by_the_limit_of_one_trial(box: Sandbox) -> None:
    limited = (*PACK, "executor.workers=1", "executor.timeout=0.05")  # 3 s
    box.call(*limited, FAULTY_STEP_S=0.1)  # 6.4 s for a pack of 8
    assert packs_of(box) == [[*range(1, 9)]]
    assert box.states() == {"done": 8}


def test_a_trial_that_hangs_is_parted_from_its_pack_and_says_so(box: Sandbox) -> None:
    four = ("lora.r=1,2,3,4", *PACK[1:], "executor.workers=1", "executor.timeout=0.04")
    said = box.call(*four, code=1, FAULTY_STEP_S=0.01, FAULTY_HANG="3:99")
    assert box.states() == {"done": 3, "failed": 1}
    assert [len(pack) for pack in packs_of(box) if 3 in pack] == [4, 2, 1]
    assert "4 trials of a pack, 2 at a time: not done after executor.timeout=0.04 min" in said
    (key,) = (r["lorasweep.key"] for r in reading.read(box.uri) if r["lora.r"] == "3")
    error = (box.output / "sweep" / key / "error.txt").read_text()
    assert "not done after executor.timeout=0.04 minutes" in error
    assert "trial.log" in error
