"""Search a knowledge base of concepts and relations for shortest paths.

The knowledge base is a folder of memory-mapped arrays, written by `ehrr1.graph.knowledge_build`. It
opens at once whatever its size, processes share its pages, and a search reads only the entries that
it visits.

    concepts.arrow   concept_id, name, semantic_type; sorted by concept_id, one record batch
    starts.npy       [concepts + 1] index of the first entry of each concept
    neighbours.npy   [entries] number of the neighbouring concept
    kinds.npy        [entries] fact: pair, or pair + number of pairs if the fact runs backwards
    degrees.npy      [concepts] number of distinct neighbours of each concept
    meta.json        format, pairs ([relation, source], sorted), counts

A concept's number is its position among the sorted ids. Each fact has two entries, one at each of
its concepts. The entries of a concept are sorted by neighbour, then by kind: facts in the direction
of the entry come first, then the order is by relation and source.
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ehrr1.errors import UserError
from ehrr1.files import read_json

FORMAT = 1
"""Version of the folder's layout."""

Numbers = NDArray[np.integer]


class Hop(NamedTuple):
    """One step of a path, from the concept `tail` to the concept `head`.

    inverse: True if the fact runs against the step, that is, it reads "head relation tail" and not
    "tail relation head".
    """

    tail: str
    relation: str
    head: str
    source: str
    inverse: bool


@dataclass(frozen=True, slots=True)
class PathRule:
    """The paths that a search may return."""

    max_hops: int
    """Maximum number of relations on a path."""
    max_degree: int
    """Maximum number of distinct neighbours, by any relation, of an inner concept of a path.

    The two ends of a path may have more.
    """
    relations: tuple[str, ...] | None
    """Relation types that a path may use, in either direction; None for all."""


class Knowledge:
    """A knowledge base, opened from its folder."""

    def __init__(self, folder: Path):
        """Map the folder into memory.

        Raises UserError if the folder holds no knowledge base or one of another format version.
        """
        meta = _read_meta(folder)
        concepts = _mapped_batch(folder / "concepts.arrow")
        self._ids, self._names = concepts.column("concept_id"), concepts.column("name")
        self._starts = _mapped(folder / "starts.npy")
        self._neighbours = _mapped(folder / "neighbours.npy")
        self._kinds = _mapped(folder / "kinds.npy")
        self._degrees = _mapped(folder / "degrees.npy")
        self._pairs: list[tuple[str, str]] = [tuple(pair) for pair in meta["pairs"]]
        self._allowed: dict[tuple[str, ...] | None, NDArray[np.bool_] | None] = {None: None}

    def __contains__(self, concept_id: str) -> bool:
        return self._number(concept_id) is not None

    def name(self, concept_id: str) -> str:
        """Return the preferred name of a concept; raises KeyError for an unknown id."""
        number = self._number(concept_id)
        if number is None:
            raise KeyError(concept_id)
        return self._names[number].as_py()

    def path(self, start: str, end: str, rule: PathRule) -> list[Hop] | None:
        """Return a shortest path between two concepts.

        The path is [] if start is end, and None if no path exists or an id is unknown. Of several
        shortest paths it is the one whose sequence of concept ids, from start to end, is smallest.
        Of several facts between two concepts it uses the first one: facts along the path come
        before inverse ones, then the order is by relation and source. The result depends on nothing
        else.

        Raises UserError if the rule names a relation that the knowledge base does not have.
        """
        first, last = self._number(start), self._number(end)
        if first is None or last is None:
            return None
        allowed = self._kinds_allowed(rule.relations)
        edges = _Edges(self._starts, self._neighbours, self._kinds, allowed)
        numbers = _shortest(edges, self._degrees, first, last, rule)
        if numbers is None:
            return None
        return [self._hop(edges, tail, head) for tail, head in pairwise(numbers)]

    def _number(self, concept_id: str) -> int | None:
        """Return the position of an id among the sorted ids, found by bisection, or None."""
        low, high = 0, len(self._ids)
        while low < high:
            middle = (low + high) // 2
            if self._ids[middle].as_py() < concept_id:
                low = middle + 1
            else:
                high = middle
        found = low < len(self._ids) and self._ids[low].as_py() == concept_id
        return low if found else None

    def _kinds_allowed(self, relations: tuple[str, ...] | None) -> NDArray[np.bool_] | None:
        """Return a mask [2 * pairs] of the kinds that may be used, or None for all kinds."""
        if relations not in self._allowed:
            known = {relation for relation, _ in self._pairs}
            unknown = sorted(set(relations or ()) - known)
            if unknown:
                raise UserError(
                    f"graph.relations={list(relations or ())}: the knowledge base has no "
                    f"{', '.join(unknown)}; it has {', '.join(sorted(known))}"
                )
            usable = np.array([relation in (relations or ()) for relation, _ in self._pairs], bool)
            self._allowed[relations] = np.concatenate([usable, usable])
        return self._allowed[relations]

    def _hop(self, edges: "_Edges", tail: int, head: int) -> Hop:
        """Return the step between two neighbours by the first allowed fact."""
        inverse, pair = divmod(edges.first_kind(tail, head), len(self._pairs))
        relation, source = self._pairs[pair]
        names = self._ids[tail].as_py(), self._ids[head].as_py()
        return Hop(names[0], relation, names[1], source, bool(inverse))


@dataclass(frozen=True, slots=True)
class _Edges:
    """The entries of all concepts and the mask of allowed kinds."""

    starts: Numbers
    neighbours: Numbers
    kinds: Numbers
    allowed: NDArray[np.bool_] | None

    def count(self, nodes: Numbers) -> int:
        """Return the number of entries that `around` reads for these nodes."""
        return int((self.starts[nodes + 1] - self.starts[nodes]).sum())

    def around(self, nodes: Numbers) -> Numbers:
        """Return the concatenated neighbours of all nodes, with repetitions."""
        begin = self.starts[nodes]
        size = self.starts[nodes + 1] - begin
        before = np.cumsum(size) - size
        entries = np.repeat(begin - before, size) + np.arange(size.sum())
        if self.allowed is not None:
            entries = entries[self.allowed[self.kinds[entries]]]
        return self.neighbours[entries]

    def first_kind(self, tail: int, head: int) -> int:
        """Return the smallest allowed kind of fact between two neighbours."""
        begin, end = self.starts[tail], self.starts[tail + 1]
        low, high = np.searchsorted(self.neighbours[begin:end], [head, head + 1])
        kinds = self.kinds[begin + low : begin + high]
        return int(kinds[0] if self.allowed is None else kinds[self.allowed[kinds]][0])


class _Side:
    """One side of the bidirectional search: the concepts around one end, level by level."""

    def __init__(self, edges: _Edges, concepts: int, end: int):
        self._edges = edges
        self.depth = np.zeros(concepts, np.int16)
        """The level of each concept [concepts], from 1; 0 if not visited.

        Pages of the array use memory only once they are written.
        """
        self.levels: list[Numbers] = []
        self.append(np.array([end]))

    def append(self, level: Numbers) -> None:
        """Append the concepts found last as the next level."""
        self.levels.append(level)
        self.depth[level] = len(self.levels)
        self.cost = self._edges.count(level)


def _shortest(
    edges: _Edges, degrees: Numbers, start: int, end: int, rule: PathRule
) -> list[int] | None:
    """Return the numbers along the smallest shortest path, including both ends, or None.

    The search is breadth first from both ends. Each round expands the side whose last level has
    fewer entries. The two sides meet in the level that holds all concepts at that position of the
    shortest paths.
    """
    if start == end:
        return [start]
    forward, backward = (_Side(edges, len(degrees), node) for node in (start, end))
    for hops in range(1, rule.max_hops + 1):
        near, far = (forward, backward) if forward.cost <= backward.cost else (backward, forward)
        reached = edges.around(near.levels[-1])
        met = reached[far.depth[reached] == len(far.levels)]
        if met.size:
            near.append(distinct(met))
            return _smallest(edges, forward, backward, start)
        if hops == rule.max_hops:
            break
        fresh = reached[near.depth[reached] == 0]
        near.append(distinct(fresh[degrees[fresh] <= rule.max_degree]))
        if not near.cost:
            break
    return None


def _smallest(edges: _Edges, forward: _Side, backward: _Side, start: int) -> list[int]:
    """Return the smallest path once the last levels of both sides contain the meeting points.

    Concepts of the forward side that lead to no meeting point are excluded first. Every step to the
    next level then leads to the end, so that choosing the smallest neighbour at each step is
    correct.
    """
    wanted = np.intersect1d(forward.levels[-1], backward.levels[-1])
    on_path = [wanted]
    for level in range(len(forward.levels) - 1, 0, -1):
        around = edges.around(wanted)
        wanted = distinct(around[forward.depth[around] == level])
        on_path.insert(0, wanted)
    for level, nodes in enumerate(on_path, start=1):
        forward.depth[nodes] = -level
    path = [start]
    for level in range(2, len(forward.levels) + 1):
        path.append(_next(edges, path[-1], forward.depth, -level))
    for level in range(len(backward.levels) - 1, 0, -1):
        path.append(_next(edges, path[-1], backward.depth, level))
    return path


def distinct(numbers: Numbers) -> Numbers:
    """Return the sorted distinct values, like `np.unique`, which takes up to 50 times as long."""
    ordered = np.sort(numbers)
    first = np.ones(len(ordered), bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return ordered[first]


def _next(edges: _Edges, node: int, depth: Numbers, level: int) -> int:
    """Return the smallest neighbour of a node on a level."""
    around = edges.around(np.array([node]))
    return int(around[depth[around] == level].min())


def _read_meta(folder: Path) -> dict:
    path = folder / "meta.json"
    if not path.is_file():
        raise UserError(f"{folder} holds no knowledge base (no meta.json): build it again")
    meta = read_json(path)
    if meta["format"] != FORMAT:
        raise UserError(
            f"{folder} holds a knowledge base of format {meta['format']}, this version reads "
            f"{FORMAT}: remove the folder and build it again"
        )
    return meta


def _mapped(path: Path) -> Numbers:
    """Return an array that stays on disk and is read where it is accessed.

    It is a plain array view because slices of a `np.memmap` are slow.
    """
    return np.asarray(np.load(path, mmap_mode="r"))


def _mapped_batch(path: Path) -> pa.RecordBatch:
    return pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
