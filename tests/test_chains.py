"""The template writer, the reading of chains, and screening."""

from datetime import datetime, timedelta

import networkx as nx
import pytest

from ehrr1.graph.associations import Association
from ehrr1.graph.concepts import Concept, occurrences
from ehrr1.graph.evidence import evidence_graph
from ehrr1.reasoning.argument import choose_evidence
from ehrr1.reasoning.chain import parse_chain, written_time
from ehrr1.reasoning.claims import faithfulness
from ehrr1.reasoning.facts import Citable
from ehrr1.reasoning.screening import Verdict, best, screen
from ehrr1.reasoning.template import write_template
from tests.test_graph import counted, drawn, event, sample

CONTEXT = [
    event("labevents", 1, ["K (whole blood)", "Na"]),
    event("emar", 5, ["Possible drug"]),
    event("labevents", 9, ["Na"]),
]
SAMPLE = sample(1, "emar", "Insulin", "Dextrose 50%", "unsupported")
COUNTS = counted(
    [(["Insulin", "Dextrose 50%"], ["K (whole blood)", "Na"])] * 2
    + [(["Insulin"], ["Na"]), (["unsupported"], []), (["unsupported"], [])]
)


def graph() -> nx.DiGraph:
    return drawn(CONTEXT, list(SAMPLE.target), COUNTS)


def test_template_cites_few_items_in_order_of_time_and_derives_only_what_is_supported() -> None:
    (draft,) = write_template(SAMPLE, CONTEXT, graph(), max_evidence=6)
    assert draft.chain.splitlines() == [
        "## Extraction",
        "K (whole blood) | Labotary Test Events | 01:00",
        "## Reasoning",
        "K (whole blood) | -> | Dextrose 50% | Insulin",
        "## Final Results",
        "Dextrose 50% | Insulin",
    ]
    parsed = parse_chain(draft.chain)
    assert parsed is not None and parsed.results == ("Dextrose 50%", "Insulin")


def test_prose_cites_the_value_and_names_the_state() -> None:
    """The latest event in which the state holds is cited, not the latest event of the item."""
    high, normal = ({"Valuenum": value, "Ref_Range_Upper": "5.1"} for value in ("6.1", "4.0"))
    context = [event("labevents", 1, ["K"], **high), event("labevents", 9, ["K"], **normal)]
    potassium = Concept("labevents", "K", "high")
    found = {"Insulin": [Association(potassium, 9, 3.0, 2.0, 0.6, 0.2, 0.01)]}
    graph = evidence_graph(context, list(occurrences(context)), found)
    (draft,) = write_template(SAMPLE, context, graph, max_evidence=6, style="prose")
    lines = draft.chain.splitlines()
    assert lines[1] == "K: 6.1 | Labotary Test Events | 01:00"
    assert lines[3] == "K is high, which calls for Insulin."
    allowed = Citable(context, SAMPLE.prediction_time)
    parsed = parse_chain(draft.chain)
    assert parsed is not None and faithfulness(parsed, allowed) == 1.0


def test_set_cover_stops_at_the_limit_and_writes_nothing_without_evidence() -> None:
    apart = nx.DiGraph()
    for number in range(3):
        apart.add_node(f"answer:{number}", kind="answer", label=str(number))
        apart.add_node(f"c{number}", kind="concept", label=str(number), table="labevents")
        apart.add_edge(f"c{number}", f"answer:{number}", kind="cooccurrence", support=1, lift=2.0)
    assert [step.nodes for step in choose_evidence(apart, 2)] == [("c0",), ("c1",)]
    apart.remove_edges_from(list(apart.edges))
    assert write_template(SAMPLE, CONTEXT, apart, max_evidence=6) == []


def test_times_are_unmistakable() -> None:
    now = datetime(2150, 3, 4, 20)
    assert written_time(datetime(2150, 3, 4, 5, 7), now) == "05:07"
    assert written_time(now - timedelta(days=1), now) == "2150-03-03 20:00"
    assert written_time(None, now) == "None"


def test_template_chain_is_read_back_and_faithful() -> None:
    (draft,) = write_template(SAMPLE, CONTEXT, graph(), max_evidence=6)
    chain = parse_chain(draft.chain)
    assert chain is not None and chain.results == ("Dextrose 50%", "Insulin")
    allowed = Citable(CONTEXT, SAMPLE.prediction_time)
    assert faithfulness(chain, allowed) == 1.0
    # the citation does not hold, the two derivations do
    assert faithfulness(chain, Citable(CONTEXT[1:], SAMPLE.prediction_time)) == pytest.approx(2 / 3)


def test_what_is_no_chain() -> None:
    (draft,) = write_template(SAMPLE, CONTEXT, graph(), max_evidence=6)
    assert parse_chain(draft.chain.replace("## Reasoning", "")) is None
    assert parse_chain(draft.chain + "\n## Extraction") is None
    unread = parse_chain(draft.chain.replace("## Reasoning", "some prose\n## Reasoning"))
    assert unread is not None and unread.unread == 1
    assert faithfulness(unread, Citable(CONTEXT, SAMPLE.prediction_time)) == 0.75


def chain(extraction: str, reasoning: str, results: str) -> str:
    return f"## Extraction\n{extraction}\n## Reasoning\n{reasoning}\n## Final Results\n{results}"


def citing(line: str) -> str:
    """Return a good chain with another line of extraction."""
    return chain(f"{GOOD[0]}\n{line}", *GOOD[1:])


def arguing(line: str) -> str:
    """Return a good chain with another line of reasoning."""
    return chain(GOOD[0], f"{GOOD[1]}\n{line}", GOOD[2])


GOOD = (
    "Na | Labotary Test Events | 09:00",
    "Na | -> | Insulin | Dextrose 50%",
    "Insulin\nDextrose 50%",
)
TEXT_EVENT = event(
    "radiology", 10, ["CHEST (PA AND LAT)"], Text="New  opacity, 3.5 cm,\nat the base."
)
ALL = [*CONTEXT, event("vitalsign", 11, [""], Heartrate="118"), TEXT_EVENT]


@pytest.mark.parametrize(
    ("draft", "rules"),
    [
        (chain(*GOOD), ()),
        (chain("- Na | Labotary Test Events | 2150-03-04 09:00:00", *GOOD[1:]), ()),
        (citing("Possible drug | Electronic Medicine Administration Record | 05:00"), ()),
        ("Insulin", ("sections",)),
        (arguing("- the ground-truth says so"), ("betrayal",)),
        (arguing("- The correct answer is Insulin"), ("betrayal",)),
        (arguing("As the evidence graph shows, Insulin"), ("betrayal",)),
        (arguing("Na goes with Insulin (lift 7)"), ("betrayal", "numbers")),
        (arguing("The answer was already given."), ("betrayal",)),
        (arguing("- Na is low, though Insulin"), ("hedging",)),
        (arguing("Na seems low"), ("hedging",)),
        (arguing("Possible drug was given"), ()),
        (chain("Na | Labotary Test Events | 09:01", *GOOD[1:]), ("citations",)),
        (chain("Na | Triage | 09:00", *GOOD[1:]), ("citations",)),
        (chain("", *GOOD[1:]), ("empty", "derivation")),
        (citing("opacity | Radiology Examinations | 10:00"), ()),
        (citing("new opacity, 3.5 cm, at | Radiology Examinations | 10:00"), ()),
        (citing("opaci | Radiology Examinations | 10:00"), ("citations",)),
        (citing("opacity | Radiology Examinations | 11:00"), ("citations",)),
        (arguing("The heart rate of 118 at 11:00 and 3.5 cm"), ()),
        (arguing("The heart rate of 119"), ("numbers",)),
        (chain(GOOD[0], GOOD[1], "insulin\nDextrose 50%"), ("spelling",)),
        (chain(GOOD[0], GOOD[1], "Insulin"), ("coverage",)),
        (
            chain(GOOD[0], "- maybe", "Aspirin"),
            ("hedging", "derivation", "spelling", "coverage"),
        ),
    ],
)
def test_each_rule_of_screening(draft: str, rules: tuple[str, ...]) -> None:
    assert screen(draft, SAMPLE, ALL, coverage=0.6).rejected_by == rules


def cases(yes: str, no: str) -> str:
    return f"## Case for yes\n{yes}\n## Case for no\n{no}"


FOR_YES = "Na | Labotary Test Events | 09:00"
RISK = sample(2, "ED_Hospitalization", "yes")


@pytest.mark.parametrize(
    ("draft", "rules"),
    [
        (cases(FOR_YES, "opacity | Radiology Examinations | 10:00\nIt is old."), ()),
        (cases(FOR_YES, "Nothing is cited."), ("sections",)),
        (cases(FOR_YES, "K | Labotary Test Events | 09:00"), ("citations",)),
        (cases(FOR_YES, FOR_YES) + "\nThe answer: yes", ("betrayal",)),
        (cases(FOR_YES, FOR_YES) + "\nYes.", ("betrayal",)),
        (cases(FOR_YES, FOR_YES) + "\nIt could be so.", ("hedging",)),
        (chain(GOOD[0], "Na | -> | Insulin", "Insulin"), ("sections",)),
    ],
)
def test_a_question_of_yes_or_no_is_argued_both_ways(draft: str, rules: tuple[str, ...]) -> None:
    assert screen(draft, RISK, ALL, coverage=0.6).rejected_by == rules


@pytest.mark.parametrize(
    ("prose", "rules", "faithful"),
    [
        ("Na at 09:00 calls for Insulin and Dextrose 50%.", (), 1.0),
        ("Na calls for Insulin.\nSo does the rest.", ("coverage",), 0.5),
        ("Na of 77 calls for Insulin and Dextrose 50%.", ("numbers",), 1.0),
        ("Maybe Insulin and Dextrose 50%.", ("hedging",), 0.0),
    ],
)
def test_free_prose_is_screened_without_sections(
    prose: str, rules: tuple[str, ...], faithful: float
) -> None:
    verdict = screen(prose, SAMPLE, ALL, coverage=0.6, sections=False)
    assert verdict.rejected_by == rules and verdict.faithfulness == faithful


def test_the_best_draft_is_kept() -> None:
    drafts = [Verdict(("hedging",), 1.0, 1.0), Verdict((), 1.0, 0.8), Verdict((), 1.0, 1.0)]
    assert best(drafts) == 2 and best([*drafts, drafts[2]]) == 2
    assert best(drafts[:2]) == 1 and best(drafts[:1]) is None
