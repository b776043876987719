"""How often target items and history concepts stand in the same sample, as sparse counts."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from ehrr1.graph.concepts import Concept

CHUNK = 4096
"""Samples whose pairs are counted by one sparse product: bounds the memory of a pass."""


class Association(NamedTuple):
    """A history concept that goes with a target: joint samples (support) and lift."""

    concept: Concept
    support: int
    lift: float


@dataclass(frozen=True, slots=True)
class EvidenceRule:
    """When a history concept h is evidence for a target t.

    n(h) >= min_count, n(t, h) >= min_support, lift(t, h) > min_lift, and among the `top` highest
    lifts of the target. EHR-R1 uses 5, 1, 5 and 20; a support of 1 can be the sample itself.
    """

    min_count: int
    min_support: int
    min_lift: float
    top: int


@dataclass(frozen=True)
class Cooccurrence:
    """The counts of one task.

    targets, history: name -> column; n_target [T], n_history [H]: samples that have it;
    joint [T, H] sparse: samples that have both; samples: N.
    """

    samples: int
    targets: dict[str, int]
    history: dict[Concept, int]
    n_target: NDArray[np.int64]
    n_history: NDArray[np.int64]
    joint: sparse.csr_array

    def support(self, target: str, concept: Concept) -> int:
        """n(t, h): samples with both; 0 for names that were never counted."""
        if target not in self.targets or concept not in self.history:
            return 0
        return int(self.joint[self.targets[target], self.history[concept]])

    def lift(self, target: str, concept: Concept) -> float:
        """n(t, h) * N / (n(t) * n(h)); nan for names that were never counted."""
        if target not in self.targets or concept not in self.history:
            return math.nan
        alone = self.n_target[self.targets[target]] * self.n_history[self.history[concept]]
        return self.support(target, concept) * self.samples / float(alone)

    def associated(
        self, target: str, concepts: Iterable[Concept], rule: EvidenceRule
    ) -> list[Association]:
        """Those of `concepts` that are evidence for `target`, highest lift first.

        Ties go to the larger support, then to the name, so that the same counts always give the
        same evidence. Empty for a target that no training sample has.
        """
        if target not in self.targets:
            return []
        row = self.targets[target]
        known = [concept for concept in concepts if concept in self.history]
        columns = np.array([self.history[concept] for concept in known], dtype=np.int64)
        joint = _dense_row(self.joint, row)[columns]
        n_history = self.n_history[columns]
        lift = joint * self.samples / (float(self.n_target[row]) * n_history)
        enough = (n_history >= rule.min_count) & (joint >= rule.min_support)
        found = [
            Association(known[i], int(joint[i]), float(lift[i]))
            for i in np.flatnonzero(enough & (lift > rule.min_lift))
        ]
        return sorted(found, key=lambda a: (-a.lift, -a.support, a.concept))[: rule.top]


class CooccurrenceCounter:
    """Counts samples as they stream by; memory grows with the vocabulary, not with the samples."""

    def __init__(self) -> None:
        self._targets: dict[str, int] = {}
        self._history: dict[Concept, int] = {}
        self._pending: list[tuple[list[int], list[int]]] = []
        self._joint = sparse.csr_array((0, 0), dtype=np.int64)
        self._n_target = np.zeros(0, dtype=np.int64)
        self._n_history = np.zeros(0, dtype=np.int64)
        self._samples = 0

    def add(self, targets: Iterable[str], history: Iterable[Concept]) -> None:
        """Count one sample; a name that stands in it several times counts once."""
        self._pending.append((_columns(targets, self._targets), _columns(history, self._history)))
        if len(self._pending) == CHUNK:
            self._flush()

    def result(self) -> Cooccurrence:
        """The counts over everything added so far."""
        self._flush()
        return Cooccurrence(
            samples=self._samples,
            targets=dict(self._targets),
            history=dict(self._history),
            n_target=self._n_target,
            n_history=self._n_history,
            joint=self._joint,
        )

    def _flush(self) -> None:
        targets = _indicator([pair[0] for pair in self._pending], len(self._targets))
        history = _indicator([pair[1] for pair in self._pending], len(self._history))
        self._joint.resize((len(self._targets), len(self._history)))
        self._joint = sparse.csr_array(self._joint + targets.T @ history)
        self._n_target = _grown(self._n_target, len(self._targets)) + targets.sum(axis=0)
        self._n_history = _grown(self._n_history, len(self._history)) + history.sum(axis=0)
        self._samples += len(self._pending)
        self._pending = []


def _columns(names: Iterable, vocabulary: dict) -> list[int]:
    return [vocabulary.setdefault(name, len(vocabulary)) for name in dict.fromkeys(names)]


def _indicator(rows: Sequence[Sequence[int]], columns: int) -> sparse.csr_array:
    """Rows of distinct column numbers -> 0/1 matrix [rows, columns]."""
    indptr = np.cumsum([0] + [len(row) for row in rows])
    indices = np.fromiter((column for row in rows for column in row), np.int64, int(indptr[-1]))
    ones = np.ones(len(indices), dtype=np.int64)
    return sparse.csr_array((ones, indices, indptr), shape=(len(rows), columns))


def _grown(counts: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    return np.concatenate([counts, np.zeros(size - len(counts), dtype=np.int64)])


def _dense_row(matrix: sparse.csr_array, row: int) -> NDArray[np.int64]:
    dense = np.zeros(matrix.shape[1], dtype=np.int64)
    span = slice(matrix.indptr[row], matrix.indptr[row + 1])
    dense[matrix.indices[span]] = matrix.data[span]
    return dense
