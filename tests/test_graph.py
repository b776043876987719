"""Concepts, co-occurrence, evidence: counts equal brute force, and nothing from outside."""

from datetime import datetime
from pathlib import Path

import networkx as nx
import numpy as np
import polars as pl
import pytest
from scipy.stats import false_discovery_control, fisher_exact

from ehrr1.graph.associations import (
    Association,
    EvidenceRule,
    Margins,
    associated,
    candidates,
    contribution,
    lower_bounds,
    margins,
    normalised_pmi,
    p_values,
    significance_bound,
)
from ehrr1.graph.concepts import Concept, event_concepts, heading, occurrences
from ehrr1.graph.cooccurrence import Cooccurrence, CooccurrenceCounter
from ehrr1.graph.evidence import (
    answers,
    covered,
    evidence_graph,
    from_graphml,
    from_json,
    randomised,
    to_graphml,
    to_json,
)
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
    split: str = "train",
) -> Sample:
    """A sample of patient `subject` (its own number by default) with a context of its own."""
    return Sample(
        sample_id=f"{task}/{number}",
        subject_id=number if subject is None else subject,
        hadm_id=None,
        stay_id=None,
        task=task,
        split=split,
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


def drawn(context: list[Event], target: list[str], counts: Cooccurrence) -> nx.DiGraph:
    """The evidence graph of a sample by RULE."""
    return drawn_with_ids(context, target, counts, {})


def drawn_with_ids(
    context: list[Event], target: list[str], counts: Cooccurrence, ids: dict[str, str]
) -> nx.DiGraph:
    shown = list(occurrences(context))
    seen = dict.fromkeys(occurrence.concept for occurrence in shown)
    found = {item: associated(counts, item, candidates(counts, seen), RULE) for item in target}
    return evidence_graph(context, shown, found, ids)


def test_concepts_are_items_and_classes_once_an_event() -> None:
    drugs = event("prescriptions", 3, ["Heparin", "Heparin", ""], Atc="Antithrombotics")
    assert event_concepts(drugs) == [
        Concept("prescriptions", "Heparin"),
        Concept("prescriptions/atc", "Antithrombotics"),
    ]
    assert heading(Concept("prescriptions/atc", "Antithrombotics")) == "Prescriptions"
    shown = [drugs, event("labevents", 4, ["K"])]
    assert [found.event for found in occurrences(shown, states=False)] == [0, 0, 1]
    assert [found.concept.state for found in occurrences(shown)] == ["", "once", "", ""]


def corpus(seed: int) -> list[tuple[list[str], list[str]]]:
    """Random samples: target and history names, with repetitions."""
    generator = np.random.default_rng(seed)
    return [
        (
            [f"t{i}" for i in generator.integers(0, 5, generator.integers(1, 4))],
            [f"h{i}" for i in generator.integers(0, 12, generator.integers(0, 9))],
        )
        for _ in range(int(generator.integers(1, 40)))
    ]


def check(counts: Cooccurrence, pairs: list[tuple[list[str], list[str]]]) -> None:
    """Every count and lift equals that of a loop over the samples."""
    assert counts.units == len(pairs)
    assert set(counts.targets) == {name for targets, _ in pairs for name in targets}
    for target in counts.targets:
        for concept in counts.history:
            with_target = sum(target in t for t, _ in pairs)
            with_history = sum(concept.name in h for _, h in pairs)
            joint = sum(target in t and concept.name in h for t, h in pairs)
            assert counts.support(target, concept) == joint
            expected = joint * len(pairs) / (with_target * with_history)
            assert counts.lift(target, concept) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dense", [1, 1000], ids=["sparse", "dense"])
@pytest.mark.parametrize("seed", range(100))
def test_lift_equals_brute_force(
    seed: int, dense: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In blocks of a few samples, sparse or dense, in two shards that are merged, from a file."""
    monkeypatch.setattr("ehrr1.graph.cooccurrence.BLOCK", 20)
    monkeypatch.setattr("ehrr1.graph.cooccurrence.DENSE", dense)
    monkeypatch.setattr("ehrr1.graph.cooccurrence.SPAN", 9)
    pairs = corpus(seed)
    check(counted(pairs), pairs)
    whole = CooccurrenceCounter()
    for shard in (pairs[::2], pairs[1::2]):
        whole.merge(counted(shard))
    whole.result().save(tmp_path / "counts.npz")
    check(Cooccurrence.load(tmp_path / "counts.npz"), pairs)


@pytest.mark.parametrize("seed", range(20))
def test_measures_equal_those_of_scipy(seed: int) -> None:
    pairs = corpus(seed)
    counts = counted(pairs)
    columns = np.arange(len(counts.history))
    for target in counts.targets:
        beside = margins(counts, target, columns)
        npmi, p = normalised_pmi(beside), p_values(beside)
        for concept, column in counts.history.items():
            there = [(target in t, concept.name in h) for t, h in pairs]
            table = [
                [sum(x == (a, b) for x in there) for b in (True, False)] for a in (True, False)
            ]
            assert p[column] == pytest.approx(fisher_exact(table, "greater").pvalue, abs=1e-9)
            joint, samples = table[0][0], len(pairs)
            alone = (sum(t for t, _ in there), sum(h for _, h in there))
            if 0 < joint < samples:
                pmi = np.log(joint * samples / (alone[0] * alone[1]))
                assert npmi[column] == pytest.approx(pmi / -np.log(joint / samples))
            else:
                assert npmi[column] == (-1 if joint == 0 else 1)


@pytest.mark.parametrize("seed", range(10))
def test_false_discoveries_are_bounded_as_scipy_bounds_them(seed: int) -> None:
    """Pairs below the bound are those that scipy's adjusted p-values pass, over all pairs."""
    pairs = corpus(seed) + [(["t0"], ["h0"])] * 12 + [(["t1"], ["h1"])] * 12
    counts = counted(pairs)
    columns = np.flatnonzero(counts.n_history >= 2)
    p = np.concatenate([p_values(margins(counts, one, columns)) for one in counts.targets])
    bound = significance_bound(counts, min_count=2, max_fdr=0.05)
    assert ((p <= bound) == (false_discovery_control(p) <= 0.05)).all()
    assert 0 < (p <= bound).sum() < len(p)


def test_evidence_graph_is_typed_traceable_and_survives_json() -> None:
    counts = counted([(["t"], ["K", "Na"]), (["t"], ["K"]), (["u"], ["Na"]), (["u"], ["Na"])])
    context = [event("labevents", hour, ["K", "Na"]) for hour in (1, 2, 3)]
    graph = drawn(context, ["t", "nobody has it"], counts)
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
    assert edge == {
        "kind": "cooccurrence",
        "support": 2,
        "lift": 2.0,
        "lift_low": 0.6847,
        "probability": 1.0,
        "npmi": 1.0,
        "p": pytest.approx(1 / 6),
    }
    place = graph.edges["concept:labevents:K", "event:2"]
    assert place == {"kind": "occurrence", "time": "2150-03-04T03:00:00"}
    assert covered(graph) == 0.5
    again = from_json(to_json(graph))
    assert to_json(again) == to_json(graph) and answers(again) == answers(graph)
    assert to_json(from_graphml(to_graphml(graph))) == to_json(graph)


def test_random_evidence_has_the_size_and_the_numbers_of_the_real_one() -> None:
    counts = counted([(["t"], ["K", "Na"]), (["t"], ["K", "Na"]), (["u"], ["Cl"]), (["u"], ["Cl"])])
    context = [event("labevents", hour, ["K", "Na", "Cl", "Mg"]) for hour in (1, 2)]
    shown = list(occurrences(context))
    seen = dict.fromkeys(one.concept for one in shown)
    found = {
        item: associated(counts, item, candidates(counts, seen), RULE) for item in ("t", "u", "v")
    }
    draws = [randomised(found, shown, str(seed)) for seed in range(50)]
    assert randomised(found, shown, "7") == draws[7]
    for draw in draws:
        for item, evidence in found.items():
            assert [one[1:] for one in draw[item]] == [one[1:] for one in evidence]
            assert len({one.concept for one in draw[item]}) == len(evidence)
    assert {one.concept for draw in draws for one in draw["t"]} == set(seen)


@pytest.mark.parametrize("seed", range(20))
def test_patients_count_once_and_one_can_be_left_out(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every count equals that of a loop over patients, with and without each of them."""
    monkeypatch.setattr("ehrr1.graph.cooccurrence.BLOCK", 20)
    samples = [
        (set(answer), {Concept("labevents", name) for name in history})
        for answer, history in corpus(seed)
    ]
    patients = [samples[first : first + 3] for first in range(0, len(samples), 3)]
    whole = CooccurrenceCounter()
    for part in (patients[::2], patients[1::2]):
        counter = CooccurrenceCounter()
        for one in part:
            counter.add_patient(one)
        whole.merge(counter.result())
    counts = whole.result()
    known = list(counts.history)
    columns = np.array([counts.history[concept] for concept in known])
    for target in counts.targets:
        for out in (None, *patients):
            rest = [one for one in patients if one is not out]
            beside = margins(counts, target, columns, contribution(counts, out or []))
            assert beside.units == len(rest)
            assert beside.target == sum(any(target in a for a, _ in one) for one in rest)
            for place, concept in enumerate(known):
                shown = [any(concept in h for _, h in one) for one in rest]
                both = [any(target in a and concept in h for a, h in one) for one in rest]
                assert beside.history[place] == sum(shown)
                assert beside.joint[place] == sum(both)


def test_evidence_does_not_rest_on_its_own_patient() -> None:
    """Two of three patients with the pair are too few without the one whose graph is drawn."""
    pair, other = ({"t"}, {Concept("labevents", "K")}), ({"u"}, {Concept("labevents", "Na")})
    counter = CooccurrenceCounter()
    for samples in ([pair, pair], [pair], *[[other]] * 6):
        counter.add_patient(samples)
    counts, rule = counter.result(), EvidenceRule(1, 2, 1.5, 20)
    shown = candidates(counts, pair[1])
    (one,) = associated(counts, "t", shown, rule)
    assert (one.support, one.lift, one.probability) == (2, 4.0, 1.0)
    assert associated(counts, "t", shown, rule, own=contribution(counts, [pair, pair])) == []
    (one,) = associated(counts, "t", shown, rule, own=contribution(counts, [other]))
    assert (one.support, one.lift) == (2, 3.5)


def test_evidence_is_likely_and_certain_enough() -> None:
    """A concept in few patients, and one after which the answer is rare, are no evidence."""
    pairs = [(["t"], ["rare", "strong"])] * 2 + [(["t"], ["strong", "weak"])] * 18
    pairs += [([], ["weak"])] * 82 + [([], [])] * 98
    counts = counted(pairs)
    concepts = [Concept("labevents", name) for name in ("rare", "strong", "weak")]
    names = candidates(counts, concepts)
    loose = EvidenceRule(1, 1, 1.5, 20)
    found = {one.concept.name: one for one in associated(counts, "t", names, loose)}
    assert list(found) == ["strong", "rare", "weak"]
    assert [one.probability for one in found.values()] == [1.0, 1.0, 0.18]
    strict = EvidenceRule(1, 1, 1.5, 20, min_lift_low=5, min_probability=0.3)
    assert [one.concept.name for one in associated(counts, "t", names, strict)] == ["strong"]


def test_the_lower_bound_covers() -> None:
    """In 2,000 draws of 300 patients, the bound is above the true lift in at most 2.5 %."""
    generator, chances = np.random.default_rng(0), [0.1, 0.1, 0.2, 0.6]
    draws = generator.multinomial(300, chances, size=2000)
    beside = [Margins(d[:1], d[:1] + d[2:3], int(d[0] + d[1]), 300) for d in draws]
    above = np.mean([lower_bounds(one)[0] > 0.1 / (0.2 * 0.3) for one in beside])
    assert 0.001 < above < 0.035


def test_an_item_done_before_is_a_repetition() -> None:
    context = [
        event("emar", 1, ["Heparin"], Event_Txt="Administered"),
        event("emar", 2, ["Insulin"], Event_Txt="Hold Dose"),
        event("pyxis", 3, ["Heparin"]),
    ]
    shown = list(occurrences(context))
    found = {
        item: [Association(one.concept, 2, 2.0, 1.5, 0.5, 0.1, 0.1) for one in shown]
        for item in ("Heparin", "Insulin")
    }
    graph = evidence_graph(context, shown, found, answers_from="emar")
    kinds = {edge[:2]: edge[2] for edge in graph.edges(data="kind") if "answer" in edge[1]}
    assert [edge for edge, kind in kinds.items() if kind == "repetition"] == [
        ("concept:emar[given]:Heparin", "answer:Heparin")
    ]
    assert len(kinds) == 8 and graph.nodes["concept:emar[held]:Insulin"]["state"] == "held"
    assert "state" not in graph.nodes["concept:pyxis:Heparin"]
    assert all(len(evidence) == 4 for evidence in answers(graph).values())
    assert to_json(from_graphml(to_graphml(graph))) == to_json(graph)


def test_evidence_uses_only_what_the_context_shows() -> None:
    counts = counted([(["t"], ["K"]), (["t"], ["K"]), (["u"], []), (["u"], [])])
    graph = drawn([event("labevents", 1, ["Na"])], ["t"], counts)
    assert [data["kind"] for _, data in graph.nodes(data=True)] == ["answer"]
    assert covered(drawn([], [], counts)) == 0


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
