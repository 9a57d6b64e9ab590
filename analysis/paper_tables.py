"""Tables 1 to 4 of Patil et al. 2025, and two other claims, beside our own accounting.

    python -m analysis.paper_tables --out results/tables

Each table shows what the paper printed, what its formula gives, what our plan says (a formula
for what the engine really holds, see ``lorasweep.costs``) and what was measured, where it was.
GB in the paper are 2³⁰ bytes, as GiB are here.
"""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.planned import GIB, N_LABELS, gib, hours, trial_of
from analysis.studies.llama2_guide import hardware
from analysis.studies.patil2025 import cost_claim
from analysis.tables import markdown
from lorasweep.costs import memory, parameters, shapes
from lorasweep.costs.seconds import Data
from lorasweep.results import tidy
from lorasweep.trial.trial import Trial

ROOT = Path(__file__).resolve().parents[1]
TRIALS, BENCH = ROOT / "results/trials.parquet", ROOT / "bench/results/memory_h100.csv"
NAN = math.nan

YELP = Data(n_labels=N_LABELS, train_items=50_000, eval_items=10_000)
# The optimizer of the paper's time, and of the bench: AdamW one operation after another.
STUDY_P = ("model=llama3_8b", "task=yelp5", "train=patil2025", "train.optimizer=adamw_torch",
           "lora.dropout=0.05", "lora.r=8")  # fmt: skip
LINEAR, ATTENTION = "target=all_linear_head", "target=attention"
# QLoRA as the libraries set it when only load_in_4bit and nf4 are given.
DEFAULTS = ("method=qlora", "method.compute_dtype=fp32", "method.kbit_prepare=true",
            "train.checkpointing=true")  # fmt: skip
FLOAT32 = "train.precision=fp32"

# What the paper printed. Table 2 and 3 in GB, Table 4 as (r, all linear, %, attention, %).
TABLE2 = (
    ("FP32", 4.0, "29.80", "119.2"),
    ("FP16", 2.0, "14.90", "59.6"),
    ("int8", 1.0, "7.45", "29.8"),
    ("int4", 0.5, "3.73", "14.9"),
)
# type: bytes of weights, trainable parameters, gradients, AdamW; and as printed, with the sum.
TABLE3 = (
    ("LoRA (FP32)", (4, 4, 4, 8), ("29.80", "0.078", "0.078", "0.157", "30.113")),
    ("LoRA (FP16)", (2, 2, 4, 4), ("14.9", "0.039", "0.078", "0.078", "15.095")),
    ("QLoRA (NF4)", (0.5, 0.5, 4, 2), ("3.73", "0.0097", "0.078", "0.039", "3.857")),
)
TABLE4 = (
    (8, 21_024_808, "0.2794", 6_836_224, "0.0910"),
    (16, 42_029_136, "0.5569", 13_651_968, "0.1816"),
    (32, 84_037_792, "1.1073", 27_283_456, "0.3622"),
    (64, 168_055_104, "2.1901", 54_546_432, "0.7216"),
    (128, 336_089_728, "4.2860", 109_072_384, "1.4325"),
    (256, 672_158_976, "8.2190", 218_124_288, "2.8243"),
    (512, 1_344_297_472, "15.1875", 436_228_096, "5.4932"),
)
PAPER_PARAMETERS, PAPER_TRAINABLE = 8e9, 21_024_808


class Measurements:
    """What was measured: trials of the record, and the cells of ``bench/memory.py``."""

    def __init__(self, trials: Path, bench: Path) -> None:
        self.trials = pd.read_parquet(trials) if trials.exists() else pd.DataFrame()
        whole = set(tidy.COLUMNS) <= set(self.trials.columns)
        self.arms = (
            cost_claim.costs(self.trials, "llama3_8b") if whole else cost_claim.Costs({}, {}, 0)
        )
        self.bench = pd.read_csv(bench) if bench.exists() else pd.DataFrame()

    def of_trials(self, column: str, **equal: Any) -> float:
        """Mean of a column over the finished LLaMA3-8B trials with these settings."""
        return _mean(self.trials, column, {"model": "llama3_8b", "state": "done", **equal})

    def of_bench(self, column: str, **equal: Any) -> float:
        """Mean of a column over the LLaMA3-8B cells of 8 texts of 128 tokens, no checkpointing."""
        cell = {"model": "llama3_8b", "state": "done", "batch": 8, "length": 128}
        return _mean(self.bench, column, {**cell, "checkpointing": False, **equal})


def _mean(frame: pd.DataFrame, column: str, equal: dict[str, Any]) -> float:
    if not {column, *equal} <= set(frame.columns):
        return NAN
    for name, value in equal.items():
        frame = frame[frame[name] == value]
    return float(frame[column].mean())


# Rows of Table 1: name, the paper's hours and GB, its formula's GB, ours as overrides, and the arm
# of the cost study that measures it.
TABLE1 = (
    ("LoRA, all linear", 0.5, 16.0, "15.095", ("method=lora", LINEAR), "lora"),
    ("LoRA, attention", 0.5, 16.0, "", ("method=lora", ATTENTION), ""),
    ("QLoRA, all linear, bf16 compute", 5.0, 6.0, "3.857", ("method=qlora", LINEAR), "bf16"),
    ("QLoRA, attention, bf16 compute", 5.0, 6.0, "", ("method=qlora", ATTENTION), ""),
    ("QLoRA, all linear, defaults, autocast", 5.0, 6.0, "", (*DEFAULTS, LINEAR), ""),
    ("QLoRA, all linear, defaults, float32", 5.0, 6.0, "", (*DEFAULTS, LINEAR, FLOAT32), "as_set"),
)
PAPER_STEPS = 6250


def table1(measured: Measurements) -> pd.DataFrame:
    """Time and memory of one trial on an A100-40GB (hours, GB).

    The last rows take the libraries' defaults for QLoRA: float32 compute and k-bit preparation
    with checkpointing; in bf16 autocast, and without it, where all arithmetic is float32.
    Measured hours are those of whole trials, or the 6,250 steps of one at the seconds that a step
    took in the cost study, on the device that it ran on.
    """
    made = []
    for name, paper_hours, paper_gb, formula, words, arm in TABLE1:
        trial = trial_of(*STUDY_P, *words)
        names = {"method": str(trial["method.name"]), "target": str(trial["target.name"])}
        plain = words[0] != DEFAULTS[0] or len(words) == 2
        made.append(
            {
                "method": name,
                "paper: hours": paper_hours,
                "ours: hours": hours(trial, "a100_40gb", YELP),
                "measured: hours": _hours(measured, arm, plain, **names),
                "paper: GB": paper_gb,
                "formula: GB": formula,
                "ours: GB": gib(trial),
                "measured: GB": _peak(measured, trial, arm, plain, **names),
            }
        )
    return pd.DataFrame(made)


def _arm(measured: Measurements, arm: str, column: str) -> float:
    """Mean of a column over an arm of the cost study, which adapts all linear layers."""
    known = measured.arms.arms.get(arm)
    if known is None or measured.arms.place["target"] != "all_linear":
        return NAN
    return float(known[column].mean())


def _hours(measured: Measurements, arm: str, plain: bool, **names: str) -> float:
    """Hours of the paper's training; ``plain`` rows have the settings that trials usually have."""
    step = _arm(measured, arm, cost_claim.STEP_S)
    if not math.isnan(step) or not plain:
        return step * PAPER_STEPS / 3600
    short = {"train_size": 50_000.0} if "train_size" in measured.trials else {}
    return measured.of_trials("time/total_s", r=8.0, engine="trainer", **short, **names) / 3600


def _peak(measured: Measurements, trial: Trial, arm: str, plain: bool, **names: str) -> float:
    """Peak in the cost study, of the recorded trials, or of the bench where there are none."""
    column = "memory/peak_allocated_gib"
    paid = _arm(measured, arm, column)
    if not math.isnan(paid) or not plain:
        return paid
    recorded = measured.of_trials(column, r=8.0, engine="trainer", **names)
    if not math.isnan(recorded) or trial["target.name"] == "attention":
        return recorded
    return measured.of_bench("allocated_gib", method=names["method"], rank=8)


def table2(measured: Measurements) -> pd.DataFrame:
    """Memory from the data type (GB): inference, and full fine-tuning as four times that."""
    held: dict[str, tuple[str, ...]] = {
        "FP32": ("method=fft", "train.precision=fp32"),
        "FP16": ("method=fft", "train.precision=bf16", "train.master_weights=none"),
        "int8": ("method=qlora", "method.quant=int8", LINEAR),
        "int4": ("method=qlora", LINEAR),
    }
    made = []
    for name, size, inference, tuning in TABLE2:
        trial = trial_of(*STUDY_P, *held[name])
        weights = memory.estimate(trial, N_LABELS).parts["weights"] / GIB
        full = trial["method.trains"] == "everything"
        bench = measured.of_bench("allocated_gib", method="fft") if name == "FP16" else NAN
        made += [
            {
                "use": "inference, weights alone",
                "type": name,
                "paper": inference,
                "formula": f"{PAPER_PARAMETERS * size / GIB:.2f}",
                "ours": weights,
                "measured": NAN,
            },
            {
                "use": "full fine-tuning",
                "type": name,
                "paper": tuning,
                "formula": f"{4 * PAPER_PARAMETERS * size / GIB:.1f}",
                "ours": gib(trial) if full else "not possible: 4- and 8-bit weights stay frozen",
                "measured": bench,
            },
        ]
    return pd.DataFrame(made).sort_values("use", kind="stable", ascending=False)


def printed(gigabytes: float) -> str:
    """Number as Table 3 prints it: three decimals; below 0.01 cut after four.

    Rounding gives all of the paper's digits but those of 0.0097 (0.00979): it was cut.
    """
    if gigabytes < 0.01:
        return f"{math.floor(gigabytes * 1e4) / 1e4:.4f}"
    return f"{gigabytes:.3f}"


def table3_formula(sizes: Sequence[float], digits: int) -> tuple[str, ...]:
    """Terms of the paper's formula as printed, and their sum.

    The paper adds what it printed, not what it computed: 30.113 and not 30.116.

    Args:
        sizes: bytes a parameter for weights, trainable parameters, gradients, AdamW.
        digits: decimals that the paper gives the weights.
    """
    weights = f"{PAPER_PARAMETERS * sizes[0] / GIB:.{digits}f}"
    terms = (weights, *(printed(PAPER_TRAINABLE * size / GIB) for size in sizes[1:]))
    return (*terms, f"{sum(map(float, terms)):.3f}")


def table3(measured: Measurements) -> pd.DataFrame:
    """Memory of LoRA and QLoRA at r = 8, all linear (GB), term by term."""
    ours = {
        "LoRA (FP32)": ("method=lora", "train.precision=fp32", "lora"),
        "LoRA (FP16)": ("method=lora", "train.precision=bf16", "lora"),
        "QLoRA (NF4)": ("method=qlora", "train.precision=bf16", "qlora"),
    }
    made = []
    for name, sizes, paper in TABLE3:
        *words, method = ours[name]
        peak = memory.estimate(trial_of(*STUDY_P, LINEAR, *words), N_LABELS)
        formula = table3_formula(sizes, digits=len(paper[0].partition(".")[2]))
        fp32 = "precision=fp32" in words[1]
        total = NAN if fp32 else measured.of_bench("allocated_gib", method=method, rank=8)
        parts = ("weights", "adapters", "gradients", "optimizer")
        made += [
            _term(name, part, *printed_pair, peak.parts[part] / GIB, NAN)
            for part, printed_pair in zip(parts, zip(paper, formula, strict=True), strict=False)
        ]
        made += [
            _term(name, part, "", "", peak.parts[part] / GIB, NAN)
            for part in ("activations", "buffers")
        ]
        made.append(_term(name, "sum", paper[-1], formula[-1], peak.allocated / GIB, total))
    return pd.DataFrame(made)


def _term(
    kind: str, part: str, paper: str, formula: str, ours: float, measured: float
) -> dict[str, Any]:
    return {
        "type": kind,
        "part": part,
        "paper": paper,
        "formula": formula,
        "ours at the peak": ours,
        "measured": measured,
    }


def table4_formula(shape: shapes.Shape, layers: Sequence[shapes.Linear], r: int) -> tuple[int, int]:
    """Trainable and total parameters by the rule that gives all of Table 4's digits.

    Trainable: r·Σ(d_in + d_out) over the adapted layers and n_labels·d for a trained copy of
    the head; where all linear layers are adapted, r·(d + n_labels) for the head too. Total: the
    base and the trainable; with all linear, the original head's own update once more.
    """
    d = shape.hidden
    trainable = shape.blocks * r * sum(x.d_in + x.d_out for x in layers) + N_LABELS * d
    on_head = r * (d + N_LABELS) if len(layers) == len(shape.linears) else 0
    return trainable + on_head, shape.total + trainable + 2 * on_head


def table4(measured: Measurements) -> pd.DataFrame:
    """Trainable parameters, and their share of all in percent, by rank and target."""
    made = []
    for target in (LINEAR, ATTENTION):
        trial = trial_of(*STUDY_P, target)
        shape = shapes.shape_of(trial, N_LABELS)
        layers = shapes.adapted(shape, tuple(trial["target.roles"]))
        for r, linear, linear_percent, attention, attention_percent in TABLE4:
            by_rule, total = table4_formula(shape, layers, r)
            of_rank = {**trial.config, "lora.r": r}
            ours = parameters.count(Trial(of_rank), N_LABELS)
            stock = parameters.count(Trial({**of_rank, "target.head": "full"}), N_LABELS)
            names = {"target": str(trial["target.name"]), "head": str(trial["target.head"])}
            all_linear = target == LINEAR
            made.append(
                {
                    "target": "all linear" if all_linear else "attention",
                    "r": r,
                    "paper": linear if all_linear else attention,
                    "formula": by_rule,
                    "ours": ours.trainable,
                    "measured": measured.of_trials("params/trainable", r=r, **names),
                    "paper: %": linear_percent if all_linear else attention_percent,
                    "formula: %": f"{100 * by_rule / total:.4f}",
                    "ours: %": f"{ours.percent:.4f}",
                    "PEFT's default treatment of the head": stock.trainable,
                }
            )
    return pd.DataFrame(made)


def latex(frame: pd.DataFrame) -> str:
    """Render a frame of text as a LaTeX ``tabular`` (booktabs)."""
    escaped = str.maketrans({c: f"\\{c}" for c in "%_&#$"} | {"×": "$\\times$", "–": "--"})
    rows = [frame.columns.tolist(), *frame.to_numpy().tolist()]
    head, *body = (" & ".join(str(cell).translate(escaped) for cell in row) for row in rows)
    return "\n".join(
        [
            f"\\begin{{tabular}}{{{'l' * len(frame.columns)}}}",
            f"\\toprule\n{head} \\\\ \\midrule",
            *(f"{line} \\\\" for line in body),
            "\\bottomrule\n\\end{tabular}\n",
        ]
    )


def write_all(measured: Measurements, folder: Path) -> list[Path]:
    """Write every table as CSV, Markdown and LaTeX into a folder; return the files."""
    made = {
        "patil2025_table1": table1(measured),
        "patil2025_table2": table2(measured),
        "patil2025_table3": table3(measured),
        "patil2025_table4": table4(measured),
        "guide_hardware": hardware.guide(),
        "guide_data_size": hardware.data_size(),
        "boddy2024_memory": hardware.boddy(),
    }
    forms: dict[str, Callable[[pd.DataFrame], str]] = {".md": markdown, ".tex": latex}
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, frame in made.items():
        files = {folder / f"{name}.csv": frame.to_csv(index=False)}
        shown = for_people(frame)
        files |= {folder / f"{name}{suffix}": form(shown) for suffix, form in forms.items()}
        for path, text in files.items():
            path.write_text(text, encoding="utf-8")
            written.append(path)
    return written


def for_people(frame: pd.DataFrame) -> pd.DataFrame:
    """Same table with gaps in measured columns called by name, and numbers as text."""

    def cell(column: str, value: Any) -> str:
        if isinstance(value, float) and math.isnan(value):
            return "not measured" if column.startswith("measured") else "–"
        if isinstance(value, int) or (isinstance(value, float) and value >= 1e4):
            return f"{int(value):,}"
        if isinstance(value, float):
            return f"{value:.2f}" if value >= 1 else f"{value:.3f}"
        return str(value)

    return pd.DataFrame(
        {name: [cell(str(name), value) for value in frame[name].tolist()] for name in frame}
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the tables; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m analysis.paper_tables")
    parser.add_argument("--out", type=Path, default=Path("results/tables"))
    parser.add_argument("--trials", type=Path, default=TRIALS, help="tidy table of the record")
    parser.add_argument("--bench", type=Path, default=BENCH, help="cells of bench/memory.py")
    options = parser.parse_args(arguments)
    written = write_all(Measurements(options.trials, options.bench), options.out)
    print(f"{options.out}: {len(written)} files")
    return 0


if __name__ == "__main__":
    sys.exit(main())
