"""What every engine does, and that the packed one gives the reference's numbers."""

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

from lorasweep.engines.base import Engine
from lorasweep.engines.packed.engine import PackedEngine
from lorasweep.engines.trainer import TrainerEngine
from lorasweep.methods import build
from lorasweep.models import load, source
from lorasweep.tasks import sources
from lorasweep.trial.result import Result
from lorasweep.trial.trial import Trial
from tests.engines.conftest import Make, Watch, place, run

BOTH = pytest.mark.parametrize("engine", [TrainerEngine, PackedEngine])


def curve(result: Result, name: str) -> dict[int, float]:
    return {step: value for metric, step, value in result.curve if metric == name}


@BOTH
def test_a_trial_from_its_first_step_to_its_artefacts(
    engine: type[Engine], make: Make, tmp_path: Path
) -> None:
    (trial,) = make("model=tiny_bert", "train.max_steps=20", "train.eval_every=8", "seed=1")
    watch = run(engine(), [trial], tmp_path)
    result = watch.results[trial.key]
    assert result.state == "done", result.error
    assert max(step for _, step in watch.steps) == 20
    assert list(curve(result, "train/loss")) == list(range(1, 21))
    assert list(curve(result, "eval/accuracy_along")) == [8, 16, 20]
    assert result.metrics["train/steps"] == 20
    predictions = pd.read_parquet(place(tmp_path)(trial) / "predictions.parquet")
    assert list(predictions.columns) == ["id", "gold", "predicted", "scores"]
    right = (predictions["gold"] == predictions["predicted"]).mean()
    assert right == pytest.approx(result.metrics["eval/accuracy"])
    assert right > 0.5, "three classes that letters tell apart"
    assert result.environment["data"]["sha256"]


@BOTH
def test_divergence_pruning_and_failure_are_results(
    engine: type[Engine], make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ["model=tiny_llama", "train.max_steps=8", "train.eval_every=2"]
    (wild,) = make(*common, "train.learning_rate=1e30")
    (pruned,) = make(*common, "seed=1")
    watch = Watch()
    watch.prune = lambda trial, step: trial.key == pruned.key and step == 4
    runner = engine()
    run(runner, [wild], tmp_path, watch)
    run(runner, [pruned], tmp_path, watch)
    assert watch.results[wild.key].state == "diverged"
    assert "nan" in str(watch.results[wild.key].error)
    assert watch.results[pruned.key].state == "pruned"
    assert watch.results[pruned.key].metrics["train/steps"] == 4
    assert 0 <= watch.results[pruned.key].metrics["eval/accuracy"] <= 1

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no such weights")

    monkeypatch.setattr(load, "base", broken)
    (failing,) = make(*common, "seed=2")
    run(engine(), [failing], tmp_path, watch)
    assert watch.results[failing.key].state == "failed"
    assert "no such weights" in str(watch.results[failing.key].error)


EVERY = pytest.mark.parametrize(
    ("engine", "method"), [(TrainerEngine, "lora"), (TrainerEngine, "fft"), (PackedEngine, "lora")]
)


@EVERY
def test_a_last_step_to_infinity_is_a_divergence(
    engine: type[Engine], method: str, make: Make, tmp_path: Path
) -> None:
    (trial,) = make(
        "model=tiny_llama", f"method={method}", "train.learning_rate=1e30", "train.max_steps=1",
        "train.warmup=0",
    )  # fmt: skip
    assert_diverged(run(engine(), [trial], tmp_path).results[trial.key])


@EVERY
def test_a_loss_that_is_nan_after_the_last_log_is_a_divergence(
    engine: type[Engine], method: str, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 43 steps every second is logged, and the last is none of them."""
    seen, cross_entropy = [0], torch.nn.functional.cross_entropy

    def poisoned(scores: torch.Tensor, *rest: Any, **named: Any) -> torch.Tensor:
        loss = cross_entropy(scores, *rest, **named)
        seen[0] += loss.requires_grad
        return loss * math.nan if seen[0] == 43 else loss

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", poisoned)
    (trial,) = make("model=tiny_llama", f"method={method}", "train.max_steps=43")
    assert_diverged(run(engine(), [trial], tmp_path).results[trial.key])


def assert_diverged(result: Result) -> None:
    assert result.state == "diverged", (result.state, result.error)
    assert "at step" in str(result.error)
    assert "eval/accuracy" not in result.metrics, "it would be at chance"


@BOTH
def test_a_single_step_trains_whatever_the_warm_up(
    engine: type[Engine], make: Make, tmp_path: Path
) -> None:
    trials = make("model=tiny_llama", "train.max_steps=1", "train.warmup=0,0.1,0.5")
    watch = run(engine(), trials, tmp_path)
    assert [watch.results[t.key].state for t in trials] == ["done"] * 3
    losses = {watch.results[t.key].metrics["eval/loss"] for t in trials}
    assert len(losses) == 1


def test_training_takes_no_longer_for_evaluations_along_the_way(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = transformers.Trainer.evaluation_loop

    def slow(*args: Any, **more: Any) -> Any:
        time.sleep(2)
        return evaluate(*args, **more)

    monkeypatch.setattr(transformers.Trainer, "evaluation_loop", slow)
    (trial,) = make("model=tiny_bert", "train.max_steps=4", "train.eval_every=2")
    metrics = run(TrainerEngine(), [trial], tmp_path).results[trial.key].metrics
    others = metrics["time/total_s"] - metrics["time/load_s"] - metrics["time/train_s"]
    assert others > 6  # twice along the way, and at the end


@pytest.mark.parametrize("engine", [TrainerEngine, PackedEngine])
@pytest.mark.parametrize("order", ["random", "by_length"])
def test_a_stopped_trial_goes_on_and_ends_as_if_never_stopped(
    engine: type[Engine], order: str, make: Make, tmp_path: Path
) -> None:
    (trial,) = make(
        "model=tiny_bert", "train.max_steps=12", "lora.dropout=0.1", "train.batch_size=16",
        f"train.order={order}",
    )  # fmt: skip
    whole = run(engine(), [trial], tmp_path / "whole").results[trial.key]
    watch = Watch()
    watch.stop_after = 8  # in the second epoch
    first = run(engine(), [trial], tmp_path / "parts", watch).results[trial.key]
    assert first.state == "stopped"
    second = run(engine(), [trial], tmp_path / "parts").results[trial.key]
    assert second.state == "done", second.error
    weights = [
        load_file(place(tmp_path / run)(trial) / "adapter" / "adapter_model.safetensors")
        for run in ("whole", "parts")
    ]
    assert all(torch.equal(weights[0][n], weights[1][n]) for n in weights[0])
    assert second.curve == whole.curve
    if engine is TrainerEngine:  # a trial in a pack has no seconds of its own
        times = {n: second.metrics[f"time/{n}_s"] for n in ("load", "train", "eval", "total")}
        assert times["total"] > times["train"] + times["load"] + times["eval"]
        assert times["train"] > first.metrics["time/train_s"]
    assert second.metrics["train/loss"] == pytest.approx(whole.metrics["train/loss"])


REFERENCE: dict[str, list[str]] = {
    "plain": [],
    "dropout": ["lora.dropout=0.1"],
    "qlora": ["method=qlora"],
    "qlora, dropout": ["method=qlora", "lora.dropout=0.1", "engine.nf4_cache=off"],
}


@pytest.mark.parametrize("model", ["tiny_llama", "tiny_bert"])
@pytest.mark.parametrize("settings", REFERENCE.values(), ids=REFERENCE.keys())
def test_alone_in_a_pack_a_trial_gives_the_references_curve(
    model: str, settings: list[str], make: Make, tmp_path: Path
) -> None:
    (trial,) = make(
        f"model={model}", "engine=packed", "train.max_steps=50", "train.learning_rate=2e-3",
        "seed=3", *settings,
    )  # fmt: skip
    assert_alike(trial, tmp_path)


DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob")
WITHOUT_DROPOUT = [f"+model.shape.{name}=0.0" for name in DROPOUTS]
WINDOWS = [
    "model=tiny_llama", "model.shape.model_type=qwen2", "+model.shape.use_sliding_window=true",
    "+model.shape.sliding_window=6", "+model.shape.max_window_layers=1",
]  # fmt: skip
OTHERS: dict[str, list[str]] = {
    "dropout of attention": ["model=tiny_llama", "+model.shape.attention_dropout=0.2"],
    "sliding windows": [*WINDOWS],
    "sliding windows, dropout of attention": [*WINDOWS, "+model.shape.attention_dropout=0.2"],
    "feed-forward in chunks": [
        "model=tiny_bert", *WITHOUT_DROPOUT, "+model.shape.chunk_size_feed_forward=1",
    ],
    "accumulation": ["model=tiny_llama", "train.accumulation=2", "train.batch_size=5"],
    "random order, whole epochs": ["model=tiny_bert", "train.order=random", "train.epochs=1.5"],
    "trained head with an update": [
        "model=tiny_llama", "target=all_linear_head", "lora.dropout=0.1",
        "train.padding=max_length",
    ],
    "decay and schedule": [
        "model=tiny_bert", "train.weight_decay=0.1", "train.schedule=cosine",
        "train.optimizer=adamw_torch", "train.max_grad_norm=0.0", "target=qv",
    ],
    "early stopping": [
        "model=tiny_bert", "train.eval_every=2", "train.patience=2", "train.epochs=3",
        "train.learning_rate=1e-4",
    ],
}  # fmt: skip


@pytest.mark.parametrize("settings", OTHERS.values(), ids=OTHERS.keys())
def test_settings_mean_what_they_mean_to_the_reference(
    settings: list[str], make: Make, tmp_path: Path
) -> None:
    (trial,) = make("engine=packed", *settings)
    assert_alike(trial, tmp_path)


def assert_alike(trial: Trial, root: Path) -> None:
    """Compare the engines: losses within 1e-5, relative, and the same last evaluation."""
    theirs = run(TrainerEngine(), [trial], root / "reference").results[trial.key]
    ours = run(PackedEngine(), [trial], root / "packed").results[trial.key]
    assert (ours.state, ours.error) == ("done", None)
    names = {name for name, _, _ in theirs.curve}
    for name in names:
        expected, found = curve(theirs, name), curve(ours, name)
        assert list(found) == list(expected)
        np.testing.assert_allclose(
            list(found.values()), list(expected.values()), rtol=1e-5, err_msg=name
        )
    same = ("eval/accuracy", "eval/f1_macro", "params/trainable", "params/total", "adapter/bytes")
    assert [ours.metrics[n] for n in same] == [theirs.metrics[n] for n in same]
    assert ours.metrics["train/steps"] == theirs.metrics["train/steps"]
    assert ours.metrics["eval/loss"] == pytest.approx(theirs.metrics["eval/loss"], rel=1e-5)
    files = [place(root / run)(trial) / "predictions.parquet" for run in ("reference", "packed")]
    reference, packed = (pd.read_parquet(file) for file in files)
    assert list(reference["id"]) == list(packed["id"])
    np.testing.assert_allclose(
        np.stack(packed["scores"]), np.stack(reference["scores"]), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("model", ["tiny_llama", "tiny_bert"])
def test_stock_peft_reads_the_adapter_and_gives_the_same_scores(
    model: str, make: Make, tmp_path: Path
) -> None:
    trials = make(
        f"model={model}", "engine=packed", "train.max_steps=10", "target=attention,all_linear_head"
    )
    run(PackedEngine(), trials, tmp_path)
    for trial in trials:
        folder = place(tmp_path)(trial)
        scores = stock_scores(trial, folder / "adapter")
        predictions = pd.read_parquet(folder / "predictions.parquet")
        np.testing.assert_allclose(
            np.stack(predictions["scores"])[: len(scores)], scores, rtol=1e-4, atol=1e-5
        )


def stock_scores(trial: Trial, adapter: Path) -> np.ndarray[Any, Any]:
    """Scores of the first evaluation texts, with transformers and PEFT alone."""
    found = source.locate(source.settings(trial), source.cache_home())
    told = json.loads((adapter / "adapter_config.json").read_text())
    assert told["base_model_name_or_path"] == str(found.folder)
    tokenizer = load.tokenizer(found.folder)
    base = transformers.AutoModelForSequenceClassification.from_pretrained(
        found.folder, num_labels=3, pad_token_id=tokenizer.pad_token_id
    )
    model = peft.PeftModel.from_pretrained(base, str(adapter)).eval()
    file = pd.read_csv(str(trial["task.eval_file"]))
    texts = dict(enumerate(file["text"]))
    predictions = pd.read_parquet(adapter.parent / "predictions.parquet")
    rows = [int(str(name).rpartition(":")[2]) for name in predictions["id"][:16]]
    batch = tokenizer(
        [texts[row] for row in rows], padding=True, truncation=True, max_length=48,
        return_tensors="pt",
    )  # fmt: skip
    with torch.no_grad():
        scores: np.ndarray[Any, Any] = model(**batch).logits.numpy()
    return scores


ACCUMULATED = ["train.batch_size=4", "train.accumulation=2"]


@BOTH
@pytest.mark.parametrize("model", [["model=tiny_llama"], ["model=tiny_bert", *WITHOUT_DROPOUT]])
def test_accumulation_changes_nothing_but_the_size_of_a_pass(
    engine: type[Engine], model: list[str], make: Make, tmp_path: Path
) -> None:
    """Two steps an epoch: of eight texts, and of the six (4 + 2, or 2 + 2 + 2) that are left."""
    common = [*model, "task.train_size=14", "train.epochs=3"]
    (whole,) = make(*common, "train.batch_size=8")
    expected = run(engine(), [whole], tmp_path).results[whole.key]
    for batch, accumulation in ((4, 2), (2, 4)):
        (parts,) = make(*common, f"train.batch_size={batch}", f"train.accumulation={accumulation}")
        found = run(engine(), [parts], tmp_path).results[parts.key]
        assert found.metrics["train/steps"] == expected.metrics["train/steps"] == 6
        assert found.metrics["train/loss"] == pytest.approx(expected.metrics["train/loss"])
        for name in ("train/loss", "train/grad_norm"):
            assert curve(found, name) == pytest.approx(curve(expected, name), rel=1e-4)
        close(weights_of(parts, tmp_path), weights_of(whole, tmp_path))


@BOTH
def test_accumulated_steps_are_those_of_a_loop_written_by_hand(
    engine: type[Engine], make: Make, tmp_path: Path
) -> None:
    """Each step is of all six texts, in passes of four and two."""
    (trial,) = make(
        "model=tiny_llama", "task.train_size=6", "train.epochs=5", *ACCUMULATED,
        "train.max_grad_norm=0.5", "train.warmup=0", "train.schedule=constant",
    )  # fmt: skip
    result = run(engine(), [trial], tmp_path).results[trial.key]
    losses, expected = by_hand(trial)
    assert list(curve(result, "train/loss").values()) == pytest.approx(losses, rel=1e-5)
    assert result.metrics["train/loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    close(weights_of(trial, tmp_path), expected)


def by_hand(trial: Trial) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Five steps, each of the whole training set: the losses before them, the weights after."""
    found = source.locate(source.settings(trial), source.cache_home())
    task, tokenizer = trial.group("task"), load.tokenizer(found.folder)
    data = sources.load(task, source.cache_home())
    length = trial["train.max_length"]
    texts = [tokenizer(t, truncation=True, max_length=length).input_ids for t in data.train.texts]
    pad = tokenizer.pad_token_id
    width = max(map(len, texts))
    ids = torch.tensor([text + [pad] * (width - len(text)) for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in texts])
    model = build.prepare(trial, load.base(trial, found.folder, data.labels, pad).model)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=trial["train.learning_rate"], weight_decay=0.0)
    losses = []
    for _ in range(5):
        logits = model(input_ids=ids, attention_mask=mask).logits
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(data.train.labels))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 0.5)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    state: dict[str, torch.Tensor] = peft.get_peft_model_state_dict(model)
    return losses, state


def weights_of(trial: Trial, root: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(place(root)(trial) / "adapter" / "adapter_model.safetensors"))


def close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=2e-5, msg=name)


@pytest.mark.parametrize(("kept", "dtype"), [("float32", torch.float32), ("none", torch.bfloat16)])
def test_small_steps_of_full_fine_tuning_in_bf16_are_not_rounded_away(
    kept: str, dtype: torch.dtype, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (trial,) = make(
        "model=tiny_llama", "method=fft", "train.precision=bf16", "train.learning_rate=1e-5",
        f"train.master_weights={kept}", "train.max_steps=4",
    )  # fmt: skip
    models: list[torch.nn.Module] = []
    before: list[torch.Tensor] = []
    prepare = build.prepare

    def prepared(trial: Trial, base: transformers.PreTrainedModel) -> torch.nn.Module:
        models.append(prepare(trial, base))
        before.extend(p.detach().clone() for p in blocks_of(models[0]))
        return models[0]

    monkeypatch.setattr(build, "prepare", prepared)
    result = run(TrainerEngine(), [trial], tmp_path).results[trial.key]
    assert result.state == "done", result.error
    after = blocks_of(models[0])
    assert {p.dtype for p in after} == {dtype}
    moved = sum(int((p != old).sum()) for p, old in zip(after, before, strict=True))
    share = moved / sum(p.numel() for p in after)
    assert share > 0.99 if kept == "float32" else share < 0.5


def blocks_of(model: torch.nn.Module) -> list[torch.Tensor]:
    """Return the matrices of the transformer blocks."""
    return [p for name, p in model.named_parameters() if "layers." in name and p.ndim == 2]
