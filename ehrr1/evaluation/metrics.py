"""Metrics under sample weights, for many weightings at once.

Every function takes weights [R, n]: one row of weights for each of R weightings of the n samples
(the bootstrap's), and returns [R]. With a row of ones they equal scikit-learn's functions.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def weighted_auroc(scores: Floats, labels: NDArray[np.bool_], weights: Floats) -> Floats:
    """Area under the ROC curve: P(score of a positive > that of a negative), ties count half.

    scores [n], labels [n], weights [R, n] -> [R]. nan where a weighting has one class only.
    """
    positive, negative = _by_threshold(scores, labels, weights)
    below = np.cumsum(negative, axis=1) - negative
    wins = (positive * (below + 0.5 * negative)).sum(axis=1)
    return _divide(wins, positive.sum(axis=1) * negative.sum(axis=1))


def weighted_auprc(scores: Floats, labels: NDArray[np.bool_], weights: Floats) -> Floats:
    """Average precision: the sum over thresholds of (recall gained) x precision, as scikit-learn.

    scores [n], labels [n], weights [R, n] -> [R]. nan where a weighting has one class only: with
    positives alone it would be 1 whatever the scores.
    """
    positive, negative = _by_threshold(-scores, labels, weights)
    true, false = np.cumsum(positive, axis=1), np.cumsum(negative, axis=1)
    precision = np.divide(true, true + false, out=np.zeros_like(true), where=true + false > 0)
    total = positive.sum(axis=1)
    both = (total > 0) & (negative.sum(axis=1) > 0)
    return _divide((positive * precision).sum(axis=1), np.where(both, total, 0.0))


def weighted_mean(values: Floats, weights: Floats) -> Floats:
    """values [n], weights [R, n] -> [R]; nan where all weights are 0."""
    return _divide(weights @ values, weights.sum(axis=1))


def macro(rows: list[Floats]) -> Floats:
    """Mean over tasks of arrays [R], leaving out, weighting by weighting, tasks that are nan there.

    nan where every task is.
    """
    stacked = np.stack(rows)
    known = ~np.isnan(stacked)
    return _divide(np.where(known, stacked, 0.0).sum(axis=0), known.sum(axis=0).astype(float))


def _by_threshold(
    scores: Floats, labels: NDArray[np.bool_], weights: Floats
) -> tuple[Floats, Floats]:
    """Weight of positives and of negatives at each distinct score, lowest first: [R, distinct]."""
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite numbers")
    order = np.argsort(scores, kind="stable")
    ranked = scores[order]
    starts = np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]]))
    weights = weights[:, order]
    positive = np.add.reduceat(weights * labels[order], starts, axis=1)
    return positive, np.add.reduceat(weights, starts, axis=1) - positive


def _divide(numerator: Floats, denominator: Floats) -> Floats:
    out = np.full(numerator.shape, np.nan)
    return np.divide(numerator, denominator, out=out, where=denominator > 0)
