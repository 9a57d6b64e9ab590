"""The table of results at the end of a sweep."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from rich.table import Table

from lorasweep.trial import naming

BEST = 100  # trials that the final table lists


def memory_text(metrics: Mapping[str, Any]) -> str:
    """Return a trial's peak memory for people; its pack's, marked with *, where it has no own."""
    for name in ("memory/peak_allocated_gib", "memory/peak_rss_gib"):
        if metrics.get(name) is not None:
            return f"{float(metrics[name]):.2f} GiB"
        if metrics.get(name.replace("/", "/pack_")) is not None:
            return f"{float(metrics[name.replace('/', '/pack_')]):.2f} GiB*"
    return ""


def results(
    rows: Sequence[Mapping[str, Any]],
    by: str = "accuracy",
    front: Iterable[bool] = (),
    varying: Sequence[str] = (),
) -> Table:
    """Table of trials in the order given.

    Args:
        rows: of the record.
        by: what they are ordered by, for the title.
        front: which of them lie on the Pareto front, where there are several objectives.
        varying: settings that tell the trials apart, besides those that are always shown.
    """
    packed = any("time/pack_share_s" in row for row in rows)
    notes = ["* its share of a pack's time; the memory of the whole pack"] if packed else []
    table = Table(title=f"Trials by {by}", title_justify="left", caption_justify="left")
    _columns(table, varying)
    for name in ("seed", "accuracy", "F1 macro", "trainable", "memory", "train s"):
        table.add_column(name, justify="right")
    table.add_column("state")
    marks = [*front] or [False] * len(rows)
    found = list(zip(rows, marks, strict=True))
    shown = found[:BEST] + [(row, best) for row, best in found[BEST:] if best]
    if len(found) > len(shown):
        notes.append(f"and {len(found) - len(shown):,} more")
    for row, best in shown:
        table.add_row(
            *_who(row, varying),
            str(row["seed"]),
            _number(row, "eval/accuracy", ".3f"),
            _number(row, "eval/f1_macro", ".3f"),
            _number(row, "params/trainable", ",.0f"),
            memory_text(row),
            _seconds(row),
            row.get("lorasweep.state", "?")
            + (", one class" if collapsed(row) else "")
            + (" ★" if best else ""),
        )
    table.caption = "; ".join(notes) or None
    return table


def means(rows: Sequence[Mapping[str, Any]], varying: Sequence[str] = ()) -> Table | None:
    """Table of means over seeds, the best accuracy first; None where no two differ in seed only.

    Only trials that are done count; ``seeds`` says how many of how many those are.
    """
    points: defaultdict[tuple[str, ...], list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        points[_who(row, varying)].append(row)
    if all(len(alike) < 2 for alike in points.values()):
        return None
    table = Table(title="Means over seeds by accuracy, ± the deviation between seeds")
    table.title_justify = "left"
    _columns(table, varying)
    for name in ("seeds", "accuracy", "F1 macro"):
        table.add_column(name, justify="right")
    found = []
    for who, alike in points.items():
        done = [row for row in alike if row.get("lorasweep.state") == "done"]
        scores = [float(row["eval/accuracy"]) for row in done if "eval/accuracy" in row]
        f1 = [float(row["eval/f1_macro"]) for row in done if "eval/f1_macro" in row]
        count = str(len(alike)) if len(done) == len(alike) else f"{len(done)} of {len(alike)}"
        found.append((fmean(scores) if scores else -1.0, (*who, count, _mean(scores), _mean(f1))))
    for _, cells in sorted(found, key=lambda one: -one[0])[:BEST]:
        table.add_row(*cells)
    return table


def collapsed(row: Mapping[str, Any]) -> bool:
    """Whether a trial predicted one class for all items, by its scores.

    Of K classes that one has recall 1 and the share p of its items as precision: the macro means
    are 1/K and p/K, and F1 is 2p/(1 + p)/K, with p the accuracy. Where all items are of that
    class, nothing else could be predicted.
    """
    names = ("accuracy", "recall_macro", "precision_macro", "f1_macro")
    if any(f"eval/{name}" not in row for name in names):
        return False
    accuracy, recall, precision, f1 = (float(row[f"eval/{name}"]) for name in names)
    if not 0 < recall < 1:
        return False
    whole = abs(1 / recall - round(1 / recall)) < 1e-6
    alike = abs(precision - accuracy * recall) < 1e-6
    return whole and alike and abs(f1 - 2 * accuracy / (1 + accuracy) * recall) < 1e-6


def _columns(table: Table, varying: Sequence[str]) -> None:
    for name in ("model", "method", "target"):
        table.add_column(name)
    for name in ("r", "α", *(naming.title(n, varying) for n in varying)):
        table.add_column(name, justify="right")


def _who(row: Mapping[str, Any], varying: Sequence[str]) -> tuple[str, ...]:
    """Cells that say which point of a sweep a trial belongs to."""
    adapts = row["method.trains"] == "adapter"
    return (
        str(row["model.name"]),
        str(row["method.name"]),
        naming.target(row) if adapts else "–",
        str(row["lora.r"]) if adapts else "–",
        f"{float(row['lora.alpha']):g}" if adapts else "–",
        *(naming.cell(row, name) for name in varying),
    )


def _mean(values: Sequence[float]) -> str:
    if not values:
        return "–"
    spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{fmean(values):.3f}{spread}"


def _seconds(row: Mapping[str, Any]) -> str:
    if "time/train_s" not in row and "time/pack_share_s" in row:
        return f"{float(row['time/pack_share_s']):.1f}*"
    return _number(row, "time/train_s", ".1f")


def _number(row: Mapping[str, Any], name: str, form: str) -> str:
    return format(float(row[name]), form) if name in row else "–"
