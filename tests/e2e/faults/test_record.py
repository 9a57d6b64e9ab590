"""The record shared by two controllers, out of reach, or out of room: it stays true."""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.entities import ViewType

from lorasweep.record import reading
from tests.e2e.faults.conftest import ENGINE, TWO, Sandbox, Sandboxes, wait_for
from tests.e2e.faults.servers import MlflowServer, postgres

Calm = Callable[[Sandbox, int], None]
EIGHT = ("lora.r=1,2,3,...,8", ENGINE.format("NoTorch"), TWO)


def test_two_controllers_share_the_work_and_one_outlives_the_other(
    box: Sandbox, like_calm: Calm
) -> None:
    both = [box.start(*EIGHT, FAULTY_STEP_S=0.1) for _ in range(2)]
    assert [one.ends() for one in both] == [0, 0], both[0].said + both[1].said
    box.is_left_clean()
    like_calm(box, 8)
    assert set(box.starts().values()) == {1}
    assert set(box.attempts().values()) == {1}
    assert all("8 of 8 trials done" in one.said for one in both)
    client = mlflow.MlflowClient(box.uri)
    studies = [study.experiment_id for study in client.search_experiments()]
    assert not client.search_runs(studies, run_view_type=ViewType.DELETED_ONLY)

    sixteen = ("lora.r=1,2,3,...,16", *EIGHT[1:])
    both = [box.start(*sixteen, FAULTY_STEP_S=0.3) for _ in range(2)]
    wait_for(lambda: box.starts().total() >= 12, "both at work")
    both[0].process.kill()
    assert both[1].ends() == 0, both[1].said
    both[0].ends()
    box.is_left_clean()
    like_calm(box, 16)


def test_what_was_pruned_is_run_whole_by_one_of_two_controllers(
    box: Sandbox, like_calm: Calm
) -> None:
    box.call("lora.r=3,4", *EIGHT[1:])
    client = mlflow.MlflowClient(box.uri)
    for row in reading.read(box.uri):
        client.set_tag(row["run_id"], "lorasweep.state", "pruned")
    four = ("lora.r=1,2,3,4", *EIGHT[1:])
    # The first two ranks last until either controller knows of the other.
    both = [box.start(*four, FAULTY_STEP_S=0.8) for _ in range(2)]
    assert [one.ends() for one in both] == [0, 0], both[0].said + both[1].said
    box.is_left_clean()
    assert all("4 trials (4 new)" in one.said for one in both)
    assert box.starts() == {"1": 1, "2": 1, "3": 2, "4": 2}
    like_calm(box, 4)


def test_a_local_record_goes_on_where_mlflow_cannot_be_loaded(
    box: Sandbox, tmp_path: Path, like_calm: Calm
) -> None:
    box.call(*EIGHT)
    broken = tmp_path / "broken" / "mlflow"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('it takes seconds')")
    path = os.pathsep.join([str(broken.parent), os.environ.get("PYTHONPATH", "")])
    sixteen = ("lora.r=1,2,3,...,16", *EIGHT[1:])
    said = box.call(*sixteen, PYTHONPATH=path)  # some are left
    assert "16 trials, 8 already in the record" in said
    said = box.call(*sixteen, "name=other", PYTHONPATH=path)  # all were done by another study
    assert "16 of 16 trials done" in said
    assert set(box.starts().values()) == {1}
    like_calm(box, 16)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MlflowServer]:
    made = MlflowServer(tmp_path / "server")
    made.start()
    yield made
    made.stop()


def test_a_server_that_goes_away_costs_no_result(
    sandboxes: Sandboxes, server: MlflowServer, tmp_path: Path, like_calm: Calm
) -> None:
    box = sandboxes(tmp_path, server.uri)
    command = (*EIGHT, "tracking=server", f"tracking.uri={server.uri}")
    one = box.start(*command, FAULTY_STEP_S=0.3)
    one.hears("[2/8]")
    server.stop()
    wait_for(lambda: list(box.output.glob("sweep/*/result.json")), "a result on disk")
    server.start()
    one.hears("[5/8]")
    server.stop()
    wait_for(lambda: list(box.output.glob("sweep/*/result.json")), "a result on disk")
    one.tell(signal.SIGINT)  # who does not wish to wait finds it there the next time
    assert one.ends() == 130, one.said
    assert "wait on disk for the record" in one.said
    box.no_process_is_left()
    server.start()
    box.call(*command, FAULTY_STEP_S=0.3)
    like_calm(box, 8)
    assert set(box.starts().values()) <= {1, 2}
    assert not list(box.output.glob("sweep/*/result.json"))
    box.end()


def test_two_controllers_on_a_server_over_postgresql(
    sandboxes: Sandboxes, tmp_path: Path, like_calm: Calm
) -> None:
    (tmp_path / "postgres").mkdir()
    with postgres(tmp_path / "postgres") as store:
        server = MlflowServer(tmp_path / "server", store)
        try:
            server.start()
            box = sandboxes(tmp_path, server.uri)
            command = (*EIGHT, "tracking=server", f"tracking.uri={server.uri}")
            both = [box.start(*command, FAULTY_STEP_S=0.1) for _ in range(2)]
            assert [one.ends() for one in both] == [0, 0], both[0].said + both[1].said
            box.is_left_clean()
            like_calm(box, 8)
            assert set(box.starts().values()) == {1}
            box.end()
        finally:
            server.stop()


@pytest.mark.parametrize("store", ["file", "server"])
def test_a_result_that_the_record_refuses_is_put_aside_and_the_others_go_on(
    sandboxes: Sandboxes, tmp_path: Path, like_calm: Calm, store: str, request: Any
) -> None:
    uri = request.getfixturevalue("server").uri if store == "server" else None
    box = sandboxes(tmp_path / "box", uri)
    command = (*EIGHT, f"tracking.uri={box.uri}")
    one = box.start(*command, FAULTY_STEP_S=0.5)
    wait_for(lambda: (box.home / "starts").exists() and box.starts().total() >= 2, "two runs")
    runs = {row["lora.r"]: row["run_id"] for row in reading.read(box.uri)}
    client = mlflow.MlflowClient(box.uri, box.uri)
    study = client.get_run(runs["2"]).info.experiment_id
    client.delete_run(runs["1"])
    here, there = box.output / "artifacts" / "sweep", tmp_path / "server" / "artifacts" / study
    blocked = (there if store == "server" else here) / runs["2"]
    blocked.parent.mkdir(parents=True, exist_ok=True)
    blocked.write_text("no folder")
    assert one.ends() == 3, one.said
    box.is_left_clean()
    assert "its run was deleted from the record" in one.said
    assert "2 of the results are not in the record" in one.said
    assert "Traceback" not in one.said
    assert box.states() == {"done": 6, "stopped": 1}
    assert len(list(box.output.glob("sweep/*/refused/*/result.json"))) == 2

    blocked.unlink()
    said = box.call(*command)
    assert "a result that is not in the record stays in" in said
    like_calm(box, 8)
    assert box.starts() == {**{str(r): 1 for r in range(2, 9)}, "1": 2}
    box.end()


def test_a_study_that_is_deleted_meanwhile_ends_the_sweep_with_a_sentence(box: Sandbox) -> None:
    one = box.start(*EIGHT, FAULTY_STEP_S=0.3)
    one.hears("[2/8]")
    client = mlflow.MlflowClient(box.uri)
    study = client.get_experiment_by_name("sweep")
    assert study is not None
    client.delete_experiment(study.experiment_id)
    assert one.ends() == 3, one.said
    box.no_process_is_left()
    assert "was deleted from the record" in one.said
    assert "Traceback" not in one.said
    client.restore_experiment(study.experiment_id)
    box.call(*EIGHT)
    assert box.states() == {"done": 8}
    assert set(box.starts().values()) <= {1, 2}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB."""
    folder = tmp_path / "out"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a small file system cannot be mounted here: {error}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_stops_the_sweep_with_a_sentence_and_costs_nothing(
    small_disk: Path, box: Sandbox, like_calm: Calm
) -> None:
    command = (*EIGHT, "tracking.patience=0.05")
    one = box.start(*command, FAULTY_STEP_S=0.3)
    one.hears("[2/8]")
    filler = fill(small_disk)
    assert one.ends() == 3, one.said
    box.no_process_is_left()
    assert "No space left" in one.said or "full" in one.said
    assert "Traceback" not in one.said
    filler.unlink()
    box.call(*command)
    like_calm(box, 8)
    assert set(box.starts().values()) <= {1, 2}


@pytest.mark.parametrize("full", ["the record", "the artefacts"])
def test_what_was_trained_when_the_record_had_no_room_is_written_by_the_same_command(
    small_disk: Path, sandboxes: Sandboxes, tmp_path: Path, like_calm: Calm, full: str
) -> None:
    """What was trained stays on another disk, which has room."""
    box = sandboxes(tmp_path / "box")
    if full == "the record":
        box.uri = f"sqlite:///{small_disk}/mlflow.db"
    else:
        box.output.mkdir()
        (box.output / "artifacts").symlink_to(small_disk)
    command = (*EIGHT, f"tracking.uri={box.uri}", "tracking.patience=0.05")
    one = box.start(*command, FAULTY_STEP_S=0.3)
    one.hears("[2/8]")
    filler = fill(small_disk)
    assert one.ends() == 3, one.said
    box.no_process_is_left()
    assert "gave up after 0.05 min" in one.said
    left = [*box.output.glob("sweep/*/result.json"), *box.output.glob("sweep/*/refused/*/*.json")]
    waiting = {json.loads(file.read_text())["run"] for file in left}
    assert waiting
    ranks = {row["lora.r"] for row in reading.read(box.uri) if row["run_id"] in waiting}
    assert len(ranks) == len(waiting)  # their runs were not deleted
    filler.unlink()
    box.call(*command)
    like_calm(box, 8)
    states = {row["run_id"]: row["lorasweep.state"] for row in reading.read(box.uri)}
    assert {states[run] for run in waiting} == {"done"}
    assert {box.starts()[rank] for rank in ranks} == {1}
    box.end()


def fill(disk: Path) -> Path:
    """Leave no room on a disk. Returns the file that takes it."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as stream, suppress(OSError):
        while True:
            stream.write(bytes(4096))
    return filler
