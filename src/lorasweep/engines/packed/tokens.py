"""Texts as tokens in the memory of the device, and the order in which a trial reads them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate.data_loader import SeedableRandomSampler
from transformers.trainer_pt_utils import get_length_grouped_indices

from lorasweep.trial.trial import Trial

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Side:
    """One side of a task, without padding, one text after the other.

    Attributes:
        tokens: token ids, shape (all tokens,), on the device.
        types: token type ids of the same shape, where the tokenizer has them.
        labels: class indices, shape (texts,), on the device.
        words, classes: tokens and labels again, in main memory.
        starts: where each text starts in ``tokens``, shape (texts,).
        lengths: tokens of each text, shape (texts,).
        last: place of the last token that does not look like padding, counted in its text.
        ids: names of the texts (evaluation only).
    """

    tokens: torch.Tensor
    types: torch.Tensor | None
    labels: torch.Tensor
    words: Ints
    classes: Ints
    starts: Ints
    lengths: Ints
    last: Ints
    ids: list[str]

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self.lengths)


def side(dataset: Any, pad: int, device: torch.device) -> Side:
    """Bring a tokenised dataset to the device."""
    table = dataset.data

    def flat(name: str) -> Ints:
        column = table.column(name).combine_chunks()
        return np.asarray(column.flatten().to_numpy(zero_copy_only=False), dtype=np.int64)

    lengths = np.asarray(table.column("length").to_numpy(), dtype=np.int64)
    starts = np.concatenate(([0], np.cumsum(lengths)[:-1])).astype(np.int64)
    tokens = flat("input_ids")
    types = flat("token_type_ids") if "token_type_ids" in table.column_names else None
    labels = np.array(table.column("labels").to_numpy(), dtype=np.int64)
    return Side(
        tokens=torch.from_numpy(tokens.copy()).to(device),
        types=None if types is None else torch.from_numpy(types.copy()).to(device),
        labels=torch.from_numpy(labels).to(device),
        words=tokens,
        classes=labels,
        starts=starts,
        lengths=lengths,
        last=_last(tokens, starts, lengths, pad),
        ids=list(table.column("id").to_pylist()) if "id" in table.column_names else [],
    )


def _last(tokens: Ints, starts: Ints, lengths: Ints, pad: int) -> Ints:
    """Place of the rightmost token that is not ``pad``, which transformers pools; else 0."""
    found = lengths - 1
    for row in np.flatnonzero(tokens[starts + lengths - 1] == pad):
        real = np.flatnonzero(tokens[starts[row] : starts[row] + lengths[row]] != pad)
        found[row] = real[-1] if len(real) else 0
    return found


class Order:
    """Rows of one micro-batch after the other, in the order of the reference.

    The Trainer takes each epoch's order of texts of like length from the global generator, the
    one that dropout draws from, after a number that seeds workers of which there are none; a
    random order comes from a generator of its own, seeded by the epoch.
    """

    def __init__(self, trial: Trial, lengths: Ints, generator: torch.Generator) -> None:
        train = trial.group("train")
        self.batch, self.accumulation = int(train["batch_size"]), int(train["accumulation"])
        self.by_length = train["order"] == "by_length"
        self.lengths = lengths.tolist()
        self.generator = generator
        self.epoch, self.position = -1, 0  # position: micro-batches taken from this epoch
        self.rows: list[int] = []
        self.batches = math.ceil(len(self.lengths) / self.batch)
        self._random = SeedableRandomSampler(
            range(len(self.lengths)), generator=torch.Generator(), data_seed=trial["seed"]
        )

    @property
    def updates(self) -> int:
        """Optimizer steps an epoch."""
        return math.ceil(self.batches / self.accumulation)

    def _start_epoch(self) -> None:
        self.epoch, self.position = self.epoch + 1, 0
        seed_of_workers(self.generator)
        if self.by_length:
            self.rows = get_length_grouped_indices(
                self.lengths, self.batch * self.accumulation, generator=self.generator
            )
        else:
            self._random.set_epoch(self.epoch)
            self.rows = list(self._random)

    def next(self) -> list[int]:
        """Rows of the next micro-batch."""
        if not self.rows or self.position == self.batches:
            self._start_epoch()
        start = self.position * self.batch
        self.position += 1
        return self.rows[start : start + self.batch]

    @property
    def share(self) -> float:
        """Share of the micro-batch just taken in the texts of its optimizer step."""
        first = (self.position - 1) // self.accumulation * self.accumulation
        end = min((first + self.accumulation) * self.batch, len(self.rows))
        start = (self.position - 1) * self.batch
        return (min(start + self.batch, end) - start) / (end - first * self.batch)

    @property
    def at_step_end(self) -> bool:
        """Whether the micro-batch just taken is the last one of its optimizer step."""
        return self.position % self.accumulation == 0 or self.position == self.batches

    def state(self) -> dict[str, Any]:
        """Where the reading stands."""
        return {"epoch": self.epoch, "position": self.position, "rows": self.rows}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on reading from there."""
        self.epoch, self.position = int(state["epoch"]), int(state["position"])
        self.rows = list(state["rows"])


def seed_of_workers(generator: torch.Generator) -> None:
    """Draw what a DataLoader draws each time it is read through."""
    torch.empty((), dtype=torch.int64).random_(generator=generator)


def steps(trial: Trial, order: Order) -> int:
    """Optimizer steps of the whole training."""
    train = trial.group("train")
    if train["max_steps"]:
        return int(train["max_steps"])
    return max(1, math.ceil(order.updates * float(train["epochs"])))


def chunks(count: int, size: int) -> list[Sequence[int]]:
    """Cut rows 0 … count-1 into batches of ``size``."""
    return [range(at, min(at + size, count)) for at in range(0, count, size)]
