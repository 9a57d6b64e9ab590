from collections.abc import Callable
from typing import Any

import pandas as pd

from analysis import captions, figures, views
from analysis.slices import slices
from lorasweep.results import tidy

Run = dict[str, Any]
BEST = {("lora", "all_linear"): 1e-3, ("lora", "attention"): 1e-4, ("qlora", "attention"): 1e-3}


def swept(run: Callable[..., Run]) -> pd.DataFrame:
    """Two rates swept in full, a third tried at one rank only."""
    runs = [run("base")]
    for method, target in BEST:
        for rate in (1e-4, 1e-3):
            score = 0.6 if rate == BEST[method, target] else 0.5
            change = {"train.learning_rate": str(rate), "eval/accuracy": score}
            runs += [run(method, target, r, **change) for r in (1, 2, 4, 8)]
        high = {"train.learning_rate": "0.1", "eval/accuracy": 0.9}
        runs.append(run(method, target, 8, **high))
    return tidy.tidy(runs)


def test_each_swept_rate_is_a_reading_and_the_best_ones_together(run: Callable[..., Run]) -> None:
    found = slices(swept(run), "toy", "stars")
    titles = [one.title for one in found]
    assert titles[:2] == ["learning rate 0.0001", "learning rate 0.001"]
    assert [one.name for one in found] == ["", "lr0.001", "tuned"]
    tuned = found[2].table
    assert set(tuned.loc[tuned["r"].notna(), "eval/accuracy"]) == {0.6}
    assert "lora all_linear 0.001, lora attention 0.0001" in titles[2]
    assert all((one.table["method"] == "base").any() for one in found)


def test_the_tuned_reading_is_one_setting_to_every_figure(run: Callable[..., Run]) -> None:
    tuned = slices(swept(run), "toy", "stars")[2].table
    view = views.rank_view(tuned, "toy", "stars", views.TARGETS)
    assert len(view.done) == 12
    assert view.left_out.empty
    (legend,) = figures.plot_rank(tuned, "toy", "stars").legends
    assert "learning rate tuned for each" in legend.get_title().get_text()
    assert "learning rates: lora all_linear 0.001" in captions.caption_bars(tuned, "toy", "stars")


def test_one_rate_is_one_reading(one_seed: pd.DataFrame) -> None:
    (only,) = slices(one_seed, "toy", "stars")
    assert (only.name, only.title) == ("", "learning rate 0.002")
    assert len(only.table) == len(one_seed)


def test_a_head_treated_otherwise_on_one_target_is_still_one_figure(
    run: Callable[..., Run],
) -> None:
    heads = {"all_linear": "full_lora", "attention": "full"}
    runs = [run("lora", t, r, **{"target.head": head}) for t, head in heads.items() for r in (1, 2)]
    view = views.rank_view(tidy.tidy(runs), "toy", "stars", views.TARGETS)
    assert len(view.done) == 4
