"""Alpha below the rank: what the scaling alpha / r does where the paper only went up from 1."""

import math

import pandas as pd

from analysis import style
from analysis.claims import sides
from analysis.details import Details
from analysis.slices import Slice

SCORE = "eval/accuracy"
USUAL = 2  # times the rank, as in the paper's rank study


def table(part: Slice, details: Details) -> pd.DataFrame:
    """Mean accuracy at every alpha of the ranks that were run with an alpha below them.

    Returns:
        One row a method, target, rank and alpha, as text; the last column is the difference to
        alpha = 2r, paired by seed and item, with its 95 % interval. Empty where there is nothing.
    """
    study = sides.study(part.table, details.items, part.model, part.task, SCORE)
    done = study.view.done
    rows = []
    for (method, target, r), trials in done.groupby(["method", "target", "r"]):
        alphas = sorted(trials["alpha"].unique())
        if alphas[0] >= float(str(r)):
            continue
        for alpha in alphas:
            cell = sides.Cell(str(method), str(target), float(str(r)), float(alpha))
            scores = study.scores(cell)
            usual = sides.at(cell.method, str(target), cell.r, USUAL * cell.r)
            rows.append(
                {
                    "method": style.method(cell.method).name,
                    "layers": style.target(str(target)).name,
                    "r": f"{cell.r:g}",
                    "α": f"{alpha:g}",
                    "α / r": f"{alpha / cell.r:g}",
                    "accuracy": f"{scores.mean():.4f}",
                    "seeds": str(len(scores)),
                    "less that at α = 2r": _difference(study, cell, usual),
                }
            )
    return pd.DataFrame(rows)


def _difference(study: sides.Study, cell: sides.Cell, usual: sides.Cell) -> str:
    found = None if cell == usual else study.compare([cell], [usual])
    if found is None or math.isnan(found.effect):
        return "–"
    told = f"{found.effect:+.4f}"
    if not math.isnan(found.low):
        told += f" [{found.low:+.4f}, {found.high:+.4f}]"
    return told.replace("-", "−")
