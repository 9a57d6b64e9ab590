"""Evaluation of several trials on the same texts, in passes they share."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch.nn import functional

from lorasweep import tasks
from lorasweep.engines.packed.adapter import Adapter
from lorasweep.engines.packed.base import Base
from lorasweep.engines.packed.layout import Lane
from lorasweep.engines.packed.tokens import chunks


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


def evaluate(base: Base, adapters: Sequence[Adapter], batch: int) -> list[Verdict]:
    """Judge trials by all evaluation texts, ``batch`` of them at a time for every trial."""
    found: list[list[torch.Tensor]] = [[] for _ in adapters]
    groups = [[i] for i in range(len(adapters))] if base.strict else [list(range(len(adapters)))]
    for group in groups:
        for bank in {id(adapters[i].bank): adapters[i].bank for i in group}.values():
            bank.refresh()
        with torch.no_grad():
            for rows in chunks(len(base.eval), batch):
                lanes = [Lane(adapters[i], rows, 0) for i in group]
                now = base.lay_out(base.eval, lanes, training=False)
                for i, scores in zip(group, base.scores(now), strict=True):
                    found[i].append(scores)
    return [_verdict(base, torch.cat(parts)) for parts in found]


def _verdict(base: Base, scores: torch.Tensor) -> Verdict:
    loss = float(functional.cross_entropy(scores, base.eval.labels))
    gold, on_cpu = base.eval.labels.cpu().numpy(), scores.cpu().numpy()
    return Verdict(base.eval.ids, gold, on_cpu, {**tasks.metrics(gold, on_cpu), "eval/loss": loss})
