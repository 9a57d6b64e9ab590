"""Measure peak memory and step time of one trial on one GPU, over the grid that the plan predicts.

    python bench/memory.py --out results/memory.csv

Each cell trains a few steps of a sequence classifier with random weights, built and run as the
Trainer engine does it (PEFT, eager, SDPA, autocast, AdamW), and appends one row to the file. A
cell that does not fit is a row with ``state=oom``. A base is built once for all cells that share
it. Needs torch, transformers, peft, PyYAML, and bitsandbytes for the quantised cells; nothing of
lorasweep, so that it runs on a bare machine.
"""

import argparse
import csv
import gc
import itertools
import logging
import math
import platform
import statistics
import time
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
import yaml

CONF = Path(__file__).resolve().parent.parent / "conf" / "model"
GIB = 2**30
N_LABELS = 5
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
FIELDS = (
    "model", "method", "rank", "checkpointing", "batch", "length", "state", "step_s", "eval_s",
    "allocated_gib", "reserved_gib", "footprint_gib", "resident_gib", "trainable", "loss",
    "error", "device", "python", "torch", "transformers", "peft", "bitsandbytes",
)  # fmt: skip


@dataclass(frozen=True)
class Method:
    """How the base is held and what is trained."""

    name: str
    weights: str  # bf16, fp32, nf4, int8
    adapter: bool = True
    compute: str = "bf16"  # compute type of 4-bit layers
    kbit_prepare: bool = False
    full_grid: bool = False


@dataclass(frozen=True)
class Cell:
    """One measurement: batch x length tokens."""

    rank: int  # 0: no adapter
    checkpointing: bool
    batch: int
    length: int


# Methods on one base stand together. k-bit preparation changes the base, so it comes last there.
METHODS = (
    Method("lora", "bf16", full_grid=True),
    Method("fft", "bf16", adapter=False, full_grid=True),
    Method("qlora", "nf4", full_grid=True),
    Method("qlora_fp32_compute", "nf4", compute="fp32"),
    Method("qlora_paper", "nf4", compute="fp32", kbit_prepare=True),
    Method("qlora_int8", "int8"),
    Method("lora_fp32", "fp32"),
    Method("fft_fp32", "fp32", adapter=False),
)


def cells(method: Method, ranks: list[int], checkpointing: list[bool]) -> Iterator[Cell]:
    """Cells of one method, by rank: the whole grid for the main three, a corner for the rest."""
    sizes = [(8, 128), (8, 512), (32, 128), (32, 512)] if method.full_grid else [(8, 128), (8, 512)]
    if not method.adapter:
        ranks = [0]
    elif not method.full_grid:
        ranks = ranks[:1]
    for rank, again, (batch, length) in itertools.product(ranks, checkpointing, sizes):
        yield Cell(rank, again, batch, length)


def build(shape: dict[str, Any], weights: str, device: torch.device) -> Any:
    """Classifier with random weights at a precision; head float32, as the engine keeps it."""
    config = transformers.AutoConfig.for_model(**shape, num_labels=N_LABELS, pad_token_id=0)
    classifier: Any = transformers.AutoModelForSequenceClassification
    with device:
        model = classifier.from_config(
            config, dtype=DTYPES.get(weights, torch.bfloat16), attn_implementation="sdpa"
        )
    model.config.use_cache = False
    model.score.to(torch.float32)
    if weights in ("nf4", "int8"):
        quantise(model, weights)
    return model.requires_grad_(False)


def quantise(model: Any, weights: str) -> None:
    """Replace every linear layer of the blocks by bitsandbytes', one at a time, in place."""
    layer = linear_4bit if weights == "nf4" else linear_8bit
    for owner in list(model.model.layers.modules()):
        for name, child in list(owner.named_children()):
            if type(child) is torch.nn.Linear:
                setattr(owner, name, layer(child))
    # what transformers sets and PEFT asks for when it chooses the class of an adapter
    model.is_loaded_in_4bit = weights == "nf4"
    model.is_loaded_in_8bit = weights == "int8"


def linear_4bit(old: torch.nn.Linear) -> torch.nn.Module:
    """NF4 without double quantisation."""
    bnb: Any = import_module("bitsandbytes")
    options = {"compress_statistics": False, "quant_type": "nf4"}
    with torch.device("meta"):
        new = bnb.nn.Linear4bit(
            old.in_features, old.out_features, bias=False, compute_dtype=torch.bfloat16, **options
        )
    weight = old.weight.data
    new.weight = bnb.nn.Params4bit(weight, requires_grad=False, module=new, **options)
    moved: torch.nn.Module = new.to(weight.device)  # which quantises
    return moved


def linear_8bit(old: torch.nn.Linear) -> torch.nn.Module:
    """LLM.int8 with the threshold that transformers sets."""
    bnb: Any = import_module("bitsandbytes")
    with torch.device("meta"):
        new = bnb.nn.Linear8bitLt(
            old.in_features, old.out_features, bias=False, has_fp16_weights=False, threshold=6.0
        )
    codes, scales, _ = bnb.functional.int8_vectorwise_quant(old.weight.data.half())
    new.weight = bnb.nn.Int8Params(
        codes, requires_grad=False, has_fp16_weights=False, CB=codes, SCB=scales
    )
    layer: torch.nn.Module = new
    return layer


def prepare(model: Any, method: Method) -> None:
    """Set the 4-bit compute type and, where asked, do PEFT's k-bit preparation."""
    for module in model.modules():
        if method.weights == "nf4" and hasattr(module, "compute_dtype"):
            module.compute_dtype = DTYPES[method.compute]
    if method.kbit_prepare:
        lift: Any = peft.prepare_model_for_kbit_training
        lift(model, use_gradient_checkpointing=False)  # the cell says whether


def adapt(model: Any, rank: int, device: torch.device) -> Any:
    """Add LoRA on every linear layer of the blocks and a trained copy of the head."""
    config = peft.LoraConfig(
        task_type="SEQ_CLS",
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=0.05,
        target_modules=list(LINEAR),
        modules_to_save=["score"],
    )
    with device:
        return peft.get_peft_model(model, config)


def set_checkpointing(model: Any, on: bool, adapter: bool) -> None:
    """Switch gradient checkpointing as the Trainer does it (non-reentrant)."""
    if on:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        if adapter:
            model.enable_input_require_grads()
    else:
        model.gradient_checkpointing_disable()
        model.disable_input_require_grads()


def batch_of(cell: Cell, vocabulary: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Random tokens, right-padded to the cell's length; texts of half to all of it."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(cell.length // 2, cell.length + 1, (cell.batch, 1), generator=generator)
    lengths[0] = cell.length
    mask = (torch.arange(cell.length) < lengths).long()
    size = (cell.batch, cell.length)
    ids = torch.randint(1, vocabulary, size, generator=generator) * mask
    labels = torch.randint(0, N_LABELS, (cell.batch,), generator=generator)
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return {name: value.to(device) for name, value in batch.items()}


class Gauge:
    """Synchronised seconds and the memory counters of the device (zeros on the CPU)."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"

    def now(self) -> float:
        """Seconds, once the device has finished."""
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def clear(self) -> None:
        """Give cached memory back and forget the peak."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def memory(self) -> dict[str, float]:
        """Peaks since the last clear; footprint includes the CUDA context and the cache."""
        if not self.cuda:
            return {}
        free, total = torch.cuda.mem_get_info()
        return {
            "allocated_gib": torch.cuda.max_memory_allocated() / GIB,
            "reserved_gib": torch.cuda.max_memory_reserved() / GIB,
            "footprint_gib": (total - free) / GIB,
            "resident_gib": torch.cuda.memory_allocated() / GIB,
        }


def precision(method: Method, device: torch.device) -> AbstractContextManager[Any]:
    """Autocast, as the Trainer sets it for bf16; nothing for float32."""
    return (
        nullcontext() if method.weights == "fp32" else torch.autocast(device.type, torch.bfloat16)
    )


def measure(
    model: Any,
    optimizer: torch.optim.Optimizer,
    method: Method,
    cell: Cell,
    gauge: Gauge,
    steps: tuple[int, int],
) -> dict[str, Any]:
    """Train warm-up and timed steps (forward, backward, clipping, AdamW); then time a forward."""
    trained = optimizer.param_groups[0]["params"]
    device = trained[0].device
    batch = batch_of(cell, model.config.vocab_size, device)
    model.train()
    seconds: list[float] = []
    value = math.nan
    warmup, timed = steps
    while len(seconds) < warmup + timed:
        start = gauge.now()
        with precision(method, device):
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        value = loss.item()
        del loss  # with its graph, as the Trainer does
        seconds.append(gauge.now() - start)
        if len(seconds) == warmup and seconds[-1] > 1.0:
            timed = min(timed, 2)  # long steps vary little
    result = {"state": "done", "step_s": statistics.median(seconds[warmup:]), "loss": value}
    result |= gauge.memory()
    if gauge.cuda:  # on the CPU, evaluating repacks 4-bit weights, which breaks later training
        result["eval_s"] = forward_seconds(model, batch, method, gauge)
    return result


def forward_seconds(
    model: Any, batch: dict[str, torch.Tensor], method: Method, gauge: Gauge
) -> float:
    """Seconds of the second of two evaluation batches."""
    model.eval()
    with torch.no_grad(), precision(method, batch["labels"].device):
        model(**batch)
        start = gauge.now()
        model(**batch)
        return gauge.now() - start


def versions(device: torch.device) -> dict[str, str]:
    """Say what the numbers depend on besides the cell."""
    found = {"device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu"}
    found["python"] = platform.python_version()
    for name in ("torch", "transformers", "peft", "bitsandbytes"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
    return found


class Table:
    """The CSV file, one flushed row a cell, so that nothing is lost when time runs out."""

    def __init__(self, path: Path, common: dict[str, str]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = not path.exists() or not path.stat().st_size
        self.file = path.open("a", newline="")
        self.writer = csv.DictWriter(self.file, FIELDS, restval="")
        self.common = common
        if new:
            self.writer.writeheader()

    def add(self, row: dict[str, Any]) -> None:
        """Write one row and show it."""
        self.writer.writerow(self.common | row)
        self.file.flush()
        values = (f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values())
        print(" ".join(values), flush=True)


class OutOfTimeError(Exception):
    """The budget of seconds is spent."""


@dataclass
class Bench:
    """One run over models and methods."""

    options: argparse.Namespace
    device: torch.device
    gauge: Gauge
    table: Table
    deadline: float

    def run_model(self, name: str, methods: list[Method]) -> None:
        """All cells of one model, grouped by the precision of the base."""
        shape = yaml.safe_load((CONF / f"{name}.yaml").read_text())["shape"]
        for weights, group in itertools.groupby(methods, key=lambda m: m.weights):
            base = None
            try:
                base = build(shape, weights, self.device)
                for method in group:
                    self.run_method(name, base, method)
            except torch.OutOfMemoryError as error:
                print(f"{name} {weights}: the base or its adapters do not fit: {error}", flush=True)
            del base
            self.gauge.clear()

    def run_method(self, name: str, base: Any, method: Method) -> None:
        """All cells of one method on its base; adapter and optimizer are built once a rank."""
        prepare(base, method)
        ranks = [int(rank) for rank in self.options.ranks.split(",")]
        again = [word == "on" for word in self.options.checkpointing.split(",")]
        wanted = cells(method, ranks, again)
        for rank, group in itertools.groupby(wanted, key=lambda cell: cell.rank):
            model = adapt(base, rank, self.device) if rank else base.requires_grad_(True)
            trained = [p for p in model.parameters() if p.requires_grad]
            optimizer = torch.optim.AdamW(trained, lr=1e-5)
            for cell in group:
                row = {"model": name, "method": method.name, **asdict(cell)}
                row["trainable"] = sum(p.numel() for p in trained)
                self.table.add(row | self.run_cell(model, optimizer, method, cell))
            if rank:
                model.unload()
            base.requires_grad_(False)
            del model, trained, optimizer
            self.gauge.clear()

    def run_cell(
        self, model: Any, optimizer: torch.optim.Optimizer, method: Method, cell: Cell
    ) -> dict[str, Any]:
        """One cell, or why it has no numbers."""
        if time.perf_counter() > self.deadline:
            raise OutOfTimeError
        optimizer.zero_grad()
        self.gauge.clear()
        set_checkpointing(model, cell.checkpointing, method.adapter)
        steps = (self.options.warmup, self.options.timed)
        try:
            return measure(model, optimizer, method, cell, self.gauge, steps)
        except torch.OutOfMemoryError as error:
            return {"state": "oom", "error": str(error)[:120]}


def main() -> None:
    """Go through the models, first the whole grid, then the corners; stop at the budget."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--models", default="smollm2_135m,llama3_2_1b,llama3_8b")
    parser.add_argument("--methods", default=",".join(method.name for method in METHODS))
    parser.add_argument("--ranks", default="8,512")
    parser.add_argument("--checkpointing", default="off,on")
    parser.add_argument("--out", type=Path, default=Path("results/memory.csv"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--timed", type=int, default=4)
    parser.add_argument("--budget-s", type=float, default=480)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    device = torch.device(options.device)
    table = Table(options.out, versions(device))
    deadline = time.perf_counter() + options.budget_s
    bench = Bench(options, device, Gauge(device), table, deadline)
    wanted = [method for method in METHODS if method.name in options.methods.split(",")]
    try:
        for full_grid, name in itertools.product((True, False), options.models.split(",")):
            bench.run_model(name, [m for m in wanted if m.full_grid == full_grid])
    except OutOfTimeError:
        print(f"{options.budget_s:g} s are spent: the cells after this one are not measured")


if __name__ == "__main__":
    main()
