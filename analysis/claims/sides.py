"""The two sides of a comparison: the scores and answers of one or several cells, by seed."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import pandas as pd

from analysis import style, views
from analysis.views import View
from lorasweep.results import evidence
from lorasweep.results.evidence import Estimate

# How a seed that was asked for came to have no score, as the record says and in words. Why it
# has none may well depend on how good it was, so what is left would flatter its cell.
_LOST = {
    "oom": "ran out of memory",
    "done": "without a score",
    "missing": "missing",  # never started, or removed
}


@dataclass(frozen=True)
class Cell:
    """One combination whose seeds are repeats of one another; no rank means no adapter."""

    method: str
    target: str | None = None
    r: float = 0
    alpha: float = 0

    @property
    def name(self) -> str:
        """``QLoRA, attention, r 8, α 16``."""
        look = style.method(self.method).name
        if self.target is None:
            return look
        return f"{look}, {style.target(self.target).name}, r {self.r:g}, α {self.alpha:g}"


def at(method: str, target: str, r: float, alpha: float | None = None) -> Cell:
    """Cell of the paper's studies; alpha is 2r unless given."""
    return Cell(method, target, float(r), float(2 * r if alpha is None else alpha))


BASE = Cell("base")


@dataclass(frozen=True)
class Study:
    """The trials that claims are read from: one model and task under one setting.

    Attributes:
        view: of the trials.
        items: answers of those trials (see ``details.Details``).
        metric: the score that decides.
    """

    view: View
    items: pd.DataFrame
    metric: str = "eval/accuracy"

    @cached_property
    def _trials(self) -> dict[Cell, pd.DataFrame]:
        found: dict[Cell, pd.DataFrame] = {}
        for names, rows in self.view.rows.groupby(["method", "target", "r", "alpha"]):
            method, target, r, alpha = (str(name) for name in names)
            found[Cell(method, target, float(r), float(alpha))] = rows
        references = self.view.references
        found[BASE] = references[references["method"] == "base"]
        return found

    @cached_property
    def _right(self) -> dict[str, "pd.Series[float]"]:
        """Whether each answer is right, by trial and item."""
        wanted = set(pd.concat([self.view.done["key"], self.view.references["key"]]))
        items = self.items[self.items["key"].isin(wanted)]
        items = items.assign(right=(items["gold"] == items["predicted"]).astype(float))
        return {
            str(key): rows.set_index("item")["right"].sort_index()
            for key, rows in items.groupby("key")
        }

    @cached_property
    def asked(self) -> frozenset[int]:
        """Seeds that every cell was asked for: those of all trials, however these ended."""
        return frozenset(int(seed) for seed in self.view.rows["seed"].dropna())

    @cached_property
    def step(self) -> float | None:
        """Smallest difference that two scores can have: one answer; None where it is not known.

        Macro F1 has no such step; one answer changes it by about as much.
        """
        items = max(map(len, self._right.values()), default=0) or self.view.rows["eval_size"].max()
        return 1 / items if items > 0 else None

    @cached_property
    def _known(self) -> dict[Any, Any]:
        """What was worked out before, for the cells that many comparisons share."""
        return {}

    def scores(self, cell: Cell) -> "pd.Series[float]":
        """Score of a cell's finished trials by seed."""
        if ("scores", cell) not in self._known:
            self._known["scores", cell] = self._scores(cell)
        return cast("pd.Series[float]", self._known["scores", cell])

    def answers(self, cell: Cell) -> pd.DataFrame | None:
        """Whether each answer of a cell is right, seeds × items; None where some are not kept."""
        if ("answers", cell) not in self._known:
            self._known["answers", cell] = self._answers(cell)
        return cast("pd.DataFrame | None", self._known["answers", cell])

    def _scores(self, cell: Cell) -> "pd.Series[float]":
        rows = self._trials.get(cell, self.view.rows[:0])
        rows = rows[(rows["state"] == "done") & rows[self.metric].notna()]
        return rows.set_index("seed")[self.metric].groupby(level=0).mean().astype(float)

    def _answers(self, cell: Cell) -> pd.DataFrame | None:
        rows = self._trials.get(cell, self.view.rows[:0])
        rows = rows[rows["state"] == "done"].drop_duplicates("seed")
        runs = rows[["seed", "key"]].itertuples(index=False, name=None)
        kept = {seed: self._right.get(str(key)) for seed, key in runs}
        if self.metric != "eval/accuracy" or not kept or any(v is None for v in kept.values()):
            return None
        frame = pd.DataFrame({seed: right for seed, right in kept.items() if right is not None}).T
        return None if frame.isna().to_numpy().any() else frame

    def lacks(self, side: Sequence[Cell]) -> str:
        """Why these cells must not decide (the first that lacks a seed); nothing where they may."""
        for cell in side:
            rows = self._trials.get(cell, self.view.rows[:0])
            if rows.empty:
                return f"not run: {cell.name}"
            lost = sorted(self.asked - {*self.scores(cell).index})
            ended = dict(zip(rows["seed"], rows["state"], strict=True))
            states = Counter(ended.get(seed, "missing") for seed in lost)
            if states:
                count = len(self.asked)
                told = (f"{n} of {count} seeds {_LOST.get(how, how)}" for how, n in states.items())
                return f"{cell.name}: {', '.join(told)}"
        return ""

    def compare(self, a: Sequence[Cell], b: Sequence[Cell]) -> Estimate | None:
        """Mean of the cells of ``a`` less the mean of those of ``b``; None without trials."""
        first, second = self._mean(a), self._mean(b)
        if first is None or second is None:
            return None
        kept = self._mean_answers(a), self._mean_answers(b)
        both = (kept[0], kept[1]) if kept[0] is not None and kept[1] is not None else None
        return evidence.difference(first, second, both, self.step)

    def told(self, cell: Cell, other: Cell) -> str:
        """Difference of two cells, ``+0.0048 [−0.0098, +0.0194]``; ``–`` where there is none.

        Where a cell lacks seeds, that is said.
        """
        found = None if cell == other else self.compare([cell], [other])
        if found is None or math.isnan(found.effect):
            return "–"
        text = f"{found.effect:+.4f}"
        if not math.isnan(found.low):
            text += f" [{found.low:+.4f}, {found.high:+.4f}]"
        lacks = self.lacks([cell, other])
        return text.replace("-", "−") + (f" ({lacks})" if lacks else "")

    def level(self, cell: Cell, less: float) -> Estimate | None:
        """A cell's score less a constant; None without trials."""
        scores = self.scores(cell)
        if scores.empty:
            return None
        return evidence.level(scores, less, self.answers(cell), self.step)

    def _mean(self, side: Sequence[Cell]) -> "pd.Series[float] | None":
        """Mean over cells, of the seeds that all of them have."""
        found = [self.scores(cell) for cell in side]
        if any(scores.empty for scores in found):
            return None
        return pd.concat(found, axis="columns", join="inner").mean(axis="columns")

    def _mean_answers(self, side: Sequence[Cell]) -> pd.DataFrame | None:
        total: pd.DataFrame | None = None
        for cell in side:
            answers = self.answers(cell)
            if answers is None:
                return None
            total = answers if total is None else total + answers
            if total.isna().to_numpy().any():  # other seeds or other items
                return None
        return None if total is None else total / len(side)


def study(
    table: pd.DataFrame, items: pd.DataFrame, model: str, task: str, metric: str = "eval/accuracy"
) -> Study:
    """Gather the trials of one model and task that claims may be read from."""
    return Study(views.study_view(table, model, task), items, metric)
