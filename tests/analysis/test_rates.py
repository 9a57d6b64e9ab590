"""A search for the learning rate gives a rate for each method and target, and nothing else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis import claims, figures, rates
from analysis.__main__ import main
from analysis.slices import slices
from lorasweep.errors import RequestError
from lorasweep.results import details, files, tidy

Run = dict[str, Any]
RATES = (1e-4, 1e-3, 1e-2)


def found(run: Callable[..., Run], best: float = 1e-3, **other: Any) -> list[Run]:
    """Three rates at r = 8 on another task; attention takes ten times the rate."""
    runs = []
    for method, target in rates.ORDER:
        top = best * 10 if target == "attention" else best
        for rate in RATES:
            for seed in (100, 101):
                change = {"task.name": "search", "train.learning_rate": str(rate), **other}
                change["eval/accuracy"] = 0.6 if rate == top else 0.5
                runs.append(run(method, target, 8, seed=seed, **change))
    return runs


def test_the_best_rate_of_each_as_the_next_study_takes_it(run: Callable[..., Run]) -> None:
    trials = tidy.tidy(found(run))
    assert rates.searches(trials) == [("toy", "search")]
    assert rates.words(trials, "toy") == "train.learning_rate=0.01,0.001,0.01,0.001"


def test_of_two_as_good_the_lower_and_never_one_that_was_lost(run: Callable[..., Run]) -> None:
    assert set(rates.picks(tidy.tidy(found(run, best=9)), "toy").values()) == {1e-4}
    runs = found(run)
    lost = next(r for r in runs if r["eval/accuracy"] == 0.6)
    lost["lorasweep.state"] = "diverged"
    assert rates.picks(tidy.tidy(runs), "toy")["lora", "attention"] == 1e-4


def test_a_rate_that_lacks_a_seed_is_not_picked(run: Callable[..., Run]) -> None:
    runs = found(run)
    gone = next(r for r in runs if r["eval/accuracy"] == 0.6)
    trials = tidy.tidy([r for r in runs if r is not gone])
    assert rates.picks(trials, "toy")["lora", "attention"] == 1e-4
    assert rates.picks(trials, "toy")["qlora", "attention"] == 1e-2


def test_what_was_not_searched_is_said(run: Callable[..., Run]) -> None:
    part = tidy.tidy([r for r in found(run) if r["method.name"] == "lora"])
    with pytest.raises(RequestError, match="QLoRA, attention; QLoRA, all-linear"):
        rates.words(part, "toy")


def test_a_sweep_is_no_search(three_seeds: pd.DataFrame) -> None:
    assert rates.searches(three_seeds) == []


def test_the_tuned_reading_takes_what_the_search_found(run: Callable[..., Run]) -> None:
    runs = found(run)
    for method, target in rates.ORDER:
        for rate in RATES:  # here the lowest would be the best
            change = {"train.learning_rate": str(rate), "eval/accuracy": 0.6 - rate}
            runs += [run(method, target, r, **change) for r in (1, 2, 8)]
    trials = tidy.tidy(runs)
    tuned = next(one for one in slices(trials, "toy", "stars") if one.name == "tuned")
    assert "lora all_linear 0.001, lora attention 0.01" in tuned.title
    assert {card.part.task for card in claims.judge(trials, details.empty())} == {"stars"}


def test_the_picture_and_the_command(
    run: Callable[..., Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "x.parquet"
    files.write(tidy.tidy(found(run)), file)
    drawn = figures.draw_all(files.read(file), tmp_path / "figures")
    assert [f.name for f in drawn] == ["learning_rates.pdf", "learning_rates.png", "captions.md"]
    assert main(["rates", "--table", str(file)]) == 0
    said = capsys.readouterr().out.strip().splitlines()
    assert said[-1] == "train.learning_rate=0.01,0.001,0.01,0.001"
    assert len(said) == 13


def test_without_a_search_the_command_says_so(
    three_seeds: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files.write(three_seeds, tmp_path / "x.parquet")
    assert main(["rates", "--table", str(tmp_path / "x.parquet")]) == 2
    assert "no search for a learning rate" in capsys.readouterr().err


@pytest.mark.parametrize("ranks", [(8, 8, 8, 8), (4, 9, 16, 33)])
def test_a_search_of_ones_own_is_one_picture_and_no_claims(
    run: Callable[..., Run], tmp_path: Path, ranks: tuple[int, ...]
) -> None:
    """Four trials that a sampler drew, with one rank or with a rank each."""
    points = zip(ranks, (1e-4, 3e-4, 1.7e-3, 9e-3), strict=True)
    runs = [run(r=r, study="mine", **{"train.learning_rate": str(rate)}) for r, rate in points]
    trials = tidy.tidy([*runs, run("base", study="mine")])
    drawn = figures.draw_all(trials, tmp_path)
    assert [f.name for f in drawn] == ["learning_rates.pdf", "learning_rates.png", "captions.md"]
    assert claims.judge(trials, details.empty()) == []
    told = drawn[-1].read_text()
    assert ("r = 8, α = 16" if ranks[0] == 8 else "r = 4 to 33, α = 8 to 66") in told
    # what is no search finds no rate for a study
    assert bool(rates.picks(trials, "toy")) == (ranks[0] == 8)


def test_claims_are_judged_on_studies_alone(three_seeds: pd.DataFrame) -> None:
    assert len(claims.judge(three_seeds, details.empty())) == 1
    assert claims.judge(three_seeds.assign(study="mine"), details.empty()) == []
