"""Who lives, who has which trial, and results that wait for the record."""

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from lorasweep import leases
from lorasweep import record as records
from lorasweep.composition import Composer
from lorasweep.errors import RecordError
from lorasweep.outbox import Outbox
from lorasweep.record import Record
from lorasweep.trial import Result, Trial

Born = Callable[[str], Record]


def owner_of(process: subprocess.Popen[bytes]) -> leases.Owner:
    started = int(psutil.Process(process.pid).create_time())
    return replace(leases.here(), pid=process.pid, started=started)


def test_a_process_here_lives_as_long_as_it_does_whatever_its_lease() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    owner = owner_of(process)
    assert leases.Owner.parse(str(owner)) == owner
    assert leases.alive(str(owner), 0.0)
    assert not leases.alive(str(replace(owner, started=owner.started - 60)), time.time() + 60)
    process.kill()
    wait = time.monotonic() + 10
    while leases.alive(str(owner), time.time() + 60):  # a zombie is dead too
        assert time.monotonic() < wait
    process.wait()
    assert not leases.alive(str(owner), time.time() + 60)


def test_a_process_elsewhere_lives_as_long_as_its_lease() -> None:
    owner = str(replace(leases.here(), host="elsewhere"))
    assert leases.alive(owner, time.time() + 5)
    assert not leases.alive(owner, time.time() - 5)


@pytest.fixture
def trial(composer: Composer) -> Trial:
    return Trial({**composer([]).flat, "lora.alpha": 16, "name": "claims"})


@pytest.fixture
def born(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Born:
    """Open the record as a process on another machine would."""

    def act(host: str) -> Record:
        monkeypatch.setattr(leases, "here", lambda: leases.Owner(host, 1, 1))
        return Record(f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "artifacts")

    return act


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "_LOOK_S", 0.0)


def test_a_trial_is_held_by_one_until_its_lease_ends(
    born: Born, trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = born("a")
    sweep = first.open_sweep("claims", "s", "a test")
    first.join(sweep)
    run = first.claim(sweep, trial, "trainer")
    assert run is not None

    second = born("b")
    assert second.open_sweep("claims", "s", "a test") == sweep
    second.join(sweep)
    assert second.claim(sweep, trial, "trainer") is None
    assert [r["run_id"] for r in second.all()] == [run]  # what it asked with is withdrawn

    # The first is not heard of again.
    later = time.time() + leases.LEASE_S + 1
    monkeypatch.setattr(time, "time", lambda: later)
    second.renew(sweep)
    taken = second.claim(sweep, trial, "trainer", contested=True)
    assert taken not in (None, run)
    states = {r["run_id"]: r.get("lorasweep.state") for r in second.all()}
    assert states == {run: "stopped", taken: None}  # buried by who took over


def test_what_another_has_done_and_left_is_not_run_again(born: Born, trial: Trial) -> None:
    second = born("b")
    sweep = second.open_sweep("claims", "s", "a test")
    second.join(sweep)

    first = born("a")
    first.join(sweep)
    run = first.claim(sweep, trial, "trainer")
    assert run is not None
    first.close_trial(run, Result("done", {"eval/accuracy": 1.0}), {})
    first.leave(sweep)

    born("b")
    assert second.others() == frozenset()
    assert second.claim(sweep, trial, "trainer") is None


def test_a_run_that_was_ended_but_not_closed_keeps_its_state(born: Born, trial: Trial) -> None:
    first = born("a")
    sweep = first.open_sweep("claims", "s", "a test")
    run = first.claim(sweep, trial, "trainer")  # without a lease: taken for dead
    assert run is not None
    first.client.set_tag(run, "lorasweep.state", "done")

    born("b").join(sweep)
    assert [r["lorasweep.state"] for r in first.all()] == ["done"]
    assert first.client.get_run(run).info.status == "FINISHED"


def test_a_search_is_run_by_one_process(born: Born) -> None:
    first = born("a")
    sweep = first.open_sweep("claims", "s", "a test")
    first.join(sweep, only=True)
    with pytest.raises(RecordError, match="run by another process"):
        born("b").join(sweep, only=True)
    born("a").leave(sweep)
    born("b").join(sweep, only=True)


def test_results_wait_on_disk_for_whoever_comes_next(
    born: Born, trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = born("a")
    sweep = record.open_sweep("claims", "s", "a test")
    run = record.claim(sweep, trial, "trainer")
    assert run is not None
    folder = tmp_path / "trial"
    (folder / "artifacts").mkdir(parents=True)
    (folder / "artifacts" / "predictions.txt").write_text("0 1 1")
    result = Result(
        "done", {"eval/accuracy": 0.5}, [("train/loss", 1, 2.0)], folder=folder / "artifacts"
    )

    def away(*_: object) -> None:
        raise RecordError("gone")

    outbox = Outbox(record)
    with monkeypatch.context() as broken:
        broken.setattr(record, "close_trial", away)
        broken.setattr(record, "ping", away)
        assert not outbox.send(run, folder, result, {"lorasweep.retries": "1"})
        assert not outbox.flush(now=True)
    assert len(outbox.waiting) == 1

    later = born("b")  # the first ends without having reached it
    assert Outbox(later).collect([folder, tmp_path]) == 1
    (row,) = later.all()
    assert (row["lorasweep.state"], row["eval/accuracy"]) == ("done", 0.5)
    assert row["lorasweep.retries"] == "1"
    assert later.curve(run, "train/loss") == [(1, 2.0)]
    kept = tmp_path / "artifacts" / "claims" / run / "artifacts" / "predictions.txt"
    assert kept.read_text() == "0 1 1"
    assert Outbox(later).collect([folder]) == 0


def test_results_for_a_run_that_was_deleted_or_for_another_record_are_left_alone(
    born: Born, trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = born("a")
    run = record.claim(record.open_sweep("claims", "s", "a test"), trial, "trainer")
    assert run is not None
    outbox = Outbox(record)
    outbox.failed(RecordError("gone"))
    outbox.send(run, tmp_path, Result("done"), {})

    born("b")
    other = Record(f"sqlite:///{tmp_path}/other.db", tmp_path / "artifacts")
    assert Outbox(other).collect([tmp_path]) == 0
    assert (tmp_path / "result.json").exists()
    record.client.delete_run(run)
    assert Outbox(record).collect([tmp_path]) == 0
    assert not (tmp_path / "result.json").exists()
