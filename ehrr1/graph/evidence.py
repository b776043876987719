"""Build, query and serialise the thinking graph of one sample.

The graph links each answer to the events of the context that are evidence for it.
"""

import hashlib
import math
from collections.abc import Container, Mapping, Sequence
from datetime import datetime
from typing import Any

import networkx as nx
import numpy as np

from ehrr1.graph.associations import Association
from ehrr1.graph.concepts import ROUTINE, TOGETHER, TRANSFERS, Concept, Occurrence, heading
from ehrr1.graph.states import NOT_DONE
from ehrr1.records.events import Event
from ehrr1.records.schema import TABLES

MAX_OCCURRENCES = 2
"""Maximum number of events linked to a concept, latest first.

A heart rate, for example, occurs in every hour of a record.
"""

EVIDENCE = frozenset({"cooccurrence", "repetition"})
"""Kinds of the edges from a concept to an answer that it is evidence for."""

OTHER_REASONS = ("again", "routine", "together")
"""Kinds of the edges of an answer's other reasons (`add_reasons`)."""

ITEMS = ("answer", "candidate")
"""Kinds of the nodes of items: the answer's, and others that the record makes likely."""

Found = Mapping[str, Sequence[Association]]
"""Each answer of a sample with the concepts of its context that are evidence for it."""


def evidence_graph(
    context: Sequence[Event],
    shown: Sequence[Occurrence],
    found: Found,
    ids: Mapping[str, str] | None = None,
    answers_from: str | None = None,
    likely: Found | None = None,
) -> nx.DiGraph:
    """Return the graph that links the answers of a sample to concepts and events of its context.

    `shown` are the occurrences of concepts in the context, `found` the evidence for each answer,
    and `ids` maps each linked name to its id in the dictionary. `answers_from` is the table whose
    items are the answers; None if no concept is to be called a repetition of an answer. `likely`
    are other items with their evidence.

    Nodes have `kind` ("event", "concept", "answer" or, for other likely items, "candidate") and
    `label` (heading and time, name, or item). Concept nodes also have `table`, `state` if they have
    one and, if they come from free text, `written` (the words of the text). Linked names have
    `concept_id`. Edges have `kind`: "occurrence" (concept -> event in which it has its state, with
    `time`, ISO 8601 or None, and `value` if one can be cited), "repetition" (concept -> answer that
    is the same item of the same table) or "cooccurrence" (concept -> another answer). The latter
    two have `support`, `lift`, `lift_low`, `probability`, `npmi` and Fisher's `p`. Every answer has
    a node, with or without evidence; only concepts that are evidence have a node. The function is
    deterministic: the same input gives the same graph in the same order.
    """
    ids = ids or {}
    places: dict[Concept, list[Occurrence]] = {}
    for occurrence in shown:
        places.setdefault(occurrence.concept, []).append(occurrence)
    graph = nx.DiGraph()
    items = [("answer", *pair) for pair in found.items()]
    items += [("candidate", *pair) for pair in (likely or {}).items()]
    for kind, item, evidence in items:
        answer = f"{kind}:{item}"
        graph.add_node(answer, kind=kind, label=item, **_linked(ids.get(item)))
        for one in evidence:
            node = _add_concept(graph, places[one.concept], context, ids)
            repeats = is_repetition(one.concept, item, answers_from)
            _add_reason(graph, node, answer, "repetition" if repeats else "cooccurrence", one)
    return graph


def add_reasons(
    graph: nx.DiGraph,
    context: Sequence[Event],
    shown: Sequence[Occurrence],
    found: Found,
    ids: Mapping[str, str] | None = None,
) -> None:
    """Add the reasons for answers beside evidence (`graph.reasons`), with the same measures.

    Edges are "routine" (the concept of the care unit -> answer; for all patients a node of kind
    "routine"), "again" (concept -> answer that is the same item, done before) and "together"
    (answer -> answer). What is evidence already is left out.
    """
    places: dict[Concept, list[Occurrence]] = {}
    for occurrence in shown:
        places.setdefault(occurrence.concept, []).append(occurrence)
    for item, reasons in found.items():
        answer = f"answer:{item}" if f"answer:{item}" in graph else f"candidate:{item}"
        for one in reasons:
            kind = one.concept.kind if one.concept.kind in (ROUTINE, TOGETHER) else "again"
            concept = Concept(TRANSFERS, one.concept.name) if kind == ROUTINE else one.concept
            if concept in places:
                node = _add_concept(graph, places[concept], context, ids or {})
            else:
                node = f"{'answer' if kind == TOGETHER else kind}:{concept.name}"
            if node not in graph:
                graph.add_node(node, kind=kind, label=concept.name)
            if not graph.has_edge(node, answer):
                _add_reason(graph, node, answer, kind, one)


def _add_reason(graph: nx.DiGraph, node: str, answer: str, kind: str, one: Association) -> None:
    graph.add_edge(
        node,
        answer,
        kind=kind,
        support=one.support,
        lift=round(one.lift, 4),
        lift_low=round(one.lift_low, 4),
        probability=round(one.probability, 4),
        npmi=round(one.npmi, 4),
        p=one.p,
    )


def is_repetition(concept: Concept, answer: str, answers_from: str | None) -> bool:
    """Return whether a concept is the answer's own item, done before (not held or refused)."""
    same_table = concept.kind.split("/")[0] == answers_from
    return same_table and concept.name == answer and concept.state not in NOT_DONE


def randomised(
    found: Found, shown: Sequence[Occurrence], seed: str
) -> dict[str, list[Association]]:
    """Replace the evidence of each answer by concepts drawn at random from the context.

    This is an ablation. Each answer keeps the number of its evidence items and their measures,
    unless the context has fewer concepts. The draw is seeded by the text `seed` (which contains the
    sample's id), so that it is reproducible.
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


def mark_candidates(graph: nx.DiGraph, items: Sequence[str], likely: int) -> None:
    """Note in the graph which items the record makes likely, whether or not they are the answer.

    The first `likely` of them are what all evidence together calls for (`graph.weighing`); 0 where
    it was not weighed together.
    """
    graph.graph["candidates"] = list(items)
    if likely:
        graph.graph["likely"] = list(items[:likely])


def answers_only(graph: nx.DiGraph) -> nx.DiGraph:
    """Return the graph without its candidates and what is a reason for them only."""
    ends = [node for node, kind in graph.nodes(data="kind") if kind == "answer"]
    kept = set(ends).union(*(nx.ancestors(graph, node) for node in ends))
    kinds = graph.nodes(data="kind")
    kept |= {end for start, end in graph.edges if start in kept and kinds[end] == "event"}
    left = nx.DiGraph(graph)
    left.remove_nodes_from([node for node in graph if node not in kept])
    return left


def answers(graph: nx.DiGraph) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """Return each answer item with its evidence, highest lower bound of the lift first.

    Each piece of evidence is a tuple (concept node, edge data). Edges of graphs that have no
    `lift_low` (they were drawn by an earlier version) are in the order of their lift.
    """
    return reasons(graph, EVIDENCE)


def reasons(
    graph: nx.DiGraph, kinds: Container[str], of: Container[str] = ("answer",)
) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """Return each answer with its edges of these kinds, in the order of `answers`.

    `of` are the kinds of nodes that are taken for answers: also "candidate".
    """
    return {
        data["label"]: sorted(
            (
                (source, edge)
                for source, _, edge in graph.in_edges(node, data=True)
                if edge["kind"] in kinds
            ),
            key=lambda pair: (
                -pair[1].get("lift_low", pair[1]["lift"]),
                -pair[1]["lift"],
                -pair[1]["support"],
                pair[0],
            ),
        )
        for node, data in graph.nodes(data=True)
        if data["kind"] in of
    }


def strength(edge: Mapping[str, Any]) -> float:
    """Return the strength of evidence, the logarithm of its lift's lower bound, at least 0.

    A lift alone ranks rare concepts first, and one that is weighted with its support those that
    most patients have. Edges drawn by an earlier version have no `lift_low`; their lift is taken.
    """
    return math.log(max(edge.get("lift_low", edge["lift"]), 1.0))


def likelihood_ratio(edge: Mapping[str, Any]) -> float:
    """Return P(h | t) / P(h | not t), by which the concept h multiplies the odds of the answer t.

    It follows from P(t | h) and the lift, P(t | h) / P(t); infinite if all with h have t.
    """
    after, before = edge["probability"], edge["probability"] / edge["lift"]
    if after >= 1:
        return math.inf
    return (after / (1 - after)) / (before / (1 - before))


def cited_as(graph: nx.DiGraph, node: str) -> tuple[str, str]:
    """Return the name by which a chain cites a concept, and the heading of its events.

    The name of a concept from free text is its wording in the text.
    """
    data = graph.nodes[node]
    return data.get("written", data["label"]), heading(Concept(data["table"], data["label"]))


def with_state(node: Mapping[str, Any]) -> str:
    """Return the label of a node with its state, if it has one: "Potassium, high"."""
    state = node.get("state", "")
    return f"{node['label']}, {state}" if state else str(node["label"])


def latest_value(graph: nx.DiGraph, node: str) -> str:
    """Return the value of a concept in its latest event, "" if none can be cited."""
    events = [
        (edge["time"] or "", int(event.removeprefix("event:")), edge.get("value", ""))
        for _, event, edge in graph.out_edges(node, data=True)
        if edge["kind"] == "occurrence"
    ]
    return max(events)[2] if events else ""


def latest_time(graph: nx.DiGraph, node: str) -> datetime | None:
    """Return the time of the latest event of a concept, or None if no event has a time."""
    times = [
        edge["time"]
        for _, _, edge in graph.out_edges(node, data=True)
        if edge["kind"] == "occurrence" and edge["time"]
    ]
    return datetime.fromisoformat(max(times)) if times else None


def covered(graph: nx.DiGraph) -> float:
    """Return the share of answer items that have evidence; 0 for a sample without answers."""
    found = answers(graph)
    return sum(bool(evidence) for evidence in found.values()) / max(len(found), 1)


def explained(graph: nx.DiGraph) -> float:
    """Return the share of answer items that have evidence or another reason; 0 without answers."""
    found = reasons(graph, EVIDENCE | {*OTHER_REASONS})
    return sum(bool(some) for some in found.values()) / max(len(found), 1)


def to_json(graph: nx.DiGraph) -> dict[str, Any]:
    """Return the graph as networkx node-link data, the `graph` field of a line of graphs.jsonl."""
    return nx.node_link_data(graph, edges="edges")


def from_json(data: dict[str, Any]) -> nx.DiGraph:
    """Return the graph of node-link data made by `to_json`."""
    return nx.node_link_graph(data, edges="edges")


def to_graphml(graph: nx.DiGraph) -> str:
    """Return the graph as GraphML, which Gephi, Cytoscape and yEd read.

    GraphML has no null; attributes that are None are omitted.
    """
    plain = nx.DiGraph()
    for node, data in graph.nodes(data=True):
        plain.add_node(node, **_without_none(data))
    for start, end, data in graph.edges(data=True):
        plain.add_edge(start, end, **_without_none(data))
    return "\n".join(nx.generate_graphml(plain))


def from_graphml(text: str) -> nx.DiGraph:
    """Return the graph of a text made by `to_graphml`.

    The `time` of an occurrence without a time is restored as None.
    """
    graph = nx.parse_graphml(text)
    graph.graph.clear()  # the parser stores GraphML's defaults there
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
    """Add a concept and its latest events to the graph and return its node."""
    latest = places[-1]
    concept = latest.concept
    state = {"state": concept.state} if concept.state else {}
    place = f"{concept.kind}[{concept.state}]" if concept.state else concept.kind
    node = f"concept:{place}:{concept.name}"
    if node in graph:
        return node
    linked = _linked(latest.concept_id or ids.get(concept.name))
    written = {"written": latest.written} if latest.written else {}
    about = {"kind": "concept", "label": concept.name, "table": concept.kind}
    graph.add_node(node, **about, **state, **linked, **written)
    for occurrence in places[-MAX_OCCURRENCES:]:
        event, place = context[occurrence.event], f"event:{occurrence.event}"
        time = event.time.isoformat() if event.time else None
        if place not in graph:
            label = f"{TABLES[event.table].heading} [{event.time}]"
            graph.add_node(place, kind="event", label=label)
        value = {"value": occurrence.value} if occurrence.value else {}
        graph.add_edge(node, place, kind="occurrence", time=time, **value)
    return node


def _linked(concept_id: str | None) -> dict[str, str]:
    return {"concept_id": concept_id} if concept_id else {}


def _without_none(data: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in data.items() if value is not None}
