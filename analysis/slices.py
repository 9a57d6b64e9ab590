"""Under which learning rates a sweep is read: each one that was swept, and the tuned ones.

A rank sweep at one fixed learning rate says as much about the learning rate as about the rank.
So where methods and targets were also swept at a rate of their own, that is a reading of its own.
"""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis import rates as search

_SERIES = ["method", "target"]
_CELL = ["r", "alpha"]
SWEPT = 0.5  # a rate counts as swept where it has this share of the best covered rate's cells


@dataclass(frozen=True)
class Slice:
    """The trials of one model and task that are read together.

    Attributes:
        name: for files, ``""`` for the one that most trials belong to.
        title: for people.
        table: its trials, and those without an adapter.
        chosen_here: whether the rates of methods and targets were chosen by the very scores that
            are compared, for want of a search.
    """

    model: str
    task: str
    name: str
    title: str
    table: pd.DataFrame
    chosen_here: bool = False

    @property
    def heading(self) -> str:
        """``smollm2_135m on local, learning rate 0.0001``."""
        return f"{self.model} on {self.task}, {self.title.split(' (')[0]}"


def slices(table: pd.DataFrame, model: str, task: str) -> list[Slice]:
    """Every reading of a model and task, the one with most trials first.

    The tuned reading takes, for each method and target, the rate that a search on the same model
    found (see ``rates``). Without one it takes the swept rate with the best mean accuracy over the
    cells that all its swept rates share. That was chosen on the items that it is judged by, so its
    level is a little too good; differences between ranks and alphas are at one rate and are not
    touched by that, those between methods or targets are (``chosen_here``).
    """
    rows = table[(table["model"] == model) & (table["task"] == task)]
    adapted = rows["r"].notna()
    swept = _swept(rows[adapted])
    rates = sorted({rate for found in swept.values() for rate in found})
    if len(rates) < 2:
        title = f"learning rate {rates[0]:g}" if rates else "no adapter"
        return [Slice(model, task, "", title, rows)]
    fixed = [
        Slice(
            *(model, task, f"lr{rate:g}", f"learning rate {rate:g}"),
            table=rows[~adapted | (rows["learning_rate"] == rate)],
        )
        for rate in rates
        if sum(rate in found for found in swept.values()) == len(swept)
    ]
    fixed.sort(key=lambda one: -len(one.table))
    searched = search.picks(table, model)
    elsewhere = {s: searched[s] for s, found in swept.items() if searched.get(s) in found}
    best = {s: elsewhere[s] if s in elsewhere else _best(rows, s, r) for s, r in swept.items()}
    found = [*fixed]
    if len(set(best.values())) > 1 or not any(s.name == f"lr{min(best.values()):g}" for s in fixed):
        here = any(len(tried) > 1 and s not in elsewhere for s, tried in swept.items())
        found.append(_tuned(rows, model, task, best, chosen_here=here))
    first, *others = found
    return [Slice(first.model, first.task, "", first.title, first.table), *others]


def _swept(rows: pd.DataFrame) -> dict[tuple[str, str], list[float]]:
    """Rates of each method and target that were tried on most of its cells."""
    done = rows[rows["state"] == "done"]
    found: dict[tuple[str, str], list[float]] = {}
    for series, trials in done.groupby(_SERIES):
        cells = {
            float(str(rate)): len(of_rate[_CELL].drop_duplicates())
            for rate, of_rate in trials.groupby("learning_rate")
        }
        most = max(cells.values(), default=0)
        found[_pair(series)] = [rate for rate, n in cells.items() if n >= SWEPT * most]
    return found


def _pair(series: Any) -> tuple[str, str]:
    return str(series[0]), str(series[1])


def _best(rows: pd.DataFrame, series: tuple[str, str], rates: list[float]) -> float:
    """Rate with the best mean accuracy over the cells that all rates share."""
    own = rows[(rows["method"] == series[0]) & (rows["target"] == series[1])]
    own = own[(own["state"] == "done") & own["learning_rate"].isin(rates)]
    means = own.pivot_table(index=_CELL, columns="learning_rate", values="eval/accuracy").dropna()
    return float(str(means.mean().idxmax())) if len(means) else min(rates)


def _tuned(
    rows: pd.DataFrame,
    model: str,
    task: str,
    best: dict[tuple[str, str], float],
    *,
    chosen_here: bool,
) -> Slice:
    parts = [rows[rows["r"].isna()]]
    for (method, target), rate in best.items():
        own = (rows["method"] == method) & (rows["target"] == target)
        parts.append(rows[own & (rows["learning_rate"] == rate)])
    told = ", ".join(f"{method} {target} {rate:g}" for (method, target), rate in best.items())
    together = pd.concat(parts).sort_index()
    # One setting in the eyes of every figure: its rate is "tuned", and the caption says to what.
    adapted = together["r"].notna()
    together.loc[adapted, "learning_rate"] = float("nan")
    together.loc[adapted, "settings"] = [
        "; ".join(filter(None, [text, f"learning rates: {told}"]))
        for text in together.loc[adapted, "settings"]
    ]
    title = f"learning rate tuned for each method and target ({told})"
    return Slice(model, task, "tuned", title, together, chosen_here)
