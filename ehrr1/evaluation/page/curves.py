"""What the report draws of one result on one risk task; every function returns a list of points."""

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve, roc_curve

from ehrr1.evaluation.metrics import bin_members, net_benefit

Floats = NDArray[np.float64]
Points = list[list[float]]

MOST_POINTS = 40
RELIABILITY_BINS = 10
THRESHOLDS = np.linspace(0.02, 0.6, 30)
"""Risks at which one may act: above them few would wait."""


def roc(scores: Floats, labels: NDArray[np.bool_]) -> Points:
    """False positive rate and recall."""
    false, true, _ = roc_curve(labels, scores)
    return _thinned(false, true)


def precision_recall(scores: Floats, labels: NDArray[np.bool_]) -> Points:
    """Recall and precision."""
    precision, recall, _ = precision_recall_curve(labels, scores)
    return _thinned(recall[::-1], precision[::-1])


def reliability(scores: Floats, labels: NDArray[np.bool_]) -> Points:
    """Of each bin that has samples: mean probability, frequency of yes, samples."""
    members = bin_members(scores, RELIABILITY_BINS)
    sizes, said, true = members.sum(axis=0), scores @ members, labels @ members
    return [
        [round(float(said[n] / size), 4), round(float(true[n] / size), 4), int(size)]
        for n, size in enumerate(sizes)
        if size
    ]


def decision_curve(scores: Floats, labels: NDArray[np.bool_]) -> Points:
    """Threshold and net benefit; see `treat_all` for the alternative."""
    benefit = net_benefit(scores, labels, np.ones((1, len(scores))), THRESHOLDS)[0]
    return _thinned(THRESHOLDS, benefit)


def treat_all(labels: NDArray[np.bool_]) -> Points:
    """The net benefit of acting on everybody."""
    return decision_curve(np.ones(len(labels)), labels)


def _thinned(x: Floats, y: Floats) -> Points:
    """At most `MOST_POINTS` of the points, first and last among them."""
    chosen = np.unique(np.linspace(0, len(x) - 1, min(len(x), MOST_POINTS)).round().astype(int))
    return [[round(float(x[n]), 4), round(float(y[n]), 4)] for n in chosen]
