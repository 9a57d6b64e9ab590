"""What the user sees while trials run, and the table at the end."""

import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from statistics import fmean, stdev
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lorasweep import naming
from lorasweep.trial import Result, Trial

PLAIN_WIDTH = 150  # columns when the output is no terminal: no line is cut at 80
PLAIN_EVERY_S = 10.0  # and then a line so often tells that a long trial is alive
SHOWN = 20  # trials under way that the live table lists
BEST = 100  # trials that the final table lists


def console(*, stderr: bool = False) -> Console:
    """Return a console that stays readable in a file."""
    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    width = None if terminal else PLAIN_WIDTH
    # A notebook would get a display of its own for every line.
    return Console(stderr=stderr, width=width, highlight=False, force_jupyter=False)


@contextmanager
def waiting(what: str) -> Iterator[Callable[[str], None]]:
    """Show that something takes a while; what the caller says of how far it is goes beside it.

    On a terminal the line changes in place and goes away; in a file there are few lines.
    """
    screen, began, detail = console(), time.monotonic(), ""
    said = began
    with screen.status(what) if screen.is_terminal else nullcontext() as line:

        def tell(news: str) -> None:
            nonlocal said, detail
            detail = news
            text = f"{what}: {detail}, {clock(time.monotonic() - began)}"
            if line is not None:
                line.update(escape(text))
            elif time.monotonic() - said > PLAIN_EVERY_S:
                said = time.monotonic()
                screen.print(text, markup=False)

        if line is None:
            screen.print(f"{what} …", markup=False)
        yield tell
    spent = f"{time.monotonic() - began:.1f} s"
    screen.print(f"{what}: {', '.join(filter(None, (detail, spent)))}", markup=False)


@dataclass
class _Row:
    """A trial under way."""

    label: str
    worker: int
    began: float = field(default_factory=time.monotonic)
    trained: float | None = None  # when its first step was told
    step: int = 0
    total: int = 0
    loss: float | None = None
    score: float | None = None
    said: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> str:
        """Time until its last step, by the steps so far."""
        if self.trained is None or self.step < 2:
            return "–"
        return clock((time.monotonic() - self.trained) / (self.step - 1) * (self.total - self.step))


class Screen:
    """Progress of a sweep: a live table on a terminal, plain lines in a file."""

    def __init__(self, total: int, varying: Sequence[str] = ()) -> None:
        self.varying = varying  # settings that tell the trials apart
        self.console = console()
        self.total, self.ended, self.failed = total, 0, 0
        self.began = time.monotonic()
        self.first: float | None = None  # when the first trial began, since the process did
        self.rows: dict[str, _Row] = {}
        self.said: set[str] = set()
        self.gpus = Gpus()
        self.live = Live(
            get_renderable=self._picture,
            console=self.console,
            refresh_per_second=4,
            transient=True,
        )

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if self.console.is_terminal:
            self.live.stop()

    def label(self, trial: Trial) -> str:
        """Name a trial so that it is told from the others of the sweep."""
        return naming.label(trial, self.varying)

    # ------------------------------------------------------------ what happens

    def begin(self, trial: Trial, worker: int) -> None:
        """A trial starts."""
        if self.first is None:
            self.first = time.time()
        self.rows[trial.key] = _Row(self.label(trial), worker)

    def step(self, key: str, step: int, total: int, loss: float | None) -> None:
        """``step`` of ``total`` are done."""
        row = self.rows[key]
        row.trained = row.trained or time.monotonic()
        row.step, row.total = step, total
        row.loss = row.loss if loss is None else loss
        if not self.console.is_terminal and time.monotonic() - row.said > PLAIN_EVERY_S:
            row.said = time.monotonic()
            note = "" if row.loss is None else f" loss {row.loss:.3f}"
            self.say(f"        {row.label}: step {step}/{total}{note}")

    def score(self, key: str, scores: Mapping[str, float]) -> None:
        """An evaluation along the way."""
        self.rows[key].score = scores.get("eval/accuracy")

    def end(self, trial: Trial, result: Result) -> None:
        """Say in a line what a trial gave, at once and with its error if it failed."""
        self.rows.pop(trial.key, None)
        for note in result.environment.get("notes", ()):
            self.say_once(f"{trial['model.name']}: {note}")
        self.ended += result.state != "stopped"
        self.failed += result.state in ("failed", "oom")
        metrics: dict[str, Any] = {**result.metrics, "lorasweep.error": result.error}
        self._line(trial, {**metrics, "lorasweep.state": result.state})

    def again(self, trial: Trial, result: Result, change: str) -> None:
        """A trial failed and will be tried again."""
        self.rows.pop(trial.key, None)
        how = f" with {change}" if change else ""
        self.say(f"again{how}: {self.label(trial)}: {result.error}", style="yellow")

    def again_together(self, trials: Sequence[Trial], reason: str, most: int) -> None:
        """Say that the process of a pack has ended, whose trials will be tried again."""
        for trial in trials:
            self.rows.pop(trial.key, None)
        how = "together" if most == len(trials) else f"{most} at a time" if most > 1 else "alone"
        self.say(f"again: {len(trials)} trials of a pack, {how}: {reason}", style="yellow")

    def elsewhere(self, trial: Trial, row: Mapping[str, Any]) -> None:
        """Another process has run a trial of this sweep."""
        self.ended += 1
        self._line(trial, row, note="  (run by another process)")

    def _line(self, trial: Trial, row: Mapping[str, Any], note: str = "") -> None:
        place = f"[{self.ended:>{len(str(self.total))}}/{self.total}]"
        state = row["lorasweep.state"]
        if state == "done":
            seconds = float(row.get("time/total_s", row.get("time/pack_share_s", 0.0)))
            text = (
                f"accuracy {float(row.get('eval/accuracy', 0)):.3f}  "
                f"F1 {float(row.get('eval/f1_macro', 0)):.3f}  {seconds:.1f} s  {_memory(row)}"
                + ("  (predicts one class only)" if collapsed(row) else "")
            )
        else:
            text = f"{state} ({row.get('lorasweep.error') or 'no more steps were run'})"
        style = {"done": None, "pruned": "dim", "stopped": "yellow"}.get(state, "red")
        self.say(f"{place} {self.label(trial)}: {text}{note}", style=style)

    def say_once(self, text: str) -> None:
        """Say what many trials have in common once."""
        if text not in self.said:
            self.said.add(text)
            self.say(text)

    def say(self, text: str, style: str | None = None) -> None:
        """Print a line above the table."""
        self.console.print(text, markup=False, style=style, soft_wrap=True)  # paths stay whole

    # ------------------------------------------------------------ the live table

    def _picture(self) -> RenderableType:
        table = Table(box=None, padding=(0, 1))
        for name in ("trial", "worker", "state", "step", "loss", "score", "time", "left"):
            table.add_column(name, justify="left" if name in ("trial", "state") else "right")
        for row in list(self.rows.values())[:SHOWN]:
            table.add_row(
                row.label,
                str(row.worker),
                "loads" if row.trained is None else "trains" if row.step < row.total else "ends",
                f"{row.step}/{row.total}" if row.total else "–",
                "–" if row.loss is None else f"{row.loss:.3f}",
                "–" if row.score is None else f"{row.score:.3f}",
                clock(time.monotonic() - row.began),
                row.left,
            )
        if len(self.rows) > SHOWN:
            table.add_row(f"… and {len(self.rows) - SHOWN} more")
        return Group(table, self._totals())

    def _totals(self) -> RenderableType:
        grid, spent = Table.grid(padding=(0, 1)), time.monotonic() - self.began
        left = clock(spent / self.ended * (self.total - self.ended)) if self.ended else "–"
        failed = f", {self.failed} failed" if self.failed else ""
        bar = ProgressBar(total=max(1, self.total), completed=self.ended, width=30)
        text = f"{self.ended}/{self.total} trials{failed}, {clock(spent)}, left about {left}"
        grid.add_row(bar, Text(f"{text}  {self.gpus}"))
        return grid


class Gpus:
    """Use of the GPUs, for the screen; nothing where there is none or no way to ask."""

    def __init__(self) -> None:
        try:
            import pynvml

            pynvml.nvmlInit()
            self.nvml = pynvml
            count = pynvml.nvmlDeviceGetCount()
            self.handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(count)]
        except Exception:  # no library, no driver, no GPU: there is nothing to show
            self.handles = []

    def __str__(self) -> str:
        """Return use and memory of each."""
        shown = []
        for number, handle in enumerate(self.handles):
            use = self.nvml.nvmlDeviceGetUtilizationRates(handle).gpu
            memory = self.nvml.nvmlDeviceGetMemoryInfo(handle)
            shown.append(f"GPU {number}: {use} % {memory.used / 2**30:.0f} GiB")
        return "  ".join(shown)


def clock(seconds: float) -> str:
    """Write a duration as 0:59 or 1:02:03."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


# ------------------------------------------------------------------- the final table


def _memory(metrics: Mapping[str, Any]) -> str:
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
            _memory(row),
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
