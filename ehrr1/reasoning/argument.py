"""Choose a reason for each answer of a thinking graph, so that a short chain explains them all."""

import math
from collections.abc import Collection, Container, Mapping, Set
from typing import Literal, NamedTuple

import networkx as nx
import numpy as np

from ehrr1.graph.associations import wilson
from ehrr1.graph.concepts import TOGETHER
from ehrr1.graph.evidence import EVIDENCE, ITEMS, answers, reasons, strength


class Step(NamedTuple):
    """One line of reasoning: the answers that it derives, and the nodes of the graph it rests on.

    kind: "again", with a node for each answer, its own item done before; "evidence", "routine" or
    "together", with one node, a concept, a care unit or another answer; "weighed", without a node,
    by all that the record shows.
    """

    kind: Literal["again", "evidence", "routine", "together", "weighed"]
    nodes: tuple[str, ...]
    answers: tuple[str, ...]


MOST_ROUTINE, MOST_EACH = 8, 6
"""Maximum number of items that are routine, and that one concept makes likely."""


def weigh(graph: nx.DiGraph, max_evidence: int) -> list[Step]:
    """Return the steps that name what the record makes likely (`graph.candidates`).

    They are the same whatever the answer is, so that a model can learn to write them.

    First what is routine, then what was done before (at most `max_evidence` items), then the items
    of the concepts that make most others likely, half as many concepts. Each line is a lookup: the
    same reason has the same items, named before or not. At last, if the graph has weighed all
    evidence together, the items that it calls for, the likeliest first.
    """
    found = {
        "routine": _by_reason(graph, {"routine"}),
        "again": _by_reason(graph, {"again", "repetition"}),
        "evidence": _by_reason(graph, EVIDENCE),
    }
    steps = [
        Step("routine", (node,), _likeliest(items, MOST_ROUTINE))
        for node, items in found["routine"].items()
    ]
    before: dict[str, tuple[float, str]] = {}
    for node, items in found["again"].items():
        for item, chance in items.items():
            before[item] = max(before.get(item, (0.0, "")), (chance, node))
    if before:
        chosen = _likeliest({item: chance for item, (chance, _) in before.items()}, max_evidence)
        steps.append(Step("again", tuple(before[item][1] for item in chosen), chosen))
    done = {item for step in steps for item in step.answers}
    for _ in range(max_evidence // 2):
        left = {
            node: sum(chance for item, chance in items.items() if item not in done)
            for node, items in found["evidence"].items()
        }
        best = max(sorted(left), key=left.__getitem__, default="")
        if not left.get(best):
            break
        steps.append(Step("evidence", (best,), _likeliest(found["evidence"][best], MOST_EACH)))
        done |= found["evidence"][best].keys()
    return [*steps, weighed(graph)] if steps and "likely" in graph.graph else steps


def weighed(graph: nx.DiGraph) -> Step:
    """Return the step that names what all evidence together calls for, the likeliest first."""
    return Step("weighed", (), tuple(graph.graph["likely"]))


def _by_reason(graph: nx.DiGraph, kinds: Container[str]) -> dict[str, dict[str, float]]:
    """Return the items of each reason of these kinds, with their probabilities' lower bounds."""
    found: dict[str, dict[str, float]] = {}
    likely = {*graph.graph["candidates"]}
    for item, edges in reasons(graph, kinds, ITEMS).items():
        for node, edge in edges if item in likely else ():
            trials = np.array([max(round(edge["support"] / edge["probability"]), 1)])
            chance = wilson(np.array([edge["support"]]), trials)
            found.setdefault(node, {})[item] = float(chance[0])
    return found


def _likeliest(items: Mapping[str, float], most: int) -> tuple[str, ...]:
    """Return the names of the `most` likeliest items, in alphabetical order."""
    return tuple(sorted(sorted(items, key=lambda item: (-items[item], item))[:most]))


def argue(graph: nx.DiGraph, max_evidence: int) -> list[Step]:
    """Return the steps that explain as many answers as possible, each answer once.

    Answers that were done before come first, the likeliest of them, then those with evidence; both
    cite the record, together at most `max_evidence` times. What is left may be routine, or come
    with an answer that is explained already.
    """
    steps = _repeated(graph, max_evidence)
    done = {item for step in steps for item in step.answers}
    room = max_evidence - sum(len(step.nodes) for step in steps)
    steps += choose_evidence(graph, room, done)
    done = {item for step in steps for item in step.answers}
    kinds: tuple[Literal["routine", "together"], ...] = ("routine", "together")
    for kind in kinds:
        while best := _broadest(graph, kind, done):
            steps.append(best)
            done |= {*best.answers}
    return steps


def _repeated(graph: nx.DiGraph, most: int) -> list[Step]:
    """Return the step of the answers whose own item was done before, or none."""
    found = {
        item: max((edge["probability"], node) for node, edge in edges)
        for item, edges in reasons(graph, {"repetition", "again"}).items()
        if edges
    }
    likeliest = sorted(found, key=lambda item: (-found[item][0], item))[:most]
    chosen = sorted(likeliest)
    nodes = tuple(found[item][1] for item in chosen)
    return [Step("again", nodes, tuple(chosen))] if chosen else []


def choose_evidence(graph: nx.DiGraph, most: int, done: Collection[str] = ()) -> list[Step]:
    """Choose few concepts that together support as many answers as possible (greedy set cover).

    Each round takes the concept whose strengths (`evidence.strength`) have the largest sum over the
    answers not yet covered (or `done`). Ties, as between counts of few patients, go to the largest
    sum of support * log(lift), then to the first by name.
    """
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for item, evidence in answers(graph).items():
        for node, edge in evidence if item not in done else ():
            weighted = edge["support"] * math.log(edge["lift"])
            found.setdefault(node, {})[item] = (strength(edge), weighted)
    steps: list[Step] = []
    while found and len(steps) < most:
        best = max(sorted(found), key=lambda node: _sums(found[node].values()))
        taken = sorted(found[best])
        steps.append(Step("evidence", (best,), tuple(taken)))
        left = {
            node: {item: weights for item, weights in items.items() if item not in taken}
            for node, items in found.items()
        }
        found = {node: items for node, items in left.items() if items}
    return steps


def _sums(weights: Collection[tuple[float, float]]) -> tuple[float, float]:
    return sum(first for first, _ in weights), sum(second for _, second in weights)


def _broadest(
    graph: nx.DiGraph, kind: Literal["routine", "together"], done: Set[str]
) -> Step | None:
    """Return the step by the reason of most answers that are not `done`, the first by name.

    An answer is a reason for another only once it is done.
    """
    found: dict[str, list[str]] = {}
    for item, edges in reasons(graph, {kind}).items():
        for node, _ in edges if item not in done else ():
            if kind != TOGETHER or graph.nodes[node]["label"] in done:
                found.setdefault(node, []).append(item)
    if not found:
        return None
    node = min(found, key=lambda node: (-len(found[node]), node))
    return Step(kind, (node,), tuple(sorted(found[node])))
