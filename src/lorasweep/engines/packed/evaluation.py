"""Evaluation of several trials on the same texts, in passes they share."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch.nn import functional

from lorasweep.engines.packed.adapter import Adapter
from lorasweep.engines.packed.base import Base
from lorasweep.engines.packed.layout import Lane
from lorasweep.engines.packed.steps import Steps
from lorasweep.engines.packed.tokens import chunks
from lorasweep.tasks.kinds import classification


@dataclass(frozen=True)
class Verdict:
    """How a trial did on every evaluation text.

    Attributes:
        ids: names of the texts.
        gold: the right classes, shape (texts,).
        scores: shape (texts, classes), float32.
        metrics: what scikit-learn makes of them, and the mean loss as ``eval/loss``.
    """

    ids: Sequence[str]
    gold: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]
    metrics: dict[str, float]

    def write(self, file: Path) -> None:
        """Keep the predictions, so that trials can be compared text by text."""
        pd.DataFrame(
            {
                "id": list(self.ids),
                "gold": self.gold,
                "predicted": np.nan_to_num(self.scores, nan=-np.inf).argmax(axis=1),
                "scores": list(self.scores),
            }
        ).to_parquet(file, index=False)


def evaluate(
    base: Base, adapters: Sequence[Adapter], batch: int, steps: Steps | None
) -> list[Verdict]:
    """Judge trials by all evaluation texts, ``batch`` of them at a time for every trial.

    Args:
        base: what they share.
        adapters: the trials.
        batch: texts at a time.
        steps: where all of them sit in slots, if they do.
    """
    found: dict[int, list[torch.Tensor]] = {id(adapter): [] for adapter in adapters}
    for bank in {id(a.bank): a.bank for a in adapters}.values():
        bank.refresh()
    groups = [[a] for a in adapters] if base.strict else [list(adapters)]
    with torch.no_grad():
        for group in groups:
            for rows in chunks(len(base.eval), batch):
                for name, scores in _scores(base, group, rows, steps).items():
                    if name in found:
                        found[name].append(scores)
    return [_verdict(base, torch.cat(found[id(adapter)])) for adapter in adapters]


def _scores(
    base: Base, group: list[Adapter], rows: Sequence[int], steps: Steps | None
) -> dict[int, torch.Tensor]:
    if steps is not None:
        return steps.scores(rows)
    lanes = [Lane(adapter, rows, 0) for adapter in group]
    now = base.lay_out(base.eval, lanes, training=False)
    return {id(a): part for a, part in zip(group, base.scores(now), strict=True)}


def _verdict(base: Base, scores: torch.Tensor) -> Verdict:
    loss = float(functional.cross_entropy(scores, base.eval.labels))
    gold, on_cpu = base.eval.labels.cpu().numpy(), scores.cpu().numpy()
    return Verdict(
        base.eval.ids, gold, on_cpu, {**classification.metrics(gold, on_cpu), "eval/loss": loss}
    )
