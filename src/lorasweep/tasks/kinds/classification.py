"""Scores to metrics, through scikit-learn."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def metrics(gold: "ArrayLike", scores: "ArrayLike") -> dict[str, float]:
    """Compare the best-scored class of each item with the right one.

    Args:
        gold: class index of each item, shape (items,).
        scores: any scores that rank classes, shape (items, classes). NaN is the worst score; an
            item with nothing but NaN counts as class 0.

    Returns:
        ``eval/accuracy``, ``eval/f1_macro``, ``eval/f1_micro``, ``eval/precision_macro`` and
        ``eval/recall_macro``, each from 0 to 1. Macro: the plain mean over the classes that occur
        in gold or prediction; a class without a prediction has precision 0.
    """
    import numpy as np
    from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support

    worst_if_unknown = np.nan_to_num(
        np.asarray(scores, dtype=float), nan=-np.inf, posinf=np.inf, neginf=-np.inf
    )
    predicted = worst_if_unknown.argmax(axis=1)
    precision, recall, f1, _ = precision_recall_fscore_support(
        gold, predicted, average="macro", zero_division=0
    )
    return {
        "eval/accuracy": float(accuracy_score(gold, predicted)),
        "eval/f1_macro": float(f1),
        "eval/f1_micro": float(f1_score(gold, predicted, average="micro", zero_division=0)),
        "eval/precision_macro": float(precision),
        "eval/recall_macro": float(recall),
    }
