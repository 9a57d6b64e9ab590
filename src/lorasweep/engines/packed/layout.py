"""Whose tokens lie where: the texts of several trials as one row of tokens, without padding."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from lorasweep.engines.packed.tokens import Ints, Side

if TYPE_CHECKING:
    from lorasweep.engines.packed.adapter import Adapter


@dataclass(frozen=True)
class Grid:
    """The texts of one lane as a padded table of ``rows`` x ``width`` cells.

    Attributes:
        cells: cell of each token, shape (tokens,); None where no cell is padding.
        mask: whether a cell holds a token, shape (rows, 1, 1, width); None where all do.
    """

    rows: int
    width: int
    cells: torch.Tensor | None
    mask: torch.Tensor | None

    def spread(self, x: torch.Tensor) -> torch.Tensor:
        """Lay out (tokens, …) as (rows, width, …), with zeros for padding."""
        shape = (self.rows, self.width, *x.shape[1:])
        if self.cells is None:
            return x.reshape(shape)
        table = x.new_zeros(self.rows * self.width, *x.shape[1:])
        return table.index_copy(0, self.cells, x).view(shape)

    def collect(self, table: torch.Tensor) -> torch.Tensor:
        """Take the tokens (tokens, …) out of (rows, width, …)."""
        flat = table.reshape(self.rows * self.width, *table.shape[2:])
        return flat if self.cells is None else flat[self.cells]


@dataclass
class Lane:
    """What one trial reads in a pass.

    Attributes:
        adapter: its trained numbers and its stream of random numbers.
        rows: the texts, by their row in the side.
        width: tokens of a row in the batch that the trial alone would have seen, padding
            included: dropout draws for every one of them.
        share: of these texts in those of the optimizer step.
    """

    adapter: "Adapter"
    rows: Sequence[int]
    width: int
    share: float = 1.0
    tokens: int = 0
    tight: Grid = field(init=False)  # as narrow as the longest text
    alone: Grid = field(init=False)  # as wide as alone
    last: torch.Tensor = field(init=False)  # cell of the pooled token in ``alone``, (rows,)


@dataclass(frozen=True)
class Even:
    """A pass of fixed shape: every lane has as many tokens, the end of a lane is padding.

    Attributes:
        texts, width: cells of the attention's table.
        cell_of: cell of each token, shape (lanes x tokens,); of padding a cell of its own lane.
        token_of: token of each cell, shape (texts x width,); of padding one of its own lane.
        real, filled: which tokens, and which cells, are no padding.
    """

    texts: int
    width: int
    cell_of: torch.Tensor
    token_of: torch.Tensor
    real: torch.Tensor
    filled: torch.Tensor


@dataclass
class Pass:
    """Tokens of all lanes one after the other: one forward pass of the base.

    Attributes:
        ids, positions, types: shape (1, tokens).
        pooled: index of the token that each text is judged by, shape (texts,); in even passes
            of equally many for each lane, shape (lanes x most texts of any lane,).
        labels: class indices, shape (texts,).
        training: whether dropout is on.
        texts: how many texts each lane has.
        even: the fixed shape, where there is one; ids and positions are then (lanes, tokens).
    """

    lanes: list[Lane]
    ids: torch.Tensor
    positions: torch.Tensor
    types: torch.Tensor | None
    pooled: torch.Tensor
    labels: torch.Tensor
    training: bool
    texts: list[int]
    even: Even | None = None

    @property
    def tokens(self) -> list[int]:
        """Tokens of each lane."""
        return [lane.tokens for lane in self.lanes]


def build(
    side: Side, lanes: list[Lane], *, training: bool, pool_last: bool, first_position: int
) -> Pass:
    """Lay out what the lanes read.

    Args:
        side: where the texts are.
        lanes: who reads which of them.
        training: whether dropout is on.
        pool_last: whether a text is judged by its last token, else by its first.
        first_position: position id of a text's first token.
    """
    device = side.tokens.device
    where, places, pooled, rows = [], [], [], []
    start = 0
    for lane in lanes:
        of_lane = np.asarray(lane.rows, dtype=np.int64)
        lengths = side.lengths[of_lane]
        firsts = np.cumsum(lengths) - lengths
        place = np.arange(lengths.sum()) - np.repeat(firsts, lengths)
        last = side.last[of_lane] if pool_last else np.zeros_like(lengths)
        where.append(np.repeat(side.starts[of_lane], lengths) + place)
        places.append(place)
        pooled.append(start + firsts + last)
        rows.append(of_lane)
        _fill(lane, lengths, place, last, device)
        start += lane.tokens
    at = _to(np.concatenate(where), device)
    return Pass(
        lanes=lanes,
        ids=side.tokens[at][None],
        positions=_to(np.concatenate(places) + first_position, device)[None],
        types=None if side.types is None else side.types[at][None],
        pooled=_to(np.concatenate(pooled), device),
        labels=side.labels[_to(np.concatenate(rows), device)],
        training=training,
        texts=[len(lane.rows) for lane in lanes],
    )


def _to(numbers: Ints, device: torch.device) -> torch.Tensor:
    tensor = torch.from_numpy(numbers)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def _fill(lane: Lane, lengths: Ints, place: Ints, last: Ints, device: torch.device) -> None:
    lane.tokens = int(lengths.sum())
    tight = int(lengths.max())
    lane.width = max(lane.width, tight)
    lane.tight = _grid(lengths, place, tight, device)
    lane.alone = lane.tight if lane.width == tight else _grid(lengths, place, lane.width, device)
    lane.last = _to(np.arange(len(lengths)) * lane.width + last, device)


def _grid(lengths: Ints, place: Ints, width: int, device: torch.device) -> Grid:
    rows = len(lengths)
    if int(lengths.min()) == width:
        return Grid(rows, width, None, None)
    cells = np.repeat(np.arange(rows) * width, lengths) + place
    mask = np.arange(width) < lengths[:, None]
    return Grid(
        rows, width, _to(cells, device), torch.from_numpy(mask).to(device)[:, None, None, :]
    )
