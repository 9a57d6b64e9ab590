"""Inputs of a pass of fixed shape: where they lie on the device, and how texts come there."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from lorasweep.engines.packed.layout import Even, Lane, Pass
from lorasweep.engines.packed.tokens import Side


class Level:
    """Inputs of a pass in which every lane has ``length`` tokens, and its recording.

    Args:
        lanes: whose tokens they are.
        batches: for how many texts each lane has room.
        length: tokens of a lane, padding at its end included.
        width: tokens of a text in the attention's table.
        training: whether losses are wanted.
        device: where the inputs lie.
    """

    def __init__(
        self,
        lanes: list[Lane],
        batches: list[int],
        length: int,
        width: int,
        device: torch.device,
        *,
        training: bool,
    ) -> None:
        count, texts = len(lanes), sum(batches)
        tokens, cells, judged = count * length, texts * width, count * max(batches)
        sizes = [tokens, tokens, tokens, cells, judged, texts]
        self.numbers = torch.zeros(sum(sizes), dtype=torch.int64, device=device)
        self.flags = torch.zeros(tokens + cells, dtype=torch.bool, device=device)
        ids, positions, cell_of, token_of, pooled, labels = self.numbers.split(sizes)
        real, filled = self.flags.split([tokens, cells])
        self.length, self.width = length, width
        self.now = Pass(
            lanes=lanes,
            ids=ids.view(count, length),
            positions=positions.view(count, length),
            types=None,
            pooled=pooled,
            labels=labels,
            training=training,
            texts=batches,
            even=Even(texts, width, cell_of, token_of, real, filled),
        )
        self.graph: Any = None
        for tensor in (cell_of, real):  # for compiled blocks: as long as the lanes are
            torch._dynamo.maybe_mark_dynamic(tensor, 0)

    def load(self, side: Side, rows: Sequence[Sequence[int]]) -> None:
        """Bring the texts of every lane to the device; a lane may have none."""
        parts = lay_out(side, rows, self.now.texts, self.length, self.width)
        for target, source in zip((self.numbers, self.flags), parts, strict=True):
            bring(source, target)


def lay_out(
    side: Side, rows: Sequence[Sequence[int]], batches: Sequence[int], length: int, width: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Lay out texts of equal lanes: the numbers and flags of a ``Level``, one after the other.

    Args:
        side: where the texts are.
        rows: texts of each lane, at most as many as ``batches`` says.
        batches: texts that a lane has room for.
        length: tokens of a lane, padding at its end included.
        width: tokens of a text in the attention's table.
    """
    lanes, texts = len(rows), sum(batches)
    ids, positions = np.zeros((2, lanes, length), dtype=np.int64)
    cell_of, token_of = np.zeros((lanes, length), np.int64), np.zeros((texts, width), np.int64)
    # Where a lane has fewer texts than others, any of its own tokens stands for those missing.
    pooled = np.repeat(np.arange(lanes) * length, max(batches)).reshape(lanes, -1)
    labels = np.full(texts, -100, np.int64)
    real, filled = np.zeros((lanes, length), np.bool_), np.zeros((texts, width), np.bool_)
    text = 0
    for lane, (of_lane, batch) in enumerate(zip(rows, batches, strict=True)):
        start = lane * length
        cell_of[lane] = text * width
        token_of[text : text + batch] = start
        at = 0
        for number, row in enumerate(of_lane):
            size, source = int(side.lengths[row]), int(side.starts[row])
            here, place = slice(at, at + size), np.arange(size)
            ids[lane, here] = side.words[source : source + size]
            positions[lane, here] = place
            cell_of[lane, here] = text * width + place
            token_of[text, :size] = start + at + place
            real[lane, here], filled[text, :size] = True, True
            pooled[lane, number] = start + at + side.last[row]
            labels[text] = side.classes[row]
            at, text = at + size, text + 1
        text += batch - len(of_lane)
    parts = (ids, positions, cell_of, token_of, pooled, labels)
    numbers = np.concatenate([part.reshape(-1) for part in parts])
    flags = np.concatenate([real.reshape(-1), filled.reshape(-1)])
    return torch.from_numpy(numbers), torch.from_numpy(flags)


def bring(source: torch.Tensor, target: torch.Tensor) -> None:
    """Copy numbers to the device without waiting for it."""
    ready = source.pin_memory() if target.device.type == "cuda" else source
    target.copy_(ready, non_blocking=True)
