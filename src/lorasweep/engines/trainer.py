"""The reference engine: one trial with Hugging Face's Trainer, as most people would run it."""

import json
import math
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import torch
import transformers
from torch import nn

from lorasweep import tasks
from lorasweep.engines import environment, memory
from lorasweep.engines.base import Watch
from lorasweep.models import adapters, load, source
from lorasweep.trial import Result, Trial

_CHECKPOINTING: dict[str, Any] = {
    "gradient_checkpointing": True,
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
}
_ORDER = {"by_length": "group_by_length", "random": "random"}


class DivergedError(Exception):
    """The loss is no longer a number."""


class _Reporter(transformers.TrainerCallback):
    """Feeds the watch and the loss curve; ends training on NaN or when asked to."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.curve: list[tuple[str, int, float]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.watch.step(state.global_step, state.max_steps, None)
        if self.watch.stopping:
            control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        logs = logs or {}
        for theirs, ours in (
            ("loss", "train/loss"),
            ("grad_norm", "train/grad_norm"),
            ("eval_eval/accuracy", "eval/accuracy_along"),
            ("eval_loss", "eval/loss_along"),
        ):
            if theirs in logs:
                self.curve.append((ours, state.global_step, float(logs[theirs])))
        if "loss" in logs:
            self.watch.step(state.global_step, state.max_steps, logs["loss"])
            if not math.isfinite(logs["loss"]):
                raise DivergedError(f"the loss was {logs['loss']} at step {state.global_step}")


@contextmanager
def _timed(metrics: dict[str, float], name: str) -> Iterator[None]:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    yield
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    metrics[name] = time.perf_counter() - start


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
        warmup_steps=train["warmup"],  # below 1 it is a share of the steps
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
        save_total_limit=1,
        save_only_model=True,  # an optimizer would be saved as a pickle
        load_best_model_at_end=bool(train["patience"]),
        metric_for_best_model="eval/accuracy" if train["patience"] else None,
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


def _scored(prediction: transformers.EvalPrediction) -> dict[str, float]:
    return tasks.metrics(prediction.label_ids, prediction.predictions)


class _Session:
    """One trial under way: the model, its data and the Trainer that joins them."""

    def __init__(self, trial: Trial, folder: Path, watch: Watch) -> None:
        self.trial, self.folder, self.watch = trial, folder, watch
        self.metrics: dict[str, float] = {}
        self.reporter = _Reporter(watch)
        self.lineage: dict[str, Any] = {}

    def load(self) -> None:
        trial, cache = self.trial, source.cache_home()
        found = source.locate(source.settings(trial), cache)
        task = trial.group("task")
        data = tasks.load(task, cache)
        tokenizer = load.tokenizer(found.folder)
        identity = json.dumps(found.lineage, sort_keys=True)
        length = trial["train.max_length"]
        self.train_set, self.eval_set = tasks.tokenise(
            data, task, tokenizer, identity, length, cache
        )
        pad = tokenizer.pad_token_id
        model = load.base(trial, found.folder, data.labels, pad)
        self.model: nn.Module = adapters.prepare(trial, model)
        trainable, total = adapters.counts(self.model)
        self.metrics |= {"params/trainable": trainable, "params/total": total}
        self.lineage = {"model": found.lineage, "data": {**data.provenance, "sha256": data.digest}}
        self.trainer = self._trainer(tokenizer)

    def _trainer(self, tokenizer: Any) -> transformers.Trainer:
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
        trainer = transformers.Trainer(
            model=self.model,
            args=_arguments(trial, self.folder / "checkpoints", steps),
            train_dataset=self.train_set,
            eval_dataset=self.eval_set.remove_columns("id"),
            data_collator=collate,
            compute_metrics=_scored,
            callbacks=callbacks,
        )
        trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
        return trainer

    def train(self) -> None:
        with _timed(self.metrics, "time/train_s"):
            output = self.trainer.train()
        seconds, state = self.metrics["time/train_s"], self.trainer.state
        batch = self.trial["train.batch_size"] * self.trial["train.accumulation"]
        seen = min(state.global_step * batch, round(len(self.train_set) * state.epoch))
        self.metrics["train/loss"] = float(output.training_loss)
        self.metrics["train/steps"] = state.global_step
        self.metrics["speed/samples_per_s"] = seen / seconds
        self.metrics["speed/tokens_per_s"] = state.num_input_tokens_seen / seconds

    def evaluate(self) -> None:
        # The Trainer shuffles evaluation by length too, which would part scores from item ids.
        self.trainer.args.train_sampling_strategy = "sequential"
        with _timed(self.metrics, "time/eval_s"):
            output = self.trainer.predict(self.eval_set.remove_columns("id"))
        scores = np.asarray(output.predictions, dtype=np.float32)
        self.metrics |= tasks.metrics(output.label_ids, scores)
        self.metrics["eval/loss"] = float(output.metrics["test_loss"])
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


def run(trial: Trial, folder: Path, watch: Watch) -> Result:
    """Train and evaluate one trial alone, with peak memory and times of its own."""
    _quiet()
    memory.reset()
    folder.mkdir(parents=True, exist_ok=True)
    session, result = _Session(trial, folder, watch), Result("done", folder=folder)
    started = time.perf_counter()
    try:
        _stages(session)
        if watch.stopping:
            result.state = "stopped"
        elif not adapters.moved(session.model):
            result.state, result.error = (
                "failed",
                "training left lora_B at zero: nothing was learnt",
            )
    except DivergedError as error:
        result.state, result.error = "diverged", str(error)
    except torch.cuda.OutOfMemoryError as error:
        result.state, result.error = "oom", str(error).splitlines()[0]
    result.metrics = {**session.metrics, **memory.peaks()}
    result.metrics["time/total_s"] = time.perf_counter() - started
    result.curve = session.reporter.curve
    result.environment = {**environment.describe(), **session.lineage}
    return result


def _stages(session: _Session) -> None:
    trial = session.trial
    with _timed(session.metrics, "time/load_s"):
        session.load()
    if trial["method.trains"] is not None:
        session.train()
    if session.watch.stopping:
        return
    session.evaluate()
    if trial["engine.save_adapter"] and trial.adapts:
        size = adapters.save(session.model, session.folder / "adapter")
        session.metrics["adapter/bytes"] = size
