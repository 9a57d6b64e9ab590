"""Ctrl-C is heard, also where somebody else has swallowed it."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from lorasweep.running import signals


@pytest.fixture
def attentive(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(signals, "_raised", [])
    signals.attend()
    yield
    signal.signal(signal.SIGINT, before)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.1)


@pytest.mark.usefixtures("attentive")
def test_an_interrupt_ends_what_is_being_loaded() -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupt()


@pytest.mark.usefixtures("attentive")
def test_an_interrupt_that_a_library_swallows_stops_the_sweep_at_its_first_step() -> None:
    heard: list[int] = []
    with contextlib.suppress(BaseException):
        interrupt()
    with signals.Signals() as caught, caught.told(heard.append):
        assert heard == [1]
        interrupt()
    assert heard == [1, 2]


STUCK = """
import sys, time
from lorasweep.running import signals
signals._GRACE_S = 1.0
signals.attend()
with signals.Signals() as caught, caught.told(lambda count: None):
    print("ready", flush=True)
    while True:  # as in a call that does not return: nothing that handlers say ends it
        time.sleep(1)
"""


def test_the_second_signal_ends_what_never_comes_back() -> None:
    process = subprocess.Popen([sys.executable, "-c", STUCK], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    time.sleep(1.5)
    assert process.poll() is None  # the first one only asks
    process.send_signal(signal.SIGTERM)
    try:
        assert process.wait(10) == 130
    finally:
        process.kill()
        process.stdout.close()
