"""Prompts for language models: guidelines, what fits of record and evidence, what is told."""

from datetime import datetime

import networkx as nx
import pytest

from ehrr1.engines.anthropic import is_cacheable
from ehrr1.prompts.messages import CASES
from ehrr1.reasoning.chain import SECTIONS
from ehrr1.reasoning.prices import CostEstimate, Price, estimate
from ehrr1.reasoning.prompting import (
    DECISION,
    PROSE,
    RISK,
    VERSIONS,
    Limit,
    Prompt,
    fitting_record,
    graph_lines,
    version_for,
    write_prompt,
)
from ehrr1.reasoning.screening import screen
from ehrr1.reasoning.wording import HEDGING
from ehrr1.records.events import Event
from ehrr1.records.markdown import record_markdown
from tests.test_graph import event, sample

DEMOGRAPHICS = Event("patients", None, None, (), (), "## Patient Demographics [None]\n- Gender: F")
CONTEXT = [DEMOGRAPHICS] + [event("labevents", hour, ["Na", "K"]) for hour in range(1, 20)]
SAMPLE = sample(1, "emar", "Insulin", "Heparin")
WIDE = [Limit(len, 100_000)]


def graph() -> nx.DiGraph:
    found = nx.DiGraph()
    for item in ("Insulin", "Heparin"):
        found.add_node(f"answer:{item}", kind="answer", label=item)
    for name, table, time in (
        ("Na", "labevents", "2150-03-04T19:00:00"),
        ("K", "labevents", None),
        ("short of breath", "discharge/text", "2150-03-04T12:00:00"),
    ):
        found.add_node(name, kind="concept", label=name, table=table)
        found.add_edge(name, f"event:{name}", kind="occurrence", time=time)
        found.nodes[f"event:{name}"].update(kind="event", label="x")
    found.nodes["short of breath"]["written"] = "sob"
    found.add_edge("Na", "answer:Insulin", kind="cooccurrence", support=2, lift=1.5)
    found.add_edge("K", "answer:Insulin", kind="cooccurrence", support=9, lift=8.26)
    found.edges["K", "answer:Insulin"].update(hops=1, via="A\tB")
    found.add_edge("K", "answer:Heparin", kind="cooccurrence", support=5, lift=2.0)
    found.add_edge("short of breath", "answer:Heparin", kind="cooccurrence", support=2, lift=1.2)
    one, two = "concept:knowledge:A", "concept:knowledge:B"
    for node in (one, two):
        found.add_node(node, kind="concept", label=f"known {node[-1]}", table="knowledge")
    for tail, head, more in (
        ("K", one, {"relation": "linked"}),
        (one, two, {"relation": "may_treat", "inverse": True}),
        (two, "answer:Insulin", {"relation": "linked"}),
    ):
        found.add_edge(tail, head, kind="knowledge", vocabulary="x", **more)
    return found


def test_evidence_in_words_the_strongest_first() -> None:
    assert "\n".join(graph_lines(graph())).splitlines() == [
        "K | Labotary Test Events | None",
        "-> Insulin (9 samples; 8.3 times; K - linked - known A - may_treat (reversed) - known B"
        " - linked - Insulin)",
        "-> Heparin (5 samples; 2.0 times)",
        "Na | Labotary Test Events | 2150-03-04 19:00",
        "-> Insulin (2 samples; 1.5 times)",
        "sob | Discharge | 2150-03-04 12:00",
        "-> Heparin (2 samples; 1.2 times)",
    ]


@pytest.mark.parametrize(
    ("task", "sections", "version"),
    [
        ("emar", True, DECISION),
        ("emar", False, PROSE),
        ("ED_Hospitalization", True, RISK),
        ("ED_Hospitalization", False, RISK),
    ],
)
def test_each_kind_of_task_has_its_text(task: str, sections: bool, version: str) -> None:
    assert version_for(task, sections) == version and version in VERSIONS
    asked = sample(1, task, "yes")
    prompt = write_prompt(asked, CONTEXT, graph(), sections=sections, show_graph=True, limits=WIDE)
    headings = {DECISION: SECTIONS, RISK: CASES, PROSE: ()}[version]
    guidelines = prompt.system.partition("<example>")[0].splitlines()
    assert [line for line in guidelines if line.startswith("## ")] == [*headings]
    assert "$" not in prompt.question and prompt.record == record_markdown(CONTEXT)


def test_a_risk_task_is_not_told_what_came() -> None:
    prompts = [
        write_prompt(
            sample(1, "ED_Hospitalization", outcome),
            CONTEXT,
            graph(),
            sections=True,
            show_graph=True,
            limits=WIDE,
        )
        for outcome in ("yes", "no")
    ]
    assert prompts[0] == prompts[1]


def test_the_graph_is_shown_or_only_chooses() -> None:
    told, alone = (
        write_prompt(SAMPLE, CONTEXT, graph(), sections=True, show_graph=show, limits=WIDE)
        for show in (True, False)
    )
    assert told.system == alone.system and told.record == alone.record
    assert "-> Insulin" in told.question and "-> " not in alone.question
    assert "other patients" not in alone.question
    assert "Heparin\nInsulin" in told.question and "Heparin\nInsulin" in alone.question
    assert told.hash != alone.hash


@pytest.mark.parametrize("version", sorted(VERSIONS))
def test_the_guidelines_forbid_the_words_that_screening_finds(version: str) -> None:
    task, sections = ("ED_Hospitalization" if version == RISK else "emar"), version == DECISION
    prompt = write_prompt(
        sample(1, task, "yes"), CONTEXT, graph(), sections=sections, show_graph=True, limits=WIDE
    )
    words = prompt.system.partition(": not ")[2]
    forbidden = words.partition(".")[0].split(", ")
    assert len(forbidden) > 15 and all(HEDGING.fullmatch(word) for word in forbidden)


@pytest.mark.parametrize("version", sorted(VERSIONS))
def test_the_worked_example_breaks_no_rule(version: str) -> None:
    """Its record is Markdown of our events, and its text passes the screening of a draft."""
    task = "ED_Hospitalization" if version == RISK else "emar"
    told = {"Glucose": ("312", "mg/dL", "70", "105"), "Potassium": ("2.9", "mEq/L", "3.3", "5.1")}
    context = [
        _event("radiology", 4, ("RR", "CHEST (PORTABLE AP)", EFFUSION), item="CHEST (PORTABLE AP)"),
        _event("labevents", 6, *((name, *cells, "abnormal", "") for name, cells in told.items())),
        _event("emar", 8, ("Metoprolol Tartrate", "Not Given")),
    ]
    asked = sample(1, task, *(["yes"] if version == RISK else ["Insulin", "Potassium Chloride"]))
    sections = version != PROSE
    prompt = write_prompt(
        asked, context, nx.DiGraph(), sections=sections, show_graph=True, limits=WIDE
    )
    assert prompt.version == version
    example = prompt.system.partition("<example>")[2]
    assert f"Record:\n{record_markdown(context)}\n\nQuestion: " in example
    text = example.partition("A good text:\n")[2].partition("\n\nWhy it is good:")[0]
    verdict = screen(text, asked, context, 0.7, sections)
    assert verdict.rejected_by == () and verdict.faithfulness == 1
    assert is_cacheable("claude-sonnet-5-5", prompt.system)


EFFUSION = "No pleural effusion. No pulmonary edema."


def _event(table: str, hour: int, *rows: tuple[str, ...], item: str | None = None) -> Event:
    time = datetime(2150, 3, 4, hour)
    return Event(table, time, time, rows, tuple(item or row[0] for row in rows))


def test_a_long_record_loses_its_oldest_events_and_nothing_else() -> None:
    whole = record_markdown(CONTEXT)
    assert fitting_record(CONTEXT, [Limit(len, len(whole) + 2)]) == (whole, 0)
    for room in range(0, len(whole), 37):
        record, cut = fitting_record(CONTEXT, [Limit(len, room)])
        assert record == record_markdown([DEMOGRAPHICS, *CONTEXT[1 + cut :]])
        assert len(record) <= room or cut == len(CONTEXT) - 1
    words = Limit(lambda text: len(text.split()), 60)
    record, cut = fitting_record(CONTEXT, [Limit(len, len(whole) // 2), words])
    assert len(record.split()) <= 60 and cut > 10
    prompt = write_prompt(
        SAMPLE, CONTEXT, graph(), sections=True, show_graph=True, limits=[Limit(len, 7000)]
    )
    assert 0 < prompt.cut < 19 and prompt.chars <= 7000


def test_evidence_takes_a_third_of_a_prompt_at_most() -> None:
    limits = [Limit(len, 600)]
    prompt = write_prompt(SAMPLE, CONTEXT, graph(), sections=True, show_graph=True, limits=limits)
    assert "K | Labotary" in prompt.question and "Na | Labotary" not in prompt.question


def test_a_sample_has_its_own_question() -> None:
    own = sample(1, "emar", "Insulin")
    assert own.prediction_time > datetime(2000, 1, 1)
    prompt = write_prompt(own, CONTEXT, nx.DiGraph(), sections=True, show_graph=True, limits=WIDE)
    assert "medicine" in prompt.question.lower() or "medication" in prompt.question.lower()


def test_an_estimate_is_what_the_requests_add_up_to() -> None:
    """Characters: 100 of guidelines, 50 of record, 100 of question; 2.5 to a token."""
    prompt = Prompt(DECISION, "s" * 100, "r" * 50, "q" * 100, cut=3)
    found = estimate([(prompt, 3), (prompt, 1)], cacheable=0)
    assert found == CostEstimate(
        samples=2, requests=4, cut=2, tokens_in=400, most_in=4 * (250 + 64),
        write=40 + 60, read=2 * 40 + 2 * 60 + 40, plain=60,
    )  # fmt: skip
    few = estimate([(prompt, 3), (prompt, 1)], cacheable=100)  # the guidelines alone are too short
    assert (few.write, few.read, few.plain) == (100, 200, 100)
    assert estimate([(prompt, 3)], cacheable=101).plain == 300
    price = Price(input=3, output=15, cache_write=3.75, cache_read=0.3, factor=0.5)
    assert price.of(1e6, 1e6, 1e6, 1e6) == pytest.approx((3 + 15 + 3.75 + 0.3) / 2)
    assert price.at_most(1_000_000, 0) == pytest.approx(3.75 / 2)
