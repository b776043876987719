"""Ridge regressions of many targets on the same features, by sums over samples.

Sums can be added and subtracted, so that a regression on all samples but some costs no second look
at the others (cross-fitting).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

Floats: TypeAlias = NDArray[np.float64]


def hits_of(answers: Sequence[Collection[str]], items: Sequence[str]) -> Floats:
    """Return whether each answer has each item, as 1 and 0 [answers, items]: targets to regress."""
    places = {item: place for place, item in enumerate(items)}
    hits = np.zeros((len(answers), len(items)))
    for row, answer in enumerate(answers):
        hits[row, [places[item] for item in answer if item in places]] = 1
    return hits


@dataclass(frozen=True)
class Fit:
    """The regressions of T targets on F features: center [F], share [T], weights [F, T]."""

    center: Floats
    share: Floats
    weights: Floats

    def scores(self, x: Floats) -> Floats:
        """Return the expected targets [samples, T] of features x [samples, F]."""
        found: Floats = self.share + (x - self.center) @ self.weights
        return found


@dataclass(frozen=True)
class Sums:
    """Sums over samples: their number, features [F], targets [T], products [F, F] and [F, T]."""

    size: int
    x: Floats
    y: Floats
    xx: Floats
    xy: Floats

    @classmethod
    def of(cls, x: Floats, y: Floats) -> "Sums":
        """Return the sums of features x [samples, F] and targets y [samples, T]."""
        return cls(len(x), x.sum(axis=0), y.sum(axis=0), x.T @ x, x.T @ y)

    def without(self, some: "Sums") -> "Sums":
        """Return the sums over all samples but `some`."""
        return Sums(
            self.size - some.size,
            self.x - some.x,
            self.y - some.y,
            self.xx - some.xx,
            self.xy - some.xy,
        )

    def fit(self, penalty: float) -> Fit:
        """Return the regressions; `penalty` is a multiple of the number of samples, above 0.

        Features should have means near 0 (standardise them first): the sums lose the digits that
        large means take.
        """
        center, share = self.x / self.size, self.y / self.size
        scatter = self.xx - self.size * np.outer(center, center)
        scatter[np.diag_indices_from(scatter)] += penalty * self.size
        targets = self.xy - self.size * np.outer(center, share)
        return Fit(center, share, cho_solve(cho_factor(scatter), targets))
