"""graph.counting=release: lift as published, counted again by plain loops."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from ehrr1.config.schema import check
from ehrr1.errors import UserError
from ehrr1.graph.associations import EvidenceRule, associated, candidates
from ehrr1.graph.concepts import Concept, occurrences
from ehrr1.graph.cooccurrence import Cooccurrence, CooccurrenceCounter
from ehrr1.runs import Run
from ehrr1.stages import graph
from ehrr1.tasks.samples import Prepared
from tests.settings import composed
from tests.test_records import prepared

RULE = EvidenceRule(min_count=5, min_support=1, min_lift=5, top=20)

Pairs = list[tuple[list[str], list[Concept]]]
"""The answer and the history of each sample."""


def counted(pairs: Pairs) -> Cooccurrence:
    counter = CooccurrenceCounter(either=True)
    for targets, history in pairs:
        counter.add(targets, history)
    return counter.result()


class Slow:
    """The published counts, read off the samples one by one."""

    def __init__(self, pairs: Pairs):
        self.samples = [(set(targets), {c.name for c in history}) for targets, history in pairs]

    def has(self, name: str) -> int:
        """The samples that have it in the answer or in the history."""
        return sum(name in answer or name in history for answer, history in self.samples)

    def both(self, target: str, name: str) -> int:
        return sum(target in answer and name in history for answer, history in self.samples)

    def lift(self, target: str, name: str) -> float:
        alone = self.has(target) * self.has(name)
        return self.both(target, name) * len(self.samples) / alone


def names(pairs: Pairs) -> tuple[set[str], set[str]]:
    """All names of answers, and all of histories."""
    return (
        {name for answer, _ in pairs for name in answer},
        {concept.name for _, history in pairs for concept in history},
    )


def corpus(seed: int) -> Pairs:
    """Random samples whose answers and histories share names, and names stand in two tables."""
    generator = np.random.default_rng(seed)

    def some(most: int) -> Iterable[str]:
        return [f"n{i}" for i in generator.integers(0, 9, generator.integers(1, most))]

    return [
        (
            list(some(4)),
            [Concept(("emar", "pharmacy")[generator.integers(0, 2)], n) for n in some(8)],
        )
        for _ in range(int(generator.integers(1, 40)))
    ]


@pytest.mark.parametrize("dense", [1, 1000], ids=["sparse", "dense"])
@pytest.mark.parametrize("seed", range(30))
def test_counts_equal_plain_loops(
    seed: int, dense: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In blocks of a few samples, in two parts that are merged, from a file."""
    monkeypatch.setattr("ehrr1.graph.cooccurrence.BLOCK", 20)
    monkeypatch.setattr("ehrr1.graph.cooccurrence.DENSE", dense)
    pairs = corpus(seed)
    whole = CooccurrenceCounter(either=True)
    for part in (pairs[::2], pairs[1::2]):
        whole.merge(counted(part))
    whole.result().save(tmp_path / "counts.npz")
    slow, (targets, shown) = Slow(pairs), names(pairs)
    for counts in (counted(pairs), Cooccurrence.load(tmp_path / "counts.npz")):
        assert counts.either and counts.units == len(pairs)
        assert set(counts.targets) == targets
        for target in targets:
            for name in shown:
                for kind in ("emar", "pharmacy"):  # wherever it stands
                    concept = Concept(kind, name)
                    assert counts.support(target, concept) == slow.both(target, name)
                    expected = slow.lift(target, name)
                    assert counts.lift(target, concept) == pytest.approx(expected, rel=1e-12)


def test_a_name_in_two_tables_is_evidence_once() -> None:
    both = [Concept("emar", "Heparin"), Concept("pharmacy", "Heparin")]
    pairs: Pairs = [*[(["a"], both)] * 5, *[(["b"], [])] * 60]
    counts = counted(pairs)
    (one,) = associated(counts, "a", candidates(counts, both), RULE)
    assert one.concept == both[0] and (one.support, one.lift) == (5, 13.0)


@pytest.fixture(scope="module")
def world(mimic_demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """The demo's prescriptions by the paper's protocol, of patients 10000032 to 10009049."""
    folder = tmp_path_factory.mktemp("paper")
    patients = [10000032, 10001725, 10006580, 10007058, 10008287, 10009035, 10009049]
    (folder / "subjects.txt").write_text("\n".join(map(str, patients)))
    settings = {"subjects_file": str(folder / "subjects.txt"), "tasks": ["prescriptions"]}
    split = {"validation": 0.0, "test": 0.0}
    return prepared(mimic_demo, folder / "prepare", protocol="paper", split=split, **settings)[0]


def counts_of(world: Prepared, folder: Path, **settings: object) -> tuple[Cooccurrence, float]:
    """The counts of `stage=graph`, of which five graphs are drawn, and how many pairs pass."""
    own = {"samples_per_task": 5, "workers": 1, "min_count": 5, "min_support": 1, "min_lift": 5}
    own |= {"min_lift_low": None, "min_probability": None, "record_chars": None}
    own |= {"weighed_samples_per_task": None}
    cfg = composed("experiment=demo", graph=own | settings)
    check(cfg)
    metrics = graph.run(cfg, Run(folder, "graph", {"prepare": world.folder}))
    assert metrics["samples/prescriptions"] == 5
    return Cooccurrence.load(folder / "counts" / "prescriptions.npz"), metrics[
        "pairs/prescriptions"
    ]


def test_the_demo_counted_by_loops(world: Prepared, tmp_path: Path) -> None:
    """All training samples are counted, however few are drawn."""
    samples = world.samples("train")
    read = [
        (list(s.target), [o.concept for o in occurrences(world.context(s), states=False)])
        for s in samples
    ]
    slow, (targets, shown) = Slow(read), names(read)
    counts, pairs = counts_of(
        world, tmp_path / "release", counting="release", counted_samples_per_task=None
    )
    assert counts.units == len(samples) == 95 and set(counts.targets) == targets
    found = 0
    for target in targets:
        for name in shown:
            concept = Concept("anything", name)
            assert counts.support(target, concept) == slow.both(target, name)
            if slow.both(target, name):
                lift = slow.lift(target, name)
                assert counts.lift(target, concept) == pytest.approx(lift, rel=1e-12)
                found += slow.has(name) >= 5 and lift > 5
    assert pairs == found == 156
    ours = counts_of(world, tmp_path / "ours", counted_samples_per_task=1000)
    assert ours[0].units == len({sample.subject_id for sample in samples}) == 7


def test_settings_that_do_not_go_with_it_are_refused() -> None:
    graph = {"counting": "release", "counted_samples_per_task": 9, "max_fdr": 0.05}
    with pytest.raises(UserError) as error:
        check(composed("stage=graph", graph=graph))
    assert "graph.counted_samples_per_task=9: graph.counting=release" in str(error.value)
    assert "graph.max_fdr=0.05: graph.counting=release" in str(error.value)
    assert composed("experiment=paper_8b", "stage=adapt").graph.counting == "release"
    assert composed("experiment=strict_8b", "stage=adapt").graph.counting == "ours"
