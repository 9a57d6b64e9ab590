"""Score against cost: which cells nothing else beats at the same or a lower price.

The price of a cell is what a trial of it costs alone on the device. Where trials were packed,
no such price was measured, and the plan's takes its place for all cells, which the axis says:
measured and predicted prices are never mixed in one panel.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import style, views
from analysis.names import escaped
from analysis.views import View
from lorasweep.costs import devices, memory, seconds
from lorasweep.costs.seconds import Calibration, Data
from lorasweep.errors import RequestError
from lorasweep.results import files
from lorasweep.trial.trial import Trial

GIB = 2**30
SCORE = "eval/accuracy"
N_LABELS = 5  # a head of some other size changes neither time nor memory to speak of


@dataclass(frozen=True)
class Price:
    """What the x axis shows.

    Attributes:
        label: of the axis.
        column: in the frame of ``priced``.
        predicted: whether it is the plan's.
    """

    label: str
    column: str
    predicted: bool


@dataclass(frozen=True)
class Predicted:
    """What the plan says of one trial alone; NaN where the table does not tell its settings."""

    gib: float
    train_s: float
    total_s: float


NOTHING = Predicted(np.nan, np.nan, np.nan)


def predict(row: pd.Series) -> Predicted:
    """Ask the plan about a row of the table, on the device that the trial ran on."""
    if not isinstance(row["config"], str):
        return NOTHING
    epochs = row["epochs"] if row["epochs"] == row["epochs"] else 1.0  # else steps are given
    seen = row["train/steps"] * row["batch_size"] / epochs  # where all examples are used
    sizes = row["train_size"] if row["train_size"] == row["train_size"] else seen, row["eval_size"]
    counts = tuple(0 if size != size else int(size) for size in sizes)
    found = _predict(row["config"], str(row["device"]), counts)
    unknown = counts[0] == 0 and row["method"] != "base"
    return Predicted(found.gib, np.nan, np.nan) if unknown else found


@lru_cache(maxsize=4096)
def _predict(config: str, device: str, counts: tuple[int, int]) -> Predicted:
    trial = Trial(json.loads(config))
    try:
        kind = devices.cpu() if device.startswith("CPU") else devices.recognise(device, 0.0)
        gib = memory.estimate(trial, N_LABELS).allocated / GIB
        took = seconds.estimate(trial, Data(N_LABELS, *counts), kind, Calibration())
    except (KeyError, TypeError, ValueError):  # a model whose shape is not written down
        return NOTHING
    return Predicted(gib, took.train, took.total)


def priced(view: View) -> tuple[pd.DataFrame, tuple[Price, Price]]:
    """Mean score and price of every cell of a view, and what the prices are.

    Returns:
        One row a cell: ``method target r alpha``, ``score low high n``, ``memory`` and ``time``.
    """
    done = view.done
    alone = done[files.alone(done)]
    measures = {
        "memory": next(
            (c for c in ("memory/peak_allocated_gib", "memory/peak_rss_gib") if _known(alone, c)),
            "",
        ),
        "time": "time/train_s" if _known(alone, "time/train_s") else "",
    }
    names = {
        "memory/peak_allocated_gib": "peak GPU memory (GiB)",
        "memory/peak_rss_gib": "peak process memory, CPU (GiB)",
        "time/train_s": "training time (s)",
        "": "",
    }
    groups = done.groupby(["method", "target", "r", "alpha"])
    measured: dict[str, list[float]] = {what: [] for what in measures}
    rows = []
    for cell, trials in groups:
        method, target, r, alpha = (str(name) for name in cell)
        scores = trials[SCORE].to_numpy(dtype=float)
        low, high = views.interval(scores)
        rows.append((method, target, float(r), float(alpha), scores.mean(), low, high, len(scores)))
        own = trials[files.alone(trials)]
        for what, column in measures.items():
            measured[what].append(float(own[column].mean()) if column and len(own) else np.nan)
    names_of = ["method", "target", "r", "alpha", "score", "low", "high", "n"]
    frame = pd.DataFrame(rows, columns=names_of)
    prices = []
    for what, column in measures.items():
        frame[what] = np.asarray(measured[what], dtype=float)
        enough = bool(column) and frame[what].notna().mean() >= 0.5
        if not enough:
            told = [predict(trials.iloc[0]) for _, trials in groups]
            frame[what] = [p.gib if what == "memory" else p.train_s for p in told]
        plain = "peak GPU memory (GiB)" if what == "memory" else "training time (s)"
        label = names[column] if enough else f"{plain}, as planned for a trial alone"
        prices.append(Price(label, what, predicted=not enough))
    return frame, (prices[0], prices[1])


def _known(rows: pd.DataFrame, column: str) -> bool:
    return bool(rows[column].notna().any())


def front(price: Sequence[float], score: Sequence[float]) -> list[int]:
    """Positions of the cells that no other beats in score at the same or a lower price."""
    order = sorted(range(len(price)), key=lambda i: (price[i], -score[i]))
    best, found = -np.inf, []
    for i in order:
        if not np.isnan(price[i]) and score[i] > best:
            best = score[i]
            found.append(i)
    return found


def plot_pareto(table: pd.DataFrame, model: str, task: str) -> Figure:
    """Accuracy against memory and against training time; a step line joins the front."""
    view = views.study_view(table, model, task)
    frame, prices = priced(view)
    shown = [price for price in prices if frame[price.column].notna().any()]
    if frame.empty or not shown:
        raise RequestError(["no finished trial with a price"])
    with style.context():
        figure = Figure(figsize=(7.2, 3.5), layout="constrained")
        many = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
        for letter, axes, price in zip("ab", many, shown, strict=False):
            _scatter(axes, frame, price)
            axes.set_title(f"({letter}) against {price.column}", loc="left")
            axes.set_xlabel(price.label)
        many[0].set_ylabel("accuracy")
        handles, labels = many[0].get_legend_handles_labels()
        figure.legend(
            *(handles, labels),
            title=views.heading(
                model, task, "accuracy against cost; numbers are ranks on the front", view.rows
            ),
            title_fontsize=9,
            alignment="left",
            loc="outside upper left",
            ncols=len(labels),
        )
    return figure


def _scatter(axes: Axes, frame: pd.DataFrame, price: Price) -> None:
    known = frame[frame[price.column].notna()].reset_index(drop=True)
    x, y = known[price.column].to_numpy(dtype=float), known["score"].to_numpy(dtype=float)
    for (method, target), rows in known.groupby(["method", "target"]):
        look, layers = style.method(str(method)), style.target(str(target))
        axes.errorbar(
            rows[price.column].to_numpy(dtype=float),
            rows["score"].to_numpy(dtype=float),
            yerr=_around(rows),
            fmt=look.marker or "o",
            color=look.colour,
            ecolor=look.dark,
            elinewidth=0.5,
            capsize=0,
            markersize=4.5,
            markerfacecolor=look.colour if layers.filled else "white",
            markeredgewidth=0.9,
            label=views.series_name((str(method), str(target))),
        )
    best = front(list(x), list(y))
    axes.step(x[best], y[best], where="post", color=style.INK, linewidth=0.9, zorder=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}")
    axes.tick_params(axis="x", which="both", labelsize=6.5, length=2.5)
    axes.margins(x=0.12)
    _ranks(axes, [(x[i], y[i], f"{known['r'][i]:g}") for i in best])


def _ranks(axes: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Write ranks beside points of the front, but not one over another."""
    axes.autoscale_view()
    last = np.array([-np.inf, -np.inf])
    for x, y, text in points:
        place = (axes.transScale + axes.transLimits).transform((x, y))
        if np.all(np.abs(place - last) < (0.07, 0.05)):
            continue
        last = place
        axes.annotate(
            *(text, (x, y), (-4, 4)), textcoords="offset points", ha="right", size=6.5, zorder=5
        )


def _around(rows: pd.DataFrame) -> "np.ndarray[Any, Any]":
    ends = rows[["low", "high"]].sub(rows["score"], axis="index").abs()
    return ends.fillna(0.0).to_numpy(dtype=float).T


def caption(table: pd.DataFrame, model: str, task: str) -> str:
    """What the points, whiskers and prices are."""
    view = views.study_view(table, model, task)
    frame, prices = priced(view)
    if frame.empty:
        return "**Accuracy against cost: not drawn.** No finished trial."
    planned = [price.column for price in prices if price.predicted]
    told = (
        f"**Accuracy against cost.** {escaped(model)} on {escaped(task)}: each point a "
        "combination of method, layers, r and α, the mean of up to "
        f"{int(frame['n'].max())} seeds with its 95 % t interval; the line joins those that "
        "nothing cheaper beats."
    )
    if planned:
        told += (
            f" The {' and '.join(planned)} are the plan's for a trial alone: most of these trials "
            "were packed, and a pack's cost is not theirs."
        )
    else:
        told += " Cost was measured on trials that ran alone."
    lacking = int(frame[[price.column for price in prices]].isna().any(axis="columns").sum())
    return told + (f" {lacking} combinations without a price are left out." if lacking else "")
