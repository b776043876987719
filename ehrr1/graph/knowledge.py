"""The knowledge base: concepts and the relations between them, searched for shortest paths.

It is a folder of arrays (`ehrr1.graph.knowledge_build` writes it) that are mapped into memory: it
opens at once whatever its size, processes share its pages, and a search reads only what it visits.

    concepts.arrow   concept_id, name, semantic_type; sorted by concept_id, one record batch
    starts.npy       [concepts + 1] where the entries of each concept begin
    neighbours.npy   [entries] numbers of the neighbouring concepts
    kinds.npy        [entries] which fact: pair, or pair + pairs where the fact runs backwards
    degrees.npy      [concepts] how many different neighbours each concept has
    meta.json        format, pairs ([relation, source], sorted), counts

A concept's number is its place among the sorted ids. Each fact has two entries, one at either of
its concepts. The entries of a concept are sorted by neighbour, then by kind: first facts that run
with the entry, then by relation and source.
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

    `inverse`: the fact runs against the step: it says "head relation tail", not "tail relation
    head".
    """

    tail: str
    relation: str
    head: str
    source: str
    inverse: bool


@dataclass(frozen=True, slots=True)
class PathRule:
    """Which paths count."""

    max_hops: int
    """Relations on a path, at most."""
    max_degree: int
    """A concept with more different neighbours, by relations of any kind, is not passed through;
    a path may start or end there."""
    relations: tuple[str, ...] | None
    """Relation types that a path may use, in either direction; None: all."""


class Knowledge:
    """A knowledge base, opened from its folder."""

    def __init__(self, folder: Path):
        """Map the folder; UserError where it is none or of another version."""
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
        """The preferred name; KeyError for an unknown concept."""
        number = self._number(concept_id)
        if number is None:
            raise KeyError(concept_id)
        return self._names[number].as_py()

    def path(self, start: str, end: str, rule: PathRule) -> list[Hop] | None:
        """A shortest path; [] where start is end, None where there is none or an id is unknown.

        Of several shortest paths it is the one whose sequence of concept ids, from start to end,
        is smallest; of several facts between two concepts the first that runs along the path,
        then by relation and source. It depends on nothing else.
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
        """The place of an id among the sorted ids, by bisection; None where it is not there."""
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
        """Whether each kind may be used, [2 * pairs]; None: all."""
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
        """The step between two neighbours, by the first fact that may be used."""
        inverse, pair = divmod(edges.first_kind(tail, head), len(self._pairs))
        relation, source = self._pairs[pair]
        names = self._ids[tail].as_py(), self._ids[head].as_py()
        return Hop(names[0], relation, names[1], source, bool(inverse))


@dataclass(frozen=True, slots=True)
class _Edges:
    """The entries of the concepts, and which kinds may be used."""

    starts: Numbers
    neighbours: Numbers
    kinds: Numbers
    allowed: NDArray[np.bool_] | None

    def count(self, nodes: Numbers) -> int:
        """How many entries `around` has to read."""
        return int((self.starts[nodes + 1] - self.starts[nodes]).sum())

    def around(self, nodes: Numbers) -> Numbers:
        """The neighbours of all nodes, one after the other, with repetitions."""
        begin = self.starts[nodes]
        size = self.starts[nodes + 1] - begin
        before = np.cumsum(size) - size
        entries = np.repeat(begin - before, size) + np.arange(size.sum())
        if self.allowed is not None:
            entries = entries[self.allowed[self.kinds[entries]]]
        return self.neighbours[entries]

    def first_kind(self, tail: int, head: int) -> int:
        """The smallest kind that may be used between two neighbours."""
        begin, end = self.starts[tail], self.starts[tail + 1]
        low, high = np.searchsorted(self.neighbours[begin:end], [head, head + 1])
        kinds = self.kinds[begin + low : begin + high]
        return int(kinds[0] if self.allowed is None else kinds[self.allowed[kinds]][0])


class _Side:
    """One side of the search: the concepts around an end, level by level."""

    def __init__(self, edges: _Edges, concepts: int, end: int):
        self._edges = edges
        self.depth = np.zeros(concepts, np.int16)
        """The level of each concept, from 1; 0: not seen. Memory is taken where it is touched."""
        self.levels: list[Numbers] = []
        self.append(np.array([end]))

    def append(self, level: Numbers) -> None:
        """Add what was found as the next level."""
        self.levels.append(level)
        self.depth[level] = len(self.levels)
        self.cost = self._edges.count(level)


def _shortest(
    edges: _Edges, degrees: Numbers, start: int, end: int, rule: PathRule
) -> list[int] | None:
    """The numbers along the smallest shortest path, start and end included; None: no path.

    Breadth first from both ends; each round expands the side whose last level has fewer entries.
    The sides meet in a level of all concepts half-way of some shortest path.
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
    """The smallest path, once the last levels of both sides hold the concepts where they meet.

    Concepts of the forward side from which no meeting point is reached are taken out first; then
    every step to the next level leads to the end, and the smallest neighbour is right.
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
    """Sorted, without repetitions: `np.unique`, which takes up to 50 times as long."""
    ordered = np.sort(numbers)
    first = np.ones(len(ordered), bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return ordered[first]


def _next(edges: _Edges, node: int, depth: Numbers, level: int) -> int:
    """The smallest neighbour on a level."""
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
    """An array that is read where it lies on disk (a plain array: a memmap's slices are slow)."""
    return np.asarray(np.load(path, mmap_mode="r"))


def _mapped_batch(path: Path) -> pa.RecordBatch:
    return pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
