"""What to choose: the best rank and alpha of each method and target, and the least that does."""

import math

import pandas as pd

from analysis import style
from analysis.claims import sides
from analysis.slices import Slice
from analysis.studies.patil2025 import claims
from lorasweep.results.details import Details


def table(part: Slice, details: Details) -> pd.DataFrame:
    """Best mean of each method and target, and the smallest rank within what counts of it.

    Only cells with as many seeds as any are looked at. Of several alphas at that smallest rank
    the one with the best mean is told.

    Returns:
        One row a method and target, as text; the last column is the smaller one's accuracy less
        the best one's, paired by seed and item, with its 95 % interval.
    """
    study = sides.study(part.table, details.items, part.model, part.task)
    found = []
    for (method, target), trials in study.view.done.groupby(["method", "target"]):
        seen = trials.groupby(["r", "alpha"])
        means = seen[[study.metric, "params/trainable"]].mean().reset_index()
        means = means[(seen.size() == seen.size().max()).to_numpy()]
        near = means[means[study.metric] >= means[study.metric].max() - claims.COUNTS]
        near = near[near["r"] == near["r"].min()]
        best, least = (rows.nlargest(1, study.metric).iloc[0] for rows in (means, near))
        cells = [
            sides.at(str(method), str(target), float(row["r"]), float(row["alpha"]))
            for row in (least, best)
        ]
        found.append(
            {
                "method": style.method(str(method)).name,
                "layers": style.target(str(target)).name,
                "of": len(means),
                "best": _name(best),
                "accuracy": f"{best[study.metric]:.4f}",
                "weights": _weights(best),
                "least": _name(least),
                "its accuracy": f"{least[study.metric]:.4f}",
                "its weights": _weights(least),
                "less the best": study.told(*cells),
            }
        )
    return pd.DataFrame(found)


def _name(row: pd.Series) -> str:
    return f"r {row['r']:g}, α {row['alpha']:g}"


def _weights(row: pd.Series) -> str:
    count = float(row["params/trainable"])
    return "–" if math.isnan(count) else f"{count:,.0f}"


SAYS = (
    "For each method and layers, the highest mean accuracy over seeds (*of* so many means), and "
    f"the smallest rank whose mean is within {claims.COUNTS:g} of it. The best of many means is "
    "a little too good, and the least is as sure as its interval is narrow."
)
