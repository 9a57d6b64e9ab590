from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis import views
from lorasweep.errors import BAD_RECORD, RecordError
from lorasweep.results import files, tidy
from lorasweep.trial import key

Run = dict[str, Any]
MakeRun = Callable[..., Run]


def fake_record(monkeypatch: pytest.MonkeyPatch, runs: list[Run]) -> None:
    monkeypatch.setattr("lorasweep.record.reading.read", lambda uri: runs)


def test_build_reads_every_trial_of_the_record(
    monkeypatch: pytest.MonkeyPatch, run: MakeRun
) -> None:
    fake_record(monkeypatch, [run(r=4), run(r=8)])
    made = files.build("sqlite:///x.db")
    assert list(made.columns) == list(tidy.COLUMNS)
    assert list(made["r"]) == [4, 8]
    assert list(made["alpha"]) == [8, 16]
    assert made["learning_rate"].dtype == "float64"
    assert made["eval/loss"].isna().all()


def test_an_empty_record_says_what_fills_it(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_record(monkeypatch, [])
    with pytest.raises(RecordError, match="make sweep"):
        files.build("sqlite:///x.db")


def test_the_newest_run_of_a_key_wins_unless_only_an_older_one_is_done(run: MakeRun) -> None:
    one = {"lorasweep.key": "a", "start_time": 1, "run_id": "1"}
    two = {"lorasweep.key": "a", "start_time": 2, "run_id": "2"}
    assert list(tidy.tidy([run(**two), run(**one)])["run_id"]) == ["2"]
    assert list(tidy.tidy([run(**one), run(state="failed", **two)])["run_id"]) == ["1"]
    lost = [run(state="oom", **one), run(state="failed", **two)]
    assert list(tidy.tidy(lost)["state"]) == ["failed"]


def test_one_trial_under_several_keys_counts_once(run: MakeRun) -> None:
    query = {"target.roles": '["query"]'}
    spelt = [
        *(run(seed=seed, alpha=16, **query) for seed in (0, 1)),
        *(run(seed=seed, alpha=16.0, start_time=2_000, **query) for seed in (0, 1)),
        run(**{"target.roles": '["query", "value"]'}),
        run(**{"target.roles": '["value", "query"]'}),
        run(**query, **{"train.max_steps": "5", "train.epochs": "1.0"}),
        run(**query, **{"train.max_steps": "5", "train.epochs": "3.0"}),
        run(**query, **{"method.quant": "int8", "method.double_quant": "True"}),
        run(**query, **{"method.quant": "int8"}),
    ]
    assert len({r["lorasweep.key"] for r in spelt}) == len(spelt)
    made = tidy.tidy(spelt)
    assert len(made) == 2 + 3
    newer = {r["run_id"] for r in spelt[2:4]}
    plain = made[made["run_id"].isin(newer)]
    assert len(plain) == 2
    interval = views.interval(plain["eval/accuracy"].to_numpy())
    twice = views.interval([*plain["eval/accuracy"]] * 2)
    assert interval[1] - interval[0] > 2 * (twice[1] - twice[0])


def test_a_finished_twin_counts_and_a_table_of_old_has_none(run: MakeRun, tmp_path: Path) -> None:
    done, lost = run(alpha=16), run(alpha=16.0, state="failed", start_time=2_000)
    assert list(tidy.tidy([done, lost])["state"]) == ["done"]
    made = tidy.tidy([done])
    twins = pd.concat([made.assign(key="a"), made.assign(key="b", state="failed")])
    files.write(twins, tmp_path / "old.parquet")
    assert list(files.read(tmp_path / "old.parquet")["key"]) == ["a"]


def test_trials_whose_numbers_a_release_changed_are_left_out_and_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], run: MakeRun
) -> None:
    changed: Any = ("batches of 4", lambda config: config["train.batch_size"] == 4)
    monkeypatch.setattr(key, "NUMERICS", [changed])
    old = run(seed=0, **{"train.batch_size": "4"})
    new = run(seed=1, **{"train.batch_size": "4", "lorasweep.numerics": "1"})
    fake_record(monkeypatch, [old, new, run(seed=2)])
    assert sorted(files.build("sqlite:///x.db")["seed"]) == [1, 2]
    assert "1 trial of an earlier release left out" in capsys.readouterr().err


def test_a_run_in_flight_is_no_trial_yet(run: MakeRun) -> None:
    flying = run(r=2)
    del flying["lorasweep.state"]
    assert list(tidy.tidy([run(r=1), flying])["r"]) == [1]


@pytest.mark.parametrize("method", ["base", "fft"])
def test_methods_without_an_adapter_have_neither_rank_nor_target(run: MakeRun, method: str) -> None:
    row = tidy.tidy([run(method)]).iloc[0]
    assert row[["r", "alpha", "target"]].isna().all()


def test_the_order_does_not_depend_on_the_record_s(paper: Callable[[int], list[Run]]) -> None:
    runs = paper(2)
    pd.testing.assert_frame_equal(tidy.tidy(runs), tidy.tidy(runs[::-1]))


def test_settings_without_a_column_are_told_where_they_differ(run: MakeRun) -> None:
    changed = {"lora.dropout": "0.1"}
    made = tidy.tidy([run("lora"), run("lora", **changed), run("qlora"), run("qlora", r=16)])
    assert set(made["settings"]) == {"lora.dropout=0.05", "lora.dropout=0.1"}
    assert set(made["variant"]) == {""}
    twice = tidy.tidy([run("qlora"), run("qlora", **{"method.double_quant": "True"})])
    assert set(twice["variant"]) == {"method.double_quant=False", "method.double_quant=True"}
    assert set(tidy.tidy([run(r=1), run(r=2)])["settings"]) == {""}


def test_parquet_returns_what_was_written(one_seed: pd.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "new" / "trials.parquet"
    files.write(one_seed, path)
    pd.testing.assert_frame_equal(files.read(path), one_seed)
    assert [file.name for file in path.parent.iterdir()] == ["trials.parquet"]


def test_the_table_rebuilds_byte_for_byte(one_seed: pd.DataFrame, tmp_path: Path) -> None:
    for name in "ab":
        files.write(one_seed, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_unusable_tables_name_the_command_that_makes_one(
    one_seed: pd.DataFrame, tmp_path: Path
) -> None:
    (tmp_path / "damaged").write_bytes(b"PAR1 and then nothing")
    (tmp_path / "void").touch()
    one_seed[:0].to_parquet(tmp_path / "empty")
    one_seed.drop(columns="state").to_parquet(tmp_path / "other")
    wanted = {
        "missing": "no table",
        "damaged": "damaged",
        "void": "damaged",
        "empty": "no trials",
        "other": "lacks the columns state",
    }
    for name, reason in wanted.items():
        with pytest.raises(RecordError, match=reason) as caught:
            files.read(tmp_path / name)
        assert "make sweep" in str(caught.value)
        assert caught.value.exit_code == BAD_RECORD


def test_a_disk_that_refuses_is_told_in_a_sentence(one_seed: pd.DataFrame, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RecordError, match="could not be written"):
        files.write(one_seed, tmp_path / "file" / "trials.parquet")
