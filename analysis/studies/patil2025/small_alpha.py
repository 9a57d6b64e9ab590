"""Alpha below the rank: what the scaling alpha / r does where the paper only went up from 1."""

import pandas as pd

from analysis import style, views
from analysis.claims import sides
from analysis.slices import Slice
from lorasweep.results.details import Details

USUAL = 2  # times the rank, as in the paper's rank study


def table(part: Slice, details: Details) -> pd.DataFrame:
    """Mean accuracy at every alpha of the ranks that were run with an alpha below them.

    Returns:
        One row a method, target, rank and alpha, as text; the last column is the difference to
        alpha = 2r, paired by seed and item, with its 95 % interval. Empty where there is nothing.
    """
    done = views.small_alpha_view(part.table, part.model, part.task).done
    study = sides.study(part.table, details.items, part.model, part.task)
    rows = []
    for (method, target, r, alpha), _ in done.groupby(["method", "target", "r", "alpha"]):
        cell = sides.Cell(str(method), str(target), float(str(r)), float(str(alpha)))
        scores = study.scores(cell)
        usual = sides.at(cell.method, str(target), cell.r, USUAL * cell.r)
        rows.append(
            {
                "method": style.method(cell.method).name,
                "layers": style.target(str(target)).name,
                "r": f"{cell.r:g}",
                "α": f"{cell.alpha:g}",
                "α / r": f"{cell.alpha / cell.r:g}",
                "accuracy": f"{scores.mean():.4f}",
                "seeds": str(len(scores)),
                "less that at α = 2r": study.told(cell, usual),
            }
        )
    return pd.DataFrame(rows)
