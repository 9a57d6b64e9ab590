from pathlib import Path

import pandas as pd
import pytest

from analysis import tables


def test_table5_puts_ours_beside_the_papers(three_seeds: pd.DataFrame) -> None:
    made = tables.table5(three_seeds)
    base = three_seeds.query("method == 'base'")
    ours, paper = made.iloc[0], made.iloc[-1]
    assert (ours["model"], ours["seeds"]) == ("toy", 3)
    assert ours["F1"] == pytest.approx(base["eval/f1_macro"].mean())
    assert paper["model"].startswith("LLaMA3-8B")
    assert "Yelp" in paper["task"]
    scores = [paper[name] for name in ("precision", "recall", "F1", "accuracy")]
    assert scores == [0.203, 0.2191, 0.181, 0.2191]


def test_table5_without_a_base_run_invents_none(one_seed: pd.DataFrame) -> None:
    assert len(tables.table5(one_seed[one_seed["method"] != "base"])) == 1


def test_tables_are_written_twice_over(one_seed: pd.DataFrame, tmp_path: Path) -> None:
    written = tables.write_all(one_seed, tmp_path / "tables")
    assert {path.name for path in written} >= {"table5.csv", "table5.md"}
    back = pd.read_csv(tmp_path / "tables" / "table5.csv")
    pd.testing.assert_frame_equal(back, tables.table5(one_seed), check_dtype=False)
    lines = (tmp_path / "tables" / "table5.md").read_text().splitlines()
    assert lines[0].startswith("| model | task | precision |")
    assert "0.2191" in lines[-1]
