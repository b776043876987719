"""Temperature scaling (Guo et al., 2017): one number that makes a model as sure as it is right."""

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit

Floats = NDArray[np.float64]

LARGEST = 100.0
"""Temperatures are sought between 1 / LARGEST and LARGEST."""


def temperature_of(predictions: pl.DataFrame) -> float | None:
    """The temperature that fits one result's risk predictions on validation patients, over all of
    its tasks; None where there are none, or of one class."""
    rows = predictions.filter(pl.col("probability").is_not_null())
    labels = (rows["target"] == "yes").to_numpy()
    if len(rows) == 0 or labels.all() or not labels.any():
        return None
    return fit_temperature(logits_of(rows), labels)


def fit_temperature(logits: Floats, labels: NDArray[np.bool_]) -> float:
    """The temperature T for which sigmoid(logit / T) has the least log loss."""
    signed = np.where(labels, logits, -logits)

    def loss(log_t: float) -> float:
        return float(np.logaddexp(0, -signed / np.exp(log_t)).mean())

    bound = float(np.log(LARGEST))
    found = minimize_scalar(loss, bounds=(-bound, bound), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


def cooled(predictions: pl.DataFrame, temperature: float) -> Floats:
    """The probabilities of yes at a temperature."""
    return expit(logits_of(predictions) / temperature)


def logits_of(predictions: pl.DataFrame) -> Floats:
    """The log-odds of yes: by the log-probabilities where they were told, which stay exact where
    the probability itself is 0 or 1."""
    told = (predictions["logprob_yes"] - predictions["logprob_no"]).to_numpy()
    epsilon = np.finfo(np.float64).eps
    plain = logit(np.clip(predictions["probability"].to_numpy(), epsilon, 1 - epsilon))
    return np.where(np.isfinite(told), told, plain)
