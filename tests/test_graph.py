"""Concepts, co-occurrence, evidence: counts equal brute force, and nothing from outside."""

from datetime import datetime

import numpy as np
import polars as pl
import pytest

from ehrr1.graph.concepts import Concept, event_concepts, heading, occurrences
from ehrr1.graph.cooccurrence import Cooccurrence, CooccurrenceCounter, EvidenceRule
from ehrr1.graph.evidence import answers, covered, evidence_graph, from_json, to_json
from ehrr1.records.events import Event
from ehrr1.records.schema import TABLES
from ehrr1.tasks.samples import Sample
from ehrr1.tasks.selection import by_context, select

RULE = EvidenceRule(min_count=2, min_support=1, min_lift=1.2, top=3)


def event(table: str, hour: int, items: list[str], **shown: str) -> Event:
    """An event whose rows show `shown` and are blank elsewhere."""
    rows = tuple(tuple(shown.get(key.split()[0], "") for key in TABLES[table].keys) for _ in items)
    time = datetime(2150, 3, 4, hour)
    return Event(table, time, time, rows, tuple(items))


def sample(
    number: int,
    task: str = "emar",
    *target: str,
    context: str | None = None,
    subject: int | None = None,
) -> Sample:
    """A sample of patient `subject` (its own number by default) with a context of its own."""
    return Sample(
        sample_id=f"{task}/{number}",
        subject_id=number if subject is None else subject,
        hadm_id=None,
        stay_id=None,
        task=task,
        split="train",
        prediction_time=datetime(2150, 3, 4, 20),
        context_id=context or str(number),
        target=target or ("a",),
        window_start=datetime(2150, 3, 3, 20),
        inclusive=False,
        current_hadm=None,
        hidden_hadm=None,
        ed_stay=None,
        n_context_rows=0,
    )


def counted(pairs: list[tuple[list[str], list[str]]]) -> Cooccurrence:
    counter = CooccurrenceCounter()
    for targets, history in pairs:
        counter.add(targets, [Concept("labevents", name) for name in history])
    return counter.result()


def test_concepts_are_items_and_classes_once_an_event() -> None:
    drugs = event("prescriptions", 3, ["Heparin", "Heparin", ""], Atc="Antithrombotics")
    assert event_concepts(drugs) == [
        Concept("prescriptions", "Heparin"),
        Concept("prescriptions/atc", "Antithrombotics"),
    ]
    assert heading(Concept("prescriptions/atc", "Antithrombotics")) == "Prescriptions"
    assert [found.event for found in occurrences([drugs, event("labevents", 4, ["K"])])] == [
        0,
        0,
        1,
    ]


@pytest.mark.parametrize("seed", range(20))
def test_lift_equals_brute_force_across_chunks(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ehrr1.graph.cooccurrence.CHUNK", 7)
    generator = np.random.default_rng(seed)
    pairs = [
        (
            [f"t{i}" for i in generator.integers(0, 5, generator.integers(1, 4))],
            [f"h{i}" for i in generator.integers(0, 12, generator.integers(0, 9))],
        )
        for _ in range(int(generator.integers(1, 40)))
    ]
    counts = counted(pairs)
    assert counts.samples == len(pairs)
    for target in counts.targets:
        for concept in counts.history:
            with_target = sum(target in t for t, _ in pairs)
            with_history = sum(concept.name in h for _, h in pairs)
            joint = sum(target in t and concept.name in h for t, h in pairs)
            assert counts.support(target, concept) == joint
            expected = joint * len(pairs) / (with_target * with_history)
            assert counts.lift(target, concept) == pytest.approx(expected, rel=1e-12)


def test_associated_obeys_every_bound_and_breaks_ties_by_name() -> None:
    counts = counted([(["t"], ["b", "a", "rare"]), (["t"], ["b", "a"]), (["u"], ["c", "b2", "c2"])])
    shown = [Concept("labevents", name) for name in ("b", "a", "c", "rare", "never counted")]
    found = counts.associated("t", shown, RULE)
    assert [item.concept.name for item in found] == ["a", "b"]
    assert found[0].support == 2 and found[0].lift == pytest.approx(1.5)
    assert len(counts.associated("t", shown, EvidenceRule(1, 1, 1.2, 1))) == 1
    assert counts.associated("t", shown, EvidenceRule(1, 3, 1.2, 9)) == []
    assert counts.associated("unknown", shown, RULE) == []


def test_evidence_graph_is_typed_traceable_and_survives_json() -> None:
    counts = counted([(["t"], ["K", "Na"]), (["t"], ["K"]), (["u"], ["Na"]), (["u"], ["Na"])])
    context = [event("labevents", hour, ["K", "Na"]) for hour in (1, 2, 3)]
    graph = evidence_graph(context, ["t", "nobody has it"], counts, RULE)
    kinds = {node: data["kind"] for node, data in graph.nodes(data=True)}
    assert kinds == {
        "answer:t": "answer",
        "answer:nobody has it": "answer",
        "concept:labevents:K": "concept",
        "event:1": "event",
        "event:2": "event",
    }
    assert graph.nodes["event:2"]["label"] == "Labotary Test Events [2150-03-04 03:00:00]"
    edge = graph.edges["concept:labevents:K", "answer:t"]
    assert edge == {"kind": "cooccurrence", "support": 2, "lift": 2.0}
    place = graph.edges["concept:labevents:K", "event:2"]
    assert place == {"kind": "occurrence", "time": "2150-03-04T03:00:00"}
    assert covered(graph) == 0.5
    again = from_json(to_json(graph))
    assert to_json(again) == to_json(graph) and answers(again) == answers(graph)


def test_evidence_uses_only_what_the_context_shows() -> None:
    counts = counted([(["t"], ["K"]), (["t"], ["K"]), (["u"], []), (["u"], [])])
    graph = evidence_graph([event("labevents", 1, ["Na"])], ["t"], counts, RULE)
    assert [data["kind"] for _, data in graph.nodes(data=True)] == ["answer"]
    assert covered(evidence_graph([], [], counts, RULE)) == 0


def test_selection_is_seeded_capped_nested_and_shares_contexts() -> None:
    index = pl.DataFrame(
        [(f"{task}/{i}", task, str(i), [i]) for i in range(50) for task in ("emar", "poe")],
        schema=["sample_id", "task", "context_id", "target"],
        orient="row",
    )
    chosen = select(index, 10, seed=1)
    contexts = dict(chosen.group_by("task").agg("context_id").iter_rows())
    assert chosen.height == 20 and set(contexts["emar"]) == set(contexts["poe"])
    shuffled = select(index.sample(fraction=1.0, shuffle=True, seed=0), 10, seed=1)
    assert set(shuffled["sample_id"]) == set(chosen["sample_id"])
    assert set(select(index, 3, seed=1)["sample_id"]) < set(chosen["sample_id"])
    assert set(select(index, 10, seed=2)["sample_id"]) != set(chosen["sample_id"])
    assert chosen["sample_id"].to_list() == sorted(
        chosen["sample_id"], key=index["sample_id"].to_list().index
    )
    assert select(index, None, seed=1).equals(index)


def test_samples_by_context_keep_their_order() -> None:
    samples = [sample(i, task) for task in ("emar", "poe") for i in (3, 1)]
    groups = by_context(samples)
    assert list(groups) == ["3", "1"] and [s.task for s in groups["1"]] == ["emar", "poe"]
