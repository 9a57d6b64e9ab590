from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from lorasweep.errors import RecordError
from lorasweep.results import details, tidy

Run = dict[str, Any]


class FakeRecord:
    """A record whose artefacts lie where they were made, elsewhere, or nowhere."""

    def __init__(self, uri: str, artifacts: Path) -> None:
        place = Path(uri.removeprefix("sqlite:///")).parent / "made_here"
        info = SimpleNamespace(artifact_uri=f"file://{place}")
        self.client = SimpleNamespace(get_run=lambda run: SimpleNamespace(info=info))

    def curve(self, run: str, metric: str) -> list[tuple[int, float]]:
        return [(0, 0.9), (10, 1.5), (20, 1.2)] if metric == "train/loss" else [(0, 1.0)]


def predictions(folder: Path, gold: list[int]) -> None:
    folder.mkdir(parents=True)
    told = {"id": ["eval:0", "eval:7"], "gold": gold, "predicted": [1, 1], "scores": [[0.1], [0.2]]}
    pd.DataFrame(told).to_parquet(folder / "predictions.parquet")


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorasweep.record.record.Record", FakeRecord)


def test_answers_and_curves_travel_without_text(
    record: None, run: Callable[..., Run], tmp_path: Path
) -> None:
    trials = tidy.tidy([run(r=1, run_id="moved"), run(r=2, run_id="here"), run(r=4, state="oom")])
    predictions(tmp_path / "artifacts/study/moved/artifacts", [1, 2])
    predictions(tmp_path / "made_here", [1, 1])
    made = details.build(f"sqlite:///{tmp_path}/mlflow.db", trials)
    right = (made.items["gold"] == made.items["predicted"]).groupby(made.items["key"]).mean()
    keys = trials.set_index("r")["key"]
    assert right.to_dict() == {keys[1]: 0.5, keys[2]: 1.0}
    assert set(made.items["item"]) == {details.item_of("eval:0"), details.item_of("eval:7")}
    # The trial's own number stands at step 0 and is no part of its curve.
    assert list(made.curves["step"]) == [10, 20, 10, 20]
    assert set(made.curves["metric"]) == {"train/loss"}
    for name in ("a.parquet", "b.parquet"):
        details.write(made, tmp_path / name)
    for kind in ("items", "curves"):
        first, second = (tmp_path / f"{name}.{kind}.parquet" for name in "ab")
        assert first.read_bytes() == second.read_bytes()
        assert b"eval:" not in first.read_bytes()
    back = details.read(tmp_path / "a.parquet")
    pd.testing.assert_frame_equal(back.items, made.items)
    pd.testing.assert_frame_equal(back.curves, made.curves)


def test_a_table_may_have_none(tmp_path: Path) -> None:
    assert details.read(tmp_path / "x.parquet").items.empty
    (tmp_path / "x.items.parquet").write_bytes(b"old")
    assert details.write(details.empty(), tmp_path / "x.parquet") == []
    assert list(tmp_path.iterdir()) == []


def test_damage_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.items.parquet").write_bytes(b"PAR1 and nothing")
    with pytest.raises(RecordError, match="damaged"):
        details.read(tmp_path / "x.parquet")
    pd.DataFrame({"key": ["a"]}).to_parquet(tmp_path / "x.items.parquet")
    with pytest.raises(RecordError, match="columns key, item"):
        details.read(tmp_path / "x.parquet")


def test_answers_that_only_an_earlier_file_has_are_kept(run: Callable[..., Run]) -> None:
    trials = tidy.tidy([run(seed=seed) for seed in range(4)])
    first, second, third, _ = trials["key"]

    def answers(keys: list[str], predicted: int) -> details.Details:
        rows = [(key, item, 1, predicted) for key in keys for item in (1, 2)]
        return details.Details(pd.DataFrame(rows, columns=list(details.ITEMS)), empty.curves)

    empty = details.empty()
    both = details.completed(
        answers([first, second], 3), answers([second, third, "gone"], 4), trials
    ).items
    assert both.groupby("key")["predicted"].first().to_dict() == {first: 3, second: 3, third: 4}
    assert details.completed(empty, empty, trials).items.empty
