"""Which trials a figure shows, their means and intervals, and what the record lacks for it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from analysis import style
from lorasweep.results import files

RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
ALPHAS = (8, 16, 32, 64)
ALPHA_RANK = 8
METHODS = ("lora", "qlora")
TARGETS = ("all_linear", "attention")
STATES = {"oom": "out of memory"}  # in words, where the record's are not

# Settings that all series of a figure must share, and those that each series has for itself.
_SHARED = (
    "learning_rate",
    "epochs",
    "batch_size",
    "train_size",
    "eval_size",
    "max_length",
    "precision",
    "settings",
)
# The paper treats the head in one way on attention and in another on all linear layers.
_OWN = ("head", "quant", "variant")
# column → how a caption introduces its value
_PLAIN = {column: column.replace("_", " ") + " " for column in _SHARED} | {
    "settings": "",
    "variant": "",
}

Series = tuple[str, str]  # method, target


@dataclass(frozen=True)
class View:
    """The trials of one figure.

    Attributes:
        axis: ``r`` or ``alpha``.
        xs: every x the figure has room for, whether or not a trial is there.
        series: method and target of every line or bar.
        rows: the trials in any state, all under one ``setting``.
        references: finished trials without a rank (``base``, ``fft``), made comparably.
        left_out: trials of the same cells under other settings, with a column ``why``.
        remark: what else a reader must know.
    """

    model: str
    task: str
    axis: str
    xs: tuple[float, ...]
    series: tuple[Series, ...]
    rows: pd.DataFrame
    references: pd.DataFrame
    setting: dict[str, str]
    left_out: pd.DataFrame
    remark: str = ""

    @cached_property
    def done(self) -> pd.DataFrame:
        """The finished trials."""
        return self.rows[self.rows["state"] == "done"]

    @cached_property
    def done_by_series(self) -> dict[Any, pd.DataFrame]:
        """The finished trials of every series that has some."""
        return dict(iter(self.done.groupby(["method", "target"])))

    @cached_property
    def states(self) -> dict[tuple[str, str, float], list[str]]:
        """How the trials ended (one a seed) by method, target and x."""
        found: dict[tuple[str, str, float], list[str]] = {}
        columns = self.rows[["method", "target", self.axis, "state"]]
        for method, target, x, state in columns.itertuples(index=False, name=None):
            found.setdefault((method, target, x), []).append(state)
        return found

    def state(self, series: Series, x: float) -> str:
        """``done`` if any seed is; else how the first one ended; else ``not run``."""
        states = self.states.get((*series, x), ["not run"])
        return "done" if "done" in states else states[0]


def alpha_view(table: pd.DataFrame, model: str, task: str, target: str) -> View:
    """Select LoRA and QLoRA at r = 8 and any alpha (Figures 3 and 4)."""
    rows = _of(table, model, task)
    rows = rows[(rows["r"] == ALPHA_RANK) & (rows["target"] == target)]
    rows = rows[rows["method"].isin(METHODS)]
    series = [(method, target) for method in METHODS]
    return _view(table, rows, (model, task, "alpha"), ALPHAS, series)


def rank_view(
    table: pd.DataFrame,
    model: str,
    task: str,
    targets: Sequence[str],
    ranks: Sequence[float] | None = None,
) -> View:
    """Select LoRA and QLoRA at alpha = 2r (Figures 5 to 11); no ``ranks`` means all."""
    rows = _of(table, model, task)
    rows = rows[(rows["alpha"] == 2 * rows["r"]) & rows["method"].isin(METHODS)]
    rows = rows[rows["target"].isin(targets)]
    series = [(method, target) for method in METHODS for target in targets]
    # The setting is chosen over all ranks, so that Figures 7 to 11 agree in it.
    view = _view(table, rows, (model, task, "r"), RANKS, series)
    return view if ranks is None else _at(view, ranks)


def overview_view(table: pd.DataFrame, model: str, task: str) -> View:
    """Select every method with an adapter on every target at alpha = 2r."""
    rows = _of(table, model, task)
    rows = rows[rows["alpha"] == 2 * rows["r"]]
    found = rows[["method", "target"]].drop_duplicates().itertuples(index=False, name=None)
    series = sorted(((str(m), str(t)) for m, t in found), key=_usual_order)
    view = _view(table, rows, (model, task, "r"), RANKS, series, ("base", "fft"))
    return _one_device(_own_costs(view))


def study_view(table: pd.DataFrame, model: str, task: str) -> View:
    """Select LoRA and QLoRA on both of the paper's targets at any rank and alpha."""
    rows = _of(table, model, task)
    rows = rows[rows["method"].isin(METHODS) & rows["target"].isin(TARGETS)]
    series = [(method, target) for method in METHODS for target in TARGETS]
    return _view(table, rows, (model, task, "r"), RANKS, series)


def small_alpha_view(table: pd.DataFrame, model: str, task: str) -> View:
    """Select the methods, targets and ranks that were run with an alpha below the rank."""
    view = study_view(table, model, task)
    cell = [view.rows[name] for name in ("method", "target", "r")]
    lowest = view.rows["alpha"].where(view.rows["state"] == "done").groupby(cell).transform("min")
    rows = view.rows[lowest < view.rows["r"]]
    found = set(rows[["method", "target"]].itertuples(index=False, name=None))
    series = tuple(one for one in view.series if one in found)
    xs = tuple(sorted(map(float, rows["alpha"].unique())))
    return replace(view, axis="alpha", xs=xs, rows=rows, series=series)


def heading(model: str, task: str, what: str, rows: pd.DataFrame) -> str:
    """Title of a figure; a second line says so where each series has a learning rate of its own."""
    tuned = rows["settings"].str.contains("learning rates: ", regex=False, na=False).any()
    told = "\nlearning rate tuned for each method and target" if tuned else ""
    return f"{model} on {task}: {what}{told}"


def values(view: View, series: Series, metric: str) -> pd.DataFrame:
    """One row a seed: ``x`` and the metric's ``value``, finished trials that have it."""
    rows = view.done_by_series.get(series, view.done[:0])
    found = rows[[view.axis, metric]].dropna()
    return found.set_axis(["x", "value"], axis="columns").reset_index(drop=True)


def points(view: View, series: Series, metric: str) -> pd.DataFrame:
    """Mean over seeds at every x of the view; NaN where there is nothing.

    Returns:
        Index x; columns ``mean``, ``low`` and ``high`` (95 % t interval), ``n``.
    """
    cells = values(view, series, metric).groupby("x")["value"]
    most = 1.0 if metric.startswith("eval/") else np.inf
    rows = {x: (float(v.mean()), *interval(v.to_numpy(), most), len(v)) for x, v in cells}
    blank = (np.nan, np.nan, np.nan, 0)
    return pd.DataFrame(
        [rows.get(x, blank) for x in view.xs],
        index=pd.Index(view.xs, name="x"),
        columns=pd.Index(["mean", "low", "high", "n"]),
    )


def extent(view: View, metric: str) -> tuple[float, float]:
    """Lowest and highest of what is drawn (seeds, intervals, full tuning); NaN for nothing."""
    ends = [reference(view, "fft", metric)]
    for series in view.series:
        found = points(view, series, metric)
        seeds = values(view, series, metric)["value"]
        ends += [found["low"].min(), found["high"].max(), seeds.min(), seeds.max()]
    return float(np.fmin.reduce(ends)), float(np.fmax.reduce(ends))


def reference(view: View, method: str, metric: str) -> float:
    """Mean of a method without ranks, NaN where there is none."""
    return float(view.references.loc[view.references["method"] == method, metric].mean())


def interval(
    sample: Sequence[float] | np.ndarray[Any, Any], most: float = 1.0
) -> tuple[float, float]:
    """95 % t interval of the mean, within 0 and ``most``; NaN for fewer than two values."""
    n = len(sample)
    if n < 2:
        return float("nan"), float("nan")
    half = float(stats.t.ppf(0.975, n - 1)) * float(np.std(sample, ddof=1)) / n**0.5
    mean = float(np.mean(sample))
    return max(mean - half, 0.0), min(mean + half, most)


def most_common(
    rows: pd.DataFrame, columns: Sequence[str]
) -> tuple[pd.DataFrame, dict[str, str], pd.DataFrame]:
    """Keep the trials of the commonest combination of settings.

    The one that fills most cells (method, target, r, alpha) wins, then the one with most
    trials: ten seeds of one cell do not push out a sweep over ten ranks.

    Returns:
        Those trials; their settings as text; the other trials, with a column ``why``.
    """
    if rows.empty:
        return rows, {}, rows.assign(why="")
    texts = list(zip(*(rows[column].map(_say) for column in columns), strict=True))
    combination = pd.Series(texts, index=rows.index)
    done = rows["state"] == "done"
    cell = rows[["method", "target", "r", "alpha"]].apply(tuple, axis="columns").astype(str)

    def weight(one: tuple[str, ...]) -> tuple[int, int, int]:
        here = combination == one
        return cell[here & done].nunique(), int((here & done).sum()), int(here.sum())

    best = max(sorted(set(texts)), key=weight)
    others = rows[combination != best]
    why = [_difference(columns, one, best) for one in texts if one != best]
    return rows[combination == best], dict(zip(columns, best, strict=True)), others.assign(why=why)


def gaps(view: View) -> list[str]:
    """Name what the record lacks for this view: ``not run: QLoRA r = 128, 256``."""
    found: dict[str, dict[Series, list[tuple[float, str]]]] = {}
    for series in view.series:
        for x in view.xs:
            states = view.states.get((*series, x), ["not run"])
            for state in sorted(set(states) - {"done"}):
                share = f" ({states.count(state)} of {len(states)} seeds)"
                cell = x, "" if len(set(states)) == 1 else share
                found.setdefault(state, {}).setdefault(series, []).append(cell)
    return [
        f"{STATES.get(state, state)}: {_name_all(view, where)}"
        for state, where in sorted(found.items())
    ]


def unmeasured(view: View, metrics: Iterable[str]) -> list[str]:
    """Name the metrics that finished trials lack."""
    done = view.done
    lacking = {metric: int(done[metric].isna().sum()) for metric in metrics}
    return [
        f"no {metric} in the record for {count} of {len(done)} trials"
        for metric, count in lacking.items()
        if count
    ]


def max_steps(view: View) -> str:
    """Steps after which the trials ended, where ``train.max_steps`` and not epochs says so."""
    found = {int(steps) for steps in files.setting(view.done, "train.max_steps").dropna()}
    return ", ".join(map(str, sorted(found)))


def series_name(series: Series) -> str:
    """``LoRA, attention``."""
    return f"{style.method(series[0]).name}, {style.target(series[1]).name}"


def _of(table: pd.DataFrame, model: str, task: str) -> pd.DataFrame:
    return table[(table["model"] == model) & (table["task"] == task)]


def _usual_order(series: Series) -> tuple[int, str, int, str]:
    """LoRA before QLoRA before others; all-linear before attention before others."""
    places = [*METHODS, *TARGETS]
    rank = [places.index(name) if name in places else len(places) for name in series]
    return rank[0], series[0], rank[1], series[1]


def _view(
    table: pd.DataFrame,
    rows: pd.DataFrame,
    place: tuple[str, str, str],
    grid: Sequence[float],
    series: Sequence[Series],
    unranked: Sequence[str] = ("base",),
) -> View:
    """Settle on one combination of settings and gather what compares with it."""
    model, task, axis = place
    rows, setting, others = most_common(rows, _SHARED)
    parts, left_out = [rows[:0]], [others]
    for method, target in series:
        own = rows[(rows["method"] == method) & (rows["target"] == target)]
        own, chosen, others = most_common(own, _OWN)
        parts.append(own)
        left_out.append(others)
        if chosen.get("quant", "none") != "none":
            setting[f"{style.method(method).name} base"] = chosen["quant"]
    rows = pd.concat(parts)
    xs = tuple(sorted({*map(float, grid), *rows[axis].dropna()}))
    references = _references(_of(table, model, task), setting)
    references = references[references["method"].isin(unranked)]
    out = pd.concat(left_out)
    return View(model, task, axis, xs, tuple(series), rows, references, setting, out)


def _references(rows: pd.DataFrame, setting: dict[str, str]) -> pd.DataFrame:
    """Trials of ``base`` and ``fft`` on the same data as the figure's."""
    rows = rows[(rows["state"] == "done") & rows["method"].isin(["base", "fft"])]
    for column in ("eval_size", "max_length"):
        rows = rows[rows[column].map(_say) == setting.get(column)]
    base = rows[rows["method"] == "base"]
    base, _, _ = most_common(base, ("precision", "quant", "settings", "variant"))
    trained = rows[rows["method"] == "fft"]
    trained = trained[trained["train_size"].map(_say) == setting.get("train_size")]
    trained, _, _ = most_common(trained, ("learning_rate", "epochs", "batch_size", "settings"))
    return pd.concat([base, trained])


def _own_costs(view: View) -> View:
    """Blank time and memory of trials that shared the device: they are not their own."""
    rows, references = view.rows.copy(), view.references.copy()
    for frame in (rows, references):
        measures = [c for c in frame.columns if c.startswith(("time/", "memory/"))]
        frame.loc[~files.alone(frame), measures] = np.nan
    shared = int((~files.alone(view.done)).sum())
    if not shared:
        return view
    remark = (
        f"time and memory are those of trials that ran alone; {shared} of {len(view.done)} shared "
        "a pack, or ran again with other settings"
    )
    return replace(view, rows=rows, references=references, remark=remark)


def _one_device(view: View) -> View:
    """Blank time and memory taken on any but the commonest device: they do not compare."""
    devices = view.done["device"].value_counts().sort_index(kind="stable")
    if len(devices) < 2:
        return view
    main = str(devices.idxmax())
    measures = [c for c in view.rows.columns if c.startswith(("time/", "memory/"))]
    rows, references = view.rows.copy(), view.references.copy()
    for frame in (rows, references):
        frame.loc[frame["device"] != main, measures] = np.nan
    others = ", ".join(str(device) for device in devices.index if device != main)
    remark = f"time and memory are those on {main}; on {others} they would not compare"
    remark = "; ".join(filter(None, [view.remark, remark]))
    return replace(view, rows=rows, references=references, remark=remark)


def _at(view: View, ranks: Sequence[float]) -> View:
    """Narrow a view to some ranks."""
    rows, others = (part[part["r"].isin(ranks)] for part in (view.rows, view.left_out))
    return replace(view, rows=rows, left_out=others, xs=tuple(map(float, ranks)))


def _say(value: Any) -> str:
    """A setting as text; numbers without needless digits."""
    if isinstance(value, float | int):
        return "none" if value != value else f"{value:,.10g}"
    return "none" if value is None or pd.isna(value) else str(value)


def _difference(columns: Sequence[str], one: Sequence[str], best: Sequence[str]) -> str:
    """``learning rate 0.001 (drawn: 0.002)``."""
    return ", ".join(
        f"{_PLAIN.get(column, column + ' ')}{value or 'as usual'} (drawn: {drawn or 'as usual'})"
        for column, value, drawn in zip(columns, one, best, strict=True)
        if value != drawn
    )


def _name_all(view: View, where: Mapping[Series, Sequence[tuple[float, str]]]) -> str:
    """Each series and its cells; together where all have the same."""
    cells = list(where.values())
    if (
        len(view.series) > 1
        and len(cells) == len(view.series)
        and cells.count(cells[0]) == len(cells)
    ):
        return f"each series {_name_cells(view, cells[0])}"
    several = len({target for _, target in view.series}) > 1
    names = {s: series_name(s) if several else style.method(s[0]).name for s in where}
    return "; ".join(f"{names[series]} {_name_cells(view, own)}" for series, own in where.items())


def _name_cells(view: View, cells: Sequence[tuple[float, str]]) -> str:
    """``r = 128, 256 (1 of 3 seeds)``."""
    axis = "r" if view.axis == "r" else "α"
    of_share: dict[str, list[float]] = {}
    for x, share in cells:
        of_share.setdefault(share, []).append(x)
    whole = len(view.xs) > 2
    return ", ".join(
        f"at every {axis}{share}"
        if whole and xs == list(view.xs)
        else f"{axis} = {', '.join(f'{x:g}' for x in xs)}{share}"
        for share, xs in of_share.items()
    )
