"""Nodes and edges of the evidence graph on which each line of a chain rests."""

from collections.abc import Iterable

import networkx as nx
import pytest

from ehrr1.reasoning.trace import Line, trace, traced

SODIUM, HEPARIN = "concept:labevents:Sodium", "concept:prescriptions:Heparin Sodium"
SODIUM_ICU, NA = "concept:chartevents:Sodium", "concept:labevents:Na"
DRIP, FLUSH, YES = "answer:Heparin", "answer:Sodium Chloride 0.9%  Flush", "answer:yes"
KNOWN, BETWEEN, DRUG = (f"concept:knowledge:{number}" for number in ("C1", "C2", "C3"))


def graph() -> nx.DiGraph:
    """Sodium of the laboratory twice at 06:10, of the bedside once; a path Sodium -> C1, C2, C3."""
    made = nx.DiGraph()
    for number, label in enumerate(
        ("Labotary Test Events", "Labotary Test Events", "Chart Events")
    ):
        made.add_node(f"event:{number}", kind="event", label=label)
    for table, name in (
        *(("labevents", "Sodium"), ("chartevents", "Sodium"), ("labevents", "Na")),
        ("prescriptions", "Heparin Sodium"),
    ):
        made.add_node(f"concept:{table}:{name}", kind="concept", label=name, table=table)
    for node, name in ((KNOWN, "Sodium"), (BETWEEN, "Thrombosis"), (DRUG, "heparin")):
        made.add_node(node, kind="concept", label=name, table="knowledge")
    for node in (DRIP, FLUSH, YES):
        made.add_node(node, kind="answer", label=node.removeprefix("answer:"))
    made.add_edge(SODIUM, "event:0", kind="occurrence", time="2150-03-03T06:10:00")
    made.add_edge(SODIUM, "event:1", kind="occurrence", time="2150-03-04T06:10:20")
    made.add_edge(SODIUM_ICU, "event:2", kind="occurrence", time="2150-03-04T07:00:00")
    made.add_edge(HEPARIN, "event:2", kind="occurrence", time=None)
    for start, end in ((SODIUM, DRIP), (HEPARIN, DRIP), (SODIUM_ICU, FLUSH), (SODIUM, YES)):
        made.add_edge(start, end, kind="cooccurrence", support=3, lift=2.0)
    made.edges[SODIUM, DRIP].update(hops=2, via="C1\tC2\tC3")
    for start, end in PATH:
        made.add_edge(start, end, kind="knowledge", relation="linked", vocabulary="open")
    return made


PATH = [(SODIUM, KNOWN), (KNOWN, BETWEEN), (BETWEEN, DRUG), (DRUG, DRIP)]
ARGUED = [(SODIUM, DRIP), *PATH]


def ends(edges: Iterable[tuple[str, str]]) -> set[str]:
    return {end for edge in edges for end in edge}


def check(line: Line, nodes: set[str], edges: set[tuple[str, str]]) -> None:
    assert (set(line.nodes), set(line.edges)) == (nodes | ends(edges), edges)
    assert len(set(line.nodes)) == len(line.nodes) and len(set(line.edges)) == len(line.edges)


@pytest.mark.parametrize(
    ("line", "nodes", "edges"),
    [
        ("Sodium | Labotary Test Events | 06:10", set(), {(SODIUM, "event:1")}),
        ("- Sodium: 140 | Labotary Test Events | 06:10", set(), {(SODIUM, "event:1")}),
        ("Sodium | Labotary Test Events | 2150-03-03 06:10", set(), {(SODIUM, "event:0")}),
        ("Sodium | Labotary Test Events | 2150-03-03 06:10:00", set(), {(SODIUM, "event:0")}),
        ("Sodium | Chart Events | 07:00", set(), {(SODIUM_ICU, "event:2")}),
        ("Sodium | Chart Events | 06:10", {SODIUM_ICU}, set()),
        ("Sodium | Triage | 06:10", set(), set()),
        ("Sodium, urine | Labotary Test Events | 06:10", set(), set()),
        ("Thrombosis | Labotary Test Events | 06:10", set(), set()),
        ("Heparin Sodium | Prescriptions | None", set(), {(HEPARIN, "event:2")}),
        ("At 07:00 the Chart Events show sodium.", set(), {(SODIUM_ICU, "event:2")}),
        ("na is no sodiumlike word", set(), set()),
        ("**Na** was low", {NA}, set()),
    ],
)
def test_what_an_extraction_line_rests_on(
    line: str, nodes: set[str], edges: set[tuple[str, str]]
) -> None:
    heading, found = trace(f"## Extraction\n{line}", graph())
    assert heading == Line("## Extraction", "extraction", (), ())
    assert (found.text, found.section) == (line, "extraction")
    check(found, nodes, edges)


CITED = "## Extraction\nSodium | Labotary Test Events | 06:10\n## Reasoning\n"
SEEN = (SODIUM, "event:1")


@pytest.mark.parametrize(
    ("line", "nodes", "edges"),
    [
        ("Sodium | -> | Heparin", set(), {SEEN, *ARGUED}),
        ("- Sodium → heparin", set(), {SEEN, *ARGUED}),
        ("A low sodium calls for heparin.", set(), {SEEN, *ARGUED}),
        ("The sodium of the Chart Events calls for heparin.", {DRIP}, {(SODIUM_ICU, "event:2")}),
        ("The sodium at 2150-03-03 06:10 was low.", set(), {(SODIUM, "event:0")}),
        ("Heparin Sodium | -> | Heparin", set(), {(HEPARIN, "event:2"), (HEPARIN, DRIP)}),
        ("Heparin sodium, not salt.", set(), {(HEPARIN, "event:2")}),
        ("Thrombosis asks for heparin.", set(), {(BETWEEN, DRUG), (DRUG, DRIP)}),
        ("Nothing of the record.", set(), set()),
        ("Potassium | -> | Heparin", {DRIP}, set()),
    ],
)
def test_what_a_line_of_reasoning_rests_on(
    line: str, nodes: set[str], edges: set[tuple[str, str]]
) -> None:
    check(trace(CITED + line, graph())[-1], nodes, edges)


def test_results_rest_on_what_was_argued_for_them() -> None:
    chain = f"{CITED}Sodium | -> | Heparin\nNa | -> | Heparin\n## Final Results\nHeparin\n"
    *_, heading, heparin, flush, unknown = trace(
        f"{chain}Sodium Chloride 0.9%  Flush\nInsulin", graph()
    )
    assert (heading.text, heparin.section) == ("## Final Results", "results")
    check(heparin, set(), {SEEN, *ARGUED})
    check(flush, {FLUSH}, set())
    check(unknown, set(), set())


def test_the_case_for_an_outcome_rests_on_the_evidence_for_it() -> None:
    lines = trace(
        "## Case for yes\nSodium was low at 06:10.\nNo fever.\n## Case for no\nno, Na is normal",
        graph(),
    )
    assert [line.section for line in lines] == ["yes", "yes", "yes", "no", "no"]
    check(lines[1], set(), {SEEN, (SODIUM, YES)})
    check(lines[2], set(), set())
    check(lines[4], {NA}, set())


def test_prose_without_sections_and_a_chain_without_anything() -> None:
    (line,) = trace("  \n  Sodium of the Chart Events: Sodium Chloride 0.9%  Flush.\n\n", graph())
    assert line.section == ""
    check(line, set(), {(SODIUM_ICU, "event:2"), (SODIUM_ICU, FLUSH)})
    assert trace("", graph()) == [] and traced([]) == 0
    assert [line.nodes for line in trace("Heparin", nx.DiGraph())] == [()]
    assert traced(trace(CITED + "Sodium | -> | Heparin\nwords", graph())) == pytest.approx(2 / 3)


def test_the_state_in_a_line_chooses_among_items_of_one_name() -> None:
    found = graph()
    low = "concept:labevents[low]:Sodium"
    found.add_node(low, kind="concept", label="Sodium", table="labevents", state="low")
    found.add_edge(low, "event:1", kind="occurrence", time="2150-03-04T06:10:20")
    found.add_edge(low, FLUSH, kind="cooccurrence", support=3, lift=2.0)
    for words in ("Sodium | low | -> | ", "A low sodium calls for "):
        line = trace(f"{CITED}{words}{FLUSH.removeprefix('answer:')}", found)[-1]
        check(line, set(), {(low, "event:1"), (low, FLUSH)})
    assert (SODIUM, DRIP) in trace(f"{CITED}Sodium | -> | Heparin", found)[-1].edges


def test_free_text_is_found_by_its_words_and_by_its_name() -> None:
    found = graph()
    lung = "concept:radiology/text:Pneumonia"
    about = {"kind": "concept", "label": "Pneumonia", "table": "radiology/text"}
    found.add_node(lung, **about, written="infectious opacity")
    found.add_edge(lung, DRIP, kind="cooccurrence", support=3, lift=2.0)
    for words in ("An infectious opacity calls for Heparin.", "Pneumonia | -> | Heparin"):
        (line,) = trace(words, found)
        assert (lung, DRIP) in line.edges
