"""Data sets of a hub, against one that runs here: in processes of their own, as users have them."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fake_hub
import pytest
from fake_hub import REVISION

from lorasweep.tasks import sources

Given = dict[str, Any]
Visit = Callable[..., dict[str, Given]]

NEWER = "b" * 40

# Visits, by what they change in a task that can be loaded.
ONLINE: dict[str, Given] = {
    "whole": {},
    "held out": {"eval_split": None, "eval_fraction": 0.2, "train_size": None},
    "unknown": {"id": "owner/Nothing"},
    "gated": {"id": "owner/Gated"},
    "revision": {"revision": NEWER},
    "code": {"id": "owner/OnlyCode"},
    "config": {"config": "smal"},
    "names": {"train_split": "trian", "text": "texts"},
    "kind": {"text": "label"},
    "size": {"train_size": 61, "eval_size": 31},
}
OFFLINE: dict[str, Given] = {
    "kept": {},
    "other subset": {"train_size": 40},
    "names": {"train_split": "trian"},
    "unknown": {"id": "owner/Other"},
    "revision": {"revision": NEWER},
}


@pytest.fixture(scope="module")
def hub() -> Iterator[tuple[str, list[str]]]:
    with fake_hub.serving() as served:
        yield served


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def base() -> Given:
    return {
        "name": "made_up",
        "source": "hub",
        "id": "owner/MyReviews",
        "revision": REVISION,
        "config": "small",
        "train_split": "train",
        "eval_split": "test",
        "train_file": None,
        "eval_file": None,
        "eval_fraction": None,
        "text": "text",
        "text_pair": None,
        "label": "label",
        "train_size": 30,
        "eval_size": None,
        "subset_seed": 0,
    }


@pytest.fixture(scope="module")
def visit(hub: tuple[str, list[str]], folder: Path, base: Given) -> Visit:
    """Check and load tasks in another process."""

    def visited(asked: dict[str, Given], **env: str) -> dict[str, Given]:
        inherited = {name: value for name, value in os.environ.items() if name[:3] != "HF_"}
        home = {"HF_ENDPOINT": hub[0], "HF_HOME": str(folder / "home")}
        done = subprocess.run(
            [sys.executable, fake_hub.__file__, str(folder / "cache")],
            input=json.dumps([{**base, **changed} for changed in asked.values()]),
            env={**inherited, **home, **env},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return dict(zip(asked, json.loads(done.stdout), strict=True))

    return visited


@pytest.fixture(scope="module")
def online(visit: Visit) -> dict[str, Given]:
    return visit(ONLINE)


@pytest.fixture(scope="module")
def offline(visit: Visit, online: dict[str, Given]) -> dict[str, Given]:
    return visit(OFFLINE, HF_HUB_OFFLINE="1")


def test_load(online: dict[str, Given]) -> None:
    gave = online["whole"]
    assert gave["problems"] == []
    assert gave["labels"] == ["bad", "so", "good"]  # the order of the source
    provenance = gave["provenance"]
    assert provenance["train_rows_per_class"] == {"bad": 10, "so": 10, "good": 10}
    assert provenance["revision"] == REVISION
    assert provenance["rows_without_text_or_label"] == {"train": 2, "eval": 2}
    assert len(gave["eval_ids"]) == 28
    assert all(
        text == f"train text {item.removeprefix('train:')}" for item, text in gave["texts"].items()
    )


def test_hold_out(online: dict[str, Given]) -> None:
    gave = online["held out"]
    assert gave["problems"] == []
    assert len(gave["texts"]) + len(gave["eval_ids"]) == 58
    assert set(gave["texts"]).isdisjoint(gave["eval_ids"])


def test_a_kept_subset_needs_no_more_than_one_question(
    hub: tuple[str, list[str]], visit: Visit, online: dict[str, Given], tmp_path: Path
) -> None:
    hub[1].clear()
    again = visit({"whole": {}}, HF_HOME=str(tmp_path))
    assert again["whole"] == online["whole"]
    asked = [path for path in hub[1] if "/datasets/" in path]
    assert asked == [f"/api/datasets/owner/MyReviews/revision/{REVISION}"]


def test_the_cache_of_the_library_needs_no_network(
    online: dict[str, Given], offline: dict[str, Given]
) -> None:
    assert offline["kept"] == online["whole"]
    assert offline["other subset"]["problems"] == []
    assert len(offline["other subset"]["texts"]) == 40
    for said in (*offline["names"]["problems"], offline["names"]["error"]):
        assert "did you mean 'train'? (it has train, test)" in said


@pytest.mark.parametrize("case", ["revision", "unknown"])
def test_offline_another_revision_is_not_taken_instead(
    case: str, offline: dict[str, Given]
) -> None:
    for said in (*offline[case]["problems"], offline[case]["error"]):
        assert "the hub cannot be reached" in said
        assert "HF_HOME" in said


@pytest.mark.parametrize(
    ("case", "says"),
    [
        ("unknown", "no such data set, or not at revision"),
        ("revision", "no such data set, or not at revision"),
        ("gated", "is gated; ask for access on its page"),
    ],
)
def test_what_cannot_be_had(case: str, says: str, online: dict[str, Given]) -> None:
    (problem,) = online[case]["problems"]
    assert says in problem
    assert "HF_TOKEN" in problem
    assert "HF_TOKEN" in online[case]["error"]


def test_code_is_not_run(online: dict[str, Given]) -> None:
    assert "no parquet, csv or json files" in online["code"]["problems"][0]
    assert "this must not run" not in online["code"]["error"]


def test_settings_are_compared_with_the_card(online: dict[str, Given]) -> None:
    (config,) = online["config"]["problems"]
    assert "task.config=smal: owner/MyReviews does not have it; did you mean 'small'?" in config
    split, text = online["names"]["problems"]
    assert "task.train_split=trian" in split
    assert "did you mean 'train'? (it has train, test)" in split
    assert "task.text=texts" in text
    train, evaluation = online["size"]["problems"]
    assert "task.train_size=61: made_up has 60 rows" in train
    assert "task.eval_size=31: made_up has 30 rows" in evaluation


def test_settings_are_compared_with_the_data(online: dict[str, Given]) -> None:
    assert "smal" in online["config"]["error"]
    assert "trian" in online["names"]["error"]
    assert "task.text=label: is not text in owner/MyReviews" in online["kind"]["error"]
    assert "has 58 rows" in online["size"]["error"]  # without those that lack something


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"id": None}, "task.id=None"),
        ({"id": "https://hub/owner/name"}, "task.id=https"),
        ({"revision": None}, "pin the data to a commit"),
        ({"revision": "main"}, "pin the data to a commit"),
        ({"train_split": None}, "task.train_split=null"),
        ({"eval_split": None}, "task.eval_fraction=None"),
        ({"eval_split": "train"}, "is the split to train on"),
    ],
)
def test_settings_that_need_no_question(changed: Given, says: str, base: Given) -> None:
    (found,) = sources.problems({**base, **changed})
    assert says in found
