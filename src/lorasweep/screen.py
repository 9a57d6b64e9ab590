"""What the user sees while trials run, and the table at the end."""

import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from lorasweep.trial import Result, Trial

PLAIN_WIDTH = 150  # columns when the output is no terminal: no line is cut at 80
PLAIN_EVERY_S = 10.0  # and then a line so often tells that a long trial is alive


def console(*, stderr: bool = False) -> Console:
    """Return a console that stays readable in a file."""
    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(stderr=stderr, width=None if terminal else PLAIN_WIDTH, highlight=False)


class Screen:
    """Progress of a sweep: live bars on a terminal, plain lines in a file. Is the trial's watch."""

    def __init__(self, total: int) -> None:
        self.stopping = False
        self.console = console()
        self.live = self.console.is_terminal
        self.total, self.index = total, 0
        self.loss: float | None = None
        self._said = 0.0
        self._label = ""
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            disable=not self.live,
        )
        self._sweep = self.bars.add_task("trials", total=total, note="")
        self._trial = self.bars.add_task("steps", total=None, note="", visible=False)

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.bars.stop()

    def begin(self, trial: Trial) -> None:
        """Say that a trial starts."""
        self.index, self.loss, self._label = self.index + 1, None, trial.label
        self._said = time.monotonic()
        self.bars.reset(self._trial, total=None, visible=True, description=trial.label, note="load")

    def step(self, step: int, total: int, loss: float | None) -> None:
        """Show how far the trial is (``Watch``)."""
        self.loss = self.loss if loss is None else loss
        note = "" if self.loss is None else f"loss {self.loss:.3f}"
        self.bars.update(self._trial, completed=step, total=total, note=note)
        if not self.live and time.monotonic() - self._said > PLAIN_EVERY_S:
            self._said = time.monotonic()
            self.console.print(f"        {self._label}: step {step}/{total} {note}")

    def end(self, trial: Trial, result: Result) -> None:
        """Say in a line what a trial gave, at once and with its error if it failed."""
        self.bars.update(self._sweep, completed=self.index)
        place = f"[{self.index:>{len(str(self.total))}}/{self.total}]"
        line = f"{place} {trial.label}: "
        if result.state == "done":
            m = result.metrics
            line += (
                f"accuracy {m['eval/accuracy']:.3f}  F1 {m['eval/f1_macro']:.3f}  "
                f"{m['time/total_s']:.1f} s  {_memory(m)}"
            )
        else:
            line += f"{result.state} ({result.error or 'no more steps were run'})"
        self.console.print(line, markup=False, style=None if result.state == "done" else "red")

    def say(self, text: str, style: str | None = None) -> None:
        """Print a line above the bars."""
        self.console.print(text, markup=False, style=style)


def _memory(metrics: Mapping[str, Any]) -> str:
    for name in ("memory/peak_allocated_gib", "memory/peak_rss_gib"):
        if metrics.get(name) is not None:
            return f"{float(metrics[name]):.2f} GiB"
    return ""


def results(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Table of trials by accuracy, best first; what did not end well comes last."""
    table = Table(title="Trials by accuracy", title_justify="left")
    for name, justify in (
        ("model", "left"),
        ("method", "left"),
        ("target", "left"),
        ("r", "right"),
        ("α", "right"),
        ("seed", "right"),
        ("accuracy", "right"),
        ("F1 macro", "right"),
        ("trainable", "right"),
        ("memory", "right"),
        ("train s", "right"),
        ("state", "left"),
    ):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for row in sorted(rows, key=lambda r: -float(r.get("eval/accuracy", -1))):
        adapts = row["method.trains"] == "adapter"
        table.add_row(
            row["model.name"],
            row["method.name"],
            row["target.name"] if adapts else "–",
            str(row["lora.r"]) if adapts else "–",
            f"{float(row['lora.alpha']):g}" if adapts else "–",
            str(row["seed"]),
            _number(row, "eval/accuracy", ".3f"),
            _number(row, "eval/f1_macro", ".3f"),
            _number(row, "params/trainable", ",.0f"),
            _memory(row),
            _number(row, "time/train_s", ".1f"),
            row.get("lorasweep.state", "?"),
        )
    return table


def _number(row: Mapping[str, Any], name: str, form: str) -> str:
    return format(float(row[name]), form) if name in row else "–"
