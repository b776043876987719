"""Metrics under sample weights, for many weightings at once.

Every function takes weights [R, n]: one row of weights for each of R weightings of the n samples
(the bootstrap's), and returns [R]. With a row of ones they equal scikit-learn's functions.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

BINS = 15
"""Of the expected calibration error and of reliability diagrams."""


def weighted_auroc(scores: Floats, labels: NDArray[np.bool_], weights: Floats) -> Floats:
    """Area under the ROC curve: P(score of a positive > that of a negative), ties count half.

    scores [n], labels [n], weights [R, n] -> [R]. nan where a weighting has one class only.
    """
    positive, negative = _by_class(scores, labels, weights)
    ranked, summed = _summed(scores[~labels], negative)
    below, upto = (np.searchsorted(ranked, scores[labels], side) for side in ("left", "right"))
    wins = 0.5 * (positive * (summed[:, below] + summed[:, upto])).sum(axis=1)
    return _divide(wins, positive.sum(axis=1) * negative.sum(axis=1))


def weighted_auprc(scores: Floats, labels: NDArray[np.bool_], weights: Floats) -> Floats:
    """Average precision: the sum over thresholds of (recall gained) x precision, as scikit-learn.

    scores [n], labels [n], weights [R, n] -> [R]. nan where a weighting has one class only: with
    positives alone it would be 1 whatever the scores.
    """
    positive, negative = _by_class(scores, labels, weights)
    true, false = (
        summed[:, np.searchsorted(ranked, -scores[labels], "right")]
        for ranked, summed in (
            _summed(-scores[labels], positive),
            _summed(-scores[~labels], negative),
        )
    )
    precision = np.divide(true, true + false, out=np.zeros_like(true), where=true > 0)
    total = positive.sum(axis=1)
    both = (total > 0) & (negative.sum(axis=1) > 0)
    return _divide((positive * precision).sum(axis=1), np.where(both, total, 0.0))


def weighted_mean(values: Floats, weights: Floats) -> Floats:
    """values [n], weights [R, n] -> [R]; nan where all weights are 0."""
    return _divide(weights @ values, weights.sum(axis=1))


def weighted_brier(scores: Floats, labels: NDArray[np.bool_], weights: Floats) -> Floats:
    """Mean squared error of a probability (Brier, 1950). scores [n], weights [R, n] -> [R]."""
    return weighted_mean((scores - labels) ** 2, weights)


def weighted_log_loss(scores: Floats, labels: NDArray[np.bool_], weights: Floats) -> Floats:
    """Mean of -log of what the true answer was given, in nats; probabilities are clipped to the
    precision of a float64, as scikit-learn does. scores [n], weights [R, n] -> [R]."""
    epsilon = np.finfo(np.float64).eps
    clipped = np.clip(np.where(labels, scores, 1 - scores), epsilon, 1 - epsilon)
    return weighted_mean(-np.log(clipped), weights)


def weighted_ece(
    scores: Floats, labels: NDArray[np.bool_], weights: Floats, bins: int = BINS
) -> Floats:
    """Expected calibration error: the mean over samples of how far the frequency of yes in their
    bin lies from the bin's mean probability (Naeini et al., 2015).

    Bins are equally wide; a probability of exactly 1 is a bin of its own, as in torchmetrics.
    scores [n], weights [R, n] -> [R]. Few samples a bin make it larger than it is.
    """
    members = bin_members(scores, bins)
    gap = (weights * (labels - scores)) @ members
    return _divide(np.abs(gap).sum(axis=1), weights.sum(axis=1))


def bin_members(scores: Floats, bins: int) -> Floats:
    """Which bin each score is in: 0 or 1, [n, bins + 1]."""
    edges = np.linspace(0, 1, bins + 1)
    place = np.searchsorted(edges, scores, side="right") - 1
    return (place[:, None] == np.arange(bins + 1)).astype(np.float64)


def net_benefit(
    scores: Floats, labels: NDArray[np.bool_], weights: Floats, thresholds: Floats
) -> Floats:
    """What acting on everybody at or above a threshold is worth (Vickers and Elkin, 2006): true
    positives less false ones times the threshold's odds, a sample. thresholds [T], below 1.

    scores [n], weights [R, n] -> [R, T]; nan where all weights are 0.
    """
    acted = (scores[:, None] >= thresholds).astype(np.float64)
    worth = np.where(labels[:, None], 1.0, -thresholds / (1 - thresholds)) * acted
    total = weights.sum(axis=1)[:, None]
    return _divide(weights @ worth, np.broadcast_to(total, (len(weights), len(thresholds))))


def pass_at_k(draws: NDArray[np.int64], right: NDArray[np.int64], k: int) -> Floats:
    """The chance that one of `k` answers, drawn from `draws` of which `right` are right, is right
    (Chen et al., 2021): 1 - C(n - c, k) / C(n, k). [n] -> [n]; draws are at least k."""
    wrong = draws - right
    steps = np.arange(k)
    chances = np.clip(wrong[:, None] - steps, 0, None) / (draws[:, None] - steps)
    return 1 - chances.prod(axis=1)


def macro(rows: list[Floats]) -> Floats:
    """Mean over tasks of arrays [R], leaving out, weighting by weighting, tasks that are nan there.

    nan where every task is.
    """
    stacked = np.stack(rows)
    known = ~np.isnan(stacked)
    return _divide(np.where(known, stacked, 0.0).sum(axis=0), known.sum(axis=0).astype(float))


def _by_class(scores: Floats, labels: NDArray[np.bool_], weights: Floats) -> tuple[Floats, Floats]:
    """Weights of positives and of negatives."""
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite numbers")
    return weights[:, labels], weights[:, ~labels]


def _summed(scores: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """The scores in order [n], and the weight of the lowest 0 .. n of them [R, n + 1]."""
    order = np.argsort(scores, kind="stable")
    summed = np.zeros((len(weights), len(scores) + 1))
    np.cumsum(weights[:, order], axis=1, out=summed[:, 1:])
    return scores[order], summed


def _divide(numerator: Floats, denominator: Floats) -> Floats:
    out = np.full(numerator.shape, np.nan)
    return np.divide(numerator, denominator, out=out, where=denominator > 0)
