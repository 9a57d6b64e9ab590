"""Ctrl-C, SIGTERM and a killed controller: nothing is lost, run twice, or left behind.

The trials are made up (``tests.e2e.faulty.NoTorch``) but depend on each of their steps, so that
the records' equality says that none was lost or taken twice.
"""

import random
import signal
import time
from collections.abc import Callable

from tests.e2e.faults.conftest import ENGINE, TWO, Sandbox, Table

EIGHT = ("lora.r=1,2,3,...,8", ENGINE.format("NoTorch"), TWO)
STOPPED = (130, -signal.SIGINT)  # before Python has begun to listen, a shell says 130 of it too


def test_a_killed_controller_takes_its_workers_along_and_the_same_command_goes_on(
    box: Sandbox, calm: Callable[..., Table]
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
    assert box.table() == calm(*EIGHT)
    assert max(box.attempts().values()) == 2
    again = [r for r, n in box.starts().items() if n > 1]
    assert len(again) <= 2  # those that were under way


def test_interrupted_at_twenty_random_moments(box: Sandbox, calm: Callable[..., Table]) -> None:
    draw, codes = random.Random(4), []
    for moment in range(20):
        one = box.start(*EIGHT, FAULTY_STEPS=8, FAULTY_STEP_S=0.2)
        if draw.random() < 0.8:
            one.hears("study 'sweep'")  # most of them while trials run
        time.sleep(draw.uniform(0, 2.5))
        one.tell(signal.SIGINT)
        codes.append(one.ends(60))
        assert codes[-1] in (0, *STOPPED), f"{moment}: {one.said}"
        assert "Traceback" not in one.said or "import" in one.said, one.said
        if box.output.exists() and (box.output / "mlflow.db").exists():
            box.is_left_clean()
    box.call(*EIGHT, FAULTY_STEPS=8, FAULTY_STEP_S=0.0)
    assert box.table() == calm(*EIGHT, FAULTY_STEPS=8, FAULTY_STEP_S=0.0)
    assert sum(c in STOPPED for c in codes) > 10, codes
