"""The reference engine: one trial with Hugging Face's Trainer, as most people would run it."""

import base64
import json
import math
import shutil
import time
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
import pandas as pd
import peft
import torch
import transformers
from torch import nn
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from lorasweep import engines
from lorasweep.engines import environment, memory
from lorasweep.engines.base import DivergedError, Watch, diverged_weights, finite, warmup_steps
from lorasweep.methods import build
from lorasweep.models import load, padding, source
from lorasweep.tasks import sources, tokens
from lorasweep.tasks.kinds import classification
from lorasweep.trial.result import Result
from lorasweep.trial.trial import Trial

_CHECKPOINTING: dict[str, Any] = {
    "gradient_checkpointing": True,
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
}
_ORDER = {"by_length": "group_by_length", "random": "random"}


_LOGGED = {
    "loss": "train/loss",
    "grad_norm": "train/grad_norm",
    "eval_eval/accuracy": "eval/accuracy_along",
    "eval_loss": "eval/loss_along",
}


class _Reporter(transformers.TrainerCallback):
    """Feeds the watch; ends training on NaN, when the trial is pruned, or when asked to."""

    def __init__(self, trial: Trial, watch: Watch) -> None:
        self.trial, self.watch = trial, watch
        self.stopped = self.pruned = False
        self.scores: dict[str, float] = {}
        # State of the generator that an epoch's order is drawn from. The Trainer restores it
        # after that drawing only, and would go on in another order.
        self.drawn_from = torch.get_rng_state()
        self.resumes_from: torch.Tensor | None = None

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.resumes_from is not None:
            torch.set_rng_state(self.resumes_from)
            self.resumes_from = None
        self.drawn_from = torch.get_rng_state()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.watch.step(self.trial, state.global_step, state.max_steps, None)
        if self.watch.stopping and state.global_step < state.max_steps:
            self.stopped = control.should_save = control.should_training_stop = True

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any, **_: Any) -> None:
        if state.global_step >= state.max_steps:
            return  # its end is near: the last evaluation follows
        self.scores = {k.removeprefix("eval_"): v for k, v in metrics.items() if "eval_eval/" in k}
        self.scores["eval/loss"] = metrics["eval_loss"]
        finite(metrics["eval_loss"], state.global_step, "the evaluation loss")
        if self.watch.report(self.trial, state.global_step, self.scores):
            self.pruned = control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.watch.step(self.trial, state.global_step, state.max_steps, logs["loss"])
            finite(logs["loss"], state.global_step)


def _curve(history: Sequence[dict[str, Any]]) -> list[tuple[str, int, float]]:
    """Read the Trainer's log, which outlives an interruption."""
    return [
        (ours, int(entry["step"]), float(entry[theirs]))
        for entry in history
        for theirs, ours in _LOGGED.items()
        if theirs in entry
    ]


@contextmanager
def _timed(metrics: dict[str, float], name: str) -> Iterator[None]:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    yield
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    metrics[name] = time.perf_counter() - start


class _Trainer(transformers.Trainer):
    """Counts the seconds of evaluations along the way, which are none of training."""

    evaluating = 0.0

    def evaluate(self, *args: Any, **more: Any) -> dict[str, float]:
        spent: dict[str, float] = {}
        with _timed(spent, "s"):
            scores: dict[str, float] = super().evaluate(*args, **more)
        self.evaluating += spent["s"]
        return scores


def _arguments(trial: Trial, scratch: Path, steps: int) -> transformers.TrainingArguments:
    train = trial.group("train")
    often = train["eval_every"]
    return transformers.TrainingArguments(
        output_dir=str(scratch),
        per_device_train_batch_size=train["batch_size"],
        per_device_eval_batch_size=train["eval_batch_size"],
        gradient_accumulation_steps=train["accumulation"],
        num_train_epochs=train["epochs"],
        max_steps=train["max_steps"] or -1,
        learning_rate=train["learning_rate"],
        lr_scheduler_type=train["schedule"],
        warmup_steps=warmup_steps(trial, steps),
        weight_decay=train["weight_decay"],
        optim=train["optimizer"],
        max_grad_norm=train["max_grad_norm"],
        bf16=train["precision"] == "bf16",
        fp16=train["precision"] == "fp16",
        **_CHECKPOINTING if train["checkpointing"] else {},
        train_sampling_strategy=_ORDER[train["order"]],
        length_column_name="length",
        include_num_input_tokens_seen="non_padding",
        logging_steps=max(1, steps // 20),
        logging_nan_inf_filter=False,
        eval_strategy="steps" if often else "no",
        eval_steps=often,
        save_strategy="steps" if train["patience"] else "no",
        save_steps=often or 500,
        save_total_limit=2,  # the best and the last; of one the Trainer would remove the last
        load_best_model_at_end=bool(train["patience"]),
        metric_for_best_model="eval/accuracy" if train["patience"] else None,
        restore_callback_states_from_checkpoint=bool(train["patience"]),
        seed=trial["seed"],
        data_seed=trial["seed"],
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        report_to=[],
        disable_tqdm=True,
        log_level="error",
    )


def _steps(trial: Trial, examples: int) -> int:
    """Optimizer steps of the whole training."""
    train = trial.group("train")
    if train["max_steps"]:
        return int(train["max_steps"])
    batches: int = math.ceil(examples / train["batch_size"])
    epoch = math.ceil(batches / int(train["accumulation"]))
    return max(1, math.ceil(epoch * float(train["epochs"])))


def _loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor) -> torch.Tensor:
    """Return a micro-batch's part of the mean loss of all items of its optimizer step.

    The models' own losses are means of a micro-batch, which the Trainer adds up undivided where
    a model's forward takes ``**kwargs``.
    """
    share = labels.ne(-100).sum() / num_items_in_batch  # 1 without accumulation
    return nn.functional.cross_entropy(outputs["logits"], labels) * share


def _scored(prediction: transformers.EvalPrediction) -> dict[str, float]:
    return classification.metrics(prediction.label_ids, prediction.predictions)


class _Session:
    """One trial under way: the model, its data and the Trainer that joins them."""

    def __init__(self, trial: Trial, folder: Path, watch: Watch, bases: "_Bases") -> None:
        self.trial, self.folder, self.watch, self.bases = trial, folder, watch, bases
        self.state = folder.parent / "state"  # what a stopped trial goes on from
        self.metrics: dict[str, float] = {}
        self.reporter = _Reporter(trial, watch)
        self.lineage: dict[str, Any] = {}
        self.trainer: _Trainer | None = None
        self.began, self.spent = time.perf_counter(), 0.0  # seconds before it was stopped

    def load(self) -> None:
        trial, cache = self.trial, source.cache_home()
        found = source.locate(source.settings(trial), cache)
        task = trial.group("task")
        data = sources.load(task, cache)
        tokenizer = load.tokenizer(found.folder)
        length = trial["train.max_length"]
        self.train_set, self.eval_set = tokens.tokenise(
            data, task, tokenizer, found.tokenizer, length, cache
        )
        sides = self.train_set, self.eval_set
        notes = padding.settle(tokenizer, found.folder, sides, length)
        pad = tokenizer.pad_token_id
        self.base = self.bases.get(trial, found.folder, data.labels, pad)
        self.model: nn.Module = build.prepare(trial, self.base.model)
        self.labels = data.labels
        trainable, total = build.counts(self.model)
        self.metrics |= {"params/trainable": trainable, "params/total": total}
        self.lineage = {"model": found.lineage, "data": {**data.provenance, "sha256": data.digest}}
        self.lineage["notes"] = [*notes, *self.base.notes]
        self.trainer = self._trainer(tokenizer)

    def _trainer(self, tokenizer: Any) -> _Trainer:
        trial = self.trial
        whole = trial["train.padding"] == "max_length"
        collate = transformers.DataCollatorWithPadding(
            tokenizer,
            padding="max_length" if whole else "longest",
            max_length=trial["train.max_length"] if whole else None,
        )
        callbacks: list[transformers.TrainerCallback] = [self.reporter]
        if trial["train.patience"]:
            callbacks.append(transformers.EarlyStoppingCallback(trial["train.patience"]))
        steps = _steps(trial, len(self.train_set))
        trainer = _Trainer(
            model=self.model,
            args=_arguments(trial, self.state, steps),
            train_dataset=self.train_set,
            eval_dataset=self.eval_set.remove_columns("id"),
            data_collator=collate,
            compute_metrics=_scored,
            compute_loss_func=_loss,
            callbacks=callbacks,
        )
        trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
        return trainer

    def train(self) -> None:
        assert self.trainer is not None
        last = _stopped_at(self.state)
        before = _Before() if last is None else _Before.read(last)
        if before.drawn_from:
            kept = torch.tensor(list(base64.b64decode(before.drawn_from)), dtype=torch.uint8)
            self.reporter.resumes_from = kept
        with _timed(self.metrics, "time/train_s"):
            output = self.trainer.train(resume_from_checkpoint=str(last) if last else None)
        state = self.trainer.state
        # After an interruption the Trainer counts losses and seconds anew.
        own_steps = state.global_step - before.steps
        losses = before.losses + float(output.training_loss) * own_steps
        seconds = before.seconds + self.metrics["time/train_s"] - self.trainer.evaluating
        self.spent = before.total
        if self.reporter.stopped:
            drawn = base64.b64encode(bytes(self.reporter.drawn_from.tolist())).decode()
            folder = self.state / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            _Before(state.global_step, losses, seconds, drawn, self.total()).write(folder)
        batch = self.trial["train.batch_size"] * self.trial["train.accumulation"]
        seen = min(state.global_step * batch, round(len(self.train_set) * state.epoch))
        self.metrics["time/train_s"] = seconds
        self.metrics["train/steps"] = state.global_step
        self.metrics["train/total_steps"] = state.max_steps
        self.metrics["speed/samples_per_s"] = seen / seconds
        self.metrics["speed/tokens_per_s"] = state.num_input_tokens_seen / seconds
        # The last steps may have come after the last log.
        loss = losses / max(1, state.global_step)
        self.metrics["train/loss"] = finite(loss, state.global_step)
        if not build.finite(self.model):
            raise diverged_weights(state.global_step)

    def total(self) -> float:
        """Seconds since the trial began, but for those in which it was stopped."""
        return self.spent + time.perf_counter() - self.began

    def evaluate(self) -> None:
        assert self.trainer is not None
        # The Trainer shuffles evaluation by length too, which would part scores from item ids.
        self.trainer.args.train_sampling_strategy = "sequential"
        with _timed(self.metrics, "time/eval_s"):
            output = self.trainer.predict(self.eval_set.remove_columns("id"))
        step = self.trainer.state.global_step
        loss = finite(float(output.metrics["test_loss"]), step, "the evaluation loss")
        scores = np.asarray(output.predictions, dtype=np.float32)
        self.metrics |= {**classification.metrics(output.label_ids, scores), "eval/loss": loss}
        pd.DataFrame(
            {
                "id": list(self.eval_set["id"]),
                "gold": output.label_ids,
                "predicted": np.nan_to_num(scores, nan=-np.inf).argmax(axis=1),
                "scores": list(scores),
            }
        ).to_parquet(self.folder / "predictions.parquet", index=False)


def _quiet() -> None:
    """Leave the screen to us: no bars, notes or warnings of the libraries."""
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


@dataclass
class _Before:
    """What a trial had come to when it was stopped, beyond the Trainer's own checkpoint."""

    file: ClassVar = "before.json"
    steps: int = 0
    losses: float = 0.0  # summed over the steps
    seconds: float = 0.0  # of training
    drawn_from: str = ""  # see _Reporter; base64
    total: float = 0.0  # seconds of all that was done

    @classmethod
    def read(cls, folder: Path) -> "_Before":
        return cls(**json.loads((folder / cls.file).read_text()))

    def write(self, folder: Path) -> None:
        (folder / self.file).write_text(json.dumps(asdict(self)))


def _stopped_at(state: Path) -> Path | None:
    """Return the checkpoint that a trial goes on from, and remove those behind which it died.

    Early stopping saves checkpoints as well, of which it is not known what came before.
    """
    found = sorted(
        state.glob(f"{PREFIX_CHECKPOINT_DIR}-*"), key=lambda f: int(f.name.rpartition("-")[2])
    )
    whole = [folder for folder in found if (folder / _Before.file).exists()]
    for folder in found[found.index(whole[-1]) + 1 :] if whole else found:
        shutil.rmtree(folder)
    return whole[-1] if whole else None


class _Bases:
    """Keeps the last frozen base, for the next trial on it."""

    def __init__(self) -> None:
        self.kept: tuple[Hashable, load.Loaded] | None = None

    def get(self, trial: Trial, folder: Path, labels: list[str], pad: int) -> load.Loaded:
        """Return the base of a trial, with a fresh head, and let go of it until ``keep``."""
        identity, kept, self.kept = _identity(trial, labels), self.kept, None
        if kept is None or kept[0] != identity:
            kept = None  # frees it before the next is loaded
            return load.base(trial, folder, labels, pad)
        kept[1].redraw(trial["seed"])
        return kept[1]

    def keep(self, session: "_Session") -> None:
        """Take back the base of a trial that has ended; only adapters leave it as it was."""
        if isinstance(session.model, peft.PeftModel):
            base = replace(session.base, model=build.strip(session.model))
            self.kept = _identity(session.trial, session.labels), base


def _identity(trial: Trial, labels: list[str]) -> Hashable:
    """Everything that a loaded base depends on."""
    names = [n for n in trial.config if n.startswith(("model.", "method."))]
    settings = [*sorted(names), "train.precision", "train.checkpointing"]
    return tuple((n, str(trial[n])) for n in settings), tuple(labels)


class TrainerEngine:
    """Trains and evaluates one trial alone, with peak memory and times of its own."""

    def __init__(self) -> None:
        _quiet()
        self.bases = _Bases()

    def run(self, trials: Sequence[Trial], folder: Callable[[Trial], Path], watch: Watch) -> None:
        """Run trials one after another (``Engine``)."""
        for trial in trials:
            watch.end(trial, self._one(trial, folder(trial), watch))

    def _one(self, trial: Trial, folder: Path, watch: Watch) -> Result:
        memory.reset()
        folder.mkdir(parents=True, exist_ok=True)
        session = _Session(trial, folder, watch, self.bases)
        try:
            result = _stages(session)
        except DivergedError as error:
            result = Result("diverged", error=str(error))
        except torch.cuda.OutOfMemoryError as error:
            result = Result("oom", error=str(error).splitlines()[0])
        except Exception as error:
            result = engines.failure(error, folder)
        result.metrics = {**session.metrics, **memory.peaks()}
        result.metrics["time/total_s"] = session.total()
        if session.trainer is not None:
            result.curve = _curve(session.trainer.state.log_history)
        result.environment = {**environment.describe(), **session.lineage}
        result.folder = folder
        if result.state in ("done", "pruned", "stopped"):
            self.bases.keep(session)
        return result


def _stages(session: _Session) -> Result:
    trial, reporter = session.trial, session.reporter
    with _timed(session.metrics, "time/load_s"):
        session.load()
    memory.reset()  # the peak is of what follows: a base that was kept costs no loading
    if trial["method.trains"] is not None:
        session.train()
    if reporter.pruned:
        session.metrics |= reporter.scores
        return Result("pruned", error=f"at step {session.metrics['train/steps']:.0f}")
    if reporter.stopped:
        return Result("stopped")
    session.evaluate()
    if trial["engine.save_adapter"] and trial.adapts:
        size = build.save(session.model, session.folder / "adapter", session.base.held)
        session.metrics["adapter/bytes"] = size
    if not build.moved(trial, session.model):
        return Result("failed", error="training left the adapter at zero: nothing was learnt")
    return Result("done")
