"""The thinking graph of one sample: which events speak for which answers."""

from collections.abc import Sequence
from typing import Any

import networkx as nx

from ehrr1.graph.concepts import Concept, occurrences
from ehrr1.graph.cooccurrence import Cooccurrence, EvidenceRule
from ehrr1.records.events import Event
from ehrr1.records.schema import TABLES

MAX_OCCURRENCES = 2
"""Latest events that a concept is linked to; a heart rate stands in every hour of a record."""


def evidence_graph(
    context: Sequence[Event], target: Sequence[str], counts: Cooccurrence, rule: EvidenceRule
) -> nx.DiGraph:
    """Link the answers of a sample to what its context shows.

    Nodes have `kind` ("event", "concept" or "answer") and `label` (heading and time, name, item);
    concept nodes also `table`. Edges have `kind`: "occurrence" (concept -> event, with `time`,
    ISO 8601 or None) and "cooccurrence" (concept -> answer, with `support` and `lift`). Every
    answer has a node, with or without evidence; only concepts that are evidence have one.
    Deterministic: the same input gives the same graph in the same order.
    """
    seen: dict[Concept, list[int]] = {}
    for occurrence in occurrences(context):
        seen.setdefault(occurrence.concept, []).append(occurrence.event)
    graph = nx.DiGraph()
    for item in dict.fromkeys(target):
        answer = f"answer:{item}"
        graph.add_node(answer, kind="answer", label=item)
        for concept, support, lift in counts.associated(item, seen, rule):
            node = _add_concept(graph, concept, seen[concept][-MAX_OCCURRENCES:], context)
            graph.add_edge(node, answer, kind="cooccurrence", support=support, lift=round(lift, 4))
    return graph


def answers(graph: nx.DiGraph) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """Each answer item with its evidence: (concept node, edge data), highest lift first."""
    return {
        data["label"]: sorted(
            ((source, edge) for source, _, edge in graph.in_edges(node, data=True)),
            key=lambda pair: (-pair[1]["lift"], -pair[1]["support"], pair[0]),
        )
        for node, data in graph.nodes(data=True)
        if data["kind"] == "answer"
    }


def covered(graph: nx.DiGraph) -> float:
    """The share of answer items that have evidence; 0 for a sample without answers."""
    found = answers(graph)
    return sum(bool(evidence) for evidence in found.values()) / max(len(found), 1)


def to_json(graph: nx.DiGraph) -> dict[str, Any]:
    """networkx node-link data, the `graph` of a line of graphs.jsonl."""
    return nx.node_link_data(graph, edges="edges")


def from_json(data: dict[str, Any]) -> nx.DiGraph:
    """The inverse of `to_json`."""
    return nx.node_link_graph(data, edges="edges")


def _add_concept(
    graph: nx.DiGraph, concept: Concept, positions: Sequence[int], context: Sequence[Event]
) -> str:
    """Add a concept with its latest events; returns its node."""
    node = f"concept:{concept.kind}:{concept.name}"
    if node in graph:
        return node
    graph.add_node(node, kind="concept", label=concept.name, table=concept.kind)
    for position in positions:
        event, place = context[position], f"event:{position}"
        time = event.time.isoformat() if event.time else None
        if place not in graph:
            label = f"{TABLES[event.table].heading} [{event.time}]"
            graph.add_node(place, kind="event", label=label)
        graph.add_edge(node, place, kind="occurrence", time=time)
    return node
