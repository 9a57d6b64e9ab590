"""What a trial ends with: a state, metrics, a curve, and files."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

State = Literal["done", "failed", "oom", "diverged", "pruned", "stopped"]
STATES: tuple[State, ...] = ("done", "failed", "oom", "diverged", "pruned", "stopped")
# A state that another run of the same command would not change.
FINAL_STATES: tuple[State, ...] = ("done", "diverged", "pruned")
# What a failure came from: an exception, a full disk, too long a time, the death of the process.
Failure = Literal["crash", "oom", "disk", "timeout", "lost"]


@dataclass
class Result:
    """What a trial gave. ``folder`` holds what goes into the record as artefacts."""

    state: State
    metrics: dict[str, float] = field(default_factory=dict)
    # (metric, step, value) along the training
    curve: list[tuple[str, int, float]] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    failure: Failure | None = None
    folder: Path | None = None
    at: float = field(default_factory=time.time)  # seconds since 1970
