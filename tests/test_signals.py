"""Ctrl-C is heard, also where somebody else has swallowed it."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator

import pytest

from lorasweep import signals


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
