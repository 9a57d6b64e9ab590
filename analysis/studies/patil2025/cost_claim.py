"""P9: what QLoRA costs and saves against LoRA, each alone on the device (Table 1).

A packed trial shares its pack's time and memory, so only trials that ran alone count. The paper
says nothing of the compute type: with ``load_in_4bit`` and ``nf4`` alone, bitsandbytes computes in
float32, and k-bit preparation switches gradient checkpointing on. That, and QLoRA in bf16 without
either, are told apart here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.claims.verdicts import Claim, Part, corrected
from lorasweep.results import evidence, files

# What Table 1 prints is rounded: "30 min" may be 25 to 35, "5 h" 4.5 to 5.5, "16 GB" 15.5 to
# 16.5, "6 GB" 5.5 to 6.5. A ratio within what that admits is the paper's.
TIME_RATIO = (4.5 * 60 / 35, 5.5 * 60 / 25)
MEMORY_RATIO = (5.5 / 16.5, 6.5 / 15.5)
# The text says otherwise: 39 % more time, 33 % less memory.
TEXT_TIME, TEXT_MEMORY = (1.385, 1.395), (0.665, 0.675)
STEP_S, PEAK_GIB = "step_s", "memory/peak_allocated_gib"
NAMES = {
    "lora": "LoRA in bf16",
    "as_set": "QLoRA as the paper set it (float32 compute, k-bit preparation)",
    "bf16": "QLoRA in bf16, without either",
}
# Trials are compared where they agree in these.
_PLACE = ["model", "task", "device", "target", "r", "batch_size", "max_length"]


@dataclass(frozen=True)
class Costs:
    """Trials of the three arms that agree in all else.

    Attributes:
        place: what they agree in.
        arms: for each arm, a row a seed with ``step_s`` and peak memory, NaN where its trial
            did not finish.
        left_out: trials of these methods that did not run alone.
    """

    place: dict[str, str]
    arms: dict[str, pd.DataFrame]
    left_out: int


def costs(table: pd.DataFrame, model: str | None = None) -> Costs:
    """Gather the arms: of one model, or of the one for which most arms were run.

    Larger models win a tie: there the cost of a step is the device's and not the host's.
    """
    rows = table if model is None else table[table["model"] == model]
    rows = rows[rows["method"].isin(["lora", "qlora"])]
    own, done = files.alone(rows), rows["state"] == "done"
    left_out, rows = int((done & ~own).sum()), _with_arms(rows[own])
    best = Costs({}, {}, left_out)
    best_rank = (0, 0.0, 0)
    for place, together in rows.groupby(_PLACE, dropna=False):
        arms = {str(arm): _by_seed(trials) for arm, trials in together.groupby("arm")}
        arms = {arm: seeds for arm, seeds in arms.items() if seeds.notna().any(axis=None)}
        size = together["params/total"].max()
        rank = (len(arms), 0.0 if np.isnan(size) else float(size), len(together))
        if rank > best_rank:
            told = {name: str(value) for name, value in zip(_PLACE, place, strict=True)}
            best, best_rank = Costs(told, arms, left_out), rank
    return best


def random_weights(table: pd.DataFrame) -> "pd.Series[bool]":
    """Trials on a base of random weights: their scores mean nothing."""
    return files.setting(table, "model.source").eq("random")


def _with_arms(rows: pd.DataFrame) -> pd.DataFrame:
    """Add the arm and the seconds of a step; trials of no arm are dropped."""
    said = {
        name: files.setting(rows, name)
        for name in ("method.compute_dtype", "method.kbit_prepare", "train.checkpointing")
    }
    checkpointing, kbit = said["train.checkpointing"], said["method.kbit_prepare"]
    compute = said["method.compute_dtype"]
    lora, qlora = rows["method"] == "lora", rows["method"] == "qlora"
    half = rows["precision"] == "bf16"
    conditions = [
        lora & half & (checkpointing == False),  # noqa: E712 (a column, not a truth value)
        qlora & (compute == "fp32") & (kbit == True) & (checkpointing == True),  # noqa: E712
        qlora & half & (compute == "bf16") & (kbit == False) & (checkpointing == False),  # noqa: E712
    ]
    arms = np.select(conditions, list(NAMES), default="")
    steps = rows["time/train_s"] / rows["train/steps"]
    known: pd.DataFrame = rows.assign(arm=arms, step_s=steps)[arms != ""]
    return known


def _by_seed(trials: pd.DataFrame) -> pd.DataFrame:
    """One row a seed. As the paper set it means float32 throughout, where that was run."""
    if (trials["arm"] == "as_set").all() and (trials["precision"] == "fp32").any():
        trials = trials[trials["precision"] == "fp32"]
    measured = trials[[STEP_S, PEAK_GIB]].where(trials["state"] == "done")
    return measured.groupby(trials["seed"]).mean()


def judge(found: Costs) -> Claim:
    """P9, and what the text's other numbers and bf16 come to beside it."""
    time, memory = "time of a step", "peak memory"
    parts = [
        _ratio(found, "as_set", STEP_S, f"{time}, Table 1", TIME_RATIO),
        _ratio(found, "as_set", PEAK_GIB, f"{memory}, Table 1", MEMORY_RATIO),
        _ratio(found, "as_set", STEP_S, f"{time}, the text's +39 %", TEXT_TIME, counts=False),
        _ratio(found, "as_set", PEAK_GIB, f"{memory}, the text's −33 %", TEXT_MEMORY, counts=False),
        _ratio(found, "bf16", STEP_S, f"{time}, Table 1", TIME_RATIO, counts=False),
        _ratio(found, "bf16", PEAK_GIB, f"{memory}, Table 1", MEMORY_RATIO, counts=False),
        _ratio(found, "bf16", STEP_S, f"{time}, the text's +39 %", TEXT_TIME, counts=False),
    ]
    where = ", ".join(found.place[n] for n in ("model", "device") if n in found.place)
    return Claim(
        "P9",
        "QLoRA takes 10 × the time of LoRA (the abstract: 39 % more) and saves memory, 16 → 6 GB.",
        "Trials alone, as the paper set them: the ratios lie within what the rounding of Table 1 "
        f"admits (time {TIME_RATIO[0]:.1f} to {TIME_RATIO[1]:.1f}, memory {MEMORY_RATIO[0]:.2f} to "
        f"{MEMORY_RATIO[1]:.2f})" + (f"; measured on {where}" if where else ""),
        tuple(corrected(parts)),
    )


def _ratio(
    found: Costs,
    arm: str,
    column: str,
    words: str,
    bounds: tuple[float, float],
    *,
    counts: bool = True,
) -> Part:
    """Ratio of an arm to LoRA, on the log scale: ratios are what is normal there."""
    missing = [name for name in ("lora", arm) if name not in found.arms]
    estimate, lacks = None, _told(missing, found.left_out)
    if not missing:
        ours, theirs = (np.log(found.arms[name][column].dropna()) for name in (arm, "lora"))
        asked = {seed for seeds in found.arms.values() for seed in seeds.index}
        lost = {NAMES[n]: len(asked) - len(has) for n, has in ((arm, ours), ("lora", theirs))}
        told = [f"{n} of {len(asked)} seeds not measured: {name}" for name, n in lost.items() if n]
        lacks = "; ".join(told)
        # memory alone may be the same to the byte in every repeat
        estimate = evidence.difference(ours, theirs, step=0 if column == PEAK_GIB else None)
    return Part(
        what=f"{NAMES[arm]} / LoRA: {words}",
        kind="within",
        estimate=estimate,
        bounds=(math.log(bounds[0]), math.log(bounds[1])),
        lacks=lacks,
        counts=counts,
        unit="ratio",
    )


def _told(missing: Sequence[str], left_out: int) -> str:
    if not missing:
        return ""
    packed = f" ({left_out} trials were packed, changed or shared a GPU: costs not their own)"
    return f"not run alone: {' and '.join(NAMES[m] for m in missing)}" + packed * bool(left_out)
