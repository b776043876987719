"""The thinking graph of one sample: which events speak for which answers."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import networkx as nx
import numpy as np

from ehrr1.graph.associations import Association
from ehrr1.graph.concepts import Concept, Occurrence, heading
from ehrr1.records.events import Event
from ehrr1.records.schema import TABLES

MAX_OCCURRENCES = 2
"""Latest events that a concept is linked to; a heart rate stands in every hour of a record."""

Found = Mapping[str, Sequence[Association]]
"""Each answer of a sample with the concepts of its context that are evidence for it."""


def evidence_graph(
    context: Sequence[Event],
    shown: Sequence[Occurrence],
    found: Found,
    ids: Mapping[str, str] | None = None,
) -> nx.DiGraph:
    """Link the answers of a sample to what its context shows.

    `shown` are the context's occurrences of concepts, `found` the evidence for each answer, `ids`
    the dictionary's id of each name that is linked.

    Nodes have `kind` ("event", "concept" or "answer") and `label` (heading and time, name, item);
    concept nodes also `table` and, where they come from free text, `written` (the words there);
    names that are linked have `concept_id`. Edges have `kind`: "occurrence" (concept -> event,
    with `time`, ISO 8601 or None) and "cooccurrence" (concept -> answer, with `support`, `lift`,
    `npmi` and Fisher's `p`). Every answer has a node, with or without evidence; only concepts that
    are evidence have one. Deterministic: the same input gives the same graph in the same order.
    """
    ids = ids or {}
    places: dict[Concept, list[Occurrence]] = {}
    for occurrence in shown:
        places.setdefault(occurrence.concept, []).append(occurrence)
    graph = nx.DiGraph()
    for item, evidence in found.items():
        answer = f"answer:{item}"
        graph.add_node(answer, kind="answer", label=item, **_linked(ids.get(item)))
        for one in evidence:
            node = _add_concept(graph, places[one.concept], context, ids)
            measures = {"lift": round(one.lift, 4), "npmi": round(one.npmi, 4), "p": one.p}
            graph.add_edge(node, answer, kind="cooccurrence", support=one.support, **measures)
    return graph


def randomised(
    found: Found, shown: Sequence[Occurrence], seed: str
) -> dict[str, list[Association]]:
    """As much evidence as `found` for each answer, from concepts drawn out of the context.

    An ablation: the numbers stay those of the evidence that is replaced. Seeded by a text (the
    sample's id), so that the same command draws the same.
    """
    digest = hashlib.blake2b(seed.encode(), digest_size=8).digest()
    generator = np.random.default_rng(int.from_bytes(digest))
    concepts = list(dict.fromkeys(occurrence.concept for occurrence in shown))
    replaced = {}
    for item, evidence in found.items():
        places = generator.permutation(len(concepts))[: len(evidence)]
        replaced[item] = [
            one._replace(concept=concepts[place])
            for one, place in zip(evidence, places, strict=False)
        ]
    return replaced


def answers(graph: nx.DiGraph) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """Each answer item with its evidence: (concept node, edge data), highest lift first."""
    return {
        data["label"]: sorted(
            (
                (source, edge)
                for source, _, edge in graph.in_edges(node, data=True)
                if edge["kind"] == "cooccurrence"
            ),
            key=lambda pair: (-pair[1]["lift"], -pair[1]["support"], pair[0]),
        )
        for node, data in graph.nodes(data=True)
        if data["kind"] == "answer"
    }


def strength(edge: Mapping[str, Any]) -> float:
    """How much a concept speaks for an answer: support x log(lift). By lift alone the choice falls
    on what is rare."""
    return float(edge["support"] * math.log(edge["lift"]))


def cited_as(graph: nx.DiGraph, node: str) -> tuple[str, str]:
    """How a chain names a concept: its name, of free text the words that stand there, and the
    heading of its events."""
    data = graph.nodes[node]
    return data.get("written", data["label"]), heading(Concept(data["table"], data["label"]))


def latest_time(graph: nx.DiGraph, node: str) -> datetime | None:
    """When the latest event of a concept was; None where no event has a time."""
    times = [
        edge["time"]
        for _, _, edge in graph.out_edges(node, data=True)
        if edge["kind"] == "occurrence" and edge["time"]
    ]
    return datetime.fromisoformat(max(times)) if times else None


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


def to_graphml(graph: nx.DiGraph) -> str:
    """GraphML, as Gephi, Cytoscape and yEd read it; it has no null: what is None is left out."""
    plain = nx.DiGraph()
    for node, data in graph.nodes(data=True):
        plain.add_node(node, **_without_none(data))
    for start, end, data in graph.edges(data=True):
        plain.add_edge(start, end, **_without_none(data))
    return "\n".join(nx.generate_graphml(plain))


def from_graphml(text: str) -> nx.DiGraph:
    """The inverse of `to_graphml`; an occurrence without a time has None again."""
    graph = nx.parse_graphml(text)
    graph.graph.clear()  # GraphML's defaults
    for _, _, data in graph.edges(data=True):
        if data["kind"] == "occurrence":
            data.setdefault("time", None)
    return graph


def _add_concept(
    graph: nx.DiGraph,
    places: Sequence[Occurrence],
    context: Sequence[Event],
    ids: Mapping[str, str],
) -> str:
    """Add a concept with its latest events; returns its node."""
    latest = places[-1]
    concept = latest.concept
    node = f"concept:{concept.kind}:{concept.name}"
    if node in graph:
        return node
    linked = _linked(latest.concept_id or ids.get(concept.name))
    written = {"written": latest.written} if latest.written else {}
    graph.add_node(
        node, kind="concept", label=concept.name, table=concept.kind, **linked, **written
    )
    for occurrence in places[-MAX_OCCURRENCES:]:
        event, place = context[occurrence.event], f"event:{occurrence.event}"
        time = event.time.isoformat() if event.time else None
        if place not in graph:
            label = f"{TABLES[event.table].heading} [{event.time}]"
            graph.add_node(place, kind="event", label=label)
        graph.add_edge(node, place, kind="occurrence", time=time)
    return node


def _linked(concept_id: str | None) -> dict[str, str]:
    return {"concept_id": concept_id} if concept_id else {}


def _without_none(data: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in data.items() if value is not None}
