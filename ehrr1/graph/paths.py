"""Add knowledge to the thinking graph: paths from concepts of the context to the answers."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import networkx as nx

from ehrr1.graph.evidence import EVIDENCE
from ehrr1.graph.knowledge import Hop, Knowledge, PathRule
from ehrr1.graph.path_search import is_sentence
from ehrr1.graph.relation_kinds import is_passive, is_same, verb

LINKED = "linked"
"""The relation between a name of the record and its concept in the knowledge base."""

Search = Callable[[str, str], list[Hop] | None]
"""A function that returns the shortest path between two concept ids, or None."""

_NODE = "concept:knowledge:{}"


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

    The edge between them then has `hops`, the number of relations on the path, and `via`, the
    concept ids on it, separated by tabs. If the two are the same concept, the edge has
    `same_concept` instead, which is a link of two names and no path. Inner nodes are concepts of
    the table "knowledge". Edges have `kind` "knowledge", `relation`, `vocabulary` (the source of
    the fact; in node-link data `source` means the node) and `inverse` if the fact runs against the
    path. With `require`, a concept that is not connected to an answer in either way is not evidence
    for it, as in EHR-R1 (step 3).
    """
    pairs = [pair for pair in graph.edges(data="kind") if pair[2] in EVIDENCE]
    for concept, answer, _ in pairs:
        start, end = (graph.nodes[node].get("concept_id") for node in (concept, answer))
        hops = path(start, end) if start and end else None
        if hops:
            ids = "\t".join([start, *(hop.head for hop in hops)])
            graph.edges[concept, answer].update(hops=len(hops), via=ids)
            _add_path(graph, knowledge, (concept, start), hops, (answer, end))
        elif hops is not None:
            graph.edges[concept, answer]["same_concept"] = True
        elif require:
            graph.remove_edge(concept, answer)
    if require:
        _drop_unused(graph)


def path_nodes(graph: nx.DiGraph, concept: str, answer: str) -> list[str]:
    """Return the nodes on the path between two nodes, including both, or [] without a path."""
    via = graph.edges[concept, answer].get("via") if graph.has_edge(concept, answer) else None
    return [concept, *map(_NODE.format, via.split("\t")), answer] if via else []


def sentence(graph: nx.DiGraph, concept: str, answer: str) -> list[str]:
    """Return the path between a concept and an answer as names with verbs between them.

        ["Essential hypertension", "is a kind of", "Hypertension", "is treated with", "Lisinopril"]

    The sentence begins at the end of the path from which it can be read, or, if it can be read from
    both, from which its fact is in the active. The ends are named as in the record and the answer.
    Steps between equal concepts and classes between classes are left out. The list is empty if
    there is no path, or if it is no sentence (paths of `graph.path_rule=any`).
    """
    nodes = path_nodes(graph, concept, answer)
    names = [graph.nodes[node]["label"] for node in nodes]
    steps = [graph.edges[pair] for pair in pairwise(nodes[1:-1])]
    if not steps:
        return []
    facts = [(edge["relation"], edge.get("inverse", False)) for edge in steps]
    turned = [(relation, not inverse) for relation, inverse in facts[::-1]]
    ways = [(facts, names), (turned, names[::-1])]
    readable = [way for way in ways if is_sentence(way[0])]
    readable.sort(key=lambda way: any(is_passive(*step) for step in way[0] if not is_same(step[0])))
    return _words(*readable[0]) if readable else []


def _words(facts: Sequence[tuple[str, bool]], names: Sequence[str]) -> list[str]:
    """Return names and verbs in turn.

    `names` has both ends as named in the record and the answer, then as concepts; `facts` are the
    steps between the concepts. Of equal concepts the first is named, of steps to a class of a class
    only the last.
    """
    words = [names[0]]
    for (relation, inverse), name in zip(facts, names[2:-1], strict=True):
        if is_same(relation):
            continue
        said = verb(relation, inverse)
        if len(words) > 1 and words[-2] == said:
            words[-1] = name
        else:
            words += [said, name]
    return [*words[:-1], names[-1]]


def _add_path(
    graph: nx.DiGraph,
    knowledge: Knowledge,
    start: tuple[str, str],
    hops: list[Hop],
    end: tuple[str, str],
) -> None:
    node = _NODE.format
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
