"""Reasons beside evidence: routine, repetition, what belongs together, and what a prompt shows."""

import math
from dataclasses import replace
from pathlib import Path

import networkx as nx
import pytest

from ehrr1.graph.associations import EvidenceRule, associated, candidates, contribution
from ehrr1.graph.concepts import Concept, occurrences
from ehrr1.graph.cooccurrence import Cooccurrence, CooccurrenceCounter
from ehrr1.graph.drawing import shown_from
from ehrr1.graph.evidence import (
    add_reasons,
    answers_only,
    covered,
    evidence_graph,
    explained,
    likelihood_ratio,
    mark_candidates,
)
from ehrr1.graph.reasons import EVERYBODY, beside_record, find_reasons, likely_items
from ehrr1.reasoning.argument import argue
from ehrr1.reasoning.chain import parse_chain
from ehrr1.reasoning.claims import check
from ehrr1.reasoning.facts import Citable
from ehrr1.reasoning.pictures.figure import draw
from ehrr1.reasoning.pictures.layout import arrange
from ehrr1.reasoning.screening import screen
from ehrr1.reasoning.template import Style, write_template
from ehrr1.reasoning.trace import trace
from ehrr1.records.markdown import event_markdown
from ehrr1.stages.reason import citations_shown
from tests.test_graph import event, sample

RULE = EvidenceRule(min_count=2, min_support=2, min_lift=1.2, top=3, min_probability=0.3)
CONTEXT = [
    event("transfers", 1, ["Ward A"]),
    event("labevents", 2, ["Sodium", "Lactate"]),
    event("labevents", 3, ["Sodium"]),
]
ANSWER = ("Sodium", "Glucose", "Chloride", "Bicarbonate", "Rare")
SAMPLE = sample(1, "labevents", *ANSWER)
WARD, ALL = Concept("routine", "Ward A"), Concept("routine", EVERYBODY)


def counts() -> Cooccurrence:
    """Ten patients in Ward A and ten elsewhere, each with one sample.

    Glucose: 6 of Ward A. Chloride: 2 of Ward A, always with Bicarbonate. Sodium: 5 of the 8 who had
    it before. Rare: one patient.
    """
    counter = CooccurrenceCounter()
    for number in range(20):
        ward = number < 10
        answer = ["Glucose"] * (number < 6) + ["Chloride", "Bicarbonate"] * (number < 2)
        answer += ["Sodium"] * (number in (3, 4, 5, 12, 13)) + ["Rare"] * (number == 9)
        before = [Concept("labevents", "Sodium")] * (number in (3, 4, 5, 6, 12, 13, 14, 15))
        beside = [WARD] * ward + [ALL, *(Concept("together", item) for item in answer)]
        counter.add_patient([(answer, [*before, *beside])])
    return counter.result()


def reasons(own: list[tuple[set[str], set[Concept]]] | None = None) -> dict[str, dict[str, float]]:
    """Each answer with the names of its reasons and their probabilities."""
    known = counts()
    shown = [one.concept for one in occurrences(CONTEXT) if one.concept.kind == "labevents"]
    beside = beside_record(list(occurrences(CONTEXT)), ANSWER)
    found = find_reasons(known, ANSWER, beside, shown, RULE, 0.3, contribution(known, own or []))
    return {
        item: {f"{one.concept.kind}/{one.concept.name}": one.probability for one in some}
        for item, some in found.items()
    }


def test_reasons_are_shares_of_patients() -> None:
    assert beside_record(list(occurrences(CONTEXT)), ["a"])[:2] == [WARD, ALL]
    assert beside_record([], ["a", "a"]) == [ALL, Concept("together", "a")]
    assert reasons() == {
        "Sodium": {"routine/Ward A": 0.3, "labevents/Sodium": 0.625, "together/Glucose": 0.5},
        "Glucose": {"routine/Ward A": 0.6, "together/Chloride": 1.0, "together/Bicarbonate": 1.0}
        | {"together/Sodium": 0.6},
        "Chloride": {"together/Glucose": pytest.approx(1 / 3), "together/Bicarbonate": 1.0},
        "Bicarbonate": {"together/Glucose": pytest.approx(1 / 3), "together/Chloride": 1.0},
        "Rare": {},
    }


def test_no_reason_rests_on_the_samples_own_patient() -> None:
    """Without the patient 3, who has Sodium again, 4 of 7 have it, and 2 of 9 in the ward."""
    own = {WARD, ALL, Concept("labevents", "Sodium"), Concept("together", "Sodium")}
    found = reasons([({"Sodium", "Glucose"}, own | {Concept("together", "Glucose")})])
    assert found["Sodium"] == {"labevents/Sodium": pytest.approx(4 / 7), "together/Glucose": 0.4}


def graph() -> nx.DiGraph:
    shown = list(occurrences(CONTEXT))
    made = evidence_graph(CONTEXT, shown, {item: [] for item in ANSWER})
    known = counts()
    candidates = [one.concept for one in shown if one.concept.kind == "labevents"]
    found = find_reasons(known, ANSWER, beside_record(shown, ANSWER), candidates, RULE, 0.3, None)
    add_reasons(made, CONTEXT, shown, found)
    return made


def test_reasons_are_edges_of_their_own_kinds_and_no_evidence() -> None:
    made = graph()
    kinds = {(one, other): kind for one, other, kind in made.edges(data="kind")}
    sodium, ward = "concept:labevents:Sodium", "concept:transfers:Ward A"
    assert kinds[sodium, "answer:Sodium"] == "again"
    assert kinds[ward, "answer:Glucose"] == "routine"
    assert kinds[ward, "event:0"] == kinds[sodium, "event:2"] == "occurrence"
    assert kinds["answer:Chloride", "answer:Bicarbonate"] == "together"
    assert made.edges[sodium, "answer:Sodium"]["probability"] == 0.625
    assert covered(made) == 0 and explained(made) == 0.8


def test_each_answer_is_explained_once_and_by_what_is_explained_already() -> None:
    made = graph()
    assert [(step.kind, step.answers) for step in argue(made, 4)] == [
        ("again", ("Sodium",)),
        ("routine", ("Glucose",)),
        ("together", ("Bicarbonate", "Chloride")),
    ]
    assert [step.kind for step in argue(made, 0)] == ["routine", "together"]
    made.remove_edges_from([pair for pair in made.edges if "Glucose" in "".join(pair)])
    assert "together" not in [step.kind for step in argue(made, 4)]


LINES: dict[Style, list[str]] = {
    "compact": [
        "Again | -> | Sodium",
        "Ward A | routine | -> | Glucose",
        "Glucose | together | -> | Bicarbonate | Chloride",
    ],
    "prose": [
        "Sodium: done before, due again.",
        "Glucose: routine in the Ward A.",
        "Glucose comes with Bicarbonate and Chloride.",
    ],
}


def test_cases_weigh_evidence_by_its_likelihood_ratio() -> None:
    """Lactate: 6 of 10 with yes and 6 of 90 with no; Sodium: 2 and 9; Chloride: 0 and 60."""
    counter = CooccurrenceCounter()
    for number in range(100):
        yes = number < 10
        shown = ["Lactate"] * (number < 6 or 10 <= number < 16)
        shown += ["Sodium"] * (number < 2 or 10 <= number < 19) + ["Chloride"] * (number >= 40)
        names = [Concept("labevents", name) for name in shown]
        counter.add_patient([(["yes" if yes else "no"], names)])
    context = [event("labevents", 1, ["Sodium", "Lactate", "Chloride"])]
    shown = list(occurrences(context))
    rule = EvidenceRule(min_count=2, min_support=1, min_lift=1.0, top=9)
    concepts = candidates(counter.result(), (one.concept for one in shown))
    found = {item: associated(counter.result(), item, concepts, rule) for item in ("yes", "no")}
    made = evidence_graph(context, shown, found)
    ratios = {
        (node.split(":")[-1], answer.split(":")[-1]): likelihood_ratio(edge)
        for node, answer, edge in made.edges(data=True)
        if edge["kind"] != "occurrence"
    }
    assert ratios["Lactate", "yes"] == pytest.approx((6 / 10) / (6 / 90), rel=1e-2)
    assert ratios["Sodium", "yes"] == pytest.approx((2 / 10) / (9 / 90), rel=1e-2)
    assert ratios["Chloride", "no"] == math.inf
    asked = sample(3, "ICU_Mortality_1day", "no")
    (draft,) = write_template(asked, context, made, 2, "prose")
    yes, no = (part.splitlines() for part in draft.chain.split("## Case for no\n"))
    assert yes[-2:] == [
        "Lactate is on record: moderate evidence.",
        "Sodium is on record: weak evidence.",
    ]
    assert no[-1] == "Chloride is on record: strong evidence."
    assert screen(draft.chain, asked, context, 0.7).rejected_by == ()


def weighed(answer: tuple[str, ...], together: int = 0) -> nx.DiGraph:
    """The graph of the same record with another answer, and with all items that are likely;
    `together`: how many of these all evidence calls for."""
    known, shown = counts(), list(occurrences(CONTEXT))
    before = {one.concept for one in shown if one.concept.kind == "labevents"}
    likely = likely_items(known, shown, "labevents", RULE, 0.3, None)
    concepts = candidates(known, before)
    items = dict.fromkeys((*answer, *likely))
    found = {item: associated(known, item, concepts, RULE) for item in items}
    others = {item: found.pop(item) for item in likely if item not in answer}
    made = evidence_graph(CONTEXT, shown, found, None, "labevents", others)
    for some in (answer, others):
        beside = beside_record(shown, answer if some is answer else ())
        add_reasons(
            made, CONTEXT, shown, find_reasons(known, some, beside, before, RULE, 0.3, None)
        )
    mark_candidates(made, likely, together)
    return made


def test_with_candidates_only_the_results_depend_on_the_answer() -> None:
    graphs = {answer: weighed(answer) for answer in (("Glucose",), ("Sodium", "Rare"), ("Rare",))}
    drafts = {answer: write_template(SAMPLE, CONTEXT, one, 4) for answer, one in graphs.items()}
    lines = {answer: draft[0].chain.split("## Final Results") for answer, draft in drafts.items()}
    assert len({before for before, _ in lines.values()}) == 1
    assert [after.split() for _, after in lines.values()] == [
        ["Glucose"],
        ["Sodium"],
        ["None", "of", "these"],
    ]
    assert "Ward A | routine | -> | Glucose" in lines["Rare",][0]
    assert "Again | -> | Sodium" in lines["Rare",][0]
    plain = answers_only(graphs["Rare",])
    assert set(plain) == {"answer:Rare"}
    draft = drafts["Rare",][0].chain
    assert screen(draft, SAMPLE, CONTEXT, 0.0).rejected_by == ()
    chain = parse_chain(draft)
    assert chain is not None and chain.results == ()
    without = draft.removesuffix("None of these")
    assert screen(without, SAMPLE, CONTEXT, 0.0).rejected_by == ("empty",)


@pytest.mark.parametrize("style", ["compact", "prose"])
def test_what_all_evidence_calls_for_is_the_last_line(style: Style) -> None:
    made = weighed(("Glucose",), together=2)
    (draft,) = write_template(SAMPLE, CONTEXT, made, 4, style)
    likely = made.graph["likely"]
    assert likely == made.graph["candidates"][:2] and "Glucose" in likely
    chain = parse_chain(draft.chain)
    assert chain is not None and chain.results == ("Glucose",)
    cells, sentence = " | ".join(likely), " and ".join(likely)
    last = {
        "compact": f"All evidence | -> | {cells}",
        "prose": f"All evidence together: {sentence}.",
    }
    assert chain.reasoning[-1] == last[style]
    assert screen(draft.chain, SAMPLE, CONTEXT, 0.0, likely=likely).rejected_by == ()
    (traced,) = (line for line in trace(draft.chain, made) if line.text == last[style])
    assert ("concept:labevents:Sodium", "candidate:Sodium") in traced.edges
    (alone,) = write_template(SAMPLE, CONTEXT, made, 4, style, "weighed")
    assert parse_chain(alone.chain) == replace(
        chain, sections=((), (last[style],), ("Glucose",)), citations=(), reasoning=(last[style],)
    )
    assert screen(alone.chain, SAMPLE, CONTEXT, 0.0, likely=likely).rejected_by == ()
    # alone it derives what it names, and nothing else
    short = f"## Extraction\nSodium | Labotary Test Events | 03:00\n## Reasoning\n{last[style]}\n"
    assert screen(f"{short}## Final Results\nGlucose", SAMPLE, CONTEXT, 0.0).rejected_by == ()
    other = f"{short.replace('Glucose', 'Chloride')}## Final Results\nGlucose"
    assert "derivation" in screen(other, SAMPLE, CONTEXT, 0.0).rejected_by


def test_digits_in_the_names_of_likely_items_are_no_numbers() -> None:
    name = "Dextrose 50%"
    chain = (
        "## Extraction\nSodium | Labotary Test Events | 03:00\n## Reasoning\n"
        f"Sodium | -> | Glucose | {name}\n## Final Results\nGlucose"
    )
    assert screen(chain, SAMPLE, CONTEXT, 0.0).rejected_by == ("numbers",)
    assert screen(chain, SAMPLE, CONTEXT, 0.0, likely=[name]).rejected_by == ()


def test_pictures_show_likely_items_that_are_not_the_answer(tmp_path: Path) -> None:
    made = weighed(("Rare",))
    (draft,) = write_template(SAMPLE, CONTEXT, made, 4)
    line = next(
        line for line in trace(draft.chain, made) if line.text.startswith("Ward A | routine")
    )
    assert line.text == "Ward A | routine | -> | Glucose | Sodium"
    named = {"candidate:Glucose", "candidate:Sodium"}
    assert {("concept:transfers:Ward A", node) for node in named} <= {*line.edges}
    assert named | {"answer:Rare"} <= {*arrange(made).columns[-1].nodes}
    draw(made, "", tmp_path / "figure.svg", "svg")
    assert "likely by the record, not the answer" in (tmp_path / "figure.svg").read_text("utf-8")


@pytest.mark.parametrize("style", ["compact", "prose"])
def test_both_styles_are_read_screened_and_traced(style: Style) -> None:
    made = graph()
    (draft,) = write_template(SAMPLE, CONTEXT, made, 4, style)
    chain = parse_chain(draft.chain)
    assert chain is not None and list(chain.reasoning) == LINES[style]
    assert [one.name for one in chain.citations] == ["Ward A", "Sodium"]
    assert check(chain, Citable(CONTEXT, SAMPLE.prediction_time)).broken == {}
    assert screen(draft.chain, SAMPLE, CONTEXT, 0.7).rejected_by == ()
    lines = {line.text: {*line.edges} for line in trace(draft.chain, made)}
    again, routine, together = (lines[line] for line in LINES[style])
    assert ("concept:labevents:Sodium", "answer:Sodium") in again
    assert ("concept:transfers:Ward A", "answer:Glucose") in routine
    assert together == {
        ("answer:Glucose", "answer:Bicarbonate"),
        ("answer:Glucose", "answer:Chloride"),
    }
    chloride = next(line for line in reversed(lines) if "Chloride" in line)
    assert ("answer:Glucose", "answer:Chloride") in lines[chloride]


@pytest.mark.parametrize("style", ["compact", "prose"])
def test_only_what_is_routine_for_all_needs_no_citation(style: Style) -> None:
    made = nx.DiGraph()
    made.add_node("answer:Sodium", kind="answer", label="Sodium")
    made.add_node("routine:all", kind="routine", label=EVERYBODY)
    made.add_edge("routine:all", "answer:Sodium", kind="routine", support=9, lift=1.0)
    asked = sample(1, "labevents", "Sodium")
    (draft,) = write_template(asked, CONTEXT, made, 4, style)
    assert screen(draft.chain, asked, CONTEXT, 0.7).rejected_by == ()
    assert ("routine:all", "answer:Sodium") in trace(draft.chain, made)[2].edges
    without = draft.chain.replace("routine for all patients", "due").replace(EVERYBODY, "It")
    assert "empty" in screen(without, asked, CONTEXT, 0.7).rejected_by


def test_only_events_that_fit_are_read() -> None:
    """The preamble counts, and the latest events are kept whole, as in a prompt."""
    sizes = [len(event_markdown(one)) + 2 for one in CONTEXT]
    assert shown_from(CONTEXT, 0, sum(sizes)) == 0
    assert shown_from(CONTEXT, 0, sum(sizes) - 1) == 1
    assert shown_from(CONTEXT, 1, sum(sizes) - 1) == 2
    assert shown_from(CONTEXT, 1, sizes[0]) == 3


@pytest.mark.parametrize(("cut", "share"), [(0, 1.0), (1, 0.5), (3, 0.0)])
def test_citations_that_prompts_do_not_show_are_told(
    cut: int, share: float, capsys: pytest.CaptureFixture[str]
) -> None:
    (draft,) = write_template(SAMPLE, CONTEXT, graph(), 4)
    lost, others = {SAMPLE.sample_id: cut}, [SAMPLE, sample(2, "labevents")]

    def shown(chain: str) -> dict[str, float]:
        chains = {SAMPLE.sample_id: (chain, "Sodium")}
        return citations_shown(others, chains, lost, lambda _: CONTEXT)

    assert shown(draft.chain) == {"citations_shown": share}
    assert ("graph.record_chars=N" in capsys.readouterr().err) == (share < 0.9)
    assert shown("prose") == {}
