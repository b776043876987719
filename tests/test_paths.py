"""Paths through the knowledge base in the evidence graph of a sample."""

import json

import networkx as nx
import pytest

from ehrr1.graph.evidence import from_json, to_json
from ehrr1.graph.knowledge import Knowledge, PathRule
from ehrr1.graph.knowledge_build import build_open
from ehrr1.graph.paths import add_paths, search
from tests.test_graph import counted, drawn_with_ids, event

CONCEPTS = """concept_id\tname\tsemantic_type\tsource\tsynonyms\txrefs
D:1\tinsulin\tDrug\tOwn\t\t
D:2\tdiabetes\tDisease\tOwn\t\t
D:3\tglucose\tChemical\tOwn\t\t
D:4\talone\tChemical\tOwn\t\t
"""
RELATIONS = """head\trelation\ttail\tsource
D:1\tmay_treat\tD:2\tOwn
D:3\tis_high_in\tD:2\tOwn
"""
RULE = PathRule(max_hops=4, max_degree=100, relations=None)
IDS = {"K": "D:4", "Glucose": "D:3", "Insulin": "D:1"}


@pytest.fixture(scope="module")
def knowledge(tmp_path_factory: pytest.TempPathFactory) -> Knowledge:
    root = tmp_path_factory.mktemp("knowledge")
    (root / "concepts.tsv").write_text(CONCEPTS)
    (root / "relations.tsv").write_text(RELATIONS)
    build_open(root / "concepts.tsv", root / "relations.tsv", root / "base")
    return Knowledge(root / "base")


def graph() -> nx.DiGraph:
    """Glucose, K and Na are evidence for Insulin; Na is in no dictionary, K has no relation."""
    pairs = [(["Insulin"], ["Glucose", "K", "Na"])] * 2 + [(["other"], [])] * 2
    context = [event("labevents", 1, ["Na"]), event("labevents", 2, ["Glucose", "K"])]
    return drawn_with_ids(context, ["Insulin"], counted(pairs), IDS)


def test_a_path_runs_from_the_record_to_the_answer(knowledge: Knowledge) -> None:
    found = graph()
    add_paths(found, knowledge, search(knowledge, RULE), require=False)
    path = nx.shortest_path(
        nx.subgraph_view(
            found,
            filter_edge=lambda start, end: found.edges[start, end]["kind"] == "knowledge",
        ),
        "concept:labevents:Glucose",
        "answer:Insulin",
    )
    assert [found.nodes[node]["label"] for node in path] == [
        *("Glucose", "glucose", "diabetes", "insulin", "Insulin")
    ]
    edges = [found.edges[pair] for pair in nx.utils.pairwise(path)]
    assert [edge["relation"] for edge in edges] == ["linked", "is_high_in", "may_treat", "linked"]
    assert [edge.get("inverse", False) for edge in edges] == [False, False, True, True]
    assert found.edges["concept:labevents:Glucose", "answer:Insulin"]["hops"] == 2
    assert "hops" not in found.edges["concept:labevents:K", "answer:Insulin"]
    assert found.has_edge("concept:labevents:Na", "answer:Insulin")
    again = from_json(json.loads(json.dumps(to_json(found))))
    assert dict(again.edges) == dict(found.edges)  # no attribute has a name of node-link data


def test_without_a_path_there_is_no_evidence_where_one_is_required(knowledge: Knowledge) -> None:
    found = graph()
    add_paths(found, knowledge, search(knowledge, RULE), require=True)
    kinds = {node: data["kind"] for node, data in found.nodes(data=True)}
    assert {node for node, kind in kinds.items() if kind == "event"} == {"event:1"}
    history = {n for n, kind in kinds.items() if kind == "concept" and "knowledge" not in n}
    assert history == {"concept:labevents:Glucose"}
    short = graph()
    one_hop = PathRule(max_hops=1, max_degree=100, relations=None)
    add_paths(short, knowledge, search(knowledge, one_hop), require=True)
    assert list(short.nodes) == ["answer:Insulin"]
