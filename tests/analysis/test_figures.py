import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy import stats

from analysis import captions, figures, style
from lorasweep.errors import RequestError
from lorasweep.results import tidy

Run = dict[str, Any]
RANKS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
METRICS = ["eval/accuracy", "eval/f1_macro", "eval/precision_macro", "eval/recall_macro"]


def line(axes: Axes, label: str) -> Line2D:
    return next(found for found in axes.get_lines() if found.get_label() == label)


def xs(drawn: Line2D) -> list[float]:
    return [float(x) for x in np.asarray(drawn.get_xdata(), float)]


def ys(drawn: Line2D) -> list[float]:
    return [float(y) for y in np.asarray(drawn.get_ydata(), float)]


def texts(figure: Figure) -> str:
    inside = [text.get_text() for axes in figure.axes for text in axes.texts]
    outside = figure.get_supxlabel()
    return " ".join([*inside, outside]).replace("\n", " ")


def means(frame: pd.DataFrame, metric: str, axis: str = "r") -> list[float]:
    return list(frame[frame["state"] == "done"].groupby(axis)[metric].mean())


def without(frame: pd.DataFrame, method: str, target: str, ranks: list[int]) -> pd.DataFrame:
    gone = (frame["method"] == method) & (frame["target"] == target) & frame["r"].isin(ranks)
    return frame[~gone]


@pytest.mark.parametrize("target", ["all_linear", "attention"])
@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_rank_lines_are_the_means_of_the_table(
    three_seeds: pd.DataFrame, method: str, target: str
) -> None:
    figure = figures.plot_rank(three_seeds, "toy", "stars", target)
    rows = three_seeds.query("method == @method and target == @target and alpha == 2 * r")
    for axes, metric in zip(figure.axes, METRICS, strict=True):
        drawn = line(axes, style.method(method).name)
        assert xs(drawn) == RANKS
        assert ys(drawn) == pytest.approx(means(rows, metric))


def test_alpha_lines_are_the_table_at_r_8(one_seed: pd.DataFrame) -> None:
    figure = figures.plot_alpha(one_seed, "toy", "stars", "attention")
    rows = one_seed.query("method == 'qlora' and target == 'attention' and r == 8")
    drawn = line(figure.axes[0], "QLoRA")
    assert xs(drawn) == [8, 16, 32, 64]
    assert ys(drawn) == pytest.approx(means(rows, "eval/accuracy", "alpha"))


def test_alpha_below_the_rank_has_a_row_a_rank(run: Callable[..., Run], tmp_path: Path) -> None:
    runs = [run("lora", "attention", 8, alpha, seed=s) for alpha in (2, 8, 16) for s in (0, 1)]
    runs += [run("qlora", "attention", r, r / 2) for r in (32, 64)]
    runs += [run("lora", "attention", 64, 128), run("lora", "all_linear", 8, 16)]
    trials = tidy.tidy(runs)
    drawn = figures.plot_small_alpha(trials, "toy", "stars").axes
    assert [axes.get_title(loc="left") for axes in drawn] == [
        f"({letter}) r = {r}, attention layers"
        for letter, r in zip("abc", (8, 32, 64), strict=True)
    ]
    eight = trials.query("method == 'lora' and target == 'attention' and r == 8")
    of_eight = pd.Series(ys(line(drawn[0], "LoRA")), xs(line(drawn[0], "LoRA"))).dropna()
    assert list(of_eight.index) == [2, 8, 16]
    assert list(of_eight) == pytest.approx(means(eight, "eval/accuracy", "alpha"))
    assert np.isnan(ys(line(drawn[2], "LoRA"))).all(), "at r = 64 only α = 2r was run"
    told = captions.caption_small_alpha(trials, "toy", "stars")
    assert "n = 8 finished trials, 1 to 2 seeds a point" in told

    figures.draw_all(trials, tmp_path)
    assert (tmp_path / "toy_stars/alpha_below_rank.png").exists()
    assert "**α below the rank.**" in (tmp_path / "toy_stars/captions.md").read_text()
    figures.draw_all(trials.query("alpha >= r"), tmp_path)
    assert not (tmp_path / "toy_stars/alpha_below_rank.png").exists()
    assert "α below the rank" not in (tmp_path / "toy_stars/captions.md").read_text()


def test_a_trial_counts_whatever_study_it_ran_in(one_seed: pd.DataFrame) -> None:
    moved = one_seed.assign(study=[f"study {i % 3}" for i in range(len(one_seed))])
    for axes in figures.plot_rank(moved, "toy", "stars").axes:
        assert not np.isnan(ys(line(axes, "LoRA"))).any()


def test_missing_cells_stay_blank_and_are_named(one_seed: pd.DataFrame) -> None:
    holes = without(one_seed, "qlora", "all_linear", [128, 256])
    figure = figures.plot_rank(holes, "toy", "stars")
    drawn = line(figure.axes[0], "QLoRA")
    blank = np.isnan(ys(drawn))
    assert [r for r, gone in zip(RANKS, blank, strict=True) if gone] == [128, 256]
    assert "not run: QLoRA r = 128, 256" in texts(figure)


def test_the_rank_axis_carries_the_true_ranks(one_seed: pd.DataFrame) -> None:
    figure = figures.plot_rank(one_seed, "toy", "stars")
    figure.canvas.draw()
    labels = [label.get_text() for label in figure.axes[3].get_xticklabels()]
    assert labels == [str(r) for r in RANKS]


def test_intervals_are_95_percent_t_over_seeds(three_seeds: pd.DataFrame) -> None:
    figure = figures.plot_rank(three_seeds, "toy", "stars")
    rows = three_seeds.query("method == 'lora' and target == 'all_linear' and r == 4")
    sample = rows["eval/accuracy"].to_numpy()
    low, high = stats.t.interval(0.95, 2, sample.mean(), stats.sem(sample))
    (_, _, (bars,)) = figure.axes[0].containers[0]
    segment = bars.get_segments()[RANKS.index(4)]
    assert sorted(segment[:, 1]) == pytest.approx([low, high])


def test_no_interval_says_that_a_score_may_be_negative(three_seeds: pd.DataFrame) -> None:
    rows = three_seeds.query("method == 'lora' and target == 'all_linear' and r == 4").index
    three_seeds.loc[rows, "eval/accuracy"] = np.resize([0.9, 0.1, 0.2], len(rows))
    (_, _, (bars,)) = figures.plot_rank(three_seeds, "toy", "stars").axes[0].containers[0]
    segment = bars.get_segments()[RANKS.index(4)]
    assert sorted(segment[:, 1]) == [0, 1]


def test_every_seed_is_shown_where_seeds_are_few(three_seeds: pd.DataFrame) -> None:
    rows = three_seeds.query("method == 'lora' and target == 'all_linear' and alpha == 2 * r")
    axes = figures.plot_rank(three_seeds, "toy", "stars").axes[0]
    dots = [np.asarray(drawn.get_offsets()) for drawn in axes.collections]
    heights = next(places[:, 1] for places in dots if len(places) == 30)
    assert sorted(heights) == pytest.approx(sorted(rows["eval/accuracy"]))


def test_one_seed_has_no_interval(one_seed: pd.DataFrame) -> None:
    for axes in figures.plot_rank(one_seed, "toy", "stars").axes:
        assert not axes.containers


def test_the_base_model_is_a_dashed_line_at_its_score(one_seed: pd.DataFrame) -> None:
    base = one_seed.query("method == 'base'").iloc[0]
    for axes, metric in zip(figures.plot_rank(one_seed, "toy", "stars").axes, METRICS, strict=True):
        drawn = line(axes, "base model, untrained")
        assert set(ys(drawn)) == {base[metric]}
        assert drawn.get_linestyle() == "--"
        assert axes.get_ylim()[0] < base[metric]


def test_a_base_model_on_other_data_is_no_reference(one_seed: pd.DataFrame) -> None:
    other = one_seed.copy()
    other.loc[other["method"] == "base", "eval_size"] = 50
    labels = figures.plot_rank(other, "toy", "stars").axes[0].get_legend_handles_labels()[1]
    assert labels == ["LoRA", "QLoRA"]


def test_failures_are_written_into_the_picture(
    run: Callable[..., Run], paper: Callable[[int], list[Run]]
) -> None:
    runs = [one for one in paper(1) if one["lora.r"] != "512"]
    runs += [run("lora", r=512, state="diverged"), run("qlora", r=512, state="oom")]
    figure = figures.plot_rank(tidy.tidy(runs), "toy", "stars")
    assert np.isnan(ys(line(figure.axes[0], "LoRA"))[-1])
    for axes in figure.axes:
        assert {"diverged", "OOM"} <= {text.get_text() for text in axes.texts}
    assert "diverged: LoRA r = 512" in texts(figure)
    assert "out of memory: QLoRA r = 512" in texts(figure)


def test_bars_stand_on_zero_and_are_the_table(one_seed: pd.DataFrame) -> None:
    figure = figures.plot_bars(one_seed, "toy", "stars", (4, 8))
    for axes, r in zip(figure.axes, (4, 8), strict=True):
        assert axes.get_ylim()[0] == 0
        drawn = {c.get_label(): c for c in axes.containers if isinstance(c, BarContainer)}
        assert list(drawn) == [
            "LoRA, all-linear",
            "LoRA, attention",
            "QLoRA, all-linear",
            "QLoRA, attention",
        ]
        rows = one_seed[(one_seed["r"] == r) & (one_seed["alpha"] == 2 * r)]
        row = rows[(rows["method"] == "qlora") & (rows["target"] == "attention")].iloc[0]
        heights = [bar.get_height() for bar in drawn["QLoRA, attention"]]
        assert heights == pytest.approx([row[metric] for metric in METRICS])


def test_a_missing_bar_is_a_gap_with_words_not_a_zero(one_seed: pd.DataFrame) -> None:
    figure = figures.plot_bars(without(one_seed, "lora", "attention", [1]), "toy", "stars", (1, 2))
    bars = next(c for c in figure.axes[0].containers if c.get_label() == "LoRA, attention")
    assert isinstance(bars, BarContainer)
    assert all(np.isnan(bar.get_height()) for bar in bars)
    assert [text.get_text() for text in figure.axes[0].texts] == ["not run"] * 4
    assert "not run: LoRA, attention r = 1" in texts(figure)


def test_only_lora_leaves_qlora_out_by_name(one_seed: pd.DataFrame) -> None:
    figure = figures.plot_rank(one_seed[one_seed["method"] == "lora"], "toy", "stars")
    assert np.isnan(ys(line(figure.axes[0], "QLoRA"))).all()
    assert "not run: QLoRA at every r" in texts(figure)


def test_overview_falls_back_to_process_memory_and_says_so(one_seed: pd.DataFrame) -> None:
    moved = one_seed.copy()
    moved["memory/peak_rss_gib"] = moved["memory/peak_allocated_gib"]
    moved["memory/peak_allocated_gib"] = np.nan
    gpu = figures.plot_overview(one_seed, "toy", "stars")
    cpu = figures.plot_overview(moved, "toy", "stars")
    titles = [figure.axes[2].get_title(loc="left") for figure in (gpu, cpu)]
    assert titles == ["(c) peak GPU memory (GiB)", "(c) peak process memory, CPU (GiB)"]
    for label in ("LoRA, all-linear", "QLoRA, attention"):
        assert ys(line(gpu.axes[2], label)) == ys(line(cpu.axes[2], label))
    assert cpu.axes[2].get_ylim()[0] == 0


def test_overview_compares_time_on_one_device_only(one_seed: pd.DataFrame) -> None:
    mixed = one_seed.copy()
    mixed.loc[mixed["r"] == 2, "device"] = "slow synthetic CPU"
    figure = figures.plot_overview(mixed, "toy", "stars")
    score, seconds = (ys(line(figure.axes[i], "LoRA, all-linear")) for i in (0, 3))
    assert not np.isnan(score).any()
    assert [r for r, s in zip(RANKS, seconds, strict=True) if np.isnan(s)] == [2]


def test_overview_names_a_lone_target(one_seed: pd.DataFrame) -> None:
    lone = one_seed[one_seed["target"] != "attention"]
    title = figures.plot_overview(lone, "toy", "stars").legends[0].get_title().get_text()
    assert title.endswith("all-linear layers")


def test_a_metric_that_nobody_recorded_is_said_to_be_missing(one_seed: pd.DataFrame) -> None:
    packed = one_seed.assign(**{"time/train_s": np.nan})
    figure = figures.plot_overview(packed, "toy", "stars")
    assert "not in the record" in [text.get_text() for text in figure.axes[3].texts]


def test_packed_trials_are_shown_by_score_alone(one_seed: pd.DataFrame) -> None:
    packed = one_seed.assign(**{"time/pack_share_s": 2.0})  # and a time that is not their own
    figure = figures.plot_overview(packed, "toy", "stars")
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "(a) accuracy",
        "(b) F1 (macro)",
    ]
    told = captions.caption_overview(packed, "toy", "stars")
    assert "40 of 40 shared a pack" in told


def test_nothing_to_draw_is_an_error_and_no_picture(one_seed: pd.DataFrame) -> None:
    for draw, _ in figures.FIGURES.values():
        with pytest.raises(RequestError, match="no finished trial"):
            draw(one_seed[one_seed["method"] == "base"], "toy", "stars")


@pytest.mark.parametrize("stem", ["fig05_rank_all_linear", "fig07_r1_r2"])
def test_pictures_rebuild_byte_for_byte(
    three_seeds: pd.DataFrame, tmp_path: Path, stem: str
) -> None:
    for name in ("first", "second"):
        style.save(figures.FIGURES[stem][0](three_seeds, "toy", "stars"), tmp_path / name)
        mpl.rcParams["font.size"] = 20  # a user's own settings must not show
    for suffix in ("pdf", "png"):
        first, second = (tmp_path / f"{n}.{suffix}" for n in ("first", "second"))
        assert first.read_bytes() == second.read_bytes()
    pdf = (tmp_path / "first.pdf").read_bytes()
    assert b"CreationDate" not in pdf
    assert b"/FontFile2" in pdf  # TrueType, embedded
    assert b"Software" not in (tmp_path / "first.png").read_bytes()


def test_drawing_leaves_the_users_settings_alone(one_seed: pd.DataFrame) -> None:
    before = mpl.rcParams.copy()
    figures.plot_rank(one_seed, "toy", "stars").savefig(io.BytesIO())
    assert mpl.rcParams.copy() == before


def test_draw_all_makes_a_folder_a_model_and_task(
    one_seed: pd.DataFrame,
    run: Callable[..., Run],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def touch(_: Figure, stem: Path) -> list[Path]:
        stem.parent.mkdir(parents=True, exist_ok=True)
        stem.with_suffix(".png").touch()
        return [stem.with_suffix(".png")]

    monkeypatch.setattr(style, "save", touch)  # what it writes is tested above
    every = pd.concat([one_seed, tidy.tidy([run("lora", "attention", 8, 2)])])
    both = pd.concat([every, every.assign(model="big/er")])
    written = figures.draw_all(both, tmp_path)
    wanted = {f"{stem}.png" for stem in figures.FIGURES} | {"captions.md"}
    for folder in ("toy_stars", "big-er_stars"):
        assert {path.name for path in (tmp_path / folder).iterdir()} == wanted
    assert set(written) == {path for path in tmp_path.rglob("*") if path.is_file()}


def test_a_figure_without_trials_is_told_not_drawn(one_seed: pd.DataFrame, tmp_path: Path) -> None:
    stale = tmp_path / "toy_stars" / "fig05_rank_all_linear.png"
    stale.parent.mkdir()
    stale.touch()
    lone = one_seed.query("method == 'lora' and target == 'attention' and r == 2")
    written = figures.draw_all(lone, tmp_path)
    assert {path.stem for path in written} == {
        "fig06_rank_attention",
        "fig07_r1_r2",
        "overview",
        "captions",
    }
    assert set(written) == set(stale.parent.iterdir())
    assert all(path.stat().st_size > 0 for path in written)
    told = (stale.parent / "captions.md").read_text()
    assert "**Figure 5: not drawn.**" in told
    assert "![fig05" not in told
