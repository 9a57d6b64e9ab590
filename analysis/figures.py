"""The pictures: pure functions from the tidy table to a matplotlib figure.

Figures 3 to 11 of Patil et al. 2025 for any model and task, and an overview of score, memory
and time. What the record lacks stays blank and is named; nothing is interpolated.
"""

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from analysis import captions, rates, style, views
from analysis.names import escaped, image, stem
from analysis.slices import slices
from analysis.views import Series, View
from lorasweep.errors import RecordError, RequestError


@dataclass(frozen=True)
class Panel:
    """One pair of axes: what it shows and whether its scale starts at zero."""

    metric: str
    title: str
    from_zero: bool = False


SCORES = (
    Panel("eval/accuracy", "accuracy"),
    Panel("eval/f1_macro", "F1 (macro)"),
    Panel("eval/precision_macro", "precision (macro)"),
    Panel("eval/recall_macro", "recall (macro)"),
)


def plot_alpha(table: pd.DataFrame, model: str, task: str, target: str = "all_linear") -> Figure:
    """Figures 3 and 4: four scores against alpha at r = 8, LoRA and QLoRA on one target."""
    view = _drawable(views.alpha_view(table, model, task, target))
    what = f"score against α at r = {views.ALPHA_RANK}, {style.target(target).name} layers"
    return _line_figure(view, SCORES, what)


def plot_rank(table: pd.DataFrame, model: str, task: str, target: str = "all_linear") -> Figure:
    """Figures 5 and 6: four scores against the rank at alpha = 2r, LoRA and QLoRA."""
    view = _drawable(views.rank_view(table, model, task, [target]))
    what = f"score against rank at α = 2r, {style.target(target).name} layers"
    return _line_figure(view, SCORES, what)


def plot_bars(
    table: pd.DataFrame, model: str, task: str, ranks: tuple[int, int] = (1, 2)
) -> Figure:
    """Figures 7 to 11: four scores of four method and target pairs, one panel a rank."""
    view = _drawable(captions.bars_view(table, model, task, ranks))
    with style.context():
        figure = Figure(figsize=(7.2, 3.0), layout="constrained")
        both = figure.subplots(1, 2, sharey=True)
        for letter, axes, rank in zip("ab", both, ranks, strict=True):
            _bars(axes, view, float(rank))
            axes.set_title(f"({letter}) r = {rank}", loc="left")
        both[0].set_ylabel("score")
        _finish(figure, view, f"four scores at r = {ranks[0]} and {ranks[1]}, α = 2r")
    return figure


def plot_overview(table: pd.DataFrame, model: str, task: str) -> Figure:
    """Accuracy, F1, peak memory and training time against the rank, all methods and targets."""
    view = _drawable(views.overview_view(table, model, task))
    memory = captions.memory_metric(view)
    panels: tuple[Panel, ...] = (
        *SCORES[:2],
        Panel(memory, f"{captions.MEMORY[memory]} (GiB)", from_zero=True),
        Panel("time/train_s", "training time (s)", from_zero=True),
    )
    shown = "score and cost"
    if not captions.costs_known(view):  # nothing ran alone, and the caption says so
        panels, shown = panels[:2], "score"
    return _line_figure(view, panels, f"{shown} against rank at α = 2r{captions.only(view)}")


def plot_small_alpha(table: pd.DataFrame, model: str, task: str) -> Figure:
    """Accuracy against alpha at the ranks that were run with an alpha below them, a row a rank."""
    view = _drawable(views.small_alpha_view(table, model, task))
    ranks = sorted(view.done["r"].unique())
    targets = [name for name in views.TARGETS if (view.done["target"] == name).any()]
    with style.context():
        size = 3.6 * len(targets), 0.7 + 2.1 * len(ranks)
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(len(ranks), len(targets), sharex=True, squeeze=False)
        places = [(rank, target) for rank in ranks for target in targets]
        for number, (axes, (rank, target)) in enumerate(zip(grid.flat, places, strict=True)):
            own = view.rows[(view.rows["r"] == rank) & (view.rows["target"] == target)]
            series = tuple(one for one in view.series if one[1] == target)
            style.log2_axis(axes, view.xs, "α" if axes in grid[-1] else "")
            _lines(axes, replace(view, rows=own, series=series), SCORES[0])
            layers = style.target(target).name
            axes.set_title(f"({chr(97 + number)}) r = {rank:g}, {layers} layers", loc="left")
        _finish(figure, view, "accuracy against α, also below the rank")
    return figure


# Every figure: file name, picture, caption.
Draw = Callable[[pd.DataFrame, str, str], Figure]
Tell = Callable[[pd.DataFrame, str, str], str]
FIGURES: dict[str, tuple[Draw, Tell]] = {
    "fig03_alpha_all_linear": (
        partial(plot_alpha, target="all_linear"),
        partial(captions.caption_alpha, target="all_linear"),
    ),
    "fig04_alpha_attention": (
        partial(plot_alpha, target="attention"),
        partial(captions.caption_alpha, target="attention"),
    ),
    "fig05_rank_all_linear": (
        partial(plot_rank, target="all_linear"),
        partial(captions.caption_rank, target="all_linear"),
    ),
    "fig06_rank_attention": (
        partial(plot_rank, target="attention"),
        partial(captions.caption_rank, target="attention"),
    ),
    **{
        f"fig{number:02}_r{ranks[0]}_r{ranks[1]}": (
            partial(plot_bars, ranks=ranks),
            partial(captions.caption_bars, ranks=ranks),
        )
        for ranks, number in captions.BAR_FIGURES.items()
    },
    "overview": (plot_overview, captions.caption_overview),
    "alpha_below_rank": (plot_small_alpha, captions.caption_small_alpha),
}


def draw_all(table: pd.DataFrame, out: Path) -> list[Path]:
    """Draw every figure of every model and task into ``out/<model>_<task>/``.

    Where several learning rates were swept, each further reading (see ``slices``) has a folder of
    its own, ``out/<model>_<task>_<reading>/``.

    A figure without a finished trial is not drawn, and an older picture of it is removed:
    ``captions.md`` says so instead.

    Returns:
        The files written.

    Raises:
        RecordError: the disk refused.
    """
    written: list[Path] = []
    places = table[["model", "task"]].drop_duplicates().sort_values(["model", "task"])
    searches = rates.compared(table)
    try:
        for model, task in places.itertuples(index=False, name=None):
            if (model, task) in searches:
                written += _draw_search(table, model, task, out / stem(model, task))
                continue
            readings = slices(table, model, task)
            for one in readings:
                shown = one.table if len(readings) > 1 else table
                written += _draw_place(shown, model, task, out / stem(model, task, one.name))
    except OSError as error:
        raise RecordError(f"The figures could not be written to {out}: {error}.") from error
    return written


def _draw_search(table: pd.DataFrame, model: str, task: str, folder: Path) -> list[Path]:
    written = style.save(rates.plot(table, model, task), folder / "learning_rates")
    told = folder / "captions.md"
    told.write_text(rates.caption(table, model, task) + "\n", encoding="utf-8")
    return [*written, told]


def _draw_place(table: pd.DataFrame, model: str, task: str, folder: Path) -> list[Path]:
    written: list[Path] = []
    text = [f"# {escaped(model)} on {escaped(task)}", ""]
    for name, (draw, tell) in FIGURES.items():
        try:
            written += style.save(draw(table, model, task), folder / name)
            text += [image(name, f"{name}.png"), ""]
        except RequestError:  # nothing to draw: the caption says so
            for suffix in (".pdf", ".png"):
                (folder / name).with_suffix(suffix).unlink(missing_ok=True)
        told = tell(table, model, task)
        text += [told, ""] if told else []
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "captions.md").write_text("\n".join(text), encoding="utf-8")
    return [*written, folder / "captions.md"]


def _drawable(view: View) -> View:
    if view.done.empty:
        raise RequestError([captions.nothing(view)])
    return view


def _line_figure(view: View, panels: Sequence[Panel], what: str) -> Figure:
    """Four panels or two, a line a series, the same x axis below all."""
    width, height = (5.5, 4.5) if len(view.series) <= 2 else (7.2, 5.4)
    rows = len(panels) // 2
    with style.context():
        figure = Figure(figsize=(width, height * (0.35 + 0.65 * rows / 2)), layout="constrained")
        grid = figure.subplots(rows, 2, sharex=True, squeeze=False)
        for letter, axes, panel in zip("abcd", grid.flat, panels, strict=False):
            label = "rank r" if view.axis == "r" else "α"
            style.log2_axis(axes, view.xs, label if axes in grid[-1] else "")
            _lines(axes, view, panel)
            axes.set_title(f"({letter}) {panel.title}", loc="left")
        _finish(figure, view, what)
    return figure


def _lines(axes: Axes, view: View, panel: Panel) -> None:
    """One panel: means as lines, seeds and intervals, reference lines, failures."""
    middle = (len(view.series) - 1) / 2
    for number, series in enumerate(view.series):
        _mean_line(axes, view, series, panel.metric)
        # Means stand at their x; seeds and intervals beside them, or scores would hide each other.
        aside = 1.0 if panel.from_zero else 2 ** (0.2 * (number - middle))
        place = {x: x * aside for x in view.xs}
        _spread(axes, view, series, panel.metric, place, above=not panel.from_zero)
    _reference_lines(axes, view, panel.metric)
    low, high = views.extent(view, panel.metric)
    if np.isnan(low):
        axes.text(0.5, 0.5, "not in the record", transform=axes.transAxes, ha="center")
        axes.set_yticks([])
    elif panel.from_zero:
        axes.set_ylim(bottom=0)
    else:
        style.score_axis(axes, low, high, views.reference(view, "base", panel.metric))
    _failures(axes, view, panel.metric)


def _mean_line(axes: Axes, view: View, series: Series, metric: str) -> None:
    """A line through the means, broken where the record has nothing."""
    several = len({target for _, target in view.series}) > 1
    look, layers = style.method(series[0]), style.target(series[1])
    found = views.points(view, series, metric)
    filled = layers.filled or not several
    axes.plot(
        found.index.to_numpy(),
        found["mean"].to_numpy(),
        color=look.colour,
        marker=look.marker,
        linestyle=layers.line if several else look.line,
        # An open marker is a ring around a filled one at the same place.
        markersize=4 if filled else 5.5,
        markerfacecolor=look.colour if filled else "white",
        markeredgecolor="white" if filled else look.colour,
        markeredgewidth=0.5 if filled else 0.9,
        label=views.series_name(series) if several else look.name,
        zorder=3.2 if filled else 3,
    )


def _spread(
    axes: Axes,
    view: View,
    series: Series,
    metric: str,
    place: dict[float, float],
    above: bool = True,
) -> None:
    """Interval over seeds, and every seed where they are few; ``place`` moves x aside."""
    found = views.points(view, series, metric)
    found = found[(found["n"] > 1) & found.index.isin(list(place))]
    if found.empty:
        return
    colour = style.method(series[0]).dark
    around = found[["low", "high"]].sub(found["mean"], axis="index").abs().to_numpy().T
    where = [place[x] for x in found.index]
    layer = 4 if above else 2
    axes.errorbar(
        where, found["mean"], yerr=around, fmt="none", ecolor=colour, elinewidth=0.8, zorder=layer
    )
    seeds = views.values(view, series, metric)
    seeds = seeds[seeds["x"].isin(found.index[found["n"] <= captions.FEW_SEEDS])]
    axes.scatter(
        seeds["x"].map(place),
        seeds["value"],
        s=4.5,
        facecolor="white",
        edgecolor=colour,
        linewidth=0.5,
        zorder=layer + 0.5,
    )


def _failures(axes: Axes, view: View, metric: str) -> None:
    """Write into the axes how trials ended where none finished, clear of the other series."""
    means = [views.points(view, series, metric)["mean"] for series in view.series]
    for x in view.xs:
        ends = {(series[0], view.state(series, x)): None for series in view.series}
        lost = [(method, state) for method, state in ends if state not in ("done", "not run")]
        low = not any(style.height(axes, x, mean[x]) < 0.45 for mean in means)
        for number, (method, state) in enumerate(lost):
            beside = x * 2 ** (0.45 * (number - (len(lost) - 1) / 2))
            text = _upright(axes, beside, 0.03, _short(state))
            text.set(transform=axes.get_xaxis_transform(), color=style.method(method).dark)
            text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.6})
            if not low:
                text.set(y=0.98, verticalalignment="top")


def _upright(axes: Axes, x: float, y: float, words: str) -> Text:
    """Small type that reads upwards from a point."""
    return axes.text(
        *(x, y, words),
        rotation=90,
        horizontalalignment="center",
        verticalalignment="bottom",
        size=6,
        color=style.GREY,
        zorder=2.5,
    )


def _short(state: str) -> str:
    return {"oom": "OOM", "done": "no value"}.get(state, state)


def _reference_lines(axes: Axes, view: View, metric: str) -> None:
    for method in view.references["method"].unique():
        look, level = style.method(method), views.reference(view, method, metric)
        # Evaluation alone has no training time and no comparable memory.
        if np.isnan(level) or (method == "base" and not metric.startswith("eval/")):
            continue
        axes.axhline(level, color=look.colour, linestyle=look.line, linewidth=1, label=look.name)


def _bars(axes: Axes, view: View, rank: float) -> None:
    """Four groups (scores) of four bars (method and target)."""
    width = 0.8 / len(view.series)
    for number, series in enumerate(view.series):
        look, layers = style.method(series[0]), style.target(series[1])
        places = np.arange(len(SCORES)) + (number - (len(view.series) - 1) / 2) * width
        means = [float(views.points(view, series, p.metric)["mean"][rank]) for p in SCORES]
        axes.bar(
            places,
            means,
            0.94 * width,
            facecolor=look.colour if layers.filled else "white",
            edgecolor=look.colour,
            hatch=layers.hatch,
            linewidth=0.7,
            label=views.series_name(series),
        )
        for x, mean, panel in zip(places, means, SCORES, strict=True):
            if np.isnan(mean):
                _upright(axes, x, 0.01, _short(view.state(series, rank)))
            _spread(axes, view, series, panel.metric, {rank: float(x)})
    _base_marks(axes, view)
    axes.set_xticks(range(len(SCORES)), [panel.title.split()[0] for panel in SCORES])
    axes.set_xlim(-0.55, len(SCORES) - 0.45)
    axes.tick_params(axis="x", length=0)


def _base_marks(axes: Axes, view: View) -> None:
    """The untrained model's score across each group."""
    look, label = style.method("base"), style.method("base").name
    for group, panel in enumerate(SCORES):
        level = views.reference(view, "base", panel.metric)
        if not np.isnan(level):
            axes.plot(
                [group - 0.45, group + 0.45],
                [level, level],
                color=style.INK,
                linestyle=look.line,
                linewidth=1,
                label=label,
                zorder=6,
            )
            label = "_again"


def _finish(figure: Figure, view: View, what: str) -> None:
    """Title, one legend for all panels, and a footnote that names what is missing."""
    found: dict[str, Artist] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    last = [style.method(name).name for name in ("fft", "base")]
    labels = {label: found[label] for label in sorted(found, key=lambda label: label in last)}
    fit = int(figure.get_figwidth() / 1.4)  # inches an entry
    figure.legend(
        list(labels.values()),
        list(labels),
        title=views.heading(view.model, view.task, what, view.rows),
        title_fontsize=9,
        alignment="left",
        loc="outside upper left",
        ncols=len(labels) if len(labels) <= fit else -(-len(labels) // 2),
    )
    notes = captions.notes(view)
    if any(axes.get_ylim()[0] > 0 for axes in figure.axes):
        notes.append("score axes do not start at zero")
    if any(axes.get_yscale() != "linear" for axes in figure.axes):
        notes.append("below // the scale is compressed")
    if notes:
        lines = textwrap.wrap(" · ".join(notes), int(figure.get_figwidth() * 21))
        figure.supxlabel("\n".join(lines), x=0.01, ha="left", size=6.5, color=style.GREY)
