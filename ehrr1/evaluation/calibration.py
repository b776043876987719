"""Temperature scaling: calibrate probabilities by one number (Guo et al., 2017)."""

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit

Floats = NDArray[np.float64]

LARGEST = 100.0
"""Temperatures are searched between 1 / LARGEST and LARGEST."""


def temperature_of(predictions: pl.DataFrame) -> float | None:
    """Return the temperature that fits one result's risk predictions on validation patients.

    One temperature is fitted for all tasks. None if there are no predictions with a probability, or
    if all labels are the same.
    """
    rows = predictions.filter(pl.col("probability").is_not_null())
    labels = (rows["target"] == "yes").to_numpy()
    if len(rows) == 0 or labels.all() or not labels.any():
        return None
    return fit_temperature(logits_of(rows), labels)


def fit_temperature(logits: Floats, labels: NDArray[np.bool_]) -> float:
    """Return the temperature T that minimises the log loss of sigmoid(logit / T).

    `logits` [n] are log-odds of yes, `labels` [n] are True for yes.
    """
    signed = np.where(labels, logits, -logits)

    def loss(log_t: float) -> float:
        return float(np.logaddexp(0, -signed / np.exp(log_t)).mean())

    bound = float(np.log(LARGEST))
    found = minimize_scalar(loss, bounds=(-bound, bound), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


def cooled(predictions: pl.DataFrame, temperature: float) -> Floats:
    """Return the probabilities of yes [n] after scaling the log-odds by 1 / `temperature`."""
    return expit(logits_of(predictions) / temperature)


def logits_of(predictions: pl.DataFrame) -> Floats:
    """Return the log-odds of yes [n].

    They come from the log-probabilities where known, which are exact even if the probability rounds
    to 0 or 1, and otherwise from the clipped probability.
    """
    told = (predictions["logprob_yes"] - predictions["logprob_no"]).to_numpy()
    epsilon = np.finfo(np.float64).eps
    plain = logit(np.clip(predictions["probability"].to_numpy(), epsilon, 1 - epsilon))
    return np.where(np.isfinite(told), told, plain)
