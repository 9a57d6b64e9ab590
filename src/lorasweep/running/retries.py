"""What is tried again after a failure, and how, before a trial counts as failed."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lorasweep.trial.result import Failure
from lorasweep.trial.trial import Trial

Change = Mapping[str, Any]


def ladder(trial: Trial, allowed: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Ways to run a trial in less and less memory, all with the same effective batch.

    ``alone``: as it is, in a fresh process and without a pack; ``checkpointing``: activations
    are computed twice; ``accumulate``: smaller device steps, more of them an optimizer step.
    """
    if "alone" in allowed:
        yield {}
    change: dict[str, Any] = {}
    if "checkpointing" in allowed and not trial["train.checkpointing"]:
        change = {"train.checkpointing": True}
        yield change
    batch, accumulation = int(trial["train.batch_size"]), int(trial["train.accumulation"])
    while "accumulate" in allowed and batch > 1 and batch % 2 == 0:
        batch, accumulation = batch // 2, accumulation * 2
        yield {**change, "train.batch_size": batch, "train.accumulation": accumulation}


def again(
    trial: Trial, failure: Failure | None, failed: int, policy: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Return the changes to run a trial with once more, or None where it is given up.

    Args:
        trial: what failed.
        failure: the kind of this failure.
        failed: how often it has failed in this way, this time included.
        policy: the settings of the group ``executor``.
    """
    if failure == "oom":
        return next((c for n, c in enumerate(ladder(trial, policy["oom"]), 1) if n == failed), None)
    if failure in (None, "disk") or failed > policy[f"retries.{failure}"]:
        return None
    return {}


def typed(change: Change) -> str:
    """Write changes as one would type them: ``train.checkpointing=true``."""
    return " ".join(f"{k}={str(v).lower()}" for k, v in change.items())
