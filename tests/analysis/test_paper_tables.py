"""Tables 1 to 4 of Patil et al. 2025, the guide's GPUs and study B's, beside our accounting."""

from pathlib import Path

import pandas as pd
import pytest

from analysis import paper_tables
from analysis.paper_tables import BENCH, Measurements
from analysis.studies.llama2_guide import hardware

NOWHERE = Path("/nonexistent")


@pytest.fixture(scope="module")
def nothing() -> Measurements:
    return Measurements(NOWHERE, NOWHERE)


@pytest.fixture(scope="module")
def bench() -> Measurements:
    return Measurements(NOWHERE, BENCH)


def test_table_2_to_the_printed_digit(nothing: Measurements) -> None:
    table = paper_tables.table2(nothing)
    assert table["formula"].tolist() == table["paper"].tolist()
    assert set(table["paper"]) == {
        "29.80", "14.90", "7.45", "3.73", "119.2", "59.6", "29.8", "14.9",
    }  # fmt: skip


def test_table_3_to_the_printed_digit(nothing: Measurements) -> None:
    table = paper_tables.table3(nothing)
    assert table["formula"].tolist() == table["paper"].tolist()
    sums = table[table["part"] == "sum"]
    assert sums["paper"].tolist() == ["30.113", "15.095", "3.857"]
    # what the paper leaves out
    assert (table[table["part"] == "activations"]["ours at the peak"] > 8).all()


def test_table_4_to_the_unit_and_the_printed_digit(nothing: Measurements) -> None:
    table = paper_tables.table4(nothing)
    assert len(table) == 14
    for column in ("formula", "ours"):
        assert table[column].tolist() == table["paper"].tolist()
        assert table[f"{column}: %"].tolist() == table["paper: %"].tolist()
    assert table["measured"].isna().all()
    assert table["PEFT's default treatment of the head"].iloc[0] == 20_992_000


def test_table_1_explains_both_of_the_papers_times(nothing: Measurements) -> None:
    table = paper_tables.table1(nothing).set_index("method")
    lora = table.loc["LoRA, all linear"]
    defaults = table.loc["QLoRA, all linear, defaults, float32"]
    assert lora["ours: hours"] == pytest.approx(lora["paper: hours"], rel=0.25)
    assert defaults["ours: hours"] == pytest.approx(defaults["paper: hours"], rel=0.25)


def test_measurements_stand_beside_the_plan(bench: Measurements) -> None:
    table = paper_tables.table3(bench)
    both = table[table["measured"].notna()]
    assert len(both) == 2
    assert ((both["ours at the peak"] / both["measured"] - 1).abs() < 0.08).all()
    tuning = paper_tables.table2(bench).dropna(subset="measured")
    assert tuning["ours"].tolist() == pytest.approx(tuning["measured"].tolist(), rel=0.08)


def test_the_record_is_measured_too(tmp_path: Path) -> None:
    row = {
        "model": "llama3_8b", "state": "done", "method": "lora", "target": "all_linear",
        "head": "full_lora", "engine": "trainer", "r": 8.0, "time/total_s": 1800.0,
        "memory/peak_allocated_gib": 20.0, "params/trainable": 21_024_808.0,
    }  # fmt: skip
    file = tmp_path / "trials.parquet"
    pd.DataFrame([row]).to_parquet(file)
    measured = Measurements(file, NOWHERE)
    first = paper_tables.table1(measured).iloc[0]
    assert (first["measured: hours"], first["measured: GB"]) == (0.5, 20.0)
    assert paper_tables.table4(measured)["measured"].dropna().tolist() == [21_024_808]


def test_the_guides_gpus() -> None:
    table = hardware.guide()
    assert len(table) == 6
    assert table["verdict"].str.startswith("agrees").all()
    sized = dict(zip(table["model"] + " " + table["method"], table["ours: GiB"], strict=True))
    assert sized["7B lora"] < 24 < sized["13B lora"] < 48
    assert sized["65B lora"] > 80


def test_time_grows_with_the_data_as_the_guide_says() -> None:
    table = hardware.data_size()
    assert table["ours: × 100k"].tolist() == pytest.approx(
        table["guide: × 100k"].tolist(), rel=0.01
    )


def test_full_fine_tuning_of_7b_does_not_fit_44_gb() -> None:
    table = hardware.boddy()
    assert (table["verdict"] == "agrees").all()
    first = table.iloc[0]
    assert (first["fits"], first["smallest change that fits"]) == (
        "no",
        "train.optimizer=paged_adamw_8bit",
    )
    assert (table["fits"].iloc[1:] == "yes").all()


def test_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--out", str(tmp_path), "--trials", str(NOWHERE), "--bench", str(NOWHERE)]
    assert paper_tables.main(arguments) == 0
    assert "21 files" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "patil2025_table4.csv")
    assert table["ours"].iloc[6] == 1_344_297_472
    text = (tmp_path / "patil2025_table4.md").read_text()
    assert "| all linear | 8 | 21,024,808 | 21,024,808 | 21,024,808 | not measured |" in text
    latex = (tmp_path / "patil2025_table4.tex").read_text()
    assert latex.startswith("\\begin{tabular}{llllllllll}\n\\toprule\ntarget & r & paper &")
    assert "paper: \\% &" in latex
    assert latex.rstrip().endswith("\\end{tabular}")
    rows = [line for line in latex.splitlines() if line.endswith("\\\\") and "&" in line]
    assert {line.count(" & ") for line in rows} == {9}
