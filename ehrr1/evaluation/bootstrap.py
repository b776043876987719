"""Cluster bootstrap: patients are resampled, each with all samples."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Estimate(NamedTuple):
    """A point estimate and the bounds of its percentile interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Resamples:
    """The number of times that each patient is drawn in each bootstrap replicate.

    `patients` [P] are the sorted ids, `counts` [1 + replicates, P] the numbers of draws. Row 0 is
    the original sample (all ones); each other row draws P patients with replacement. All tasks and
    models use the same draws, so that differences of two models are paired.
    """

    patients: NDArray[np.int64]
    counts: NDArray[np.uint16]

    @classmethod
    def draw(cls, patients: Iterable[int], replicates: int, seed: int) -> "Resamples":
        """Draw `replicates` resamples of the distinct `patients`."""
        ids = np.unique(np.fromiter(patients, dtype=np.int64))
        generator = np.random.default_rng(seed)
        chosen = generator.integers(0, len(ids), size=(replicates, len(ids)))
        # one bincount counts all replicates: the patients of replicate r are shifted by r * P
        shifted = chosen + np.arange(replicates)[:, None] * len(ids)
        counts = np.bincount(shifted.ravel(), minlength=replicates * len(ids))
        drawn = counts.reshape(replicates, len(ids)).astype(np.uint16)
        return cls(ids, np.concatenate([np.ones((1, len(ids)), np.uint16), drawn]))

    def weights(self, subjects: NDArray[np.int64]) -> Floats:
        """Return the weights [1 + replicates, n] of samples with patient ids `subjects` [n].

        All ids must be among `patients`.
        """
        return self.counts[:, np.searchsorted(self.patients, subjects)].astype(np.float64)


def estimate(values: Floats, level: float = 0.95) -> Estimate:
    """Return the estimate and its percentile interval from `values` [1 + replicates].

    Value 0 is the estimate; the interval covers the central `level` of the other values. Replicates
    that are nan (a task with one class) are ignored; if all are nan, so are the bounds.
    """
    replicates = values[1:][~np.isnan(values[1:])]
    if len(replicates) == 0:
        return Estimate(float(values[0]), np.nan, np.nan)
    tail = (1 - level) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return Estimate(float(values[0]), float(low), float(high))
