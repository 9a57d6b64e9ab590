"""The plan as text, as a table, and as JSON."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from lorasweep.planning import packs
from lorasweep.planning.plan import GIB, Plan, Planned
from lorasweep.trial import naming
from lorasweep.trial.key import Form, filled, form

if TYPE_CHECKING:
    from rich.console import Console

LIST_UP_TO = 60  # trials are listed one by one up to so many, and grouped beyond


def to_json(plan: Plan) -> str:
    """Plan for machines. ``peak_gib`` is what ``torch.cuda.max_memory_allocated`` would show."""
    packs = [[trial.key for trial in pack] for pack in plan.packs]
    rest = json.dumps({"packs": packs, "summary": plan.summary}).removeprefix("{")
    return f'{{"trials": [{", ".join(json_rows(plan))}], {rest}'


def json_rows(plan: Plan) -> Iterator[str]:
    """Trials as JSON objects. What trials of a kind share is encoded once."""
    forms: dict[object, Form] = {}
    for p in plan.trials:
        if p.trial.kind not in forms:
            forms[p.trial.kind] = json_form(p)
        rest = filled(forms[p.trial.kind], p.trial.config)
        yield f'{{"key": "{p.trial.key}", "state": "{p.state}", {rest}'


def json_form(p: Planned) -> Form:
    """What follows key and state in the rows of all trials of this one's kind."""
    costs = {
        "trainable": p.parameters.trainable,
        "total": p.parameters.total,
        "peak_gib": p.memory.allocated / GIB,
        "seconds": p.seconds.total,
        "fits": p.fits,
    }
    first, *others = form(p.trial.config, p.trial.config, json.dumps, ", ", ": ")
    return '"config": ' + first, *others, ", " + json.dumps(costs)[1:]


def short(plan: Plan) -> str:
    """Plan in a paragraph."""
    summary = plan.summary
    states = [f"{summary[s]} {s}" for s in ("new", "done", "failed", "shared") if summary[s]]
    source = "measured trials" if not summary["roofline"] else "the roofline"
    if summary["calibrated"] and summary["roofline"]:
        source = f"measured trials for {summary['calibrated']}, the roofline for the rest"
    text = (
        f"{naming.counted(len(plan.trials), 'trial')} ({', '.join(states)}) on {plan.device.name} "
        f"({plan.device.gib:.1f} GiB): at most {summary['peak_gib']:.1f} GiB, about "
        f"{duration(3600 * summary['gpu_hours'])} by {source}, "
        f"{summary['disk_gib']:.1f} GiB on disk."
    )
    return " ".join([text, *pack_sentences(plan), *unfit_sentences(plan)])


def pack_sentences(plan: Plan) -> list[str]:
    """Say what trains together, and why what could not does not."""
    todo = [p.trial for p in plan.trials if p.runs]
    formed = packs.form(todo, plan.peak, plan.device.memory)
    together = [pack for pack in formed if len(pack) > 1]
    found = []
    if together:
        where = "one pack" if len(together) == 1 else f"{len(together)} packs"
        found.append(f"{sum(map(len, together))} of them train together in {where}.")
    reasons = Counter(filter(None, map(packs.why_alone, filter(packs.packing, todo))))
    return [*found, *(f"{n} alone: {reason}." for reason, n in reasons.items())]


def unfit_sentences(plan: Plan) -> list[str]:
    """Say what does not fit and what would make it fit."""
    found = []
    for change, keys in plan.remedies.items():
        lead = "1 trial does not fit" if len(keys) == 1 else f"{len(keys)} trials do not fit"
        found.append(f"{lead}; {' '.join(change)} would help." if change else f"{lead} at all.")
    return found


def duration(seconds: float) -> str:
    """Seconds for people: ``48 s``, ``12 min``, ``3.4 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def show(plan: Plan, screen: "Console") -> None:
    """Print the plan for people: a row a trial, or a row a group where there are many."""
    from rich.table import Table

    from lorasweep import table_width

    drawn = Table(
        title=f"Plan on {plan.device.name}, {plan.device.gib:.1f} GiB", title_justify="left"
    )
    for name in ("model", "method", "target"):
        drawn.add_column(name)
    varying = naming.varying(p.trial for p in plan.trials)
    titles = [naming.title(name, varying) for name in varying]
    if len({p.trial["seed"] for p in plan.trials}) > 1:
        varying, titles = (*varying, "seed"), [*titles, "seed"]
    costs = ("trainable", "% of all", *COLUMNS, "GiB", "time", "fits")
    for name in ("r", "α", *titles, "state", *costs):
        drawn.add_column(name, justify="right")
    for group in groups(plan):
        drawn.add_row(*row(group, varying), style=None if all(p.fits for p in group) else "red")
    table_width.show(screen, drawn, ["% of all", *COLUMNS, "trainable"])
    note = "GiB are the peak that PyTorch allocates; a trial fits if its pool and CUDA do too."
    screen.print(note, style="dim", markup=False)
    screen.print(short(plan), markup=False)


# Columns of the table → parts of the peak.
COLUMNS = {
    "weights": ("weights",),
    "trained": ("adapters", "gradients", "optimizer"),
    "activations": ("activations", "buffers"),
}


def groups(plan: Plan) -> list[list[Planned]]:
    """Trials that share a row of the table, in the order of the sweep."""
    if len(plan.trials) <= LIST_UP_TO:
        return [[p] for p in plan.trials]
    found: defaultdict[tuple[str, ...], list[Planned]] = defaultdict(list)
    for p in plan.trials:
        layers = naming.target(p.trial.config) if p.trial.adapts else ""
        named = (str(p.trial["model.name"]), str(p.trial["method.name"]), layers)
        found[*named, p.state, str(p.fits)].append(p)
    return list(found.values())


def row(group: Sequence[Planned], varying: Sequence[str]) -> list[str]:
    """Cells of a row; the memory is that of its largest trial, the time that of all."""
    first, largest = group[0], max(group, key=lambda p: p.memory.allocated)
    many = f"{len(group)} " if len(group) > 1 else ""
    parts = [sum(largest.memory.parts[n] for n in names) for names in COLUMNS.values()]
    return [
        str(first.trial["model.name"]),
        str(first.trial["method.name"]),
        naming.target(first.trial.config) if first.trial.adapts else "–",
        spread([p.trial["lora.r"] for p in group if p.trial.adapts]),
        spread([p.trial["lora.alpha"] for p in group if p.trial.adapts], "g"),
        *(several([naming.cell(p.trial.config, name) for p in group]) for name in varying),
        many + first.state,
        spread([p.parameters.trainable for p in group]),
        spread([p.parameters.percent for p in group], ".4f"),
        *(f"{part / GIB:.1f}" for part in parts),
        f"{largest.memory.allocated / GIB:.1f}",
        duration(sum(p.seconds.total for p in group)),
        "yes" if first.fits else "no",
    ]


def spread(values: Sequence[float], form: str = ",") -> str:
    """Return the one value, or the smallest and largest of several."""
    if not values:
        return "–"
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low}…{high}"


def several(texts: Sequence[str]) -> str:
    """Return the one text, or how many there are."""
    different = len(set(texts))
    return texts[0] if different == 1 else f"{different} values"
