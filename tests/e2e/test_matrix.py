"""The command line on tiny models, for every family × method × target that a CPU can run."""

import json
import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import mlflow
import numpy as np
import pandas as pd
import peft
import pytest
import torch
import transformers

from lorasweep.models import source
from tests.conftest import ROOT, Sweep
from tests.e2e.conftest import rows_of

Matrix = tuple[Path, subprocess.CompletedProcess[str]]


def artifacts(output: Path, row: dict[str, Any]) -> Path:
    client = mlflow.MlflowClient(f"sqlite:///{output}/mlflow.db")
    return Path(urlparse(client.get_run(row["run_id"]).info.artifact_uri).path)


def pick(output: Path, **wanted: str) -> dict[str, Any]:
    names = {"model": "model.name", "method": "method.name", "target": "target.name"}
    rows = [r for r in rows_of(output) if all(r[names[k]] == v for k, v in wanted.items())]
    return rows[0]


def test_every_trial_is_done_and_recorded_once(matrix: Matrix) -> None:
    output, done = matrix
    assert done.returncode == 0, done.stdout + done.stderr
    rows = rows_of(output)
    # base and fft know no targets: one trial each and model; lora and qlora have eight.
    methods = Counter(r["method.name"] for r in rows)
    assert methods == {"base": 2, "fft": 2, "lora": 16, "qlora": 16}
    assert {r["lorasweep.state"] for r in rows} == {"done"}
    assert len({r["lorasweep.key"] for r in rows}) == len(rows)
    assert "36 of 36 trials done, 0 failed" in done.stdout
    assert "Traceback" not in done.stderr


def test_the_record_holds_what_the_design_promises(matrix: Matrix) -> None:
    row = pick(matrix[0], model="tiny_llama", method="qlora", target="attention")
    for name in (
        "eval/accuracy", "eval/f1_macro", "eval/f1_micro", "eval/precision_macro",
        "eval/recall_macro", "eval/loss", "train/loss", "time/train_s", "time/eval_s",
        "time/load_s", "time/total_s", "memory/peak_rss_gib", "params/trainable", "params/total",
        "speed/samples_per_s", "speed/tokens_per_s", "adapter/bytes",
    ):  # fmt: skip
        assert row[name] >= 0, name
    assert row["lora.r"] == "4"
    assert row["lora.alpha"] == "8"
    assert row["lorasweep.engine"] == "trainer"
    assert row["lorasweep.study"] == row["study"] == "matrix"


def test_parameters_are_those_of_the_shapes(matrix: Matrix) -> None:
    # r · (d_in + d_out) over the adapted layers and blocks, and the head of 3 classes
    llama = pick(matrix[0], model="tiny_llama", method="lora", target="qv")
    assert llama["params/trainable"] == 2 * 4 * ((64 + 64) + (64 + 32)) + 3 * 64
    bert = pick(matrix[0], model="tiny_bert", method="lora", target="mlp")
    assert bert["params/trainable"] == 2 * 4 * 2 * (64 + 128) + 3 * 64 + 3


def test_artefacts(matrix: Matrix) -> None:
    folder = artifacts(matrix[0], pick(matrix[0], model="tiny_bert", method="qlora", target="q"))
    predictions = pd.read_parquet(folder / "predictions.parquet")
    assert list(predictions.columns) == ["id", "gold", "predicted", "scores"]
    assert len(predictions) == predictions["id"].nunique() == 48
    assert (np.stack(predictions["scores"]).argmax(axis=1) == predictions["predicted"]).all()
    environment = json.loads((folder / "environment.json").read_text())
    assert {"packages", "git_commit", "git_dirty", "device", "model", "data"} <= set(environment)
    assert environment["packages"]["torch"]
    assert (folder / "config.yaml").exists()
    assert {f.suffix for f in (folder / "adapter").iterdir()} == {".safetensors", ".json"}


def test_every_trial_has_a_folder_with_its_configuration(matrix: Matrix) -> None:
    configs = list((matrix[0] / "matrix").glob("*/.hydra/config.yaml"))
    assert {c.parent.parent.name for c in configs} == {
        r["lorasweep.key"] for r in rows_of(matrix[0])
    }


@pytest.mark.parametrize("model", ["tiny_llama", "tiny_bert"])
@pytest.mark.parametrize("target", ["attention", "all_linear"])
def test_the_adapter_gives_the_same_logits_in_stock_peft(
    matrix: Matrix, data: list[str], cache: Path, model: str, target: str
) -> None:
    row = pick(matrix[0], model=model, method="lora", target=target)
    folder = artifacts(matrix[0], row)
    shape = {
        k.removeprefix("model.shape."): _value(v)
        for k, v in row.items()
        if k.startswith("model.shape.")
    }
    group = {"source": "random", "shape": shape, "tokenizer": "bytes", "precision": "fp32"}
    base = source.locate(group, cache).folder
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    stock = peft.PeftModel.from_pretrained(
        transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=3),
        folder / "adapter",
    ).eval()
    stock.config.pad_token_id = tokenizer.pad_token_id
    predictions = pd.read_parquet(folder / "predictions.parquet")
    frame = pd.read_csv(next(d for d in data if "eval_file" in d).split("=")[1])
    texts = [frame["text"][int(i.split(":")[1])] for i in predictions["id"]]
    tokens = tokenizer(texts, padding=True, truncation=True, max_length=64, return_tensors="pt")
    with torch.no_grad():
        logits = stock(**tokens).logits.numpy()
    np.testing.assert_allclose(logits, np.stack(predictions["scores"]), rtol=1e-4, atol=1e-5)


def _value(text: str) -> Any:
    return json.loads(text.lower()) if re.fullmatch(r"[\d.]+|True|False", text) else text


def test_training_learns(sweep: Sweep, data: list[str], tmp_path: Path) -> None:
    done = sweep(
        "-m", "model=tiny_bert,tiny_llama", "method=base,lora,qlora", "lora.r=8",
        "train.epochs=8", "train.batch_size=8", "train.precision=fp32,bf16", *data,
        f"output_dir={tmp_path}",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rows = rows_of(tmp_path)
    base = max(r["eval/accuracy"] for r in rows if r["method.name"] == "base")
    trained = [r["eval/accuracy"] for r in rows if r["method.name"] != "base"]
    assert len(trained) == 8
    assert min(trained) > base + 0.3


def test_a_second_call_runs_nothing_and_a_changed_space_reuses(
    sweep: Sweep, data: list[str], tmp_path: Path
) -> None:
    common = ["-m", "model=tiny_bert", *data, f"output_dir={tmp_path}", "train.max_length=32"]
    assert sweep(*common, "lora.r=1,2").returncode == 0
    again = sweep(*common, "lora.r=1,2")
    assert "2 already in the record" in again.stdout
    wider = sweep(*common, "lora.r=1,2,4")
    assert "3 trials, 2 already in the record" in wider.stdout
    assert len(rows_of(tmp_path)) == 3
    # Resume is by content: other texts under the same names are other trials.
    folder = Path(next(d for d in data if "train_file" in d).split("=")[1]).parent
    copy = tmp_path / "other.csv"
    lines = (folder / "train.csv").read_text().splitlines()
    copy.write_text("\n".join(lines[:-1]) + "\n")
    other = sweep(*common, "lora.r=1", f"task.train_file={copy}")
    assert other.returncode == 0, other.stdout + other.stderr
    assert len(rows_of(tmp_path)) == 4


def test_one_trial_without_multirun(sweep: Sweep, data: list[str], tmp_path: Path) -> None:
    done = sweep(
        "model=tiny_llama", "method=qlora", "method.double_quant=true", "target.head=full_lora",
        "train.checkpointing=true", "train.accumulation=2", "train.padding=max_length",
        "train.order=random", "train.eval_every=2", "train.patience=2", "train.max_length=48",
        *data, f"output_dir={tmp_path}",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = rows_of(tmp_path)
    assert row["lorasweep.state"] == "done"
    # full_lora: the head's weight and its low-rank update are both trained.
    per_block = 8 * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 128))
    assert row["params/trainable"] == 2 * per_block + 3 * 64 + 8 * (64 + 3)


def test_fp4_int8_and_evaluation_between_training_steps(
    sweep: Sweep, data: list[str], tmp_path: Path
) -> None:
    """An evaluation on the CPU may repack 4-bit weights: training must go on after it."""
    done = sweep(
        "-m", "model=tiny_bert", "method=qlora", "method.quant=nf4,fp4,int8",
        "train.eval_every=2", "train.epochs=2", "train.max_length=32", *data,
        f"output_dir={tmp_path}",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert {r["lorasweep.state"] for r in rows_of(tmp_path)} == {"done"}


def test_a_trial_that_diverges_is_a_result_and_the_others_run(
    sweep: Sweep, data: list[str], tmp_path: Path
) -> None:
    done = sweep(
        "-m", "model=tiny_bert", "method=fft", "train.learning_rate=1e30,1e-3",
        "train.max_grad_norm=0", "train.optimizer=sgd", *data, f"output_dir={tmp_path}",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(r["lorasweep.state"] for r in rows_of(tmp_path)) == ["diverged", "done"]
    assert "diverged (the loss was nan" in done.stdout


def test_hydra_habits(sweep: Sweep, data: list[str]) -> None:
    shown = sweep("--cfg", "job", "method=qlora")
    assert "quant: nf4" in shown.stdout
    assert "LorasweepSweeper" in sweep("--info", "plugins").stdout
    listed = sweep("--help").stdout
    assert "method: base, fft, lora, qlora" in listed
    assert (ROOT / "conf" / "study").resolve() == ROOT / "sweeps"
