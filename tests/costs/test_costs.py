"""Parameters, memory and seconds: against the paper, real models, real steps and a real GPU."""

import csv
import math
import os
import stat
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from lorasweep.costs import devices, memory, parameters, seconds
from lorasweep.costs.seconds import Calibration, Data, calibrate
from lorasweep.space import expand, grammar
from lorasweep.space.composition import Composer
from lorasweep.trial.trial import Trial
from tests.conftest import ROOT

GIB = 2**30
BENCH = ROOT / "bench" / "results" / "memory_h100.csv"
# Measured after the formulas were settled: a rank they had not seen, and longer timing.
HOLDOUT = ROOT / "bench" / "results" / "memory_h100_holdout.csv"
PAPER = ("model=llama3_8b", "task=yelp5", "train=patil2025", "lora.dropout=0.05")
YELP = Data(5, 50_000, 10_000)


_composed: dict[tuple[str, ...], Trial] = {}


def trial_of(composer: Composer, *words: str, **changes: Any) -> Trial:
    """Trial of these overrides; ``changes`` are settings by dotted name, unchecked."""
    if words not in _composed:
        problems: list[str] = []
        found = expand.expand(grammar.read(words, {}, composer, problems), composer, problems)
        assert problems == []
        _composed[words] = found[0]
    return Trial({**_composed[words].config, **changes})


# ---------------------------------------------------------------- parameters

TABLE4 = [
    (8, 21_024_808, "0.2794", 6_836_224, "0.0910"),
    (16, 42_029_136, "0.5569", 13_651_968, "0.1816"),
    (32, 84_037_792, "1.1073", 27_283_456, "0.3622"),
    (64, 168_055_104, "2.1901", 54_546_432, "0.7216"),
    (128, 336_089_728, "4.2860", 109_072_384, "1.4325"),
    (256, 672_158_976, "8.2190", 218_124_288, "2.8243"),
    (512, 1_344_297_472, "15.1875", 436_228_096, "5.4932"),
]


def test_table_4_of_the_paper_to_the_unit_and_the_printed_digit(composer: Composer) -> None:
    linear = trial_of(composer, *PAPER, "target=all_linear_head")
    attention = trial_of(composer, *PAPER, "target=attention")
    found = []
    for r, *_ in TABLE4:
        a, b = (parameters.count(Trial({**t.config, "lora.r": r}), 5) for t in (linear, attention))
        found.append((r, a.trainable, f"{a.percent:.4f}", b.trainable, f"{b.percent:.4f}"))
    assert found == TABLE4


SHAPES: dict[str, dict[str, Any]] = {
    "mistral": {"num_key_value_heads": 2},
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 32},
    "gemma": {"num_key_value_heads": 1, "head_dim": 32},
    "gemma2": {"num_key_value_heads": 2, "head_dim": 32},
}
NAMED = ("tiny_llama", "tiny_bert", "minilm", "smollm2_135m", "roberta_base", "llama3_8b")


def model_words(name: str) -> tuple[list[str], dict[str, Any]]:
    """Overrides and settings of a model of ``conf/``, or of a small one of another make."""
    if name in NAMED:
        return [f"model={name}"], {}
    shape = {"model_type": name, **SHAPES.get(name, {})}
    if name == "gpt2":
        shape |= {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}
    return ["model=tiny_llama"], {f"model.shape.{k}": v for k, v in shape.items()}


def meta_model(trial: Trial) -> Any:
    """Build the real classifier of a trial, its adapters included, without any weights."""
    import torch
    import transformers

    from lorasweep.methods import build

    fields = {
        k: v for k, v in trial.group("model.shape").items()
        if not (trial["model.shape.model_type"] == "gpt2" and k.startswith(("hidden", "num_")))
    }  # fmt: skip
    config = transformers.AutoConfig.for_model(**fields, num_labels=5, pad_token_id=0)
    with torch.device("meta"):
        model = transformers.AutoModelForSequenceClassification.from_config(config)
        return build.prepare(trial, model)


@pytest.mark.parametrize("head", ["full", "full_lora"])
@pytest.mark.parametrize("target", ["attention", "all_linear", "mlp", "qv"])
@pytest.mark.parametrize("name", [*NAMED, *SHAPES, "gpt2"])
def test_counts_are_those_of_the_real_peft_model(
    composer: Composer, name: str, target: str, head: str
) -> None:
    from lorasweep.methods import build

    if name == "gpt2" and target == "qv":
        pytest.skip("GPT-2 holds query, key and value in one layer")
    words, changes = model_words(name)
    words += [f"target={target}", f"target.head={head}", "lora.r=4"]
    trial = trial_of(composer, *words, **changes)
    counted = parameters.count(trial, 5)
    assert (counted.trainable, counted.total) == build.counts(meta_model(trial))


@pytest.mark.parametrize("method", ["fft", "base"])
@pytest.mark.parametrize("name", ["tiny_llama", "roberta_base", "gpt2", "qwen3"])
def test_counts_without_adapters(composer: Composer, name: str, method: str) -> None:
    from lorasweep.methods import build

    words, changes = model_words(name)
    trial = trial_of(composer, *words, f"method={method}", **changes)
    counted = parameters.count(trial, 5)
    assert (counted.trainable, counted.total) == build.counts(meta_model(trial))


def test_an_unknown_architecture_is_named(composer: Composer) -> None:
    trial = trial_of(composer, "model=tiny_llama", **{"model.shape.model_type": "mamba"})
    with pytest.raises(KeyError, match="mamba"):
        parameters.count(trial, 5)


# ---------------------------------------------------------------- memory on a GPU

METHODS: dict[str, tuple[str, ...]] = {
    "lora": ("method=lora", "train.precision=bf16"),
    "qlora": ("method=qlora", "train.precision=bf16"),
    "fft": ("method=fft", "train.precision=bf16", "train.master_weights=none"),
    "fft_masters": ("method=fft", "train.precision=bf16"),
    "qlora_fp32_compute": ("method=qlora", "train.precision=bf16", "method.compute_dtype=fp32"),
    "qlora_paper": (
        *("method=qlora", "train.precision=bf16", "method.compute_dtype=fp32"),
        "method.kbit_prepare=true",
    ),
    "lora_fp32": ("method=lora", "train.precision=fp32"),
    "fft_fp32": ("method=fft", "train.precision=fp32"),
}
GRID = ("lora", "qlora", "fft")


def cells(*files: Path) -> list[dict[str, str]]:
    """Rows that bench/memory.py wrote on an H100."""
    found = [list(csv.DictReader(f.read_text().splitlines())) for f in files or (BENCH, HOLDOUT)]
    return [row for rows in found for row in rows]


def planned_cell(composer: Composer, cell: dict[str, str]) -> Trial:
    """Trial that a cell of the bench stands for."""
    common = (f"model={cell['model']}", "target=all_linear", "lora.dropout=0.05")
    settings = {
        "lora.r": int(cell["rank"]) or 8,
        "train.checkpointing": cell["checkpointing"] == "True",
        "train.batch_size": int(cell["batch"]),
        "train.max_length": int(cell["length"]),
        "train.padding": "max_length",
        "train.optimizer": "adamw_torch",
        "train.eval_batch_size": 1,
        "train.max_steps": 1,
    }
    return trial_of(composer, *common, *METHODS[cell["method"]], **settings)


def test_peak_memory_is_within_8_percent_of_an_h100(composer: Composer) -> None:
    done = [c for c in cells() if c["state"] == "done" and c["method"] in METHODS]
    off = {}
    for cell in done:
        found = memory.estimate(planned_cell(composer, cell), 5).allocated / GIB
        off[tuple(cell.values())[:6]] = found / float(cell["allocated_gib"]) - 1
    assert sum(c["method"] in GRID for c in done) >= 110
    assert {k: v for k, v in off.items() if abs(v) > 0.08} == {}


def test_what_ran_out_of_memory_would_not_have_fitted(composer: Composer) -> None:
    h100 = devices.find("h100")
    failed = [c for c in cells() if c["state"] == "oom"]
    assert failed
    for cell in failed:
        assert memory.estimate(planned_cell(composer, cell), 5).footprint > h100.memory


def test_a_step_is_within_25_percent_of_an_h100(composer: Composer) -> None:
    h100, off = devices.find("h100"), {}
    for cell in cells():
        if cell["state"] == "done" and cell["method"] in GRID:
            trial = planned_cell(composer, cell)
            data = Data(5, train_items=1, eval_items=0)
            found = seconds.estimate(trial, data, h100, Calibration()).train
            off[tuple(cell.values())[:6]] = found / float(cell["step_s"]) - 1
    assert {k: v for k, v in off.items() if abs(v) > 0.25} == {}


# ---------------------------------------------------------------- memory in a real step


class Live:
    """Counts bytes of tensor storages that are alive, at their peak."""

    def __init__(self) -> None:
        self.bytes = self.peak = 0
        self._seen: set[int] = set()

    def add(self, tensor: Any) -> None:
        """Count a tensor's storage, once and as long as it lives."""
        storage = tensor.untyped_storage()
        at, size = storage._cdata, storage.nbytes()
        if at in self._seen:
            return
        self._seen.add(at)
        self.bytes += size
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._gone, at, size)

    def _gone(self, at: int, size: int) -> None:
        self._seen.discard(at)
        self.bytes -= size


@contextmanager
def watching(live: Live) -> Iterator[None]:
    """Count what every operation makes, on the CPU as it would be on a GPU.

    CUDA keeps a boolean mask of a dropout; the CPU would keep a number for each element.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            out = func(*args, **(kwargs or {}))
            for leaf in tree_leaves(out):
                if isinstance(leaf, torch.Tensor):
                    live.add(leaf)
            return out

    def fused(x: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
        return torch.native_dropout(x, p, True)[0] if training and p > 0 else x

    plain = torch.nn.functional.dropout
    torch.nn.functional.dropout = fused  # type: ignore[assignment]
    try:
        with Mode():
            yield
    finally:
        torch.nn.functional.dropout = plain


def peak_of_a_step(trial: Trial) -> int:
    """Bytes alive at the peak of the second step of a trial's real model, optimizer and all."""
    import gc

    import torch
    import transformers

    from lorasweep.methods import build
    from lorasweep.models import load

    gc.collect()
    fields = trial.group("model.shape")
    config = transformers.AutoConfig.for_model(**fields, num_labels=5, pad_token_id=0)
    model: Any = transformers.AutoModelForSequenceClassification.from_config(
        config, dtype=load.weight_dtype(trial), attn_implementation="sdpa"
    )
    model.config.use_cache = False
    model.score.float()
    model = build.prepare(trial, model).train()
    if trial["train.checkpointing"]:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        if trial.adapts:
            model.enable_input_require_grads()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, foreach=True)
    size = (trial["train.batch_size"], trial["train.max_length"])
    ids = torch.randint(1, fields["vocab_size"], size)
    ids[:, size[1] // 2 :] = 0  # padding, so that attention is masked
    batch = {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": ids[:, 0] % 5}
    live = Live()
    for tensor in [*model.parameters(), *model.buffers()]:
        live.add(tensor)
    half = trial["train.precision"] == "bf16"
    for _ in range(2):
        live.peak = 0
        with watching(live):
            with torch.autocast("cpu", torch.bfloat16) if half else nullcontext():
                loss = model(**batch).loss
            loss.backward()
            del loss
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
    return live.peak


@pytest.mark.parametrize(
    ("method", "r", "checkpointing", "dropout"),
    [
        ("lora", 8, False, 0.05),
        ("lora", 8, False, 0.0),
        ("lora", 8, True, 0.05),
        ("lora", 64, True, 0.0),
        ("lora_fp32", 8, False, 0.05),
        ("lora_fp32", 8, True, 0.0),
        ("fft", 8, False, 0.0),
        ("fft", 8, True, 0.0),
        ("fft_masters", 8, False, 0.0),
        ("fft_masters", 8, True, 0.0),
    ],
)
def test_peak_memory_is_what_is_alive_in_a_real_step(
    composer: Composer,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    r: int,
    checkpointing: bool,
    dropout: float,
) -> None:
    monkeypatch.setattr(memory, "WORKSPACE", 0)  # cuBLAS, which the CPU lacks
    shape = {"hidden_size": 128, "intermediate_size": 448, "num_hidden_layers": 4}
    trial = trial_of(
        composer,
        *("model=tiny_llama", "target=all_linear", *METHODS[method]),
        **{f"model.shape.{name}": value for name, value in shape.items()},
        **{"lora.r": r, "lora.dropout": dropout, "train.checkpointing": checkpointing},
        **{"train.batch_size": 4, "train.max_length": 64, "train.eval_batch_size": 1},
        **{"train.optimizer": "adamw_torch"},
    )
    memory.peak.cache_clear()
    found = memory.estimate(trial, 5).allocated
    memory.peak.cache_clear()
    assert found == pytest.approx(peak_of_a_step(trial), rel=0.05)


# ---------------------------------------------------------------- parts of the memory


def parts(composer: Composer, *words: str) -> dict[str, float]:
    return dict(memory.estimate(trial_of(composer, *PAPER, *words), 5).parts)


def test_a_4_bit_weight_takes_the_bits_that_the_qlora_paper_says(composer: Composer) -> None:
    matrices = 32 * (4096 * (4096 + 1024 + 1024 + 4096) + 3 * 4096 * 14336)
    rest = 2 * (7_504_945_152 - matrices - 5 * 4096) + 4 * 5 * 4096
    for double, bits in (("false", 4.5), ("true", 4.127)):
        words = ("method=qlora", f"method.double_quant={double}")
        held = parts(composer, *words)["weights"] - rest
        assert 8 * held / matrices == pytest.approx(bits, abs=1e-3)


def test_optimizers_states(composer: Composer) -> None:
    held = {
        name: parts(composer, "method=lora", f"train.optimizer={name}")["optimizer"]
        for name in ("adamw_torch", "adamw_8bit", "paged_adamw_8bit", "sgd", "adafactor")
    }
    trainable = 20_992_000
    assert held["adamw_torch"] == 8 * trainable
    assert held["adamw_8bit"] == pytest.approx(2 * trainable, rel=0.02)
    assert held["sgd"] == held["paged_adamw_8bit"] == 0
    assert 0 < held["adafactor"] < held["adamw_8bit"]


def test_accumulation_keeps_gradients_while_activations_live(composer: Composer) -> None:
    words = ("method=lora", "lora.r=512")
    once, twice = (parts(composer, *words, f"train.accumulation={n}")["gradients"] for n in (1, 2))
    assert once == 0
    assert twice == 4 * 1_342_197_760


def test_evaluation_can_be_the_peak(composer: Composer) -> None:
    trial = trial_of(composer, *PAPER, "method=base", "train.eval_batch_size=512")
    peak = memory.estimate(trial, 5)
    assert peak.moment == "evaluation"
    assert peak.parts["gradients"] == peak.parts["optimizer"] == 0


# ---------------------------------------------------------------- seconds


def test_the_papers_two_times_come_from_the_arithmetic_type(composer: Composer) -> None:
    """30 minutes in 16 bits; 5 hours where all is float32 and blocks are recomputed."""
    a100 = devices.find("a100_40gb")
    common = (*PAPER, "target=all_linear_head")
    lora = trial_of(composer, *common, "method=lora")
    qlora = trial_of(
        composer,
        *(*common, "method=qlora", "method.compute_dtype=fp32", "train.precision=fp32"),
        *("train.checkpointing=true", "method.kbit_prepare=true"),
    )
    times = [seconds.estimate(t, YELP, a100, Calibration()).train / 60 for t in (lora, qlora)]
    assert times[0] == pytest.approx(30, rel=0.25)
    assert times[1] == pytest.approx(300, rel=0.25)


def test_time_grows_linearly_with_the_data(composer: Composer) -> None:
    trial, h100 = trial_of(composer, *PAPER), devices.find("h100")
    few, many = (
        seconds.estimate(trial, Data(5, n, 0), h100, Calibration()).train for n in (800, 4000)
    )
    assert many == pytest.approx(5 * few)


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({}, 40),
        ({"train.accumulation": 3}, 14),
        ({"train.epochs": 0.5}, 20),
        ({"train.epochs": 3}, 120),
        ({"train.max_steps": 7}, 7),
        ({"train.batch_size": 4096}, 1),
    ],
)
def test_steps(composer: Composer, settings: dict[str, Any], steps: int) -> None:
    trial = trial_of(composer, "train.batch_size=16", **settings)
    assert seconds.steps(trial, 640) == steps


def recorded(trial: Trial, step_s: float, **changes: Any) -> dict[str, Any]:
    """Row of a trial as the record gives it: settings as text."""
    return {
        **{name: str(value) for name, value in trial.config.items()},
        "target.roles": '["query", "key", "value", "output"]',
        "lorasweep.key": trial.key,
        "lorasweep.pack": trial.key,
        "lorasweep.state": "done",
        "lorasweep.device": "NVIDIA H100 80GB HBM3",
        "time/train_s": 1000 * step_s,
        "train/steps": 1000.0,
        "speed/samples_per_s": 8 / step_s,
        "speed/tokens_per_s": 8 * 100 / step_s,
        **changes,
    }


def test_a_recorded_trial_mends_the_prediction(composer: Composer) -> None:
    h100 = devices.find("h100")
    trial = trial_of(composer, *PAPER, "target=attention", "train.max_steps=1000")
    roofline = seconds.estimate(trial, YELP, h100, Calibration())
    known = calibrate([recorded(trial, step_s=0.123)], h100)
    mended = seconds.estimate(trial, YELP, h100, known)
    assert not roofline.calibrated
    assert mended.calibrated
    assert mended.train == pytest.approx(123)
    other = seconds.estimate(trial_of(composer, *PAPER, "method=qlora"), YELP, h100, known)
    assert not other.calibrated


def test_in_a_pack_a_trial_has_its_share(composer: Composer) -> None:
    h100 = devices.find("h100")
    trial = trial_of(composer, *PAPER, "target=attention", "train.max_steps=1000")
    alone = seconds.estimate(trial, YELP, h100, Calibration())
    share = seconds.estimate(trial, YELP, h100, Calibration(), together=8)
    assert share.train < alone.train
    shared = {"time/train_s": "", "time/pack_share_s": 50.0, "lorasweep.pack": "another"}
    speed = {"speed/pack_samples_per_s": 160.0, "speed/pack_tokens_per_s": 160.0 * 128}
    known = calibrate([recorded(trial, 0.1, **shared, **speed)], h100)
    assert seconds.estimate(trial, YELP, h100, known) == alone
    mended = seconds.estimate(trial, YELP, h100, known, together=8)
    assert mended.calibrated
    assert mended.train + mended.evaluate == pytest.approx(50.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"lorasweep.device": "NVIDIA A100-SXM4-40GB"},
        {"lorasweep.device": "CPU: Some Processor, 4 threads"},
        {"lorasweep.pack": "another"},
        {"lorasweep.shared": "another worker"},
        {"executor.shared_gpu": "True"},
        {"lorasweep.changed": "train.checkpointing=true"},
        {
            "lorasweep.changed": "train.batch_size=4",
            "time/train_s": None,
            "time/pack_share_s": 9.0,
            "speed/pack_samples_per_s": 160.0,
            "speed/pack_tokens_per_s": 2e4,
        },
        {"lorasweep.state": "failed"},
        {"time/train_s": None},
        {"train.batch_size": None},
    ],
)
def test_what_tells_nothing_of_this_device_is_left_out(
    composer: Composer, changes: dict[str, Any]
) -> None:
    row = recorded(trial_of(composer, *PAPER, "target=attention"), 0.1, **changes)
    row = {name: value for name, value in row.items() if value is not None}
    assert calibrate([row], devices.find("h100")) == Calibration()


# ---------------------------------------------------------------- devices


@pytest.mark.parametrize(
    ("name", "gib"),
    [("h100", 79.1), ("A100-40GB", 39.4), ("24gb", 23.52), ("10.5GiB", 10.29), ("t4", 14.6)],
)
def test_devices_by_name_and_size(name: str, gib: float) -> None:
    assert devices.find(name).gib == pytest.approx(gib)


def test_an_unknown_device_lists_the_known() -> None:
    with pytest.raises(KeyError, match="h100"):
        devices.find("abacus")


@pytest.mark.parametrize(
    ("marketing", "mib", "name"),
    [
        ("NVIDIA H100 80GB HBM3", 81559, "h100"),
        ("NVIDIA A100-SXM4-40GB", 40960, "a100_40gb"),
        ("NVIDIA A100-SXM4-80GB", 81920, "a100_80gb"),
        ("NVIDIA GeForce RTX 4090", 24564, "rtx4090"),
        ("NVIDIA GeForce RTX 3080 Ti", 12288, "rtx3080ti"),
        ("NVIDIA L40S", 46068, "l40s"),
        ("NVIDIA L4", 23034, "l4"),
        ("Tesla T4", 15360, "t4"),
        ("NVIDIA Abacus 9000", 8192, "NVIDIA Abacus 9000"),
    ],
)
def test_a_driver_s_name_is_recognised(marketing: str, mib: int, name: str) -> None:
    found = devices.recognise(marketing, mib * 2**20)
    assert found.name == name
    assert 0.97 < found.memory / (mib * 2**20) < 1


def test_the_gpu_that_is_present(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 81559'\n")
    tool.chmod(tool.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert devices.find(None).name == "h100"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert devices.find(None).name == "cpu"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert devices.find(None).kind == "cpu"
    assert math.isfinite(devices.find("cpu").memory)


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, ["GPU-aa", "GPU-bb", "GPU-cc"]),
        ("2,0", ["GPU-cc", "GPU-aa"]),
        ("GPU-b", ["GPU-bb"]),
        ("0,-1,1", ["GPU-aa"]),  # as CUDA reads it
        ("1,7,0", ["GPU-bb"]),
        ("MIG-11", ["MIG-11"]),
        ("", []),
    ],
)
def test_gpus_are_known_by_uuid_in_pci_order(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, expected: list[str]
) -> None:
    monkeypatch.setattr(devices, "nvidia_smi", lambda *_: [["GPU-aa"], ["GPU-bb"], ["GPU-cc"]])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert devices.visible_gpus() == expected
