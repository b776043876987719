"""Ridge regressions of many targets on the same features."""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class Ridge:
    """Ridge regressions of T targets on F features, for any penalty: one decomposition serves all.

    center [F], share [T]: means of features and targets; values [F], vectors [F, F]: eigenvalues
    and -vectors of the features' scatter; projected [F, T]: the targets seen through them; size:
    number of samples.
    """

    center: Floats
    share: Floats
    values: Floats
    vectors: Floats
    projected: Floats
    size: int

    @classmethod
    def fit(cls, x: Floats, y: Floats) -> "Ridge":
        """Fit targets y [samples, T] to features x [samples, F]."""
        share, center = y.mean(axis=0), x.mean(axis=0)
        values, vectors = np.linalg.eigh((x - center).T @ (x - center))
        projected = vectors.T @ ((x - center).T @ (y - share))
        return cls(center, share, np.maximum(values, 0), vectors, projected, len(x))

    def scores(self, x: Floats, penalty: float) -> Floats:
        """Return the expected targets [samples, T] of features x [samples, F].

        `penalty` is a multiple of the number of samples that were fitted.
        """
        weights = self.projected / (self.values + penalty * self.size)[:, None]
        found: Floats = self.share + (x - self.center) @ self.vectors @ weights
        return found
