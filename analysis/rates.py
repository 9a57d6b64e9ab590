"""The search for a learning rate, before ranks are compared: what was tried, and what it found.

A search is a model and task with one rank and one alpha at several rates. It is best run on
seeds and items that no comparison uses (``sweeps/patil2025_lr.yaml`` says how); nothing but the
rate is read from it.
"""

from collections.abc import Iterator
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from analysis import style, views
from analysis.names import escaped
from lorasweep.errors import RequestError

SEARCHED = 3  # with fewer rates it is a comparison of rates
# The order that sweeps/patil2025_tuned.yaml takes them in.
ORDER = (
    *(("lora", "attention"), ("lora", "all_linear")),
    *(("qlora", "attention"), ("qlora", "all_linear")),
)
_CELL = ["r", "alpha"]
_SERIES = ["method", "target"]

Series = tuple[str, str]


def is_search(rows: pd.DataFrame) -> bool:
    """Whether the trials of a model and task only look for a learning rate."""
    adapted = rows[rows["r"].notna()]
    if adapted.empty or len(adapted[_CELL].drop_duplicates()) > 1:
        return False
    return bool(adapted.groupby(_SERIES)["learning_rate"].nunique().max() >= SEARCHED)


def is_comparison(rows: pd.DataFrame) -> bool:
    """Whether the trials of a model and task differ in their rate wherever they differ in a cell.

    So it is in a search, and where a sampler drew rate, rank and alpha together.
    """
    adapted = rows[rows["r"].notna()]
    rates = adapted.groupby(_SERIES)["learning_rate"].nunique()
    cells_of = adapted.assign(cell=adapted[_CELL].apply(tuple, axis="columns"))
    most = cells_of.groupby([*_SERIES, "learning_rate"])["cell"].nunique()
    return bool(len(rates) and rates.max() > 1 and most.max() == 1)


def searches(table: pd.DataFrame) -> list[tuple[str, str]]:
    """Every model and task that is a search."""
    return [place for place, rows in _places(table) if is_search(rows)]


def compared(table: pd.DataFrame) -> list[tuple[str, str]]:
    """Every model and task on which nothing but learning rates can be compared."""
    return [place for place, rows in _places(table) if is_search(rows) or is_comparison(rows)]


def _places(table: pd.DataFrame) -> Iterator[tuple[tuple[str, str], pd.DataFrame]]:
    for (model, task), rows in table.groupby(["model", "task"]):
        yield (str(model), str(task)), rows


def tried(table: pd.DataFrame, model: str, task: str) -> pd.DataFrame:
    """Mean accuracy of every rate that was tried.

    Returns:
        One row a method, target and rate: ``accuracy low high seeds``, ``lost`` (seeds of the
        search that have no score there) and ``picked``: the highest mean, the lower rate of two;
        a rate that lost a seed is not picked.
    """
    rows = table[(table["model"] == model) & (table["task"] == task) & table["r"].notna()]
    found, asked = [], rows["seed"].nunique()
    for (method, target, rate), trials in rows.groupby([*_SERIES, "learning_rate"]):
        done = trials.loc[trials["state"] == "done", "eval/accuracy"].dropna()
        scores = done.groupby(trials["seed"]).mean().to_numpy()
        low, high = views.interval(scores)
        mean = float(scores.mean()) if len(scores) else float("nan")
        lost = asked - len(scores)
        found.append((method, target, rate, mean, low, high, len(scores), lost))
    columns = [*_SERIES, "learning_rate", "accuracy", "low", "high", "seeds", "lost"]
    frame = pd.DataFrame(found, columns=columns)
    sound = frame["accuracy"].where(frame["lost"] == 0)
    best = sound.groupby([frame["method"], frame["target"]]).idxmax(skipna=True).dropna()
    return frame.assign(picked=frame.index.isin(best))


def picks(table: pd.DataFrame, model: str) -> dict[Series, float]:
    """Rate that a search on this model found best for each method and target."""
    found: dict[Series, float] = {}
    for name, task in searches(table):
        if name == model:
            frame = tried(table, model, task)
            for row in frame[frame["picked"]].itertuples():
                found[str(row.method), str(row.target)] = float(str(row.learning_rate))
    return found


def words(table: pd.DataFrame, model: str) -> str:
    """What a search found as ``study=patil2025_tuned`` takes it.

    Raises:
        RequestError: a method or target has no rate.
    """
    found = picks(table, model)
    lacking = [views.series_name(series) for series in ORDER if series not in found]
    if lacking:
        raise RequestError([f"no learning rate of {model} was found for {'; '.join(lacking)}"])
    return "train.learning_rate=" + ",".join(f"{found[series]:g}" for series in ORDER)


def plot(table: pd.DataFrame, model: str, task: str) -> Figure:
    """Accuracy against the learning rate, a line a method and target, a ring where it is picked."""
    frame = tried(table, model, task)
    with style.context():
        figure = Figure(figsize=(5.5, 3.4), layout="constrained")
        axes = figure.subplots()
        for (method, target), rows in frame.groupby(_SERIES):
            _line(axes, rows, (str(method), str(target)))
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("learning rate")
        axes.set_ylabel("accuracy")
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(
            *(handles, labels),
            title=f"{model} on {task}: accuracy against the learning rate",
            title_fontsize=9,
            alignment="left",
            loc="outside upper left",
            ncols=2,
        )
    return figure


def _line(axes: Any, rows: pd.DataFrame, series: Series) -> None:
    look, layers = style.method(series[0]), style.target(series[1])
    x, y = rows["learning_rate"].to_numpy(dtype=float), rows["accuracy"].to_numpy(dtype=float)
    axes.plot(
        *(x, y),
        color=look.colour,
        marker=look.marker,
        linestyle=layers.line,
        markersize=4.5,
        markerfacecolor=look.colour if layers.filled else "white",
        markeredgewidth=0.9,
        label=views.series_name(series),
    )
    best = rows["picked"].to_numpy(dtype=bool)
    axes.plot(
        *(x[best], y[best]),
        linestyle="none",
        marker="o",
        markersize=10,
        markerfacecolor="none",
        markeredgecolor=look.dark,
        markeredgewidth=0.8,
    )


def caption(table: pd.DataFrame, model: str, task: str) -> str:
    """What was tried, and where."""
    frame = tried(table, model, task)
    rows = table[(table["model"] == model) & (table["task"] == task) & table["r"].notna()]
    cell = ", ".join(f"{n} = {_span(rows[c])}" for n, c in (("r", "r"), ("α", "alpha")))
    seeds = ", ".join(f"{seed:g}" for seed in sorted(rows["seed"].unique()))
    told = (
        f"**The learning rate.** {escaped(model)} on {escaped(task)}, {cell}, "
        f"seeds {seeds}: mean accuracy at each rate that was tried; rings mark "
        "the picks, the highest mean of each method and target."
    )
    lost = int(frame["lost"].sum())
    return told + (f" Seeds without a score: {lost}; their rates are not picked." if lost else "")


def _span(values: "pd.Series[float]") -> str:
    """``8``, or ``4 to 64``."""
    low, high = values.min(), values.max()
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"
