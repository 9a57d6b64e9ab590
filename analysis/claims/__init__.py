"""The paper's claims as predicates over the tidy table: effect, interval, verdict, and why.

``judge`` reads every claim for every model, task and reading of a table. Rules and margins are
in docs/claims.md, and were fixed before the results.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from analysis import rates
from analysis.claims import sides
from analysis.claims.verdicts import Claim, Part, Verdict
from analysis.slices import Slice, slices
from analysis.studies.patil2025 import claims as patil2025
from analysis.studies.patil2025 import cost_claim
from analysis.tables import markdown
from lorasweep.errors import RecordError
from lorasweep.results.details import Details

__all__ = ["Claim", "Part", "Scorecard", "Verdict", "frame", "judge", "scorecard", "write"]

ACCURACY, F1 = "eval/accuracy", "eval/f1_macro"
STUDY = "patil2025"  # names of the studies whose trials the claims are about begin so
NOTHING = (
    f"There is nothing to judge: no study named {STUDY}… has trained an adapter on trained weights."
)


@dataclass(frozen=True)
class Scorecard:
    """All claims for one reading of the table.

    Attributes:
        part: which trials.
        claims: P1 to P10 in order, by accuracy.
        by_f1: the verdicts by macro F1, over seeds alone, as a check.
    """

    part: Slice
    claims: tuple[Claim, ...]
    by_f1: dict[str, Verdict]

    @property
    def title(self) -> str:
        """``smollm2_135m on local, learning rate 0.0001``."""
        return self.part.heading


def judge(table: pd.DataFrame, details: Details) -> list[Scorecard]:
    """One scorecard for every model and task of the paper's studies, and every reading of it."""
    return [
        scorecard(table, details, part)
        for model, task in places(table)
        if _of_study(table, model, task)
        for part in slices(table, model, task)
    ]


def _of_study(table: pd.DataFrame, model: str, task: str) -> bool:
    """Whether a study of the paper ran there; a sweep of one's own asks something else."""
    rows = table[(table["model"] == model) & (table["task"] == task) & table["r"].notna()]
    return bool(rows["study"].str.startswith(STUDY).any())


def places(table: pd.DataFrame) -> list[tuple[str, str]]:
    """Models and tasks on which an adapter was evaluated, those with most trials first.

    A model with random weights tells what a step costs, and nothing about scores; where every
    learning rate has one rank and alpha, nothing is compared but those rates.
    """
    known = table[table["r"].notna() & ~cost_claim.random_weights(table)]
    counts = known.groupby(["model", "task"]).size().sort_values(ascending=False, kind="stable")
    searches = rates.compared(table)
    found = [(str(model), str(task)) for model, task in counts.index]
    return [place for place in found if place not in searches]


def scorecard(table: pd.DataFrame, details: Details, part: Slice) -> Scorecard:
    """All claims for one reading; P9 from the trials that were run for it, of any model."""
    own = cost_claim.costs(table, part.model)
    paid = cost_claim.judge(
        own if len(own.arms) == len(cost_claim.NAMES) else cost_claim.costs(table)
    )
    by = {
        metric: patil2025.judge(
            sides.study(part.table, details.items, part.model, part.task, metric),
            chosen_here=part.chosen_here,
        )
        for metric in (ACCURACY, F1)
    }
    claims = sorted([*by[ACCURACY], paid], key=lambda claim: int(claim.number[1:]))
    return Scorecard(part, tuple(claims), {claim.number: claim.verdict for claim in by[F1]})


def frame(card: Scorecard) -> pd.DataFrame:
    """One row a part: effect, 95 % interval, seeds, items, p values, verdict and rule."""
    rows = []
    for claim in card.claims:
        for part in claim.parts:
            effect, low, high = numbers(part)
            rows.append(
                {
                    "model": card.part.model,
                    "task": card.part.task,
                    "reading": card.part.title,
                    "claim": claim.number,
                    "verdict": claim.verdict,
                    "part": part.what,
                    "counts": part.counts,
                    "unit": "ratio" if part.unit == "ratio" else "difference",
                    "effect": effect,
                    "low": low,
                    "high": high,
                    "seeds": part.estimate.seeds if part.estimate else 0,
                    "items": part.estimate.items if part.estimate else 0,
                    "p_confirm": part.p_confirm,
                    "p_confirm_holm": part.p_confirm_holm,
                    "p_refute": part.p_refute,
                    "p_refute_holm": part.p_refute_holm,
                    "part_verdict": part.verdict,
                    "rule": part.rule,
                    "why": part.why,
                }
            )
    return pd.DataFrame(rows)


def numbers(part: Part) -> tuple[float, float, float]:
    """Effect and interval, as a ratio where the part is one; NaN where there is none."""
    if part.estimate is None:
        return math.nan, math.nan, math.nan
    found = part.estimate.effect, part.estimate.low, part.estimate.high
    if part.unit == "ratio":
        return math.exp(found[0]), math.exp(found[1]), math.exp(found[2])
    return found


def summary(card: Scorecard) -> pd.DataFrame:
    """One row a claim for people: verdict, the part that gave it, and the rule."""
    rows = []
    for claim in card.claims:
        shown = claim.decisive
        rows.append(
            {
                "claim": claim.number,
                "the paper says": claim.says,
                "verdict": f"**{claim.verdict}**",
                "decided by": f"{shown.what}: {evidence_text(shown)}" if shown else "–",
                "rule": claim.rule,
                "by F1": card.by_f1.get(claim.number, "–"),
            }
        )
    return pd.DataFrame(rows)


def evidence_text(part: Part) -> str:
    """``+0.012 [0.004, 0.020], 3 seeds × 5,000 items``."""
    effect, low, high = numbers(part)
    if part.estimate is None or math.isnan(effect):
        return "no trials"
    told = f"× {effect:.2f}" if part.unit == "ratio" else f"{effect:+.3f}".replace("-", "−")
    if not math.isnan(low):
        digits = 2 if part.unit == "ratio" else 3
        told += f" [{low:.{digits}f}, {high:.{digits}f}]".replace("-", "−")
    seeds = part.estimate.seeds
    told += f", {seeds} seed{'' if seeds == 1 else 's'}"
    return told + (f" × {part.estimate.items:,} items" if part.estimate.items else "")


def write(cards: list[Scorecard], folder: Path) -> list[Path]:
    """Write all parts as CSV and a page for people; return the files.

    Raises:
        RecordError: the disk refused.
    """
    pages = [f"# {card.title}\n\n{markdown(summary(card))}" for card in cards]
    pages = pages or [f"{NOTHING}\n"]
    found = [frame(card) for card in cards]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "claims.md").write_text("\n".join(pages), encoding="utf-8")
        parts = pd.concat(found) if found else pd.DataFrame()
        (folder / "claims.csv").write_text(parts.to_csv(index=False), encoding="utf-8")
    except OSError as error:
        raise RecordError(f"The claims could not be written to {folder}: {error}.") from error
    return [folder / "claims.md", folder / "claims.csv"]
