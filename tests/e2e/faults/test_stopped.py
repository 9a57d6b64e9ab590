"""Ctrl-C, SIGTERM and a killed controller: nothing is lost, run twice, or left behind.

The trials are made up (``tests.e2e.faulty.NoTorch``) but depend on each of their steps, so that
the records' equality says that none was lost or taken twice.
"""

import random
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.e2e.faults.conftest import ENGINE, TWO, Sandbox, Sandboxes, Table, wait_for

EIGHT = ("lora.r=1,2,3,...,8", ENGINE.format("NoTorch"), TWO)
STOPPED = (130, -signal.SIGINT)  # before Python has begun to listen, a shell says 130 of it too


def test_a_killed_controller_takes_its_workers_along_and_the_same_command_goes_on(
    box: Sandbox, like_calm: Callable[[Sandbox, int], None]
) -> None:
    first = box.start(*EIGHT, FAULTY_STEP_S=0.3)
    first.hears("[2/8]")
    assert len(box.workers()) == 2
    first.process.kill()
    first.ends()
    box.no_process_is_left()
    assert box.running()  # nobody was left to close them
    said = box.call(*EIGHT)
    assert "already in the record" in said
    like_calm(box, 8)
    assert max(box.attempts().values()) == 2
    again = [r for r, n in box.starts().items() if n > 1]
    assert len(again) <= 2  # those that were under way


def test_interrupted_at_twenty_random_moments(
    sandboxes: Sandboxes, tmp_path: Path, like_calm: Callable[[Sandbox, int], None]
) -> None:
    boxes = [sandboxes(tmp_path / str(number)) for number in range(2)]
    with ThreadPoolExecutor() as both:  # ten for each of two records, as there are two cores
        codes = [c for found in both.map(interrupted, boxes, (4, 5)) for c in found]
    assert len(codes) == 20
    assert sum(c in STOPPED for c in codes) > 10, codes
    for box in boxes:
        box.call(*EIGHT)
        like_calm(box, 8)


def interrupted(box: Sandbox, seed: int) -> list[int]:
    """Start a sweep and interrupt it, ten times; what is left must be true each time."""
    draw, codes = random.Random(seed), []
    for moment in range(10):
        one = box.start(*EIGHT, FAULTY_STEP_S=2)
        if draw.random() < 0.8:
            one.hears("study 'sweep'")  # most of them while trials run
        time.sleep(draw.uniform(0, 2.5))
        one.tell(signal.SIGINT)
        codes.append(one.ends(60))
        assert codes[-1] in (0, *STOPPED), f"{moment}: {one.said}"
        assert "Traceback" not in one.said or "import" in one.said, one.said
        if (box.output / "mlflow.db").exists():
            box.is_left_clean()
    return codes


def test_stopped_trials_save_their_state_and_go_on_from_it(
    box: Sandbox, like_calm: Callable[[Sandbox, int], None]
) -> None:
    one = box.start(*EIGHT, FAULTY_STEP_S=0.5)
    wait_for(lambda: (box.home / "starts").exists(), "a start")
    time.sleep(1)
    one.process.send_signal(signal.SIGTERM)  # to the controller alone, as `kill` does
    assert one.ends() == 130
    box.is_left_clean()
    assert "running trials save their state" in one.said
    assert box.states() == {"stopped": 2}
    assert len(list(box.output.glob("sweep/*/state/steps.json"))) == 2
    box.call(*EIGHT)
    like_calm(box, 8)
    assert not list(box.output.glob("sweep/*/state"))


def test_a_sweep_that_runs_all_again_goes_on_where_it_was_stopped(
    box: Sandbox, like_calm: Callable[[Sandbox, int], None]
) -> None:
    again = (*EIGHT, "resume=fresh")
    box.call(*EIGHT)
    one = box.start(*again, FAULTY_STEP_S=0.3)
    one.hears("[2/8]")
    one.tell(signal.SIGINT)
    assert one.ends() == 130, one.said
    stopped = len(list(box.output.glob("sweep/*/state/steps.json")))
    said = box.call(*again)
    assert "already in the record" in said
    like_calm(box, 8)
    assert box.starts().total() == 16 + stopped  # those went on from where they were
    assert stopped <= 2
    assert max(box.starts().values()) == 2 + (stopped > 0)
    said = box.call(*again)  # it got to its end, so this is another one
    assert "already in the record" not in said
    assert box.starts().total() == 24 + stopped


def test_on_stop_finish_lets_trials_end(box: Sandbox) -> None:
    one = box.start(*EIGHT, "executor.on_stop=finish", FAULTY_STEP_S=0.5)
    wait_for(lambda: (box.home / "starts").exists(), "a start")
    one.tell(signal.SIGINT)
    assert one.ends() == 130
    box.is_left_clean()
    assert "stopping: running trials end" in one.said
    assert box.states() == {"done": box.starts().total()}
    assert 1 <= box.starts().total() <= 2


def test_twice_ends_now(box: Sandbox) -> None:
    one = box.start(*EIGHT, FAULTY_STEP_S=60)
    wait_for(lambda: (box.home / "starts").exists(), "a start")
    one.tell(signal.SIGINT)
    one.hears("press Ctrl-C again to exit now")
    one.tell(signal.SIGINT)
    assert one.ends(10) == 130
    box.is_left_clean()
    assert set(box.states()) == {"stopped"}


def test_a_search_makes_the_same_choices_after_a_restart(
    box: Sandbox, calm: Callable[..., Table]
) -> None:
    search = (
        "sampler=tpe", "sampler.trials=7", "sampler.startup=2", "lora.r=1,2,3,...,64",
        ENGINE.format("NoTorch"), "executor.workers=1",
    )  # fmt: skip
    one = box.start(*search, FAULTY_STEP_S=0.2)
    one.hears("[2/7]")
    one.tell(signal.SIGINT)
    assert one.ends() == 130
    box.is_left_clean()
    one = box.start(*search, FAULTY_STEP_S=0.2)
    one.hears("[1/")
    one.process.kill()
    one.ends()
    box.no_process_is_left()
    box.call(*search)
    assert box.table() == calm(*search)
    assert box.states() == {"done": 7}


def test_what_was_run_without_keeping_its_adapter_is_run_again_where_that_is_wanted(
    box: Sandbox,
) -> None:
    two = ("lora.r=1,2", ENGINE.format("NoTorch"), TWO)
    without = "engine.save_adapter=false"
    box.call(*two, without)
    assert '"new": 2' in box.call(*two, "plan=json")
    box.call(*two)
    assert box.starts() == {"1": 2, "2": 2}
    for more in ((), (without,)):  # what has its adapter is enough for both
        assert "2 already in the record" in box.call(*two, *more)
    assert box.starts() == {"1": 2, "2": 2}
    assert set(box.attempts().values()) == {2}
