from collections.abc import Callable
from typing import Any

import pandas as pd

from analysis import captions, figures
from lorasweep.results import tidy

Run = dict[str, Any]


def fig5(frame: pd.DataFrame) -> str:
    return captions.caption_rank(frame, "toy", "stars", "all_linear")


def test_every_caption_has_number_n_hardware_and_sizes(
    one_seed: pd.DataFrame, run: Callable[..., Run]
) -> None:
    every = pd.concat([one_seed, tidy.tidy([run("lora", "attention", 8, 2)])])
    names = {"overview": "Overview", "alpha_below_rank": "α below the rank"}
    for stem, (_, tell) in figures.FIGURES.items():
        text = tell(every, "toy", "stars")
        number = names[stem] if stem in names else f"Figure {int(stem[3:5])}"
        assert text.startswith(f"**{number}.** toy on stars: ")
        assert "evaluated on 1,000 examples" in text
        assert "Hardware: synthetic GPU (engine: trainer)." in text
    assert "n = 20 finished trials, 1 seed a point." in fig5(one_seed)


def test_one_seed_claims_no_interval(one_seed: pd.DataFrame) -> None:
    assert "One seed, no interval" in fig5(one_seed)


def test_several_seeds_say_what_the_interval_is(three_seeds: pd.DataFrame) -> None:
    text = fig5(three_seeds)
    assert "n = 60 finished trials, 3 seeds a point." in text
    assert "95 % t intervals over seeds" in text
    fewer = three_seeds[(three_seeds["r"] != 4) | (three_seeds["seed"] == 0)]
    assert "1 to 3 seeds a point" in fig5(fewer)
    assert "points with one seed have no interval" in fig5(fewer)


def test_missing_and_failed_cells_are_named(
    run: Callable[..., Run], paper: Callable[[int], list[Run]]
) -> None:
    runs = [
        one
        for one in paper(2)
        if not (one["method.name"] == "qlora" and one["lora.r"] in ("128", "256"))
        and not (one["method.name"] == "lora" and one["lora.r"] == "4" and one["seed"] == "1")
    ]
    runs.append(run("lora", "all_linear", 4, seed=1, state="diverged"))
    text = fig5(tidy.tidy(runs))
    assert "Not run: QLoRA r = 128, 256." in text
    assert "Diverged: LoRA r = 4 (1 of 2 seeds)." in text


def test_what_every_cell_lacks_is_said_once(
    run: Callable[..., Run], paper: Callable[[int], list[Run]]
) -> None:
    stopped = [{**one, "seed": "9", "lorasweep.state": "stopped"} for one in paper(1)]
    runs = [*paper(2), *({**one, "lorasweep.key": f"x{i}"} for i, one in enumerate(stopped))]
    assert "Stopped: each series at every r (1 of 3 seeds)." in fig5(tidy.tidy(runs))


def test_the_commonest_setting_is_drawn_and_the_rest_is_named(
    run: Callable[..., Run], paper: Callable[[int], list[Run]]
) -> None:
    runs = paper(1)
    fast = {"train.learning_rate": "0.01"}
    runs += [run(r=8, seed=seed, **fast) for seed in range(30)]
    runs += [run(r=8, **{"lora.dropout": "0.1"})]
    text = fig5(tidy.tidy(runs))
    assert "n = 20 finished trials" in text
    assert "learning rate 0.002" in text
    assert "30 trials with learning rate 0.01 (drawn: 0.002)" in text
    assert "1 trial with lora.dropout=0.1 (drawn: lora.dropout=0.05)" in text


def test_bars_name_only_what_was_left_out_at_their_ranks(
    run: Callable[..., Run], paper: Callable[[int], list[Run]]
) -> None:
    runs = [*paper(1), run(r=8, **{"train.learning_rate": "0.01"})]
    frame = tidy.tidy(runs)
    assert "Left out" in captions.caption_bars(frame, "toy", "stars", (4, 8))
    assert "Left out" not in captions.caption_bars(frame, "toy", "stars", (1, 2))


def test_the_base_model_and_its_absence_are_told(one_seed: pd.DataFrame) -> None:
    score = one_seed.query("method == 'base'")["eval/accuracy"].iloc[0]
    assert f"base model, untrained (accuracy {score:.3f}, 1 seed)" in fig5(one_seed)
    trained = one_seed[one_seed["method"] != "base"]
    assert "No comparable run of the untrained base model." in fig5(trained)


def test_packed_trials_without_a_time_of_their_own_are_counted(one_seed: pd.DataFrame) -> None:
    packed = one_seed.copy()
    packed.loc[packed["r"] == 2, "time/train_s"] = float("nan")
    text = captions.caption_overview(packed, "toy", "stars")
    assert "No time/train_s in the record for 4 of 40 trials." in text


def test_a_figure_without_trials_says_why(one_seed: pd.DataFrame) -> None:
    text = fig5(one_seed[one_seed["target"] == "attention"])
    assert text.startswith("**Figure 5: not drawn.** No finished trial of toy on stars")
    assert "not run: each series at every r" in text
