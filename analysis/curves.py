"""How trials learnt: the loss along the training, a panel a method and target, a shade a rank."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from analysis import style, views
from analysis.names import escaped
from analysis.views import View
from lorasweep.errors import RequestError

Colour = tuple[float, float, float]
NAMES = {
    "train/loss": "training loss",
    "eval/accuracy_along": "accuracy along the training",
    "eval/loss_along": "evaluation loss along the training",
}


def plot_curves(
    table: pd.DataFrame, curves: pd.DataFrame, model: str, task: str, metric: str = "train/loss"
) -> Figure:
    """One metric against the step at alpha = 2r: seeds as thin lines, their mean as a thick one."""
    view = views.rank_view(table, model, task, views.TARGETS)
    known = _joined(view, curves, metric)
    if known.empty:
        raise RequestError([f"no curve of {metric} for {model} on {task}"])
    with style.context():
        figure = Figure(figsize=(7.2, 4.8), layout="constrained")
        grid = figure.subplots(2, 2, sharex=True, sharey=True)
        ranks = sorted(known["r"].unique())
        for letter, axes, (method, target) in zip("abcd", grid.flat, view.series, strict=True):
            own = known[(known["method"] == method) & (known["target"] == target)]
            _panel(axes, own, ranks, method)
            axes.set_title(f"({letter}) {views.series_name((method, target))}", loc="left")
        low, high = np.nanquantile(known["value"], [0.0, 0.995])
        grid[0, 0].set_ylim(*_room(float(low), float(high)))
        for axes in grid[1]:
            axes.set_xlabel("step")
        for axes in grid[:, 0]:
            axes.set_ylabel(NAMES[metric])
        title = views.heading(model, task, f"{NAMES[metric]} at α = 2r", view.rows)
        figure.suptitle(title, x=0.01, ha="left")
        for axes in grid[:, 1]:
            axes.legend(title="rank r", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def caption(
    table: pd.DataFrame, curves: pd.DataFrame, model: str, task: str, metric: str = "train/loss"
) -> str:
    """What the lines are, and how many."""
    view = views.rank_view(table, model, task, views.TARGETS)
    known = _joined(view, curves, metric)
    if known.empty:
        return f"**Learning curves: not drawn.** No {NAMES[metric]} is in the results."
    return (
        f"**Learning curves.** {escaped(model)} on {escaped(task)}: {NAMES[metric]} at α = 2r, "
        f"{known['key'].nunique()} trials; thin lines are seeds, thick ones their mean, darker is "
        "a higher rank. The highest 0.5 % of the values lie outside the axes."
    )


def _joined(view: View, curves: pd.DataFrame, metric: str) -> pd.DataFrame:
    trials = view.done[["key", "method", "target", "r", "seed"]]
    return trials.merge(curves[curves["metric"] == metric], on="key")


def _panel(axes: Axes, own: pd.DataFrame, ranks: list[float], method: str) -> None:
    for number, rank in enumerate(ranks):
        rows = own[own["r"] == rank]
        colour = _shade(method, number / max(1, len(ranks) - 1))
        for _, seed in rows.groupby("key"):
            axes.plot(seed["step"], seed["value"], color=colour, linewidth=0.4, alpha=0.5)
        mean = rows.groupby("step")["value"].mean()
        axes.plot(
            mean.index.to_numpy(dtype=float),
            mean.to_numpy(dtype=float),
            color=colour,
            linewidth=1.1,
            label=f"{rank:g}",
        )


def _shade(method: str, depth: float) -> Colour:
    """The method's colour, from pale (0) over itself to dark (1)."""
    look = style.method(method)
    ends = [np.array(to_rgb(c)) for c in ("#ffffff", look.colour, look.dark)]
    pale = 0.65 * ends[0] + 0.35 * ends[1]
    dark = 0.6 * ends[2]
    mixed = pale + (ends[1] - pale) * 2 * depth if depth < 0.5 else None
    if mixed is None:
        mixed = ends[1] + (dark - ends[1]) * (2 * depth - 1)
    red, green, blue = (float(part) for part in mixed)
    return red, green, blue


def _room(low: float, high: float) -> tuple[float, float]:
    margin = 0.05 * max(high - low, 1e-3)
    return low - margin, high + margin
