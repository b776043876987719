"""Recalibrate a result's probabilities on validation patients, by the method that fits best."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression
from sklearn.model_selection import GroupKFold

Floats = NDArray[np.float64]
Labels = NDArray[np.bool_]
Map = Callable[[Floats], Floats]
"""Log-odds of yes [n] -> recalibrated probabilities [n]."""

LARGEST = 100.0
"""Temperatures are searched between 1 / LARGEST and LARGEST."""

FOLDS = 5


@dataclass(frozen=True)
class Calibrator:
    """The map that was chosen, and the log loss of every method on patients it was not fitted on.

    `numbers` are the parameters of the chosen map, for methods that have some.
    """

    method: str
    to_probability: Map
    numbers: Mapping[str, float]
    log_losses: Mapping[str, float]


def fit_calibrator(predictions: pl.DataFrame) -> Calibrator | None:
    """Fit one result's risk predictions on validation patients, all tasks together.

    The method (`METHODS`) has the lowest log loss in cross-validation by patient; the first one is
    taken where patients are too few for that. None if there are no predictions with a probability,
    or if all labels are the same.
    """
    rows = predictions.filter(pl.col("probability").is_not_null())
    labels = (rows["target"] == "yes").to_numpy()
    if len(rows) == 0 or labels.all() or not labels.any():
        return None
    logits = logits_of(rows)
    losses = cross_validated(logits, labels, rows["subject_id"].to_numpy())
    method = min(losses, key=lambda name: losses[name]) if losses else next(iter(METHODS))
    chosen, numbers = METHODS[method](logits, labels)
    return Calibrator(method, chosen, numbers, losses)


def cross_validated(
    logits: Floats, labels: Labels, patients: NDArray[np.int64]
) -> dict[str, float]:
    """Return each method's mean log loss in nats over `FOLDS` folds of patients.

    All arrays are [n]. The result is empty if a fold leaves one class to fit on.
    """
    if len(np.unique(patients)) < FOLDS:
        return {}
    losses = {name: np.zeros(len(labels)) for name in METHODS}
    for train, test in GroupKFold(FOLDS).split(logits, labels, patients):
        if labels[train].all() or not labels[train].any():
            return {}
        for name, fit in METHODS.items():
            probability = fit(logits[train], labels[train])[0](logits[test])
            chances = np.where(labels[test], probability, 1 - probability)
            losses[name][test] = -np.log(np.clip(chances, np.finfo(float).tiny, None))
    return {name: float(values.mean()) for name, values in losses.items()}


def fit_temperature(logits: Floats, labels: Labels) -> float:
    """Return the temperature T that minimises the log loss of sigmoid(logit / T).

    `logits` [n] are log-odds of yes, `labels` [n] are True for yes (Guo et al., 2017).
    """
    signed = np.where(labels, logits, -logits)

    def loss(log_t: float) -> float:
        return float(np.logaddexp(0, -signed / np.exp(log_t)).mean())

    bound = float(np.log(LARGEST))
    found = minimize_scalar(loss, bounds=(-bound, bound), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


def fit_platt(logits: Floats, labels: Labels) -> tuple[float, float]:
    """Return slope and intercept of sigmoid(slope * logit + intercept) with the least log loss.

    The targets are smoothed as in Platt (1999), so that separable labels have finite parameters.
    """
    yes, no = labels.sum(), (~labels).sum()
    targets = np.where(labels, (yes + 1) / (yes + 2), 1 / (no + 2))
    scale = max(1.0, float(np.abs(logits).max()))  # log-odds of a sure model are large

    def loss(parameters: Floats) -> tuple[float, Floats]:
        z = parameters[0] * logits / scale + parameters[1]
        error = (expit(z) - targets) / len(z)
        value = np.mean(np.logaddexp(0, z) - targets * z)
        return float(value), np.array([error @ (logits / scale), error.sum()])

    found = minimize(loss, np.array([scale, 0.0]), jac=True, method="BFGS")
    return float(found.x[0] / scale), float(found.x[1])


def _temperature(logits: Floats, labels: Labels) -> tuple[Map, dict[str, float]]:
    temperature = fit_temperature(logits, labels)
    return lambda values: expit(values / temperature), {"temperature": temperature}


def _platt(logits: Floats, labels: Labels) -> tuple[Map, dict[str, float]]:
    slope, intercept = fit_platt(logits, labels)
    numbers = {"platt_slope": slope, "platt_intercept": intercept}
    return lambda values: expit(slope * values + intercept), numbers


def _isotonic(logits: Floats, labels: Labels) -> tuple[Map, dict[str, float]]:
    """Fit a monotone step function, not nearer to 0 and 1 than half a sample of those it has."""
    least = 0.5 / len(labels)
    fitted = IsotonicRegression(y_min=least, y_max=1 - least, out_of_bounds="clip")
    fitted.fit(logits, labels.astype(np.float64))
    return fitted.predict, {}


METHODS = {"temperature": _temperature, "platt": _platt, "isotonic": _isotonic}
"""Methods by name, from the fewest parameters to the most: one, two, and a step function."""


def recalibrated(predictions: pl.DataFrame, calibrator: Calibrator) -> Floats:
    """Return the recalibrated probabilities of yes [n]."""
    return calibrator.to_probability(logits_of(predictions))


def logits_of(predictions: pl.DataFrame) -> Floats:
    """Return the log-odds of yes [n].

    They come from the log-probabilities where known, which are exact even if the probability rounds
    to 0 or 1, and otherwise from the clipped probability.
    """
    told = (predictions["logprob_yes"] - predictions["logprob_no"]).to_numpy()
    epsilon = np.finfo(np.float64).eps
    plain = logit(np.clip(predictions["probability"].to_numpy(), epsilon, 1 - epsilon))
    return np.where(np.isfinite(told), told, plain)
