"""Metrics with sample weights, vectorised over the replicates of a bootstrap.

Most functions take weights [R, n], one row for each of R weightings of the n samples, and return
[R]. With weights of one they equal scikit-learn's functions.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

BINS = 15
"""Number of bins of the expected calibration error and of reliability diagrams."""


def weighted_auroc(scores: Floats, labels: NDArray[np.bool_], weights: Floats) -> Floats:
    """Return the area under the ROC curve.

    It is P(score of a positive > score of a negative); ties count half. scores [n], labels [n],
    weights [R, n] -> [R]. nan for weightings with one class only. Raises ValueError if a score is
    not finite.
    """
    positive, negative = _by_class(scores, labels, weights)
    ranked, summed = _summed(scores[~labels], negative)
    below, upto = (np.searchsorted(ranked, scores[labels], side) for side in ("left", "right"))
    wins = 0.5 * (positive * (summed[:, below] + summed[:, upto])).sum(axis=1)
    return _divide(wins, positive.sum(axis=1) * negative.sum(axis=1))


def weighted_auprc(scores: Floats, labels: NDArray[np.bool_], weights: Floats) -> Floats:
    """Return the average precision, as defined by scikit-learn.

    It is the sum over thresholds of (increase in recall) x precision. scores [n], labels [n],
    weights [R, n] -> [R]. nan for weightings with one class only: with positives alone it would be
    1 for any scores. Raises ValueError if a score is not finite.
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
    """Return the weighted mean: values [n], weights [R, n] -> [R]; nan if all weights are 0."""
    return _divide(weights @ values, weights.sum(axis=1))


def weighted_brier(scores: Floats, labels: NDArray[np.bool_], weights: Floats) -> Floats:
    """Return the Brier score, the mean squared error of a probability (Brier, 1950).

    scores [n], labels [n], weights [R, n] -> [R]; nan if all weights are 0.
    """
    return weighted_mean((scores - labels) ** 2, weights)


def weighted_log_loss(scores: Floats, labels: NDArray[np.bool_], weights: Floats) -> Floats:
    """Return the log loss in nats: the mean of -log of the true answer's probability.

    Probabilities are clipped to the precision of float64, as in scikit-learn. scores [n],
    labels [n], weights [R, n] -> [R]; nan if all weights are 0.
    """
    epsilon = np.finfo(np.float64).eps
    clipped = np.clip(np.where(labels, scores, 1 - scores), epsilon, 1 - epsilon)
    return weighted_mean(-np.log(clipped), weights)


def weighted_ece(
    scores: Floats, labels: NDArray[np.bool_], weights: Floats, bins: int = BINS
) -> Floats:
    """Return the expected calibration error (Naeini et al., 2015).

    It is the mean, over samples, of the absolute difference between the frequency of yes and the
    mean probability in the sample's bin. Bins are equally wide; a probability of exactly 1 has a
    bin of its own, as in torchmetrics. With few samples per bin the estimate is biased upwards.
    scores [n], labels [n], weights [R, n] -> [R]; nan if all weights are 0.
    """
    members = bin_members(scores, bins)
    gap = (weights * (labels - scores)) @ members
    return _divide(np.abs(gap).sum(axis=1), weights.sum(axis=1))


def bin_members(scores: Floats, bins: int) -> Floats:
    """Return the bins of scores [n] as indicators (0 or 1) [n, bins + 1]."""
    edges = np.linspace(0, 1, bins + 1)
    place = np.searchsorted(edges, scores, side="right") - 1
    return (place[:, None] == np.arange(bins + 1)).astype(np.float64)


def net_benefit(
    scores: Floats, labels: NDArray[np.bool_], weights: Floats, thresholds: Floats
) -> Floats:
    """Return the net benefit at each threshold (Vickers and Elkin, 2006).

    A score at or above the threshold is a positive prediction. The net benefit is the number of
    true positives minus that of false positives times the odds of the threshold, divided by the
    number of samples.

    scores [n], labels [n], weights [R, n], thresholds [T] (below 1) -> [R, T]; nan if all weights
    are 0.
    """
    acted = (scores[:, None] >= thresholds).astype(np.float64)
    worth = np.where(labels[:, None], 1.0, -thresholds / (1 - thresholds)) * acted
    total = weights.sum(axis=1)[:, None]
    return _divide(weights @ worth, np.broadcast_to(total, (len(weights), len(thresholds))))


def pass_at_k(draws: NDArray[np.int64], right: NDArray[np.int64], k: int) -> Floats:
    """Return the probability that at least one of `k` answers is correct (Chen et al., 2021).

    The k answers are drawn without replacement from a sample's `draws` answers, of which `right`
    are correct: 1 - C(draws - right, k) / C(draws, k). draws [n] (at least k), right [n] -> [n].
    """
    wrong = draws - right
    steps = np.arange(k)
    chances = np.clip(wrong[:, None] - steps, 0, None) / (draws[:, None] - steps)
    return 1 - chances.prod(axis=1)


def macro(rows: list[Floats]) -> Floats:
    """Return the mean over tasks: arrays [R], one per task -> [R].

    For each weighting, tasks that are nan are ignored; the mean is nan if all are.
    """
    stacked = np.stack(rows)
    known = ~np.isnan(stacked)
    return _divide(np.where(known, stacked, 0.0).sum(axis=0), known.sum(axis=0).astype(float))


def _by_class(scores: Floats, labels: NDArray[np.bool_], weights: Floats) -> tuple[Floats, Floats]:
    """Return the weights of positives [R, p] and of negatives [R, n - p].

    Raises ValueError if a score is not finite.
    """
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite numbers")
    return weights[:, labels], weights[:, ~labels]


def _summed(scores: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Return the sorted scores [n] and the total weight of the lowest 0 .. n of them [R, n + 1]."""
    order = np.argsort(scores, kind="stable")
    summed = np.zeros((len(weights), len(scores) + 1))
    np.cumsum(weights[:, order], axis=1, out=summed[:, 1:])
    return scores[order], summed


def _divide(numerator: Floats, denominator: Floats) -> Floats:
    """Return the quotients; nan where the denominator is not positive."""
    out = np.full(numerator.shape, np.nan)
    return np.divide(numerator, denominator, out=out, where=denominator > 0)
