"""Alpha below the rank: what the scaling alpha / r does where the paper only went up from 1."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import cells, style
from analysis.claims import sides
from analysis.details import Details
from analysis.slices import Slice
from lorasweep.errors import RequestError

SCORE = "eval/accuracy"
STEM = "alpha_below_rank"  # of the file of its picture
USUAL = 2  # times the rank, as in the paper's rank study


def trials(part: Slice) -> pd.DataFrame:
    """Finished trials of the ranks that were run with an alpha below them."""
    done = cells.study_view(part.table, part.model, part.task).done
    lowest = done.groupby(["method", "target", "r"])["alpha"].transform("min")
    return done[lowest < done["r"]]


def table(part: Slice, details: Details) -> pd.DataFrame:
    """Mean accuracy at every alpha of the ranks that were run with an alpha below them.

    Returns:
        One row a method, target, rank and alpha, as text; the last column is the difference to
        alpha = 2r, paired by seed and item, with its 95 % interval. Empty where there is nothing.
    """
    study = sides.study(part.table, details.items, part.model, part.task, SCORE)
    rows = []
    for (method, target, r, alpha), _ in trials(part).groupby(["method", "target", "r", "alpha"]):
        cell = sides.Cell(str(method), str(target), float(str(r)), float(str(alpha)))
        scores = study.scores(cell)
        usual = sides.at(cell.method, str(target), cell.r, USUAL * cell.r)
        rows.append(
            {
                "method": style.method(cell.method).name,
                "layers": style.target(str(target)).name,
                "r": f"{cell.r:g}",
                "α": f"{cell.alpha:g}",
                "α / r": f"{cell.alpha / cell.r:g}",
                "accuracy": f"{scores.mean():.4f}",
                "seeds": str(len(scores)),
                "less that at α = 2r": study.told(cell, usual),
            }
        )
    return pd.DataFrame(rows)


def plot(part: Slice) -> Figure:
    """Accuracy against alpha / r, a panel a target, a line a method and rank.

    Raises:
        RequestError: no trial has an alpha below its rank.
    """
    found = trials(part)
    if found.empty:
        raise RequestError(["no finished trial has an alpha below its rank"])
    found = found.assign(ratio=found["alpha"] / found["r"])
    targets = [name for name in cells.TARGETS if (found["target"] == name).any()]
    ratios = sorted(found["ratio"].unique())
    with style.context():
        figure = Figure(figsize=(7.2, 3.3), layout="constrained")
        many = figure.subplots(1, len(targets), sharey=True, squeeze=False)[0]
        for letter, axes, target in zip("ab", many, targets, strict=False):
            style.log2_axis(axes, ratios, "α / r")
            axes.xaxis.set_major_formatter(lambda x, _: f"1/{1 / x:g}" if x < 1 else f"{x:g}")
            _lines(axes, found[found["target"] == target])
            axes.set_title(f"({letter}) {style.target(target).name} layers", loc="left")
        many[0].set_ylabel("accuracy")
        handles = {label: handle for axes in many for handle, label in _named(axes)}
        figure.legend(
            *(list(handles.values()), list(handles)),
            title=cells.heading(part.model, part.task, "accuracy against α / r", found),
            title_fontsize=9,
            alignment="left",
            loc="outside upper left",
            ncols=len(handles),
        )
    return figure


def caption(part: Slice) -> str:
    """What the lines and whiskers are."""
    found = trials(part)
    seeds = found.groupby(["method", "target", "r", "alpha"])["seed"].nunique()
    ranks = " and ".join(f"{r:g}" for r in sorted(found["r"].unique()))
    return (
        f"**α below the rank.** {part.model} on {part.task}: accuracy against the scaling α / r "
        f"at r = {ranks}; left of 1, α is below the rank. Means of up to {seeds.max()} seeds, "
        "whiskers are 95 % t intervals over them, within what is possible, small open dots the "
        "seeds."
    )


def _named(axes: Axes) -> Iterator[tuple[Artist, str]]:
    return zip(*axes.get_legend_handles_labels(), strict=True)


def _lines(axes: Axes, found: pd.DataFrame) -> None:
    series = list(found.groupby(["method", "r"]))
    ranks = sorted(found["r"].unique())
    for number, ((method, r), rows) in enumerate(series):
        look, first = style.method(str(method)), r == ranks[0]
        scores = rows.groupby("ratio")[SCORE]
        means = scores.mean()
        x = means.index.to_numpy(dtype=float)
        axes.plot(
            *(x, means.to_numpy()),
            color=look.colour,
            marker=look.marker,
            linestyle="-" if first else ":",
            markersize=4 if first else 5.5,
            markerfacecolor=look.colour if first else "white",
            markeredgecolor="white" if first else look.colour,
            label=f"{look.name}, r = {r:g}",
            zorder=3.2 if first else 3,
        )
        # Seeds and intervals stand beside the means, or scores would hide each other.
        aside = 2 ** (0.12 * (number - (len(series) - 1) / 2))
        ends = np.array([cells.interval(list(own)) for _, own in scores]).T
        around = np.nan_to_num(np.abs(ends - means.to_numpy()))
        axes.errorbar(
            *(x * aside, means.to_numpy()),
            yerr=around,
            fmt="none",
            ecolor=look.dark,
            elinewidth=0.8,
            zorder=4,
        )
        axes.scatter(
            *(rows["ratio"] * aside, rows[SCORE]),
            s=4.5,
            facecolor="white",
            edgecolor=look.dark,
            linewidth=0.5,
            zorder=4.5,
        )
