"""Paths through the knowledge base in the evidence graph of a sample."""

import json
from dataclasses import replace

import networkx as nx
import pytest

from ehrr1.graph.evidence import from_json, to_json
from ehrr1.graph.knowledge import Knowledge, PathRule
from ehrr1.graph.knowledge_build import build_open
from ehrr1.graph.paths import add_paths, path_nodes, search, sentence
from ehrr1.graph.statistics import Tally
from ehrr1.reasoning.path_lines import path_lines
from ehrr1.reasoning.screening import screen
from ehrr1.reasoning.template import write_template
from ehrr1.reasoning.trace import trace
from tests.test_graph import counted, drawn_with_ids, event, sample

CONCEPTS = """concept_id\tname\tsemantic_type\tsource\tsynonyms\txrefs
D:1\tinsulin\tDrug\tOwn\t\t
D:2\tdiabetes\tDisease\tOwn\t\t
D:3\tglucose\tChemical\tOwn\t\t
D:4\talone\tChemical\tOwn\t\t
D:5\ttype 2 diabetes\tDisease\tOwn\t\t
D:6\tstage 77\tDisease\tOwn\t\t
I:5\tdiabetes mellitus, type 2\tDisease\tOwn\t\t
"""
RELATIONS = """head\trelation\ttail\tsource
D:1\tmay_treat\tD:2\tOwn
D:3\tis_high_in\tD:2\tOwn
D:5\tis_a\tD:2\tOwn
D:5\tsame_as\tI:5\tOwn
D:6\tis_a\tD:2\tOwn
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


MEANT = replace(RULE, meaningful=True)
COUNTS = counted([(["Insulin", "Syrup"], ["K", "T2DM"])] * 2 + [(["other"], [])] * 2)
CONTEXT = [event("labevents", 1, ["T2DM"]), event("labevents", 2, ["K"])]


def meant(ids: dict[str, str]) -> nx.DiGraph:
    return drawn_with_ids(CONTEXT, ["Insulin", "Syrup"], COUNTS, ids)


def test_a_path_is_a_line_of_the_chain(knowledge: Knowledge) -> None:
    """It is written in the direction in which it reads, screened, and traced to the whole path."""
    found = meant({"T2DM": "I:5", "Insulin": "D:1", "Syrup": "D:6"})
    add_paths(found, knowledge, search(knowledge, MEANT), require=True)
    concept = "concept:labevents:T2DM"
    assert not found.has_edge(concept, "answer:Syrup")  # they share a class
    assert path_nodes(found, concept, "answer:Insulin")[1:-1] == [
        f"concept:knowledge:{name}" for name in ("I:5", "D:5", "D:2", "D:1")
    ]
    asked = sample(1, "prescriptions", "Insulin", "Syrup")
    (draft,) = write_template(asked, CONTEXT, found, max_evidence=6)
    line = "T2DM | is a kind of | diabetes | is treated with | Insulin"
    assert line in draft.chain.splitlines()
    assert screen(draft.chain, asked, CONTEXT, coverage=0.5).rejected_by == ()
    (traced,) = (one for one in trace(draft.chain, found) if one.text == line)
    assert (concept, "answer:Insulin") in traced.edges
    assert set(path_nodes(found, concept, "answer:Insulin")) <= set(traced.nodes)


def test_two_names_of_a_concept_are_a_link_and_no_path(knowledge: Knowledge) -> None:
    found = meant({"T2DM": "I:5", "K": "D:1", "Insulin": "D:1", "Syrup": "D:5"})
    add_paths(found, knowledge, search(knowledge, MEANT), require=True)
    for concept, answer in (("K", "Insulin"), ("T2DM", "Syrup")):  # one id, ids that are equal
        edge = found.edges[f"concept:labevents:{concept}", f"answer:{answer}"]
        assert edge["same_concept"] and "hops" not in edge
        assert path_nodes(found, f"concept:labevents:{concept}", f"answer:{answer}") == []
    tally = Tally()
    tally.add({"task": "emar", "split": "train", "holding": None, "graph": to_json(found)})
    shares = [tally.metrics()[f"{name}/emar"] for name in ("evidence", "paths", "same_concept")]
    assert shares == [4, 0.5, 0.5]


def test_a_path_with_a_number_that_the_record_does_not_show_has_no_line() -> None:
    graph = nx.DiGraph()
    graph.add_node("c", kind="concept", label="a", table="labevents")
    graph.add_node("answer:b", kind="answer", label="b")
    names = {"1": "first", "2": "stage 77", "3": "last"}
    for concept_id, name in names.items():
        graph.add_node(f"concept:knowledge:{concept_id}", label=name)
    nodes = [f"concept:knowledge:{concept_id}" for concept_id in names]
    graph.add_edge("c", "answer:b", kind="cooccurrence", hops=2, via="1\t2\t3")
    graph.add_edge(*nodes[:2], kind="knowledge", relation="may_treat")
    graph.add_edge(*nodes[1:], kind="knowledge", relation="is_a")
    assert sentence(graph, "c", "answer:b")[2] == "stage 77"
    assert list(path_lines(graph, "c", ["b"], CONTEXT)) == []
    shown = [event("labevents", 2, ["77 units"])]
    assert list(path_lines(graph, "c", ["b"], shown)) == [
        "a | is used to treat | stage 77 | is a kind of | b"
    ]
