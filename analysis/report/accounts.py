"""What a sweep was planned to cost and what it cost; what failed; under which setting it ran."""

import math
from collections.abc import Iterable

import pandas as pd

from analysis import pareto, views
from analysis.slices import Slice
from lorasweep.results import files

PAPER_GPU_HOURS = 154  # 28 trials of LoRA at 30 min and 28 of QLoRA at 5 h (its Table 1)
_GROUP = ["model", "task", "method", "arithmetic", "device"]
# What a step costs depends on these (and on the rank, by a few percent).
_KIND = ["model", "method", "target", "arithmetic", "device", "batch_size", "max_length"]


def settings(parts: Iterable[Slice], *, paper: bool) -> pd.DataFrame:
    """Setting of every reading, with ``paper`` beside the paper's."""
    published = {
        "model": "meta-llama/Meta-Llama-3-8B",
        "data": "Yelp, 5 classes",
        "training examples": "50,000",
        "evaluation examples": "10,000",
        "epochs": "1",
        "batch size": "8",
        "learning rate": "0.0001",
        "max length": "128",
        "precision": "not said",
        "seeds": "1",
        "device": "1 × A100-40GB",
        "engine": "Hugging Face Trainer",
    }
    columns = {"": list(published)}
    if paper:
        columns["paper"] = list(published.values())
    for part in parts:
        title = part.title if part.name != "tuned" else "tuned learning rates"
        columns[title if title not in columns else part.heading] = _setting(part)
    return pd.DataFrame(columns)


def _setting(card: Slice) -> list[str]:
    view = views.study_view(card.table, card.model, card.task)
    done, said = view.done, view.setting
    steps = views.max_steps(view)
    rate = said.get("learning_rate", "–")
    return [
        card.model,
        card.task,
        _size(said, "train_size"),
        _size(said, "eval_size"),
        said.get("epochs", "–") if not steps else f"{steps} steps",
        said.get("batch_size", "–"),
        "tuned" if rate == "none" else rate,
        said.get("max_length", "–"),
        said.get("precision", "–"),
        ", ".join(f"{seed:g}" for seed in sorted(done["seed"].unique())) or "–",
        ", ".join(sorted(done["device"].dropna().unique())) or "–",
        ", ".join(sorted(done["engine"].dropna().unique())) or "–",
    ]


def _size(said: dict[str, str], name: str) -> str:
    """``16,000``, or ``all`` where no size was asked for."""
    return said.get(name, "–").replace("none", "all")


def costs(table: pd.DataFrame) -> pd.DataFrame:
    """Plan against what happened, a row a model, task, method and device.

    Memory and time are compared over trials that ran alone. What packed trials would have taken
    one after another is worked out from the steps of trials that ran alone (see ``_alone_s``);
    where there are none of the kind, it is the plan's, mended by the ratio of measured to planned
    times of trials that ran alone.
    """
    rows = table[table["state"] == "done"]
    rows = rows.assign(arithmetic=_arithmetic(rows))
    rows = rows.assign(alone_s=_alone_s(rows))
    return pd.DataFrame(
        [
            {**dict(zip(_GROUP, place, strict=True)), **_account(trials)}
            for place, trials in rows.groupby(_GROUP, dropna=False)
        ]
    )


def _arithmetic(rows: pd.DataFrame) -> list[str]:
    """Precision of a trial, and what else its cost depends on."""
    compute = files.setting(rows, "method.compute_dtype")
    again = files.setting(rows, "train.checkpointing")
    told = zip(rows["method"], rows["precision"], compute, again, strict=True)
    return [
        str(precision)
        + (f", {dtype} compute" if method == "qlora" and dtype not in (None, precision) else "")
        + (", checkpointing" if checkpointing is True else "")
        for method, precision, dtype, checkpointing in told
    ]


def _alone_s(rows: pd.DataFrame) -> "pd.Series[float]":
    """Seconds that every trial would take alone, by trials of the same kind that ran alone.

    Their median seconds of a step and of an evaluated item, times this trial's, and their median
    load. NaN where no trial of the kind (``_KIND``) ran alone.
    """
    own = rows[files.alone(rows)]
    paces = pd.DataFrame(
        {
            "step_s": own["time/train_s"] / own["train/steps"],
            "item_s": own["time/eval_s"] / own["eval_size"],
            "load_s": own["time/load_s"],
        }
    )
    kinds = [own[name] for name in _KIND]
    pace = paces.groupby(kinds).median().reindex(pd.MultiIndex.from_frame(rows[_KIND]))
    pace.index = rows.index
    train, judge = pace["step_s"] * rows["train/steps"], pace["item_s"] * rows["eval_size"]
    return (pace["load_s"] + train + judge).astype("float64")


def _account(trials: pd.DataFrame) -> dict[str, object]:
    own = files.alone(trials)
    told = [pareto.predict(row) for _, row in trials.iterrows()]
    planned = pd.DataFrame(told, index=trials.index, columns=["gib", "train_s", "total_s"])
    planned = planned.astype("float64")
    spent = trials["time/total_s"].fillna(trials["time/pack_share_s"])
    alone, packed = trials[own], trials[~own]
    factor = (alone["time/total_s"] / planned["total_s"][own]).median()
    mended = not math.isnan(factor)
    known = trials["alone_s"][~own].notna()
    after = trials["alone_s"].fillna(planned["total_s"] * (factor if mended else 1.0))
    source = "mended plan" if mended else "plan"
    if len(packed) and known.any():
        source = "steps measured alone" + ("" if known.all() else f", {source}")
    return {
        "trials": len(trials),
        "packed": len(packed),
        "planned GiB": planned["gib"][own].mean(),
        "measured GiB": alone["memory/peak_allocated_gib"].mean(),
        "planned min a trial": planned["total_s"][own].mean() / 60,
        "measured min a trial": alone["time/total_s"].mean() / 60,
        "spent min": spent.sum() / 60,
        "one after another, min": (spent[own].sum() + after[~own].sum()) / 60
        if after[~own].notna().all()
        else math.nan,
        "from": "measured" if packed.empty else source,
    }


def totals(table: pd.DataFrame, accounts: pd.DataFrame, *, paper: bool) -> str:
    """One paragraph: minutes that it took, beside the alternatives and with ``paper`` its own."""
    spent = table["time/total_s"].fillna(table["time/pack_share_s"]).sum() / 60
    on_cpu = table["device"].fillna("CPU").str.startswith("CPU").any()
    minutes = "minutes of the device" if on_cpu else "GPU-minutes"
    lost = table[table["state"] != "done"]
    wasted = lost["time/total_s"].fillna(lost["time/pack_share_s"]).sum() / 60
    text = (
        f"All {len(table)} trials together took {spent:,.1f} {minutes}"
        + (f", {wasted:,.1f} of them in trials that did not finish" if wasted else "")
        + "."
    )
    after = accounts["one after another, min"] if len(accounts) else pd.Series(dtype="float64")
    if len(after) and after.notna().all() and (accounts["packed"] > 0).any():
        text += (
            f" One after another the finished ones would have taken {after.sum():,.0f} minutes, "
            f"{after.sum() / accounts['spent min'].sum():.1f} times as long."
        )
    if not paper:
        return text
    return text + (
        f" By the paper's Table 1 its own 56 trials, of an 8B model and with one seed, took "
        f"{PAPER_GPU_HOURS} A100-hours, {PAPER_GPU_HOURS * 60:,} minutes."
    )


def failures(table: pd.DataFrame) -> pd.DataFrame:
    """Trials that did not finish, those that ended alike together: which, how, what they said."""
    lost = table[table["state"] != "done"]
    alike = ["study", "model", "task", "method", "target", "learning_rate", "state", "error"]
    rows = [
        {
            **dict(zip(alike[:5], group[:5], strict=True)),
            "r": _several(trials["r"]),
            "alpha": _several(trials["alpha"]),
            "learning_rate": group[5],
            "seed": _several(trials["seed"]),
            "trials": len(trials),
            "state": group[6],
            "error": group[7],
        }
        for group, trials in lost.groupby(alike, sort=False, dropna=False)
    ]
    columns = [*alike[:5], "r", "alpha", "learning_rate", "seed", "trials", "state", "error"]
    return pd.DataFrame(rows, columns=columns)


def collapsed(table: pd.DataFrame) -> pd.DataFrame:
    """Trials that finished and learnt little: nearer to the untrained base than to the best.

    The best is the highest mean over seeds of a rank and alpha, of the same method, target and
    number of training examples; a trial's accuracy is less than half way from the untrained
    base's to that.

    Returns:
        One row a model, task, method, target and learning rate: ``trials`` (as ``3 of 26``),
        ``accuracy`` (lowest to highest) and ``where``, each rank and alpha with its seeds.
    """
    done = table[(table["state"] == "done") & table["eval/accuracy"].notna()]
    untrained = done[done["method"] == "base"].groupby(["model", "task"])["eval/accuracy"].mean()
    base, rows = untrained.to_dict(), []
    alike = ["model", "task", "method", "target", "train_size"]
    for group, trials in done[done["r"].notna()].groupby(alike, dropna=False):
        if group[:2] not in base:
            continue
        means = trials.groupby(["learning_rate", "r", "alpha"])["eval/accuracy"].mean()
        bar = (base[group[:2]] + means.max()) / 2
        for rate, swept in trials.groupby("learning_rate"):
            low = swept["eval/accuracy"] < bar
            if low.any():
                rows.append((*group[:4], rate, *_collapse(swept, low)))
    names = ["model", "task", "method", "target", "learning_rate", "trials", "accuracy", "where"]
    return pd.DataFrame(rows, columns=names)


def _collapse(swept: pd.DataFrame, low: "pd.Series[bool]") -> tuple[str, str, str]:
    scores = swept.loc[low, "eval/accuracy"]
    counts = low.groupby([swept["r"], swept["alpha"]]).agg(["sum", "size"]).reset_index()
    where = [
        f"r {r:g}, α {alpha:g}" + ("" if lost == seeds else f" ({lost} of {seeds} seeds)")
        for r, alpha, lost, seeds in counts.itertuples(index=False)
        if lost
    ]
    span = f"{scores.min():.3f}" + (f" … {scores.max():.3f}" if len(scores) > 1 else "")
    return f"{len(scores)} of {len(swept)}", span, "; ".join(where)


def _several(values: pd.Series) -> str:
    """``8``, or ``1, 2, 4``; the ends alone where there are more than four."""
    found = [f"{value:g}" for value in sorted(values.dropna().unique())]
    return ", ".join(found) if len(found) <= 4 else f"{found[0]} … {found[-1]}"
