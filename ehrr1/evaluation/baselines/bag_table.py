"""Bags of many contexts as one sparse table, and dense matrices of their frequent features."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from ehrr1.evaluation.baselines.features import Bag
from ehrr1.tasks.samples import Sample

MIN_CONTEXTS = 10
"""Features that occur in fewer training contexts are dropped."""

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class BagTable:
    """The bags of many contexts: 8 bytes per feature of a bag, and each name once.

    Bags hold the same names again and again. As dictionaries, those of 100,000 long records would
    take several GB.
    """

    def __init__(self) -> None:
        self.ids: dict[tuple[bool, str], int] = {}  # (whether it is a number, name) -> id
        self._starts, self._ids, self._values = array("q", [0]), array("i"), array("f")
        self._order: tuple[Integers, int] = np.empty(0, np.int64), 0

    def add(self, bag: Bag) -> int:
        """Add a bag and return its row. Counts are stored as log(1 + count)."""
        for is_number, features in ((False, bag.counts), (True, bag.numbers)):
            for name in features:
                self._ids.append(self.ids.setdefault((is_number, name), len(self.ids)))
            values = np.fromiter(features.values(), np.float64, len(features))
            self._values.extend((values if is_number else np.log1p(values)).astype(np.float32))
        self._starts.append(len(self._ids))
        return len(self._starts) - 2

    def extend(self, other: "BagTable") -> int:
        """Append the bags of another table and return the row of its first one."""
        first, filled = len(self._starts) - 1, len(self._ids)
        ids = np.array([self.ids.setdefault(key, len(self.ids)) for key in other.ids], np.int32)
        own = np.frombuffer(other._ids, np.int32)
        self._ids.frombytes(ids[own].tobytes())
        self._values.extend(other._values)
        self._starts.frombytes((np.frombuffer(other._starts, np.int64)[1:] + filled).tobytes())
        return first

    def order(self) -> tuple[Integers, int]:
        """Return the place of each id in the order of names, and the place of the first number."""
        places, _ = self._order
        if len(places) != len(self.ids):
            places = np.empty(len(self.ids), np.int64)
            places[[self.ids[key] for key in sorted(self.ids)]] = np.arange(len(self.ids))
            self._order = places, sum(not is_number for is_number, _ in self.ids)
        return self._order

    def rows(self, rows: Sequence[int]) -> sparse.csr_array:
        """Return the features of some rows as a matrix [rows, ids]; zeros are stored as well."""
        starts = np.frombuffer(self._starts, np.int64)
        ids, values = np.frombuffer(self._ids, np.int32), np.frombuffer(self._values, np.float32)
        chosen = np.array(rows, dtype=np.int64)
        lengths = starts[chosen + 1] - starts[chosen]
        indptr = np.concatenate([[0], np.cumsum(lengths)])
        places = np.arange(indptr[-1]) + np.repeat(starts[chosen] - indptr[:-1], lengths)
        data = values[places].astype(np.float64)
        return sparse.csr_array((data, ids[places], indptr), shape=(len(rows), len(self.ids)))


@dataclass(frozen=True)
class Columns:
    """The features of a model: ids of counts, then of numbers."""

    counts: Integers
    numbers: Integers

    def __len__(self) -> int:
        return len(self.counts) + len(self.numbers)


@dataclass(frozen=True)
class Bags:
    """The bag of each sample: `rows` maps a sample_id to its row of the table."""

    table: BagTable
    rows: dict[str, int]

    def add(self, bag: Bag, samples: Sequence[str]) -> None:
        """Add the bag of some samples, given by their ids."""
        self.rows.update(dict.fromkeys(samples, self.table.add(bag)))

    def extend(self, other: "Bags") -> None:
        """Append the bags of other samples."""
        first = self.table.extend(other.table)
        self.rows.update({sample: first + row for sample, row in other.rows.items()})

    def columns(self, samples: Sequence[Sample], most: int) -> Columns:
        """Return the features that occur in the most of the samples' contexts.

        At most `most` counts and `most` numbers. Features in fewer than `MIN_CONTEXTS` contexts are
        dropped; of fewer than twice as many contexts, those in less than half of them.
        """
        rows = sorted({self.rows[sample.sample_id] for sample in samples})
        frequency = np.bincount(self.table.rows(rows).indices, minlength=len(self.table.ids))
        least = min(MIN_CONTEXTS, max(1, len(rows) // 2))  # few-shot sets have few contexts
        known, (places, first_number) = np.flatnonzero(frequency >= least), self.table.order()
        known = known[np.lexsort((places[known], -frequency[known]))]
        is_number = places[known] >= first_number
        return Columns(known[~is_number][:most], known[is_number][:most])

    def sparse_counts(self, samples: Sequence[Sample], columns: Columns) -> sparse.csr_array:
        """Return log(1 + count) [samples, counts]."""
        rows = self.table.rows([self.rows[sample.sample_id] for sample in samples])
        return sparse.csr_array(rows[:, columns.counts])

    def matrix(self, samples: Sequence[Sample], columns: Columns) -> Floats:
        """Return the features [samples, columns]: log(1 + count), then numbers, NaN if missing."""
        found = self.table.rows([self.rows[sample.sample_id] for sample in samples])
        place = np.full(len(self.table.ids), -1)
        place[np.concatenate([columns.counts, columns.numbers])] = np.arange(len(columns))
        values = np.zeros((len(samples), len(columns)))
        values[:, len(columns.counts) :] = np.nan
        row = np.repeat(np.arange(len(samples)), np.diff(found.indptr))
        column = place[found.indices]
        values[row[column >= 0], column[column >= 0]] = found.data[column >= 0]
        return values
