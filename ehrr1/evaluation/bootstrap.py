"""The bootstrap by patient: samples of one patient come and go together."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Estimate(NamedTuple):
    """A number with its interval (percentiles of the replicates)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Resamples:
    """How often each patient was drawn, in each replicate.

    patients: sorted ids [P]; counts [1 + replicates, P]. Row 0 is the study as it is (all ones);
    each other row draws P patients with replacement. The same draws serve all tasks and models,
    so that the difference of two models is paired.
    """

    patients: NDArray[np.int64]
    counts: NDArray[np.uint16]

    @classmethod
    def draw(cls, patients: Iterable[int], replicates: int, seed: int) -> "Resamples":
        """Draw `replicates` resamples of the distinct `patients`."""
        ids = np.unique(np.fromiter(patients, dtype=np.int64))
        generator = np.random.default_rng(seed)
        chosen = generator.integers(0, len(ids), size=(replicates, len(ids)))
        # one bincount over all replicates: replicate r's patients are shifted by r * P
        shifted = chosen + np.arange(replicates)[:, None] * len(ids)
        counts = np.bincount(shifted.ravel(), minlength=replicates * len(ids))
        drawn = counts.reshape(replicates, len(ids)).astype(np.uint16)
        return cls(ids, np.concatenate([np.ones((1, len(ids)), np.uint16), drawn]))

    def weights(self, subjects: NDArray[np.int64]) -> Floats:
        """Weights of samples by their patients: [n] ids -> [1 + replicates, n]."""
        return self.counts[:, np.searchsorted(self.patients, subjects)].astype(np.float64)


def estimate(values: Floats, level: float = 0.95) -> Estimate:
    """The estimate (row 0) and the central interval of the replicates (the other rows).

    Replicates that are nan (a task of one class) are left out; nan where all are.
    """
    replicates = values[1:][~np.isnan(values[1:])]
    if len(replicates) == 0:
        return Estimate(float(values[0]), np.nan, np.nan)
    tail = (1 - level) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return Estimate(float(values[0]), float(low), float(high))
