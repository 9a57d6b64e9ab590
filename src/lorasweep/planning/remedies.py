"""The smallest change of settings that makes a trial fit its device."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorasweep import methods
from lorasweep.costs import memory
from lorasweep.costs.devices import Device
from lorasweep.trial.trial import Trial

MIN_LENGTH = 32  # tokens; a suggestion does not cut texts further


@dataclass(frozen=True)
class Change:
    """Overrides as a user types them, and the settings that they stand for."""

    typed: tuple[str, ...]
    settings: Mapping[str, Any]


def remedy(trial: Trial, device: Device, n_labels: int) -> tuple[str, ...]:
    """Smallest change that makes a trial fit, as overrides; empty if nothing tried does.

    Kinds of change are tried by how little they alter the trial (see ``changes``): each alone,
    then on top of all kinds before it, and only then the next. Of what was needed together,
    whatever is not needed is left out, and the rest made as small as will do.
    """

    def fits(chosen: Sequence[Change]) -> bool:
        settings = {k: v for change in chosen for k, v in change.settings.items()}
        changed = Trial({**trial.config, **settings})
        return memory.estimate(changed, n_labels).footprint <= device.memory

    kinds = [kind for kind in changes(trial) if kind]
    chosen = next(filter(fits, combinations(kinds)), [])
    for change in chosen[-2::-1]:  # what alters the trial most first
        without = [other for other in chosen if other is not change]
        smaller = (
            [less if other is change else other for other in chosen]
            for kind in kinds
            if change in kind
            for less in kind
        )
        chosen = next(filter(fits, itertools.chain([without], smaller)))
    return tuple(word for change in chosen for word in change.typed)


def combinations(kinds: Sequence[Sequence[Change]]) -> Iterator[list[Change]]:
    """Changes of each kind alone, and then with the largest of every kind before it."""
    for i, kind in enumerate(kinds):
        before = [earlier[-1] for earlier in kinds[:i]]
        yield from ([change] for change in kind)
        yield from ([*before, change] for change in kind if before)


def changes(trial: Trial) -> list[list[Change]]:
    """Kinds of change, the one that alters a trial least first; in each, the smallest first.

    A smaller evaluation batch changes nothing (and helps where the peak is at evaluation),
    checkpointing only time, and a smaller batch with accumulation keeps the effective batch.
    8-bit states, 4-bit weights and other methods change the arithmetic, shorter texts the data:
    of these each is a kind of its own, since a larger one alters the result more.
    """
    method, lengths = methods.of(trial.config), halves(int(trial["train.max_length"]), MIN_LENGTH)
    evaluation = [
        changed("train.eval_batch_size", n) for n in halves(trial["train.eval_batch_size"])
    ]
    shorter = [[changed("train.max_length", length)] for length in lengths]
    if method.trains is None:
        return [evaluation, *shorter]
    again = [] if trial["train.checkpointing"] else [changed("train.checkpointing", True)]
    paged = [changed("train.optimizer", "paged_adamw_8bit")]
    cheaper = [[Change((typed,), settings)] for typed, settings in method.cheaper(trial.config)]
    return [evaluation, again, smaller_batches(trial), paged, *cheaper, *shorter]


def changed(name: str, value: Any) -> Change:
    """Change of one setting."""
    return Change((f"{name}={str(value).lower()}",), {name: value})


def halves(number: int, least: int = 1) -> list[int]:
    """Halves of a number, again and again, while they are whole and not below ``least``."""
    found = []
    while number % 2 == 0 and number // 2 >= least:
        number //= 2
        found.append(number)
    return found


def smaller_batches(trial: Trial) -> list[Change]:
    """Smaller batches with as much more accumulation."""
    batch, accumulation = int(trial["train.batch_size"]), int(trial["train.accumulation"])
    found = []
    for smaller in halves(batch):
        more = accumulation * batch // smaller
        settings = {"train.batch_size": smaller, "train.accumulation": more}
        found.append(Change(tuple(f"{k}={v}" for k, v in settings.items()), settings))
    return found
