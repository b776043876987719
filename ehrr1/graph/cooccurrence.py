"""Count, as a stream, in how many patients a target item and a history concept occur together.

The default counting takes targets from answers and concepts from histories only, and a concept is a
name together with its kind and state. A patient has a pair if one of the patient's samples has the
target in its answer and the concept in its history. Samples of one patient are not independent, and
so count together as one.

In the counting of the release (`either`) the unit is the sample, a name is a single concept in all
tables, and n(t) and n(h) are the numbers of samples that have it in the answer or in the history.

Pairs are counted by sparse products of blocks of samples. The sums are kept in a sparse matrix or,
once an eighth of all cells is nonzero, in a dense one, whichever is smaller. Counts of disjoint
sets of patients can be merged, so that processes share the work.
"""

import json
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from ehrr1.damage import reading
from ehrr1.files import replacing
from ehrr1.graph.concepts import ANYWHERE, Concept

BLOCK = 2**25
"""Pairs counted by one sparse product: it limits the memory of a pass to about 300 MB."""

DENSE = 8
"""A joint count becomes dense once one in `DENSE` cells is nonzero.

Blocks are then four times as large, because no sparse product is needed and larger blocks touch
each target's row less often.
"""

SPAN = 2**18
"""Number of pairs counted at a time into a dense matrix, chosen to fit the processor's cache."""

DAMAGES = (BadZipFile, zlib.error, EOFError, ValueError, KeyError, OSError)
"""Errors that NumPy raises for a file of counts that is not whole."""

Joint: TypeAlias = sparse.csr_array | NDArray[np.int32]


@dataclass(frozen=True)
class Cooccurrence:
    """The co-occurrence counts of one task.

    units: N, the number of patients, or of samples with `either`. targets (T names) and history (H
    concepts) map a name to its index. n_target [T] and n_history [H]: number of units that have it.
    joint [T, H], sparse or dense: number of units that have both. With `either`, the history holds
    all names, including those of answers, as concepts of kind `ANYWHERE`, and n_target and
    n_history count the samples that have the name in the answer or in the history.
    """

    units: int
    targets: dict[str, int]
    history: dict[Concept, int]
    n_target: NDArray[np.int64]
    n_history: NDArray[np.int64]
    joint: Joint
    either: bool = False

    def column(self, concept: Concept) -> int | None:
        """Return the column of a history concept, or None if it was never counted."""
        return self.history.get(anywhere(concept.name) if self.either else concept)

    @cached_property
    def shown(self) -> NDArray[np.int64]:
        """Return the columns of the concepts that a record can show."""
        return np.array([at for one, at in self.history.items() if one.is_shown], dtype=np.int64)

    def support(self, target: str, concept: Concept) -> int:
        """Return n(t, h), the number of units with both, or 0 if either was never counted."""
        column = self.column(concept)
        if target not in self.targets or column is None:
            return 0
        return int(self.row(self.targets[target])[column])

    def lift(self, target: str, concept: Concept) -> float:
        """Return n(t, h) * N / (n(t) * n(h)), or nan if either was never counted."""
        column = self.column(concept)
        if target not in self.targets or column is None:
            return np.nan
        alone = int(self.n_target[self.targets[target]]) * int(self.n_history[column])
        return self.support(target, concept) * self.units / alone

    def row(self, target: int) -> NDArray[np.int32]:
        """Return the joint counts of one target [H]."""
        if isinstance(self.joint, np.ndarray):
            return self.joint[target]
        dense = np.zeros(len(self.history), dtype=np.int32)
        span = slice(self.joint.indptr[target], self.joint.indptr[target + 1])
        dense[self.joint.indices[span]] = self.joint.data[span]
        return dense

    def block(self, columns: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the joint counts of all targets with some history concepts [T, columns]."""
        if isinstance(self.joint, np.ndarray):
            return self.joint[:, columns].astype(np.int64)
        return self._by_column[:, columns].toarray().astype(np.int64)

    @cached_property
    def _by_column(self) -> sparse.csc_array:
        return sparse.csc_array(self.joint)

    def save(self, path: Path) -> None:
        """Write the counts atomically to one .npz file."""
        names = {"targets": list(self.targets), "history": list(self.history)}
        arrays: dict[str, Any] = {
            "names": np.frombuffer(json.dumps(names).encode(), dtype=np.uint8),
            "units": np.array(self.units),
            "n_target": self.n_target,
            "n_history": self.n_history,
            "either": np.array(self.either),
        }
        if isinstance(self.joint, np.ndarray):
            arrays["dense"] = self.joint
        else:
            arrays |= {name: getattr(self.joint, name) for name in ("data", "indices", "indptr")}
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path: Path) -> "Cooccurrence":
        """Read counts written by `save`. Raises DamagedError for a file that is not whole."""
        remedy = f"delete the folder {path.parent} and repeat the command"
        with reading(path, *DAMAGES, remedy=remedy):
            with np.load(path, allow_pickle=False) as file:
                arrays = dict(file)
            names = json.loads(arrays["names"].tobytes())
        shape = (len(names["targets"]), len(names["history"]))
        joint = arrays.get("dense")
        if joint is None:
            parts = (arrays["data"], arrays["indices"], arrays["indptr"])
            joint = sparse.csr_array(parts, shape=shape)
        return cls(
            units=int(arrays["units"]),
            targets={name: column for column, name in enumerate(names["targets"])},
            history={Concept(*name): column for column, name in enumerate(names["history"])},
            n_target=arrays["n_target"],
            n_history=arrays["n_history"],
            joint=joint,
            either=bool(arrays["either"]),
        )


def anywhere(name: str) -> Concept:
    """Return a name as the single concept that it is in all tables."""
    return Concept(ANYWHERE, name)


class CooccurrenceCounter:
    """A counter of the patients of a stream, or of its samples.

    Its memory grows with the vocabulary, not with the number of patients. `either` selects the
    counting of the release (see `Cooccurrence`).
    """

    def __init__(self, either: bool = False) -> None:
        self.either = either
        self._targets: dict[str, int] = _vocabulary()
        self._history: dict[Concept, int] = _vocabulary()
        self._blocks = (_Block(), _Block())
        self._alone = _Block()
        self._pairs = 0
        self._joint: Joint = sparse.csr_array((0, 0), dtype=np.int32)
        self._n_target = np.zeros(0, dtype=np.int64)
        self._n_history = np.zeros(0, dtype=np.int64)
        self._units = 0

    def add(self, targets: Iterable[str], history: Iterable[Concept]) -> None:
        """Count one sample as a unit; a name that occurs several times in it counts once."""
        targets, history = list(targets), list(history)
        if self.either:
            history = [anywhere(concept.name) for concept in history]
        alone = [*history, *map(anywhere, targets)] if self.either else history
        self._alone.add(_codes(alone, self._history))
        self._add_pairs(_codes(targets, self._targets), _codes(history, self._history))
        self._flush_if_full()

    def add_patient(self, samples: Sequence[tuple[Iterable[str], Iterable[Concept]]]) -> None:
        """Count all samples of a patient, each an answer and a history, as one unit.

        Targets that the same samples have are counted together, with the concepts that any of these
        samples shows. Each target is thus in one block row, and the sums of rows are numbers of
        patients.
        """
        histories = [_codes(history, self._history) for _, history in samples]
        holders: dict[int, tuple[int, ...]] = {}
        for number, (targets, _) in enumerate(samples):
            for target in _codes(targets, self._targets):
                holders[target] = (*holders.get(target, ()), number)
        together: dict[tuple[int, ...], set[int]] = {}
        for target, numbers in holders.items():
            together.setdefault(numbers, set()).add(target)
        for numbers, some in together.items():
            self._add_pairs(some, set().union(*(histories[number] for number in numbers)))
        self._alone.add(set().union(*histories))
        self._flush_if_full()

    def _add_pairs(self, targets: set[int], history: set[int]) -> None:
        first, second = self._blocks
        first.add(targets)
        second.add(history)
        self._pairs += len(targets) * len(history)

    def _flush_if_full(self) -> None:
        if self._pairs >= (4 * BLOCK if isinstance(self._joint, np.ndarray) else BLOCK):
            self._flush()

    def merge(self, counts: Cooccurrence) -> None:
        """Add the counts of other patients."""
        self._flush()
        rows = _columns(self._targets, counts.targets)
        columns = _columns(self._history, counts.history)
        pairs = sparse.coo_array(counts.joint)
        shape = (len(self._targets), len(self._history))
        moved = (pairs.data, (rows[pairs.coords[0]], columns[pairs.coords[1]]))
        self._add_joint(sparse.csr_array(moved, shape=shape, dtype=np.int32))
        self._n_target = _grown(self._n_target, shape[0])
        self._n_history = _grown(self._n_history, shape[1])
        self._n_target[rows] += counts.n_target  # with `either`, `result` recomputes n_target
        self._n_history[columns] += counts.n_history
        self._units += counts.units

    def result(self) -> Cooccurrence:
        """Return the counts of all units added so far."""
        self._flush()
        shape = (len(self._targets), len(self._history))
        joint = self._joint
        n_target = self._n_target
        if self.either:
            n_target = self._n_history[_columns(self._history, map(anywhere, self._targets))]
        return Cooccurrence(
            units=self._units,
            targets=dict(self._targets),
            history=dict(self._history),
            n_target=n_target,
            n_history=self._n_history,
            joint=joint[: shape[0], : shape[1]] if isinstance(joint, np.ndarray) else joint,
            either=self.either,
        )

    def _flush(self) -> None:
        targets = self._blocks[0].matrix(len(self._targets))
        history = self._blocks[1].matrix(len(self._history))
        alone = self._alone.matrix(len(self._history))
        if isinstance(self._joint, np.ndarray):
            self._joint = _with_room(self._joint, (len(self._targets), len(self._history)))
            _count(self._joint, sparse.csr_array(targets.T), history)
        else:
            self._add_joint(sparse.csr_array(targets.T) @ history)
        self._n_target = _grown(self._n_target, len(self._targets)) + targets.sum(axis=0)
        self._n_history = _grown(self._n_history, len(self._history)) + alone.sum(axis=0)
        self._units += alone.shape[0]
        self._blocks, self._alone, self._pairs = (_Block(), _Block()), _Block(), 0

    def _add_joint(self, more: sparse.csr_array) -> None:
        """Add joint counts whose shape is that of the current vocabulary."""
        if isinstance(self._joint, np.ndarray):
            self._joint = _with_room(self._joint, more.shape)
            _scatter(self._joint, more)
            return
        self._joint.resize(more.shape)
        total = sparse.csr_array(self._joint + more)
        if total.nnz * DENSE > more.shape[0] * more.shape[1]:
            self._joint = _with_room(np.zeros((0, 0), dtype=np.int32), more.shape)
            _scatter(self._joint, total)
        else:
            self._joint = total


class _Block:
    """A block of rows, each a set of distinct column indices."""

    def __init__(self) -> None:
        self.columns: list[int] = []
        self.ends = [0]

    def add(self, codes: set[int]) -> None:
        """Append one row."""
        self.columns.extend(codes)
        self.ends.append(len(self.columns))

    def matrix(self, columns: int) -> sparse.csr_array:
        """Return the block as a 0/1 matrix [rows, columns]."""
        indices, indptr = (np.array(some, dtype=np.int32) for some in (self.columns, self.ends))
        ones = np.ones(len(indices), dtype=np.int32)
        return sparse.csr_array((ones, indices, indptr), shape=(len(indptr) - 1, columns))


def _vocabulary() -> dict[Any, int]:
    """Return a dictionary that assigns the next column index to each new name."""
    columns: defaultdict[Any, int] = defaultdict()
    columns.default_factory = columns.__len__
    return columns


def _codes(names: Iterable[Any], vocabulary: dict[Any, int]) -> set[int]:
    """Return the column indices of names, without a Python loop."""
    return set(map(vocabulary.__getitem__, names))


def _columns(vocabulary: dict[Any, int], names: Iterable[Any]) -> NDArray[np.int32]:
    return np.array([vocabulary[name] for name in names], dtype=np.int32)


def _count(joint: NDArray[np.int32], samples: sparse.csr_array, history: sparse.csr_array) -> None:
    """Add `samples` @ `history` to `joint` in place.

    samples [T, S] marks the samples of each target; history [S, H] marks the concepts of each
    sample. Where nearly every pair occurs, this takes a third of the time of a sparse product: the
    history columns of all samples of a target are concatenated and counted with one `bincount`.
    """
    lengths = np.diff(history.indptr)[samples.indices]
    ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])[samples.indptr]
    for first, last in _spans(ends, SPAN):
        some = slice(samples.indptr[first], samples.indptr[last])
        skipped = history.indptr[samples.indices[some]] - (np.cumsum(lengths[some]) - lengths[some])
        places = np.repeat(skipped, lengths[some]) + np.arange(ends[last] - ends[first])
        columns = history.indices[places]
        for row, (begin, end) in enumerate(pairwise(ends[first : last + 1] - ends[first]), first):
            if end > begin:
                found = np.bincount(columns[begin:end], minlength=history.shape[1])
                joint[row, : history.shape[1]] += found


def _spans(ends: NDArray[np.int64], size: int) -> Iterator[tuple[int, int]]:
    """Yield ranges (first, last) of rows with about `size` entries and at least one row each.

    ends [rows + 1]: the entries of row i are ends[i]:ends[i + 1].
    """
    first = 0
    while first < len(ends) - 1:
        last = int(np.searchsorted(ends, ends[first] + size, side="right")) - 1
        last = max(last, first + 1)
        yield first, last
        first = last


def _scatter(joint: NDArray[np.int32], more: sparse.csr_array) -> None:
    """Add the sparse counts `more` to the dense `joint` in place.

    It works row by row, so that a row of the dense matrix stays in the processor's cache.
    """
    for row, (first, last) in enumerate(pairwise(more.indptr)):
        if last > first:
            joint[row, more.indices[first:last]] += more.data[first:last]


def _with_room(joint: NDArray[np.int32], shape: tuple[int, int]) -> NDArray[np.int32]:
    """Return `joint` with at least the given shape.

    A matrix that is too small is copied to a larger one with spare rows and columns, which saves
    copies as the vocabulary grows. Spare cells are never touched and so use no physical memory.
    """
    if joint.shape[0] >= shape[0] and joint.shape[1] >= shape[1]:
        return joint
    larger = np.zeros((2 * shape[0], shape[1] + shape[1] // 4), dtype=np.int32)
    larger[: joint.shape[0], : joint.shape[1]] = joint
    return larger


def _grown(counts: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    return np.concatenate([counts, np.zeros(size - len(counts), dtype=np.int64)])
