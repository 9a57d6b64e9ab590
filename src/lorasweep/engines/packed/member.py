"""One trial under way: where it stands, what it has seen, when it logs, evaluates and ends."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from lorasweep.engines.base import diverged_weights, finite, warmup_steps
from lorasweep.engines.packed.adapter import Adapter
from lorasweep.engines.packed.layout import Lane
from lorasweep.engines.packed.tokens import Ints, Order, seed_of_workers, steps
from lorasweep.trial.trial import Trial


def rates(trial: Trial, total: int) -> Callable[[int], float]:
    """Return the learning rate as a function of the steps done: transformers' schedules."""
    train = trial.group("train")
    peak = float(train["learning_rate"])
    schedule = transformers.get_scheduler(
        train["schedule"],
        torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=peak),
        num_warmup_steps=warmup_steps(trial, total),
        num_training_steps=total,
    )
    factor = schedule.lr_lambdas[0]
    return lambda step: peak * float(factor(step))


class Member:
    """A trial in a pack.

    Attributes:
        step: optimizer steps done, of ``total``; ``judged``: at the last evaluation.
        curve: (metric, step, value) along the training.
        loss: sum of the losses since the last log, on the device, shape ().
        share: seconds of the pack that this trial has used.
        pruned: the scores along the way that it was ended for.
        notes: sentences about how it was trained, where that was not as it should have been.
    """

    def __init__(self, trial: Trial, folder: Path, adapter: Adapter, lengths: Ints) -> None:
        self.trial, self.folder, self.adapter = trial, folder, adapter
        self.train = trial.group("train")
        self.order = Order(trial, lengths, adapter.stream.order)
        self.total = steps(trial, self.order)
        self.rate = rates(trial, self.total)
        self.step = self.logged = self.judged = 0
        self.curve: list[tuple[str, int, float]] = []
        self.loss = torch.zeros((), device=adapter.bank.weights.device)
        self.summed = 0.0  # losses up to the last log
        self.share = 0.0
        self.texts = self.tokens = 0
        self.pruned: Mapping[str, float] | None = None
        self.best: tuple[float, torch.Tensor] | None = None
        self.without_better = 0
        self.notes: list[str] = []
        self._longest = lengths
        self._mark: dict[str, Any] = {}
        self.mark()

    def note(self, text: str) -> None:
        """Tell people something about the training, once."""
        if text not in self.notes:
            self.notes.append(text)

    # ------------------------------------------------------------------- one micro-batch

    def read(self) -> Lane:
        """Take the next micro-batch."""
        rows = self.order.next()
        longest = int(self._longest[rows].max())
        whole = self.train["padding"] == "max_length"
        self.texts += len(rows)
        self.tokens += int(self._longest[rows].sum())
        width = int(self.train["max_length"]) if whole else longest
        return Lane(self.adapter, rows, width, self.order.share)

    def learn(self, loss: torch.Tensor) -> float | None:
        """Book a micro-batch whose gradient is there; at the end of a step, take the step.

        Returns:
            The mean loss since the last log, where it is time to log.

        Raises:
            DivergedError: it is not a number.
        """
        self.loss += loss.detach()
        if not self.order.at_step_end:
            return None
        norm = self.adapter.bank.step(
            self.adapter.row,
            self.rate(self.step),
            float(self.train["weight_decay"]),
            float(self.train["max_grad_norm"]),
        )
        return self.stepped(norm)

    def stepped(self, norm: torch.Tensor) -> float | None:
        """Count a step that was taken; log where it is time."""
        self.step += 1
        every = max(1, self.total // 20)
        logged = self._log(norm) if self.step % every == 0 else None
        self.mark()
        return logged

    def _log(self, norm: torch.Tensor) -> float:
        summed = float(self.loss)
        self.loss.zero_()
        loss = summed / (self.step - self.logged)
        self.summed, self.logged = self.summed + summed, self.step
        self.curve += [
            ("train/loss", self.step, loss),
            ("train/grad_norm", self.step, float(norm)),
        ]
        return finite(loss, self.step)

    # ---------------------------------------------------------------------- evaluations

    @property
    def trained(self) -> bool:
        """Whether training is over."""
        patience = self.train["patience"]
        out_of_patience = bool(patience) and self.without_better >= patience
        return self.step >= self.total or self.pruned is not None or out_of_patience

    @property
    def at_evaluation(self) -> bool:
        """Whether an evaluation along the way is due: every so many steps and at the end."""
        often = self.train["eval_every"]
        if not often or self.step == self.judged or not self.order.at_step_end:
            return False
        return self.step % often == 0 or self.step >= self.total

    def evaluated(self, scores: Mapping[str, float]) -> None:
        """Book an evaluation along the way, and keep the weights where they are the best yet.

        Raises:
            DivergedError: its loss is no number.
        """
        seed_of_workers(self.adapter.stream.order)
        self.judged, accuracy = self.step, scores["eval/accuracy"]
        self.curve += [
            ("eval/accuracy_along", self.step, accuracy),
            ("eval/loss_along", self.step, scores["eval/loss"]),
        ]
        finite(scores["eval/loss"], self.step, "the evaluation loss")
        if not self.train["patience"]:
            self.mark()
            return
        if self.best is None or accuracy > self.best[0]:
            bank = self.adapter.bank
            self.best = accuracy, bank.read(bank.weights, self.adapter.row)
            self.without_better = 0
        else:
            self.without_better += 1
        self.mark()

    def check(self) -> None:
        """Look at the steps since the last log.

        Raises:
            DivergedError: their loss, or what they left, is no number.
        """
        finite(float(self.loss), self.step)
        if not bool(self.adapter.bank.weights[self.adapter.row].isfinite().all()):
            raise diverged_weights(self.step)

    def take_best(self) -> None:
        """Go back to the best weights, where early stopping kept any."""
        if self.best is not None:
            bank = self.adapter.bank
            bank.write(bank.weights, self.adapter.row, self.best[1])
            bank.refresh()

    def metrics(self) -> dict[str, float]:
        """What is known of the training so far."""
        found: dict[str, float] = {
            "params/trainable": self.adapter.trainable,
            "params/total": self.adapter.total,
            "time/pack_share_s": self.share,
        }
        if self.step:
            found["train/steps"], found["train/total_steps"] = self.step, self.total
            loss = (self.summed + float(self.loss)) / self.step
            found |= {"train/loss": loss} if math.isfinite(loss) else {}
        if self.share:
            found["speed/pack_samples_per_s"] = self.texts / self.share
            found["speed/pack_tokens_per_s"] = self.tokens / self.share
        return found

    # -------------------------------------------------------------- back to the last step

    def mark(self) -> None:
        """Remember this place, the end of a step."""
        self._mark = {
            "order": self.order.state(),
            "stream": self.adapter.stream.state(),
            "loss": self.loss.clone(),
            "seen": (self.texts, self.tokens),
        }

    def rewind(self) -> None:
        """Undo what was begun since the end of the last step."""
        self.order.restore(self._mark["order"])
        self.adapter.stream.restore(self._mark["stream"])
        self.loss.copy_(self._mark["loss"])
        self.texts, self.tokens = self._mark["seen"]
        self.adapter.bank.clear(self.adapter.row)
