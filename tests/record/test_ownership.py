"""Who lives, who has which trial, and results that wait for the record."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import psutil
import pytest
from mlflow.entities import ViewType

from lorasweep.errors import RecordError
from lorasweep.record import leases
from lorasweep.record import record as records
from lorasweep.record.record import Record
from lorasweep.record.sqlite_store import Tables
from lorasweep.running import outbox
from lorasweep.running.outbox import Outbox, collect
from lorasweep.space.composition import Composer
from lorasweep.trial.result import Result
from lorasweep.trial.trial import Trial

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


def test_machines_with_equal_names_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cloned machine has the name, the process numbers and the containers of the other."""
    read, names = Path.read_text, set()
    for boot in ("1b4e28ba", "6fa459ea", "6fa459ea"):
        with monkeypatch.context() as cloned:
            cloned.setattr(
                Path, "read_text", lambda file, b=boot: b if file.name == "boot_id" else read(file)
            )
            leases.here.cache_clear()
            names.add(leases.here().host)
    leases.here.cache_clear()
    assert len(names) == 2
    elsewhere = str(replace(leases.here(), host=names.pop()))
    assert not leases.alive(elsewhere, time.time() - 5)  # though such a process lives here


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
    assert [r["run_id"] for r in second.all()] == [run]

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


def test_a_pruned_trial_is_claimed_where_it_is_wanted_whole(born: Born, trial: Trial) -> None:
    first = born("a")
    sweep = first.open_sweep("claims", "s", "a test")
    first.join(sweep)
    run = first.claim(sweep, trial, "trainer")
    assert run is not None
    first.close_trial(run, Result("pruned"), {})

    second = born("b")  # the first is still about
    second.join(sweep)
    assert second.claim(sweep, trial, "trainer") is None
    whole = partial(second.claim, enough=lambda tags: tags.get("lorasweep.state") == "done")
    assert whole(sweep, trial, "trainer") is not None


def test_who_asks_at_the_same_moment_leaves_no_trace(born: Born, trial: Trial) -> None:
    first, second = born("a"), born("b")
    sweep = first.open_sweep("claims", "s", "a test")
    second.join(sweep)
    born("a")
    first.join(sweep)
    ask = first._create

    def asked(*arguments: Any) -> str:
        """Have the second claim the trial when the first has looked and found none."""
        first._create = ask
        born("b")
        held = second.claim(sweep, trial, "trainer")
        second.mark(held, "lorasweep.claim", "held")
        born("a")
        return ask(*arguments)

    first._create = asked
    assert first.claim(sweep, trial, "trainer") is None
    (row,) = first.all()
    assert row["lorasweep.owner"].startswith("b:")
    studies = [e.experiment_id for e in first.client.search_experiments()]
    assert not first.client.search_runs(studies, run_view_type=ViewType.DELETED_ONLY)


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


@dataclass
class Post:
    """An outbox with what it said, and trials that have ended."""

    record: Record
    folder: Path
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sweep = self.record.open_sweep("claims", "s", "a test")
        ping = partial(self.record.renew, self.sweep)
        self.outbox = Outbox(self.record, ping, self.said.append)

    def started(self, trial: Trial) -> str:
        run = self.record.claim(self.sweep, trial, "trainer")
        assert run is not None
        return run

    def ended(self, trial: Trial, run: str) -> Path:
        """Send the result of a trial; returns the trial's folder."""
        folder = self.folder / trial.key
        (folder / "artifacts").mkdir(parents=True)
        (folder / "artifacts" / "predictions.txt").write_text("0 1 1")
        curve = [("train/loss", 1, 2.0)]
        result = Result("done", {"eval/accuracy": 0.5}, curve, folder=folder / "artifacts")
        self.outbox.send(run, folder, result, {"lorasweep.retries": "1"})
        return folder

    def flushed(self, times: int) -> list[bool]:
        return [self.outbox.flush(now=True) for _ in range(times)]


@pytest.fixture
def post(born: Born, tmp_path: Path) -> Post:
    return Post(born("a"), tmp_path / "study")


@pytest.fixture(params=["tables", "client"])
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a local record written straight into its tables, or through MLflow's client."""
    if request.param == "client":
        monkeypatch.setattr(Tables, "of", lambda file: None)


def seeded(trial: Trial, seed: int) -> Trial:
    return Trial({**trial.config, "seed": seed})


def away(*_: object) -> None:
    raise RecordError("gone")


def test_results_wait_on_disk_for_whoever_comes_next(
    post: Post, born: Born, trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = post.started(trial)
    with monkeypatch.context() as broken:
        broken.setattr(post.record, "close_trial", away)
        broken.setattr(post.outbox, "ping", away)
        folder = post.ended(trial, run)
        assert post.flushed(5) == [False] * 5  # out of reach is no refusal
    assert len(post.outbox.waiting) == 1
    post.record.abandon(post.sweep)  # the first gives up, and takes nothing back

    later = born("b")
    assert list(collect(later, post.folder)) == []
    (row,) = later.all()
    assert (row["lorasweep.state"], row["eval/accuracy"]) == ("done", 0.5)
    assert row["lorasweep.retries"] == "1"
    assert later.curve(run, "train/loss") == [(1, 2.0)]
    kept = tmp_path / "artifacts" / "claims" / run / "artifacts" / "predictions.txt"
    assert kept.read_text() == "0 1 1"
    assert list(folder.iterdir()) == []


@pytest.mark.usefixtures("store")
def test_a_result_whose_run_was_deleted_is_put_aside_and_the_others_go_on(
    post: Post, born: Born, trial: Trial
) -> None:
    trials = [seeded(trial, n) for n in range(3)]
    runs = [post.started(one) for one in trials]
    post.record.client.delete_run(runs[0])
    folders = [post.ended(*one) for one in zip(trials[:2], runs[:2], strict=True)]
    post.outbox.failed(RecordError("gone"))
    folders.append(post.ended(trials[2], runs[2]))
    assert post.flushed(1) == [True]
    assert {r["run_id"]: r["lorasweep.state"] for r in post.record.all()} == dict.fromkeys(
        runs[1:], "done"
    )
    kept = folders[0] / "refused" / runs[0]
    assert {f.name for f in kept.iterdir()} == {"artifacts", "result.json"}
    assert (kept / "artifacts" / "predictions.txt").read_text() == "0 1 1"
    (said,) = post.said
    assert str(kept / "result.json") in said
    assert "its run was deleted from the record" in said

    later = born("b")
    for _ in range(2):  # told at each start, until it is taken away
        (sentence,) = collect(later, post.folder)
        assert str(kept) in sentence
    later.client.restore_run(runs[0])
    assert list(collect(later, post.folder)) == []
    assert [r["lorasweep.state"] for r in later.all()] == ["done"] * 3
    assert not kept.exists()


@pytest.mark.usefixtures("store")
def test_a_result_whose_artefacts_cannot_be_written_is_put_aside_and_the_others_go_on(
    post: Post, born: Born, trial: Trial, tmp_path: Path
) -> None:
    trials = [seeded(trial, n) for n in range(2)]
    runs = [post.started(one) for one in trials]
    place = tmp_path / "artifacts" / "claims" / runs[0]
    place.parent.mkdir(parents=True)
    place.write_text("no folder")
    folders = [post.ended(*one) for one in zip(trials, runs, strict=True)]
    assert post.flushed(2) == [False, True]  # the first is tried three times
    found = {r["run_id"]: r["lorasweep.state"] for r in post.record.all()}
    assert found == {runs[0]: "stopped", runs[1]: "done"}
    assert list(folders[0].glob("refused/*/artifacts/predictions.txt"))

    later = born("b")
    (sentence,) = collect(later, post.folder)
    assert "its trial is run again" in sentence
    place.unlink()
    assert list(collect(later, post.folder)) == []
    assert [r["lorasweep.state"] for r in later.all()] == ["done", "done"]
    assert (place / "artifacts" / "predictions.txt").read_text() == "0 1 1"


def test_patience_counts_from_the_first_failure_with_nothing_written_since(
    post: Post, trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, failing = [1000.0], RecordError("no room")
    monkeypatch.setattr(outbox.time, "monotonic", lambda: clock[0])

    def refused(seed: int) -> None:
        one = seeded(trial, seed)
        post.ended(one, post.started(one))
        clock[0] += 20
        post.flushed(2)

    with monkeypatch.context() as broken:
        broken.setattr(post.record, "close_trial", Mock(side_effect=failing))
        refused(1)
        assert post.outbox.hopeless(1) is None
        clock[0] += 600  # a long trial; that the record answers meanwhile changes nothing
        post.flushed(1)
        refused(2)
        assert post.outbox.hopeless(1) == "no room; gave up after 1 min"
    refused(3)  # this one is taken
    assert post.outbox.hopeless(1) is None
    for _ in range(3):  # what fails now and then, and works again, is waited for
        post.outbox.failed(failing)
        assert post.flushed(1) == [True]
        clock[0] += 600
    assert post.outbox.hopeless(1) is None
    for _ in range(5):  # it can be read, but nothing can be started in it
        post.outbox.failed(failing)
        assert post.flushed(1) == [True]
        clock[0] += 20
    assert post.outbox.hopeless(1) == "no room; gave up after 1 min"


def test_a_sweep_that_was_deleted_is_given_up_at_once(post: Post) -> None:
    post.outbox.failed(RecordError("gone"))
    assert post.outbox.hopeless(1) is None
    post.record.client.delete_run(post.sweep)
    assert post.flushed(1) == [False]
    assert "the run of this sweep was deleted" in str(post.outbox.hopeless(1))


def test_what_waits_for_another_record_or_is_of_another_version_is_left_alone(
    post: Post, born: Born, trial: Trial, tmp_path: Path
) -> None:
    post.outbox.failed(RecordError("gone"))
    folder = post.ended(trial, post.started(trial))
    born("b")
    other = Record(f"sqlite:///{tmp_path}/other.db", tmp_path / "artifacts")
    assert list(collect(other, post.folder)) == []
    content = json.loads((folder / "result.json").read_text())
    content["result"]["news"] = 1
    for text in (json.dumps(content), json.dumps({"record": post.record.uri}), "[]", "{"):
        (folder / "result.json").write_text(text)
        (sentence,) = collect(post.record, post.folder)
        assert "is no result as this version writes them" in sentence
        assert (folder / "result.json").read_text() == text
