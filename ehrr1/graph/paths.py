"""Add knowledge to the thinking graph: paths from concepts of the context to the answers."""

from collections.abc import Callable
from functools import partial

import networkx as nx

from ehrr1.graph.evidence import EVIDENCE
from ehrr1.graph.knowledge import Hop, Knowledge, PathRule

LINKED = "linked"
"""The relation between a name of the record and its concept in the knowledge base."""

Search = Callable[[str, str], list[Hop] | None]
"""A function that returns the shortest path between two concept ids, or None."""


def search(knowledge: Knowledge, rule: PathRule) -> Search:
    """Return a function that searches paths and caches them, since pairs recur in many samples."""
    known: dict[tuple[str, str], list[Hop] | None] = {}

    def path(start: str, end: str) -> list[Hop] | None:
        if (start, end) not in known:
            known[start, end] = knowledge.path(start, end, rule)
        return known[start, end]

    return path


def add_paths(graph: nx.DiGraph, knowledge: Knowledge, path: Search, require: bool) -> None:
    """Add to the graph the shortest path from each linked concept to the answer it supports.

    The edge between them then has `hops`, the number of relations on the path (0 if they are the
    same concept). Inner nodes are concepts of the table "knowledge". Edges have `kind` "knowledge",
    `relation`, `vocabulary` (the source of the fact; in node-link data `source` means the node) and
    `inverse` if the fact runs against the path. With `require`, a concept without a path to an
    answer is not evidence for it, as in EHR-R1 (step 3).
    """
    pairs = [pair for pair in graph.edges(data="kind") if pair[2] in EVIDENCE]
    for concept, answer, _ in pairs:
        start, end = (graph.nodes[node].get("concept_id") for node in (concept, answer))
        hops = path(start, end) if start and end else None
        if hops is not None:
            graph.edges[concept, answer]["hops"] = len(hops)
            _add_path(graph, knowledge, (concept, start), hops, (answer, end))
        elif require:
            graph.remove_edge(concept, answer)
    if require:
        _drop_unused(graph)


def _add_path(
    graph: nx.DiGraph,
    knowledge: Knowledge,
    start: tuple[str, str],
    hops: list[Hop],
    end: tuple[str, str],
) -> None:
    node = partial("concept:knowledge:{}".format)
    for concept_id in (start[1], *(hop.head for hop in hops)):
        about = {"kind": "concept", "table": "knowledge", "concept_id": concept_id}
        graph.add_node(node(concept_id), label=knowledge.name(concept_id), **about)
    linked = {"kind": "knowledge", "relation": LINKED, "vocabulary": "dictionary"}
    graph.add_edge(start[0], node(start[1]), **linked)
    for hop in hops:
        inverse = {"inverse": True} if hop.inverse else {}
        fact = {"kind": "knowledge", "relation": hop.relation, "vocabulary": hop.source}
        graph.add_edge(node(hop.tail), node(hop.head), **fact, **inverse)
    graph.add_edge(node(end[1]), end[0], **linked, inverse=True)


def _drop_unused(graph: nx.DiGraph) -> None:
    """Remove concepts that are no longer evidence, and events without edges to them."""
    evidence = {start for start, _, kind in graph.edges(data="kind") if kind in EVIDENCE}
    inner = {node for node, table in graph.nodes(data="table") if table == "knowledge"}
    concepts = {node for node, kind in graph.nodes(data="kind") if kind == "concept"}
    graph.remove_nodes_from(concepts - inner - evidence)
    events = [node for node, kind in graph.nodes(data="kind") if kind == "event"]
    graph.remove_nodes_from([node for node in events if not graph.in_degree(node)])
