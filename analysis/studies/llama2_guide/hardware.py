"""Which GPU is needed: the answers of two studies beside the plan's (studies G and B)."""

import math

import pandas as pd

from analysis.planned import GIB, N_LABELS, hours, trial_of
from lorasweep.costs import devices, memory
from lorasweep.costs.seconds import Data
from lorasweep.planning import remedies

SIZES = {
    "7B": ("model=llama2_7b",),
    "13B": (
        "model=llama2_7b",
        "model.shape.hidden_size=5120",
        "model.shape.num_hidden_layers=40",
        "model.shape.num_attention_heads=40",
        "model.shape.num_key_value_heads=40",
        "model.shape.intermediate_size=13824",
    ),
    # LLaMA 2 has no 65B: this is LLaMA 1's (arXiv:2302.13971, Table 2).
    "65B": (
        "model=llama2_7b",
        "model.shape.hidden_size=8192",
        "model.shape.num_hidden_layers=80",
        "model.shape.num_attention_heads=64",
        "model.shape.num_key_value_heads=64",
        "model.shape.intermediate_size=22016",
    ),
}
# The guide says neither batch nor length: one text of 512 tokens, q and v, r = 8.
COMMON = (
    "task=yelp5",
    "target=qv",
    "lora.r=8",
    "lora.dropout=0.05",
    "train.optimizer=adamw_torch",
    "train.batch_size=1",
    "train.eval_batch_size=1",
    "train.padding=max_length",
)
GUIDE_LENGTH, BODDY_LENGTH = "train.max_length=512", "train.max_length=128"
# size, method, GB of the guide's GPU, how many of them
GUIDE_GPUS = (
    ("7B", "lora", 24, 1),
    ("13B", "lora", 48, 1),
    ("65B", "lora", 80, 8),
    ("7B", "qlora", 16, 1),
    ("13B", "qlora", 24, 1),
    ("65B", "qlora", 80, 4),
)
CARDS = (8, 12, 16, 24, 32, 40, 48, 80, 141)


def guide() -> pd.DataFrame:
    """Study G: which GPU LLaMA of a size needs, the guide's answer and the plan's."""
    made = []
    for size, method, gigabytes, count in GUIDE_GPUS:
        words = (*SIZES[size], *COMMON, GUIDE_LENGTH, f"method={method}")
        needs = [
            memory.estimate(trial_of(*words, f"train.checkpointing={on}"), N_LABELS).footprint
            for on in ("false", "true")
        ]
        fits = [need <= count * devices.find(f"{gigabytes}gb").memory for need in needs]
        verdict = "agrees: it fits" if fits[0] else "agrees with checkpointing only"
        if not fits[1]:
            verdict = "disagrees: it does not fit"
        elif count > 1:
            fewer = math.ceil(needs[1] / devices.find(f"{gigabytes}gb").memory)
            verdict += f"; the memory of {fewer} would do" if fewer < count else ""
        made.append(
            {
                "model": size,
                "method": method,
                "guide": f"{count} × {gigabytes} GB",
                "ours: GiB": needs[0] / GIB,
                "ours, checkpointing: GiB": needs[1] / GIB,
                "smallest card": smallest_card(needs[1]),
                "verdict": verdict,
            }
        )
    return pd.DataFrame(made)


def smallest_card(need: float) -> str:
    """Smallest usual card that holds so many bytes."""
    for size in CARDS:
        if need <= devices.find(f"{size}gb").memory:
            return f"{size} GB"
    return "none alone"


# Study B: q and v, r 8, NF4 with double quantisation; GB as reported. FFT of 7B did not fit 44.
BODDY = (
    ("Llama-2-7B", "model=llama2_7b", "fft", math.nan),
    ("Llama-2-7B", "model=llama2_7b", "lora", 23.5),
    ("Llama-2-7B", "model=llama2_7b", "qlora", 14.6),
    ("Llama-3.2-1B", "model=llama3_2_1b", "fft", 11.8),
    ("Llama-3.2-1B", "model=llama3_2_1b", "lora", 5.63),
    ("Llama-3.2-1B", "model=llama3_2_1b", "qlora", 4.09),
)
BODDY_GB = 44


def boddy() -> pd.DataFrame:
    """Study B: memory as reported and by the plan, and whether it fits their 44 GB."""
    made = []
    for name, model, method, reported in BODDY:
        words = [model, *COMMON, BODDY_LENGTH, f"method={method}"]
        if method == "qlora":
            words.append("method.double_quant=true")
        if method == "fft":  # 11.8 GB for 1.2 billion weights and their states: all in 16 bits
            words.append("train.master_weights=none")
        trial = trial_of(*words)
        card = devices.find(f"{BODDY_GB}gb")
        fits = memory.estimate(trial, N_LABELS).footprint <= card.memory
        theirs = not math.isnan(reported)
        change = " ".join(remedies.remedy(trial, card, N_LABELS)) if not fits else ""
        made.append(
            {
                "model": name,
                "method": method,
                "paper: GB": reported if theirs else f"does not fit {BODDY_GB}",
                "ours: GiB": memory.estimate(trial, N_LABELS).footprint / GIB,
                "fits": "yes" if fits else "no",
                "verdict": "agrees" if fits == theirs else "disagrees",
                "smallest change that fits": change,
            }
        )
    return pd.DataFrame(made)


# Study G: texts, and how long they take against 100,000 by the guide (it prints 50 % less, 2 ×, …).
DATA_SIZES = ((50_000, 0.5), (100_000, 1.0), (200_000, 2.0), (500_000, 5.0))


def data_size() -> pd.DataFrame:
    """Study G: training time grows linearly with the data; 7B on one A100-40GB (hours)."""
    trial = trial_of(*SIZES["7B"], *COMMON, GUIDE_LENGTH, "method=lora", "train.batch_size=4")
    found = {
        texts: hours(trial, "a100_40gb", Data(N_LABELS, texts, eval_items=0))
        for texts, _ in DATA_SIZES
    }
    return pd.DataFrame(
        [
            {
                "texts": texts,
                "guide: × 100k": guide_says,
                "ours: × 100k": found[texts] / found[100_000],
                "guide: hours": "8–10" if texts == 100_000 else "",
                "ours: hours": found[texts],
            }
            for texts, guide_says in DATA_SIZES
        ]
    )
