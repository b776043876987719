"""Curves of yes/no questions: their points, few enough for a page."""

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ehrr1.evaluation.metrics import BINS, bin_members, net_benefit

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Points = tuple[list[float], list[float]]

MOST_POINTS = 100

THRESHOLDS = np.round(np.arange(0.01, 0.505, 0.01), 2)
"""Of decision curves: who would act at a risk above a half needs no model."""


def roc(scores: Floats, labels: Bools) -> Points:
    """Return false and true positive rates, from (0, 0) to (1, 1); both classes must occur."""
    true, false = _above(scores, labels)
    return _thinned(false / false[-1], true / true[-1])


def precision_recall(scores: Floats, labels: Bools) -> Points:
    """Recall and precision, threshold by threshold from the highest."""
    true, false = _above(scores, labels)
    return _thinned(true[1:] / true[-1], true[1:] / (true[1:] + false[1:]))


def reliability(scores: Floats, labels: Bools) -> dict[str, list[float]]:
    """Return mean probability, frequency of yes and number of samples of each bin with samples.

    The bins are those of the calibration error.
    """
    members = bin_members(scores, BINS)
    sizes = members.sum(axis=0)
    told, seen = scores @ members, labels.astype(np.float64) @ members
    full = sizes > 0
    return {
        "x": _list(told[full] / sizes[full]),
        "y": _list(seen[full] / sizes[full]),
        "n": _list(sizes[full]),
    }


def decision_curve(scores: Floats, labels: Bools) -> list[float]:
    """Net benefit at each of `THRESHOLDS`."""
    return _list(net_benefit(scores, labels, np.ones((1, len(scores))), THRESHOLDS)[0])


def curves(rows: pl.DataFrame, fitted: Floats | None) -> dict[str, Any] | None:
    """All curves of one result's answers; None where they are of one class.

    `fitted`: the recalibrated probabilities, where there are some. Questions that were drawn
    for balance have a ROC curve only: the others depend on the prevalence.
    """
    labels = (rows["target"] == "yes").to_numpy()
    if labels.all() or not labels.any():
        return None
    scores = rows["probability"].to_numpy()
    found: dict[str, Any] = {"roc": roc(scores, labels)}
    if rows["balanced"].any():
        return found
    found["pr"] = precision_recall(scores, labels)
    found["reliability"] = reliability(scores, labels)
    found["net"] = decision_curve(scores, labels)
    if fitted is not None:
        found["reliability_calibrated"] = reliability(fitted, labels)
        found["net_calibrated"] = decision_curve(fitted, labels)
    return found


def _above(scores: Floats, labels: Bools) -> tuple[Floats, Floats]:
    """Return the numbers of positives and negatives at or above each distinct score.

    Scores are sorted from the highest; the first pair is (0, 0).
    """
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    true = np.cumsum(labels[order])[ends].astype(np.float64)
    return np.append(0.0, true), np.append(0.0, ends + 1 - true)


def _thinned(x: Floats, y: Floats) -> Points:
    keep = np.unique(np.linspace(0, len(x) - 1, MOST_POINTS).round().astype(int))
    return _list(x[keep]), _list(y[keep])


def _list(values: Floats) -> list[float]:
    return [round(float(value), 4) for value in values]
