"""What the user sees while trials run."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lorasweep.console import PLAIN_EVERY_S, clock, console
from lorasweep.running.summary import collapsed, memory_text
from lorasweep.trial import naming
from lorasweep.trial.result import Result
from lorasweep.trial.trial import Trial

SHOWN = 20  # trials under way that the live table lists


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
                f"F1 {float(row.get('eval/f1_macro', 0)):.3f}  {seconds:.1f} s  {memory_text(row)}"
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
