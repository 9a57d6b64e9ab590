"""What is written under each figure: n, interval, setting, hardware and all that is missing."""

import pandas as pd

from analysis import style, views
from analysis.names import escaped
from analysis.views import View

BAR_FIGURES = {(1, 2): 7, (4, 8): 8, (16, 32): 9, (64, 128): 10, (256, 512): 11}
MEMORY = {
    "memory/peak_allocated_gib": "peak GPU memory",
    "memory/peak_rss_gib": "peak process memory, CPU",
}
FEW_SEEDS = 5  # so many are all shown
_SCALE = "Score axes fit the data, not zero; below // the scale is compressed."
_SCORES = ("eval/accuracy", "eval/f1_macro", "eval/precision_macro", "eval/recall_macro")


def caption_alpha(table: pd.DataFrame, model: str, task: str, target: str = "all_linear") -> str:
    """Caption of Figure 3 (all-linear) or 4 (attention)."""
    number = {"all_linear": "Figure 3", "attention": "Figure 4"}.get(target, "Figure")
    view = views.alpha_view(table, model, task, target)
    what = f"scores against α at r = {views.ALPHA_RANK}, {style.target(target).name} layers"
    return _caption(view, number, what, _SCORES, lines=True)


def caption_rank(table: pd.DataFrame, model: str, task: str, target: str = "all_linear") -> str:
    """Caption of Figure 5 (all-linear) or 6 (attention)."""
    number = {"all_linear": "Figure 5", "attention": "Figure 6"}.get(target, "Figure")
    view = views.rank_view(table, model, task, [target])
    what = f"scores against the rank r at α = 2r, {style.target(target).name} layers"
    return _caption(view, number, what, _SCORES, lines=True)


def caption_bars(
    table: pd.DataFrame, model: str, task: str, ranks: tuple[int, int] = (1, 2)
) -> str:
    """Caption of Figures 7 to 11."""
    number = f"Figure {BAR_FIGURES[ranks]}" if ranks in BAR_FIGURES else "Figure"
    what = f"LoRA and QLoRA on all-linear and attention layers at r = {ranks[0]} and {ranks[1]}"
    view = bars_view(table, model, task, ranks)
    return _caption(view, number, f"{what}, α = 2r", _SCORES, lines=False)


def caption_overview(table: pd.DataFrame, model: str, task: str) -> str:
    """Caption of the overview."""
    view = views.overview_view(table, model, task)
    memory = memory_metric(view)
    costs = (memory, "time/train_s") if costs_known(view) else ()
    what = f"accuracy, F1, {MEMORY[memory]} and training time" if costs else "accuracy and F1"
    what += f" against the rank r at α = 2r{only(view)}"
    metrics = (*_SCORES[:2], *costs)
    return _caption(view, "Overview", what, metrics, lines=True)


def caption_small_alpha(table: pd.DataFrame, model: str, task: str) -> str:
    """Caption of the figure of alpha below the rank; nothing where that was not run.

    The paper has no such figure, so nobody misses it.
    """
    view = views.small_alpha_view(table, model, task)
    if view.done.empty:
        return ""
    ranks = " and ".join(f"{rank:g}" for rank in sorted(view.done["r"].unique()))
    what = f"accuracy against α at r = {ranks}, down to α below the rank"
    return _caption(view, "α below the rank", what, _SCORES[:1], lines=True)


def bars_view(table: pd.DataFrame, model: str, task: str, ranks: tuple[int, int]) -> View:
    """The paper's four method and target pairs at two ranks."""
    return views.rank_view(table, model, task, ["all_linear", "attention"], ranks)


def memory_metric(view: View) -> str:
    """GPU memory where any trial has it, else the memory of the process."""
    return next((name for name in MEMORY if view.done[name].notna().any()), list(MEMORY)[-1])


def costs_known(view: View) -> bool:
    """Whether any trial has memory or time of its own: packed ones have not."""
    return bool(view.done[[memory_metric(view), "time/train_s"]].notna().to_numpy().any())


def only(view: View) -> str:
    """The target, where all series share one and the legend does not name it."""
    targets = {target for _, target in view.series}
    return f", {style.target(targets.pop()).name} layers" if len(targets) == 1 else ""


def nothing(view: View) -> str:
    """Why a figure is not drawn."""
    return "; ".join([f"no finished trial of {view.model} on {view.task} for it", *notes(view)])


def notes(view: View) -> list[str]:
    """What belongs inside the picture too: cells without a result, and left-out settings."""
    found = views.gaps(view)
    if not view.left_out.empty:
        found.append("other settings left out: see the caption")
    return found


def _caption(view: View, number: str, what: str, metrics: tuple[str, ...], *, lines: bool) -> str:
    if view.done.empty:
        return f"**{number}: not drawn.** {escaped(_sentence(nothing(view)))}"
    parts = [
        f"{view.model} on {view.task}: {what}.",
        _sentence(_count(view)),
        _sentence(_spread(view, lines)),
        _sentence(_setting(view)),
        _sentence(_hardware(view)),
        _sentence(_references(view)),
        *([_SCALE] if lines else []),
        *map(_sentence, views.gaps(view)),
        *map(_sentence, views.unmeasured(view, metrics)),
    ]
    if view.remark:
        parts.append(_sentence(view.remark))
    if not view.left_out.empty:
        parts.append(_sentence(_left_out(view)))
    return f"**{number}.** {escaped(' '.join(parts))}"


def _sentence(text: str) -> str:
    return f"{text if text.startswith('n =') else text[0].upper() + text[1:]}."


def _seeds(view: View) -> "pd.Series[int]":
    """Finished trials of every cell that has one."""
    return view.done.groupby(["method", "target", "r", "alpha"]).size()


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _count(view: View) -> str:
    counts = _seeds(view)
    low, high = int(counts.min()), int(counts.max())
    seeds = _many(high, "seed") if low == high else f"{low} to {high} seeds"
    return f"n = {_many(len(view.done), 'finished trial')}, {seeds} a point"


def _spread(view: View, lines: bool) -> str:
    counts = _seeds(view)
    shape = "Lines join means" if lines else "Bars are means and start at zero"
    if counts.max() == 1:
        return "One seed, no interval: differences between neighbouring points may be chance"
    text = f"{shape}; whiskers are 95 % t intervals over seeds, within what is possible"
    if counts.min() <= FEW_SEEDS:
        text += ", small open dots the seeds"
    if counts.min() == 1:
        text += "; points with one seed have no interval"
    return text


def _setting(view: View) -> str:
    said = dict(view.setting)
    train, test = said.pop("train_size", "none"), said.pop("eval_size", "none")
    extra = said.pop("settings", "")
    if "learning rates:" in extra:  # tuned: one for each series, named there
        said.pop("learning_rate", None)
    examples = "every training example" if train == "none" else f"{train} training examples"
    steps = views.max_steps(view)
    if steps:
        said.pop("epochs", None)
        examples = f"{steps} steps on batches drawn from {examples}"
    data = [
        examples,
        "evaluated on every example" if test == "none" else f"evaluated on {test} examples",
    ]
    parts = [f"{name.replace('_', ' ')} {value}" for name, value in said.items()]
    return "Setting: " + ", ".join([*data, *parts, *([extra] if extra else [])])


def _hardware(view: View) -> str:
    devices = sorted(view.done["device"].dropna().unique())
    engines = sorted(view.done["engine"].dropna().unique())
    return f"Hardware: {', '.join(devices) or 'not recorded'} (engine: {', '.join(engines)})"


def _references(view: View) -> str:
    told = []
    for method, trials in view.references.groupby("method"):
        look = style.method(str(method))
        accuracy = views.reference(view, str(method), "eval/accuracy")
        text = f"{look.name} (accuracy {accuracy:.3f}, {_many(len(trials), 'seed')}"
        if method != "base":
            text += f", learning rate {trials['learning_rate'].iloc[0]:g}"
        told.append(f"{text})")
    if not told:
        return "No comparable run of the untrained base model"
    return "Horizontal lines: " + ", ".join(told)


def _left_out(view: View) -> str:
    counts = view.left_out.groupby("why").size()
    return "Left out: " + "; ".join(
        f"{_many(count, 'trial')} with {why}" for why, count in counts.items()
    )
