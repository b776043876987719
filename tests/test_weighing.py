"""All concepts of a record weighed together; no patient tells on itself."""

from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import Ridge as Peer

from ehrr1.config.schema import check
from ehrr1.errors import UserError
from ehrr1.graph.concepts import Concept, Occurrence
from ehrr1.graph.weighing import Rows, cross_fitted, joined, likely, weigh_rows, weighable
from ehrr1.scoring.ridge import Sums
from tests.settings import composed

A, B, C, BOTH = (Concept("labevents", name) for name in ("a", "b", "c", "both"))


def one(
    subject: int, concepts: list[Concept], answer: tuple[str, ...], learnt: bool = True
) -> Rows:
    """A sample of a patient."""
    codes = np.arange(len(concepts), dtype=np.int32)
    return Rows([f"s{subject}"], [subject], [answer], [learnt], concepts, codes, [len(codes)])


def world(patients: int = 60) -> list[Rows]:
    """A third of the patients have `a` and get A, a third `b` and get B, all have `both`; the rest
    get C. A patient in ten gets nothing of that but Z."""
    kinds = [([A, BOTH], ("A",)), ([B, BOTH], ("B", "D")), ([BOTH, C], ("C",))]
    rows = [one(number, *kinds[number % 3]) for number in range(patients)]
    return [*rows, one(patients, [A, BOTH], ("Z",))]


@pytest.mark.parametrize("penalty", [0.3, 3.0])
def test_scores_are_those_of_a_peer(penalty: float) -> None:
    generator = np.random.default_rng(0)
    x, y, asked = (generator.random((50, n)) for n in (8, 3, 8))
    for some in (slice(None), slice(10, None)):
        sums = (
            Sums.of(x, y) if some.start is None else Sums.of(x, y).without(Sums.of(x[:10], y[:10]))
        )
        ours = sums.fit(penalty).scores(asked)
        theirs = Peer(alpha=penalty * sums.size).fit(x[some], y[some]).predict(asked)
        np.testing.assert_allclose(ours, theirs, atol=1e-10)


def test_what_records_show_decides_what_is_likely() -> None:
    asked = [one(100, [A], ("C",), learnt=False), one(101, [B, BOTH], ("C",), learnt=False)]
    found, f1 = weigh_rows(joined([*world(), *asked]), most=3)
    assert f1 == pytest.approx(60 / 61)  # all but the patient whose answer is Z
    assert found["s100"].items[0] == "A" and found["s100"].likely == 1
    assert {*found["s101"].items[:2]} == {"B", "D"} and found["s101"].likely == 2
    assert len(found["s101"].items) == 3
    assert found["s0"].items[0] == "A" and found["s2"].items[0] == "C"


def test_no_score_rests_on_the_patients_own_answer() -> None:
    """Z was the answer of one patient: its regressions have not seen it, those of others have."""
    rows = joined(world())
    x = np.eye(len(rows.subjects))  # each sample is known by a mark of its own
    y = np.array([["Z" in answer] for answer in rows.answers], dtype=float)
    scores = cross_fitted(x, y, np.array(rows.subjects))
    for found in scores.values():
        assert found[-1, 0] == 0.0 and (found[:-1, 0] >= 0).all() and found[:-1, 0].max() > 0


def test_two_samples_of_a_patient_are_in_one_part() -> None:
    y, subjects = np.array([[1.0], [0.0], [0.0], [0.0]]), np.array([7, 7, 8, 9])
    for found in cross_fitted(np.eye(4), y, subjects).values():
        assert found[1, 0] == 0.0  # the other sample of patient 7 has the item
        assert found[2, 0] > 0.0


def test_parts_may_be_cut_anywhere() -> None:
    rows = world()
    whole = weigh_rows(joined(rows), most=3)
    assert weigh_rows(joined([joined(rows[:20]), joined(rows[20:])]), most=3) == whole


def test_too_few_samples_make_nothing_likely() -> None:
    assert weigh_rows(joined(world()[:4]), most=3) == ({}, 0.0)


def test_one_item_at_least_is_likely() -> None:
    scores = np.array([[0.1, 0.2], [0.4, 0.5]])
    assert likely(scores, 0.3).tolist() == [[False, True], [True, True]]


def test_the_latest_events_count_once_more() -> None:
    shown = [Occurrence(concept, at, None) for at, concept in enumerate([A, B, C, BOTH, BOTH])]
    found = weighable(shown)
    assert found[:4] == [A, B, C, BOTH]
    assert found[4:] == [Concept("recent labevents", name) for name in ("c", "both")]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"candidates": 0}, "graph.candidates"),
        ({"counting": "release", "counted_samples_per_task": None}, "graph.counting=release"),
        ({"samples_per_task": 51}, "graph.samples_per_task=51"),
        ({"samples_per_task": None}, "graph.samples_per_task=null"),
    ],
)
def test_settings_that_cannot_be_weighed_together(settings: dict[str, Any], told: str) -> None:
    graph = {"samples_per_task": 50, "weighed_samples_per_task": 50} | settings
    with pytest.raises(UserError, match=rf"graph.weighed_samples_per_task=50.*{told}"):
        check(composed("stage=graph", graph=graph))
