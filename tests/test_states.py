"""States of items: each by its rule, at the events where it holds."""

from datetime import datetime

import pytest

from ehrr1.graph.concepts import Concept, occurrences
from ehrr1.graph.states import administration, level
from ehrr1.records.events import Event
from ehrr1.records.schema import TABLES


def lab(hour: int, *values: str, lower: str = "3.3", upper: str = "5.1", flag: str = "") -> Event:
    """An event with potassium values."""
    shown = {"Item_Name": "K", "Valueuom": "mEq/L", "Flag": flag}
    shown |= {"Ref_Range_Lower": lower, "Ref_Range_Upper": upper}
    keys, time = TABLES["labevents"].keys, datetime(2150, 3, 4, hour)
    rows = tuple(tuple((shown | {"Valuenum": one}).get(key, "") for key in keys) for one in values)
    return Event("labevents", time, time, rows, ("K",) * len(values))


def states(*context: Event) -> dict[str, list[tuple[int, str]]]:
    """Each state of potassium with the events and values of its occurrences."""
    found: dict[str, list[tuple[int, str]]] = {}
    for one in occurrences(context):
        found.setdefault(one.concept.state, []).append((one.event, one.value))
    return found


@pytest.mark.parametrize(
    ("row", "state"),
    [
        (("5.2", "3.3", "5.1", "abnormal"), "high"),
        (("5.2", "3.3", "5.1", ""), "high"),
        (("3.2", "3.3", "5.1", "abnormal"), "low"),
        (("5.1", "3.3", "5.1", ""), "normal"),
        (("4", "", "5.1", ""), "normal"),
        (("4", "3.3", "5.1", "abnormal"), "abnormal"),
        (("POS", "", "", "abnormal"), "abnormal"),
        (("4", "", "", ""), ""),
        (("NEG", "3.3", "5.1", ""), ""),
        (("nan", "3.3", "5.1", ""), ""),
    ],
)
def test_levels(row: tuple[str, str, str, str], state: str) -> None:
    assert level(*row) == state


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("Administered", "given"),
        ("Delayed Administered", "given"),
        ("Restarted", "given"),
        ("Removed Existing / Applied New", "given"),
        ("Not Given per Sliding Scale", "not given"),
        ("Not Flushed", "not given"),
        ("Delayed ", "not given"),
        ("Not Given - Patient Refused", "refused"),
        ("Hold Dose", "held"),
        ("Stopped - Unscheduled", "stopped"),
        ("Not Stopped", ""),
        ("Infusion Reconciliation Not Done", ""),
        ("Assessed", ""),
        ("", ""),
    ],
)
def test_administrations(text: str, state: str) -> None:
    """The texts are those of MIMIC-IV, except for a refusal."""
    assert administration(text) == state


def test_states_stand_at_their_events() -> None:
    assert states(lab(1, "6.0"), lab(2, "4.0", "5.0"), lab(3, "2.9")) == {
        "": [(0, "6.0"), (1, "5.0"), (2, "2.9")],
        "high": [(0, "6.0")],
        "normal": [(1, "5.0")],
        "low": [(2, "2.9")],
        "falling": [(0, "6.0"), (2, "2.9")],
    }


def test_trends() -> None:
    """Half of the reference range, here 0.9, or a fifth of the first value without a range."""
    assert "rising" not in states(lab(1, "4.0"), lab(2, "4.8"))
    assert "rising" in states(lab(1, "4.0"), lab(2, "5.0"))
    assert "rising" not in states(lab(1, "4.0"), lab(2, "6.0"), lab(3, "5.0"))
    assert "falling" not in states(lab(1, "5.0", "4.0"))
    free = {"lower": "", "upper": ""}
    assert "rising" in states(lab(1, "4.0", **free), lab(2, "4.8", **free))
    assert "rising" not in states(lab(1, "4.0", **free), lab(2, "5.0"))


def test_only_given_drugs_are_drugs() -> None:
    time = datetime(2150, 3, 4)
    rows = (("Heparin", "Administered"), ("Heparin", "Not Given"), ("Insulin", "Assessed"))
    shown = occurrences([Event("emar", time, time, rows, ("Heparin", "Heparin", "Insulin"))])
    assert [one.concept for one in shown] == [
        Concept("emar", "Heparin", "given"),
        Concept("emar", "Heparin", "not given"),
    ]


def test_once_and_repeated() -> None:
    time = datetime(2150, 3, 4)
    code = Event("diagnoses_icd", time, time, (("Gout", "Gouts"),), ("Gout",))
    assert [one.concept.state for one in occurrences([code])] == ["", "once", ""]
    assert [(one.event, one.concept.state) for one in occurrences([code, code])] == [
        *((0, ""), (0, "repeated"), (0, "")),
        *((1, ""), (1, "repeated"), (1, "")),
    ]
