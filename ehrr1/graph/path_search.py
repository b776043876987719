"""Search for shortest paths whose relations follow a grammar.

A grammar is a finite automaton over the labels of the steps. The search is breadth first, from both
ends, over the nodes "concept number * number of states + state", so that every walk of the search
follows the grammar.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ehrr1.graph.relation_kinds import KINDS, RELATIONS

Numbers = NDArray[np.integer]

Transition = tuple[int, int, int]
"""A state, the label of a step, and the state after it."""


@dataclass(frozen=True)
class Grammar:
    """The sequences of labels that a path may have; a path begins in state 0.

    accepted: states in which a path may end. before_same: states that must be followed by a step
    between equal concepts.
    """

    states: int
    transitions: tuple[Transition, ...]
    accepted: tuple[int, ...]
    before_same: tuple[int, ...] = ()


UNUSABLE, SAME, CLASS, FACT, FACT_OF_MEMBERS = range(5)
"""Labels of steps; FACT_OF_MEMBERS may follow a step to a class, FACT may not."""

LABELS = 5
"""Number of labels."""

ANY_PATH = Grammar(1, ((0, FACT, 0),), (0,))
"""Every sequence of steps that are labelled FACT."""


def _sentence() -> Grammar:
    """Return the grammar of `ehrr1.graph.relation_kinds`.

    Each part of the sentence has three states, by its steps between equal concepts: none yet, the
    last of one or two done, the first of two done.
    """
    begin, class_, fact, class_of_object = parts = 0, 3, 6, 9
    same = [
        step
        for part in parts
        for step in ((part, SAME, part + 1), (part, SAME, part + 2), (part + 2, SAME, part + 1))
    ]
    others = [
        (begin, CLASS, class_),
        (class_, CLASS, class_),
        (begin, FACT, fact),
        (begin, FACT_OF_MEMBERS, fact),
        (class_, FACT_OF_MEMBERS, fact),
        (fact, CLASS, class_of_object),
    ]
    after_same = [(state + 1, label, target) for state, label, target in others]
    accepted = [state for part in parts for state in (part, part + 1)]
    before_same = [part + 2 for part in parts]
    return Grammar(12, (*same, *others, *after_same), tuple(accepted), tuple(before_same))


SENTENCE = _sentence()


def sentence_label(relation: str, inverse: bool) -> int:
    """Return the label of a step along a fact or, if `inverse`, against it.

    The label is UNUSABLE for relation types without a known meaning and for steps to narrower
    concepts.
    """
    if relation not in RELATIONS:
        return UNUSABLE
    name, backwards = RELATIONS[relation]
    kind, passive = KINDS[name], inverse != backwards
    if kind.step == "same":
        return SAME
    if kind.step == "class":
        return UNUSABLE if passive else CLASS
    return FACT if passive and not kind.passes_to_members else FACT_OF_MEMBERS


def is_sentence(steps: Iterable[tuple[str, bool]]) -> bool:
    """Return whether steps (relation, inverse) can be read as a sentence, from first to last."""
    states = {0}
    for step in steps:
        label = sentence_label(*step)
        states = {
            end for begin, way, end in SENTENCE.transitions if begin in states and way == label
        }
    return bool(states & set(SENTENCE.accepted))


class Limits(NamedTuple):
    """Concepts that a path does not pass through, as masks [concepts].

    blocked: at all; ambiguous: from one equal concept to another (None: no concept).
    """

    blocked: NDArray[np.bool_]
    ambiguous: NDArray[np.bool_] | None


class Edges:
    """The entries of all concepts, as the steps that a grammar allows."""

    def __init__(
        self, starts: Numbers, neighbours: Numbers, kinds: Numbers, labels: Numbers, rule: Grammar
    ):
        """Prepare the transitions.

        starts, neighbours, kinds: see `ehrr1.graph.knowledge`. labels [kinds]: the label of each
        kind of entry.
        """
        self._starts, self._neighbours, self._kinds = starts, neighbours, kinds
        self.states, self.accepted = rule.states, np.array(rule.accepted)
        self.before_same = np.isin(np.arange(rule.states), rule.before_same)
        self._labels = {False: labels, True: np.roll(labels, len(labels) // 2)}
        self._next = _targets(rule.transitions)
        before = _targets((end, label, begin) for begin, label, end in rule.transitions)
        self._tables = {
            False: _tables(self._next, rule.states),
            True: _tables(before, rule.states),
        }
        self._free = rule.states == 1 and bool((labels == FACT).all())

    def count(self, nodes: Numbers) -> int:
        """Return the number of entries that `around` reads for these nodes."""
        concepts = nodes // self.states
        return int((self._starts[concepts + 1] - self._starts[concepts]).sum())

    def around(self, nodes: Numbers, back: bool) -> Numbers:
        """Return the nodes one step ahead of these, or one step `back`, with repetitions."""
        concepts, states = np.divmod(nodes, self.states)
        begin = self._starts[concepts]
        size = self._starts[concepts + 1] - begin
        before = np.cumsum(size) - size
        entries = np.repeat(begin - before, size) + np.arange(size.sum())
        neighbours = self._neighbours[entries]
        if self._free:
            return neighbours
        labels = self._labels[back][self._kinds[entries]]
        usable = np.flatnonzero(labels)
        place = np.repeat(states, size)[usable] * LABELS + labels[usable]
        first = neighbours[usable].astype(np.int64) * self.states
        found = [table[place] for table in self._tables[back]]
        return np.concatenate([(first + other)[other >= 0] for other in found])

    def facts(self, tail: int, head: int) -> list[int]:
        """Return the kinds of the entries from one concept to another, smallest first."""
        begin, end = self._starts[tail], self._starts[tail + 1]
        low, high = np.searchsorted(self._neighbours[begin:end], [head, head + 1])
        return [int(kind) for kind in self._kinds[begin + low : begin + high]]

    def after(self, states: Iterable[int], kind: int) -> set[int]:
        """Return the states after a step of a kind from any of these states."""
        label = int(self._labels[False][kind])
        return {target for state in states for target in self._next.get((state, label), ())}


def _targets(transitions: Iterable[Transition]) -> dict[tuple[int, int], list[int]]:
    found: dict[tuple[int, int], list[int]] = defaultdict(list)
    for state, label, target in transitions:
        found[state, label].append(target)
    return dict(found)


def _tables(targets: dict[tuple[int, int], list[int]], states: int) -> list[Numbers]:
    """Return the targets as tables [states * labels]; -1 stands for no (further) target."""
    tables = np.full((max(map(len, targets.values())), states * LABELS), -1)
    for (state, label), found in targets.items():
        tables[: len(found), state * LABELS + label] = found
    return list(tables)


class _Side:
    """One side of the bidirectional search: the nodes around one end, level by level."""

    def __init__(self, edges: Edges, size: int, ends: Numbers, back: bool):
        self._edges, self.back = edges, back
        self.depth = np.zeros(size, np.int16)
        """The level of each node [size], from 1; 0 if not visited.

        Pages of the array use memory only once they are written.
        """
        self.levels: list[Numbers] = []
        self.append(ends)

    def append(self, level: Numbers) -> None:
        """Append the nodes found last as the next level."""
        self.levels.append(level)
        self.depth[level] = len(self.levels)
        self.cost = self._edges.count(level)


def shortest(
    edges: Edges, limits: Limits, start: int, end: int, max_hops: int
) -> list[tuple[int, int, int]] | None:
    """Return the steps (concept, kind of entry, next concept) of the smallest shortest path.

    It is None if no path of at most `max_hops` steps follows the grammar. Each round expands the
    side whose last level has fewer entries. The two sides meet in the level that holds all nodes at
    that position of the shortest paths.
    """
    size = len(limits.blocked) * edges.states
    forward = _Side(edges, size, np.array([start * edges.states]), back=False)
    backward = _Side(edges, size, end * edges.states + edges.accepted, back=True)
    for hops in range(1, max_hops + 1):
        near, far = (forward, backward) if forward.cost <= backward.cost else (backward, forward)
        reached = edges.around(near.levels[-1], near.back)
        met = reached[far.depth[reached] == len(far.levels)]
        if met.size:
            near.append(distinct(met))
            return _steps(edges, _smallest(edges, forward, backward, start))
        if hops == max_hops:
            break
        fresh = reached[near.depth[reached] == 0]
        near.append(distinct(fresh[_passable(edges, limits, fresh)]))
        if not near.cost:
            break
    return None


def _passable(edges: Edges, limits: Limits, nodes: Numbers) -> NDArray[np.bool_]:
    concepts, states = np.divmod(nodes, edges.states)
    passable = ~limits.blocked[concepts]
    if limits.ambiguous is not None:
        passable &= ~(edges.before_same[states] & limits.ambiguous[concepts])
    return passable


def _smallest(edges: Edges, forward: _Side, backward: _Side, start: int) -> list[Numbers]:
    """Return the nodes at each position of the path whose concepts are smallest.

    Nodes of the forward side that lead to no meeting point are excluded first. Every step to the
    next level then leads to the end, so that choosing the smallest concept at each step is correct.
    """
    wanted = np.intersect1d(forward.levels[-1], backward.levels[-1])
    on_path = [wanted]
    for level in range(len(forward.levels) - 1, 0, -1):
        around = edges.around(wanted, back=True)
        wanted = distinct(around[forward.depth[around] == level])
        on_path.insert(0, wanted)
    for level, nodes in enumerate(on_path, start=1):
        forward.depth[nodes] = -level
    path = [np.array([start * edges.states])]
    for level in range(2, len(forward.levels) + 1):
        path.append(_next(edges, path[-1], forward.depth, -level))
    for level in range(len(backward.levels) - 1, 0, -1):
        path.append(_next(edges, path[-1], backward.depth, level))
    return path


def _next(edges: Edges, nodes: Numbers, depth: NDArray[np.int16], level: int) -> Numbers:
    """Return the nodes of the smallest concept that is one step ahead, on a level."""
    around = edges.around(nodes, back=False)
    found = distinct(around[depth[around] == level])
    concepts = found // edges.states
    return found[concepts == concepts[0]]


def _steps(edges: Edges, path: list[Numbers]) -> list[tuple[int, int, int]]:
    """Return the first usable fact of each step of a path, given the nodes at each position."""
    concepts = [int(nodes[0]) // edges.states for nodes in path]
    states = [{int(node) % edges.states for node in nodes} for nodes in path]
    kinds = [edges.facts(tail, head) for tail, head in pairwise(concepts)]
    for place in range(len(kinds) - 1, -1, -1):  # keep the states that lead to the end
        states[place] = {
            state
            for state in states[place]
            if any(edges.after([state], kind) & states[place + 1] for kind in kinds[place])
        }
    steps, current = [], states[0]
    for place, (tail, head) in enumerate(pairwise(concepts)):
        options = ((kind, edges.after(current, kind) & states[place + 1]) for kind in kinds[place])
        kind, current = next((kind, reached) for kind, reached in options if reached)
        steps.append((tail, kind, head))
    return steps


def distinct(numbers: Numbers) -> Numbers:
    """Return the sorted distinct values, like `np.unique`, which takes up to 50 times as long."""
    ordered = np.sort(numbers)
    first = np.ones(len(ordered), bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return ordered[first]
