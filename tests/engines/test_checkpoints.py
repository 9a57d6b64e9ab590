"""Folders as people have them: a pooler is missing, a head or a setting of another task is left."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from lorasweep.engines.base import Engine
from lorasweep.engines.packed.engine import PackedEngine
from lorasweep.engines.trainer import TrainerEngine
from lorasweep.models.convert import byte_tokenizer
from lorasweep.trial.result import Result
from lorasweep.trial.trial import Trial
from tests.engines.conftest import Make, place, run
from tests.engines.test_engines import BOTH, assert_alike, stock_scores

LLAMA = {
    "vocab_size": 260, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 128, "max_position_embeddings": 512,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
ROBERTA = {
    "vocab_size": 260, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 128, "max_position_embeddings": 50, "type_vocab_size": 1,
}  # fmt: skip
BERT = {
    "vocab_size": 260, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 128, "max_position_embeddings": 512, "type_vocab_size": 2,
    "pad_token_id": 0,
}  # fmt: skip
POOLER = ("bert.pooler.dense.bias", "bert.pooler.dense.weight")
Save = Callable[..., list[str]]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Write a folder with random weights; return what is typed to train on it."""

    def saved(kind: str, family: str, **settings: Any) -> list[str]:
        shape = {"Bert": BERT, "Roberta": ROBERTA, "Llama": LLAMA}[family]
        config = getattr(transformers, f"{family}Config")(**{**shape, **settings})
        for name, value in settings.items():
            setattr(config, name, value)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = getattr(transformers, family + kind)(config)
        model.save_pretrained(tmp_path / "base")
        byte_tokenizer().save_pretrained(tmp_path / "base")
        of = ["model.source=path", f"model.path={tmp_path / 'base'}", "train.max_steps=3"]
        model = f"model=tiny_{'llama' if family == 'Llama' else 'bert'}"
        return [model, f"model.shape.model_type={family.lower()}", *of]

    return saved


def changed(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, Any]]) -> None:
    """Replace the weights of a folder."""
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def one(engine: Engine, trial: Trial, root: Path) -> tuple[Result, dict[str, torch.Tensor]]:
    """Run a trial to its end; its result, and what was saved."""
    result = run(engine, [trial], root).results[trial.key]
    assert result.state == "done", result.error
    return result, load_file(place(root)(trial) / "adapter" / "adapter_model.safetensors")


def scores(trial: Trial, root: Path) -> np.ndarray[Any, Any]:
    return np.stack(pd.read_parquet(place(root)(trial) / "predictions.parquet")["scores"])


# ------------------------------------------------------------------- what a checkpoint lacks


def test_what_a_checkpoint_lacks_is_drawn_from_the_seed(
    save: Save, make: Make, tmp_path: Path
) -> None:
    """The same in both engines, whatever ran before on the same base or beside it in a pack."""
    first, second = make(*save("ForMaskedLM", "Bert"), "engine=packed", "seed=0,1")
    of_base = [f"base_model.model.{name}" for name in POOLER]
    saved = []
    torch.manual_seed(17)  # a library would draw from here
    for engine, trials in (
        (TrainerEngine(), [[first], [second]]),
        (TrainerEngine(), [[second], [first]]),
        (PackedEngine(), [[first, second]]),
        (PackedEngine(), [[second]]),
    ):
        root = tmp_path / str(len(saved))
        for pack in trials:
            run(engine, pack, root)
        for trial in (first, second):
            file = place(root)(trial) / "adapter" / "adapter_model.safetensors"
            if file.exists():
                held = load_file(file)
                saved.append((trial.key, {name: held[name] for name in of_base}))
    assert len(saved) == 7
    expected = {first.key: saved[0][1], second.key: saved[1][1]}
    for key, pooler in saved:
        assert all(torch.equal(pooler[name], expected[key][name]) for name in of_base)
    assert not torch.equal(expected[first.key][of_base[1]], expected[second.key][of_base[1]])


@pytest.mark.parametrize("method", [["method=lora"], ["method=qlora"], ["train.precision=bf16"]])
@BOTH
def test_stock_peft_gives_the_scores_of_a_base_without_a_pooler(
    engine: type[Engine], method: list[str], save: Save, make: Make, tmp_path: Path
) -> None:
    (trial,) = make(*save("ForMaskedLM", "Bert"), "engine=packed", *method)
    result, _ = one(engine(), trial, tmp_path / "run")
    (note,) = result.environment["notes"]
    assert "lacks bert.pooler.dense.bias, bert.pooler.dense.weight" in note
    assert "not trained" in note
    folder = place(tmp_path / "run")(trial)
    if method == ["method=lora"]:
        stock = stock_scores(trial, folder / "adapter")
        found = scores(trial, tmp_path / "run")[: len(stock)]
        np.testing.assert_allclose(found, stock, rtol=1e-4, atol=1e-5)
    told = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert told["modules_to_save"] == ["classifier", "bert.pooler.dense"]


def test_packs_of_a_base_without_a_pooler_are_the_reference(
    save: Save, make: Make, tmp_path: Path
) -> None:
    (trial,) = make(*save("ForMaskedLM", "Bert"), "engine=packed", "seed=3")
    assert_alike(trial, tmp_path)


def test_full_fine_tuning_trains_what_was_drawn(save: Save, make: Make, tmp_path: Path) -> None:
    (trial,) = make(*save("ForMaskedLM", "Bert"), "method=fft", "train.learning_rate=1e-3")
    results = []
    for seed_of_others in (1, 2):
        torch.manual_seed(seed_of_others)
        root = tmp_path / str(seed_of_others)
        results.append(run(TrainerEngine(), [trial], root).results[trial.key])
    assert results[0].state == "done"
    assert results[0].metrics["eval/loss"] == results[1].metrics["eval/loss"]
    assert results[0].environment["notes"][0].endswith("trained")


@BOTH
@pytest.mark.parametrize("lost", ["layer.1.attention.self.query", "layer"])
def test_a_base_with_holes_is_refused(
    engine: type[Engine], lost: str, save: Save, make: Make, tmp_path: Path
) -> None:
    (trial,) = make(*save("Model", "Bert"), "engine=packed")
    changed(tmp_path / "base", lambda w: {n: v for n, v in w.items() if lost not in n})
    result = run(engine(), [trial], tmp_path / "run").results[trial.key]
    assert (result.state, result.failure) == ("failed", None)
    assert "the checkpoint is not whole: it lacks" in str(result.error)
    assert "Error" not in str(result.error)


@BOTH
def test_weights_of_another_shape_are_refused(
    engine: type[Engine], save: Save, make: Make, tmp_path: Path
) -> None:
    (trial,) = make(*save("Model", "Bert"), "engine=packed")
    name = "encoder.layer.0.output.dense.bias"
    changed(tmp_path / "base", lambda w: {**w, name: torch.zeros(3)})
    result = run(engine(), [trial], tmp_path / "run").results[trial.key]
    assert f"bert.{name} has the shape (3,), (64,) is expected" in str(result.error)


def test_packs_leave_other_gaps_to_the_reference(save: Save, make: Make, tmp_path: Path) -> None:
    (trial,) = make(*save("Model", "Llama"), "engine=packed")
    changed(tmp_path / "base", lambda w: {n: v for n, v in w.items() if n != "norm.weight"})
    refused = run(PackedEngine(), [trial], tmp_path / "pack").results[trial.key]
    assert "use engine=trainer" in str(refused.error)
    _, saved = one(TrainerEngine(), trial, tmp_path / "run")
    assert torch.equal(saved["base_model.model.model.norm.weight"], torch.ones(64))


# --------------------------------------------------------- what is left of another task


LEFT: dict[str, tuple[str, str, dict[str, Any]]] = {
    "five classes": ("ForSequenceClassification", "Bert", {"num_labels": 5}),
    "five classes, llama": ("ForSequenceClassification", "Llama", {"num_labels": 5}),
    "several labels": (
        "ForSequenceClassification", "Bert",
        {"num_labels": 6, "problem_type": "multi_label_classification"},
    ),
    "a number": (
        "ForSequenceClassification", "Bert", {"num_labels": 1, "problem_type": "regression"},
    ),
    "a number, without its head": ("Model", "Bert", {"problem_type": "regression"}),
    "as many classes": ("ForSequenceClassification", "Bert", {"num_labels": 3}),
    "outputs": ("Model", "Bert", {"output_hidden_states": True, "return_dict": False}),
}  # fmt: skip


@BOTH
@pytest.mark.parametrize(("kind", "family", "left"), LEFT.values(), ids=LEFT.keys())
def test_what_is_left_of_another_task_changes_nothing(
    engine: type[Engine],
    kind: str,
    family: str,
    left: dict[str, Any],
    save: Save,
    make: Make,
    tmp_path: Path,
) -> None:
    """One text at a time: there transformers can compute squared errors of class numbers."""
    typed = save(kind, family, **left)
    (trial,) = make(*typed, "engine=packed", "train.batch_size=1")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    result, saved = one(engine(), trial, tmp_path / "run")
    notes = result.environment["notes"]
    assert [("own head is left aside" in note) for note in notes] == [True] * (kind != "Model")

    names = ("problem_type", "id2label", "label2id", "num_labels", *left)
    plain = {n: v for n, v in config.items() if n not in names}
    (tmp_path / "base" / "config.json").write_text(json.dumps(plain))
    head = ("classifier.", "score.")
    changed(tmp_path / "base", lambda w: {n: v for n, v in w.items() if not n.startswith(head)})
    expected, same = one(engine(), trial, tmp_path / "plain")
    assert result.curve == expected.curve
    assert saved.keys() == same.keys()
    assert all(torch.equal(saved[n], same[n]) for n in saved)
    assert result.metrics["eval/loss"] == expected.metrics["eval/loss"]
    assert result.metrics["train/loss"] < 3, "cross entropy of three classes"


# ------------------------------------------------------- tokenizers that do not fit the base


def without_padding(folder: Path, **settings: Any) -> None:
    """Replace the tokenizer of a folder by one that names no padding token."""
    words = transformers.PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer().backend_tokenizer, **settings
    )
    words.save_pretrained(folder)


@BOTH
@pytest.mark.parametrize("named", [{}, {"eos_token": "</s>"}], ids=["none", "end of text"])
def test_a_padding_token_is_chosen_that_changes_no_score(
    engine: type[Engine], named: dict[str, str], save: Save, make: Make, tmp_path: Path
) -> None:
    """Every text ends with ``</s>``: were it the padding, texts would be judged without it."""
    (trial,) = make(*save("Model", "Llama"), "engine=packed")
    expected, weights = one(engine(), trial, tmp_path / "padded")
    assert expected.environment["notes"] == []
    without_padding(tmp_path / "base", **named)
    result, same = one(engine(), trial, tmp_path / "chosen")
    assert result.environment["notes"] == ["the tokenizer has no padding token; '<pad>' pads"]
    assert result.curve == expected.curve
    assert all(torch.equal(weights[n], same[n]) for n in weights)
    assert (scores(trial, tmp_path / "padded") == scores(trial, tmp_path / "chosen")).all()


@BOTH
def test_tokens_that_the_base_does_not_know_are_refused(
    engine: type[Engine], save: Save, make: Make, tmp_path: Path
) -> None:
    (trial,) = make(*save("Model", "Llama", vocab_size=70), "engine=packed")
    result = run(engine(), [trial], tmp_path / "run").results[trial.key]
    assert "of which the base has no embedding (it has 70)" in str(result.error)


@BOTH
def test_roberta_reads_what_its_positions_allow(
    engine: type[Engine], save: Save, make: Make, tmp_path: Path
) -> None:
    typed = [*save("ForMaskedLM", "Roberta"), "engine=packed", "train.padding=max_length"]
    (fits,) = make(*typed, "train.max_length=48")
    result, _ = one(engine(), fits, tmp_path / "fits")
    (note,) = result.environment["notes"]
    assert "position ids begin here" in note, "the byte tokenizer pads with 0, RoBERTa with 1"
    (long,) = make(*typed, "train.max_length=49")
    result = run(engine(), [long], tmp_path / "long").results[long.key]
    assert "reads at most 48 tokens" in str(result.error)
