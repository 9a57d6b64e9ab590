"""Scores to metrics."""

import numpy as np
import pytest

from lorasweep.tasks.kinds import classification


def test_against_figures_worked_out_by_hand() -> None:
    # predicted 0 0 1 1 2 for gold 0 1 1 1 0
    scores = np.eye(3)[[0, 0, 1, 1, 2]]
    found = classification.metrics([0, 1, 1, 1, 0], scores)
    assert found == pytest.approx(
        {
            "eval/accuracy": 3 / 5,
            "eval/f1_micro": 3 / 5,
            "eval/precision_macro": (1 / 2 + 1 + 0) / 3,
            "eval/recall_macro": (1 / 2 + 2 / 3 + 0) / 3,
            "eval/f1_macro": (1 / 2 + 4 / 5 + 0) / 3,
        }
    )
    assert all(type(value) is float for value in found.values())


def test_a_class_that_is_never_predicted_has_precision_zero() -> None:
    found = classification.metrics([0, 1], [[1.0, 0.0], [1.0, 0.0]])
    assert found["eval/precision_macro"] == pytest.approx(1 / 4)


def test_nan_is_the_worst_score() -> None:
    nan = float("nan")
    scores = [[nan, -9.0, nan], [nan, nan, nan], [nan, -float("inf"), float("inf")]]
    assert classification.metrics([1, 0, 2], scores)["eval/accuracy"] == 1.0
