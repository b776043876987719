"""data.protocol=paper: the release's rules, one by one."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ehrr1.records.events import Event
from ehrr1.tasks.catalog import TASKS
from ehrr1.tasks.context import preamble_length
from ehrr1.tasks.samples import Prepared, Sample
from tests.test_records import Metrics, hospital, prepared, write_tables
from tests.test_tasks import DAY, HOUR, START, hand_made, icu, lab, stay

__all__ = ["hospital"]  # a fixture

MINUTE = timedelta(minutes=1)
Rows = list[dict[str, object]]


def paper(tmp_path: Path, tables: dict[str, Any], **settings: Any) -> tuple[Prepared, Metrics]:
    root = write_tables(tmp_path / "hospital", tables)
    return prepared(root, tmp_path / "run", protocol="paper", **settings)


def busy(times: Sequence[datetime], hadm: int | None = 11) -> dict[str, Rows]:
    """An event at each time: laboratory tests and orders in turn, so that none are joined."""
    order = {"subject_id": 1, "hadm_id": hadm, "order_type": "Lab"}
    labs = [{**lab(n, str(t)), "hadm_id": hadm} for n, t in enumerate(times[::2])]
    return {"hosp__labevents": labs, "hosp__poe": [{**order, "ordertime": t} for t in times[1::2]]}


def every(step: timedelta, count: int, start: datetime = START) -> list[datetime]:
    return [start + n * step for n in range(1, count + 1)]


def only(world: Prepared, task: str) -> Sample:
    (sample,) = world.samples(tasks=[task])
    return sample


def shown(events: Sequence[Event]) -> list[str]:
    return [event.table for event in events]


# --- the list of events, ranges ---------------------------------------------------------------


def test_consecutive_rows_of_one_table_are_one_event_that_reaches_past_the_window(
    tmp_path: Path,
) -> None:
    tables = busy(every(HOUR, 20))
    late = [START + 23 * HOUR, START + 25 * HOUR, START + 30 * HOUR]
    tables["hosp__labevents"] += [lab(50 + n, str(t)) for n, t in enumerate(late)]
    tables["hosp__poe"].append({**tables["hosp__poe"][0], "ordertime": START + 31 * HOUR})
    world, _ = paper(tmp_path, hand_made(**tables), tasks=["Inpatient_Mortality", "poe"])
    sample = only(world, "Inpatient_Mortality")
    # Demographics are 0, the admission 1, twenty events, then the late group.
    assert (sample.period_begin, sample.period_end, sample.admissions_id) == (1, 23, 1)
    assert sample.prediction_time == START + DAY and sample.inclusive
    events = world.context(sample)
    assert shown(events)[:2] == ["patients", "admissions"] and len(events) == 23
    assert events[-1].time == START + 23 * HOUR and len(events[-1].rows) == 3
    assert events[-1].available_time == START + 30 * HOUR  # after the prediction time
    last = world.samples(tasks=["poe"])[-1]
    assert last.period_end == 23 and last.prediction_time == START + 31 * HOUR
    assert last.target == ("Lab",) and not last.inclusive


def test_a_decision_looks_back_less_than_24_hours(tmp_path: Path) -> None:
    target = START + 30 * HOUR
    edge = target - DAY
    times = [edge - HOUR, edge, edge + timedelta(seconds=1), *every(HOUR, 11, edge), target]
    world, _ = paper(tmp_path, hand_made(**busy(times)), tasks=["labevents"])
    sample = world.samples()[-1]
    assert sample.prediction_time == target
    assert (sample.period_begin, sample.period_end) == (4, 16)
    window = world.context(sample)[2:]
    assert [event.time for event in window] == times[2:-1]


@pytest.mark.parametrize(
    ("count", "reason"),
    [(9, "at_most_10_events"), (10, None), (98, None), (99, "at_least_100_events")],
)
def test_a_context_has_more_than_10_and_fewer_than_100_events(
    tmp_path: Path, count: int, reason: str | None
) -> None:
    tables = hand_made(**busy(every(10 * MINUTE, count)))
    world, metrics = paper(tmp_path, tables, tasks=["LengthOfStay_3day"])
    assert metrics["samples/LengthOfStay_3day"] == (reason is None)
    if reason:
        assert metrics[f"excluded/LengthOfStay_3day/{reason}"] == 1
    else:
        assert only(world, "LengthOfStay_3day").period_end - 1 == count + 1


@pytest.mark.parametrize(("count", "kept"), [(1198, True), (1199, False)])
def test_patients_have_at_most_1200_events(tmp_path: Path, count: int, kept: bool) -> None:
    """Demographics and the admission are two of them."""
    tables = hand_made(**busy([*every(HOUR, 20), *every(MINUTE, count - 20, START + DAY)]))
    _, metrics = paper(tmp_path, tables, tasks=["LengthOfStay_3day"])
    reason = "excluded/LengthOfStay_3day/patient_over_1200_events"
    assert (metrics["samples/LengthOfStay_3day"], metrics.get(reason, 0)) == (kept, not kept)


def test_chart_events_of_ten_items_are_not_asked_about(tmp_path: Path) -> None:
    chart = {"subject_id": 1, "hadm_id": 11, "stay_id": 31}
    rows = [
        {**chart, "itemid": item, "charttime": START + hours * HOUR}
        for hours, items in ((13.5, 9), (14.5, 10))
        for item in range(items)
    ]
    tables = hand_made(
        **busy(every(HOUR, 15)),
        icu__icustays=[icu(31, START, START + 2 * DAY)],
        icu__d_items=[{"itemid": item, "label": f"Item {item}"} for item in range(10)],
        icu__chartevents=rows,
    )
    world, metrics = paper(tmp_path, tables, tasks=["chartevents"])
    assert len(only(world, "chartevents").target) == 9
    assert metrics["excluded/chartevents/more_than_9_items"] == 1


def visit(stay_id: int, start: datetime, hours: float, **more: object) -> dict[str, object]:
    own = {"subject_id": 1, "stay_id": stay_id, "intime": start, "gender": "F"}
    return {**own, "outtime": start + hours * HOUR, "disposition": "HOME", **more}


def emergency(start: datetime, **more: object) -> dict[str, Rows]:
    """A visit of six hours with twelve events and a diagnosis, none of which has a `hadm_id`."""
    own = {"subject_id": 1, "stay_id": 31}
    return {
        "ed__edstays": [visit(31, start, 6, **more)],
        "ed__triage": [{**own, "temperature": 37}],
        "ed__vitalsign": [{**own, "charttime": start + n * HOUR} for n in range(1, 6)],
        "ed__pyxis": [
            {**own, "charttime": start + n * HOUR + MINUTE, "name": "A"} for n in range(1, 6)
        ],
        "ed__diagnosis": [{**own, "icd_code": "I10", "icd_version": 10, "icd_title": "HTN"}],
    }


def test_rows_without_an_admission_belong_together(tmp_path: Path) -> None:
    start = START - 7 * HOUR
    world, _ = paper(tmp_path / "home", hand_made(**emergency(start)), tasks=["diagnosis"])
    sample = only(world, "diagnosis")
    assert (sample.period_begin, sample.period_end, sample.hadm_id) == (1, 13, None)
    assert (sample.admissions_id, sample.last_discharge_id) == (None, None)
    # The visit's own hadm_id is known to the release, its other tables have none.
    tables = hand_made(**emergency(start, hadm_id=11))
    world, _ = paper(tmp_path / "admitted", tables, tasks=["diagnosis", "ED_Hospitalization"])
    assert only(world, "diagnosis").period_begin == 2
    assert only(world, "ED_Hospitalization").hadm_id == 11
    assert only(world, "ED_Hospitalization").target == ("yes",)


def test_an_emergency_visit_shows_the_orders_of_the_admission(tmp_path: Path) -> None:
    order = {"subject_id": 1, "hadm_id": 11, "order_type": "ADT orders"}
    tables = hand_made(
        **emergency(START - 4 * HOUR, hadm_id=11),
        hosp__poe=[
            {**order, "ordertime": START - HOUR - 5 * MINUTE},
            {**order, "ordertime": START + 2 * HOUR},  # at the out time: not before it
        ],
    )
    world, _ = paper(tmp_path, tables, tasks=["ED_Hospitalization"])
    sample = only(world, "ED_Hospitalization")
    assert sample.prediction_time == START + 2 * HOUR
    events = world.context(sample)
    assert shown(events).count("poe") == 1
    # The admission itself began before the out time; it is no part of a window.
    assert "admissions" not in shown(events) and events[1].table == "edstays"


# --- what is shown ----------------------------------------------------------------------------


def two_stays(**more: Rows) -> dict[str, Any]:
    """A stay with a note a year before, and one of a day with its note and its diagnosis, for which
    something is ordered an hour before the admission."""
    before = START - 365 * DAY
    order = {"subject_id": 1, "hadm_id": 11, "order_type": "Lab", "ordertime": START - HOUR}
    note = {"subject_id": 1, "note_type": "DS", "note_seq": 1, "storetime": START + 9 * DAY}
    coded = {"subject_id": 1, "icd_code": "I10", "icd_version": 10}
    tables: dict[str, Any] = {
        **busy(every(HOUR, 13)),
        "hosp__admissions": [stay(10, before, before + DAY), stay(11, START, START + 20 * HOUR)],
        "note__discharge": [
            {**note, "hadm_id": 10, "charttime": before + DAY, "text": "The first."},
            {**note, "hadm_id": 11, "charttime": START + 19 * HOUR, "text": "The second."},
        ],
        "hosp__diagnoses_icd": [{**coded, "hadm_id": 11}],
        "hosp__d_icd_diagnoses": [{"icd_code": "I10", "icd_version": 10, "long_title": "HTN"}],
    }
    tables["hosp__poe"] = [order, *tables["hosp__poe"]]
    return hand_made(**(tables | more))


def test_preamble_and_hidden_note(tmp_path: Path) -> None:
    world, _ = paper(tmp_path, two_stays())
    first = world.samples(tasks=["labevents"])[-1]
    events = world.context(first)
    assert shown(events)[:3] == ["patients", "discharge", "admissions"]
    assert events[1].rows == (("DS", "The first."),)
    assert events[0].rows == (("60", "F"),)  # anchor_age, a year after the anchor's year
    assert preamble_length(events) == 3
    coded = only(world, "diagnoses_icd")
    assert coded.prediction_time == START + 20 * HOUR and coded.target == ("HTN",)
    # The order, the admission, thirteen events, the note.
    assert (coded.period_begin, coded.period_end, coded.admissions_id) == (3, 19, 4)
    assert coded.last_discharge_id is None
    assert "discharge" not in shown(world.context(coded))
    again = only(world, "Readmission_30day")
    assert again.prediction_time == START + 19 * HOUR
    assert world.context(again)[-1].rows == (("DS", "The second."),)
    (writing,) = [s for s in world.samples(tasks=["discharge"]) if s.hadm_id == 11]
    assert writing.target == ("The second.",) and writing.last_discharge_id is None


def test_codes_are_asked_only_where_the_admission_is_in_the_window(tmp_path: Path) -> None:
    long = [stay(11, START, START + 3 * DAY)]
    tables = two_stays(hosp__admissions=long, **busy(every(HOUR, 70)))
    del tables["note/discharge"]
    _, metrics = paper(tmp_path, tables, tasks=["diagnoses_icd", "labevents"])
    assert metrics["samples/diagnoses_icd"] == 0 < metrics["samples/labevents"]
    assert metrics["excluded/diagnoses_icd/admission_not_in_window"] == 1


def test_everything_in_the_range_is_shown(tmp_path: Path) -> None:
    drip = {"subject_id": 1, "hadm_id": 11, "stay_id": 31, "itemid": 7, "orderid": 1, "rate": 5}
    begin = START + 5 * HOUR + MINUTE
    drip |= {"starttime": begin, "endtime": begin + 2 * DAY, "storetime": begin, "amount": 50}
    pharmacy = {"subject_id": 1, "hadm_id": 11, "medication": "Aspirin", "pharmacy_id": 1}
    result = {**lab(99, str(START + 6 * HOUR)), "storetime": START + 3 * DAY}
    tables = busy(every(HOUR, 14))
    tables["hosp__labevents"].append(result)
    day = {"subject_id": 1, "chartdate": (START + DAY).date()}
    tables |= {
        "icu__icustays": [icu(31, START, START + 4 * DAY)],
        "icu__d_items": [{"itemid": 7, "label": "Saline"}],
        "icu__inputevents": [drip],
        "hosp__pharmacy": [{**pharmacy, "entertime": begin + MINUTE}],
        "hosp__hcpcsevents": [{**day, "hadm_id": 11, "short_description": "x"}],
        "hosp__omr": [{**day, "result_name": "BMI", "result_value": "20"}],
        "hosp__procedures_icd": [{**day, "hadm_id": 11, "icd_code": "1", "icd_version": 9}],
        "hosp__d_icd_procedures": [{"icd_code": "1", "icd_version": 9, "long_title": "Incision"}],
    }
    world, _ = paper(tmp_path, hand_made(**tables), tasks=["ICU_Mortality_7day", "poe"])
    sample = only(world, "ICU_Mortality_7day")
    events = {event.table: event for event in world.context(sample)}
    assert events["inputevents"].rows == (("Saline", "50", "", "5", ""),)
    assert events["inputevents"].available_time == begin + 2 * DAY
    assert events["pharmacy"].rows == (("Aspirin", "", ""),)
    assert events["procedures_icd"].time == (START + DAY).replace(hour=0)
    # It has no admission, and stands between events that have one.
    assert events["omr"].time == (START + DAY).replace(hour=0)
    assert "hcpcsevents" not in events
    latest = max(e.available_time for e in world.context(sample) if e.available_time)
    assert latest == START + 5 * DAY  # the procedure is coded at discharge


# --- labels -----------------------------------------------------------------------------------


def labels(world: Prepared) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for sample in world.samples():
        if TASKS[sample.task].kind == "risk":
            found.setdefault(sample.task, []).append(sample.target[0])
    return found


@pytest.mark.parametrize(("days", "answer"), [(5, "yes"), (6, "no")])
def test_a_death_on_the_day_of_discharge_counts_as_in_hospital(
    tmp_path: Path, days: int, answer: str
) -> None:
    patient = {"subject_id": 1, "gender": "F", "anchor_age": 60, "anchor_year": 2149}
    dead = [{**patient, "dod": (START + days * DAY).date()}]
    times = [*every(HOUR, 14), *every(HOUR, 14, START + 4 * DAY + 5 * HOUR)]
    tables = hand_made(
        hosp__patients=dead, icu__icustays=[icu(41, START, START + 5 * DAY)], **busy(times)
    )
    world, _ = paper(tmp_path, tables)
    found = labels(world)
    assert found["Inpatient_Mortality"] == [answer]
    assert found["LengthOfStay_3day"] == ["yes"] and found["LengthOfStay_7day"] == ["no"]
    # Dead within 30 days, and still "not readmitted".
    assert found["Readmission_30day"] == found["Readmission_60day"] == ["no"]
    # Counted from the last event shown (14 hours in) to 00:00 of the day.
    assert found["ICU_Mortality_3day"] == ["no"]
    assert found["ICU_Mortality_7day"] == found["ICU_Mortality_14day"] == ["yes"]
    assert found["ICU_Stay_7day"] == found["ICU_Readmission"] == ["no"]


def test_readmission_is_asked_at_the_discharge_time_where_there_are_no_notes(
    tmp_path: Path,
) -> None:
    again = [stay(11, START, START + 2 * DAY), stay(12, START + 32 * DAY, START + 33 * DAY)]
    coded = {"subject_id": 1, "hadm_id": 11, "icd_code": "I10", "icd_version": 10}
    tables = hand_made(
        hosp__admissions=again,
        hosp__diagnoses_icd=[coded],
        hosp__d_icd_diagnoses=[{"icd_code": "I10", "icd_version": 10, "long_title": "HTN"}],
        **busy(every(HOUR, 50)),
    )
    world, metrics = paper(tmp_path, tables, tasks=["Readmission_30day", "Readmission_60day"])
    sample = only(world, "Readmission_30day")
    assert sample.prediction_time == START + 2 * DAY
    window = world.context(sample)[2:]
    assert [e.time for e in window] == [START + n * HOUR for n in range(25, 49)]
    assert "diagnoses_icd" not in shown(window)
    assert labels(world) == {"Readmission_30day": ["no"], "Readmission_60day": ["yes"]}
    assert metrics["excluded/Readmission_30day/no_context"] == 1


@pytest.mark.parametrize(("hours", "answer"), [(11, "yes"), (12, "no")])
def test_emergency_windows_count_from_the_out_time(tmp_path: Path, hours: int, answer: str) -> None:
    out = START + 6 * HOUR
    tables = hand_made(
        **emergency(START, hadm_id=11),
        icu__icustays=[icu(41, out + hours * HOUR, START + 3 * DAY)],
        hosp__admissions=[stay(11, START + 5 * HOUR + 30 * MINUTE, START + 5 * DAY)],
    )
    tables["ed/edstays"] = [*tables["ed/edstays"], visit(32, out + (hours + 60) * HOUR, 1)]
    world, _ = paper(tmp_path, tables)
    found = labels(world)
    # Admitted patients are asked about their return, too.
    for task in ("ED_ICU_Tranfer_12hour", "ED_Critical_Outcomes", "ED_Reattendance_3day"):
        assert found[task] == [answer]
    assert found["ED_Inpatient_Mortality"] == ["no"] and found["ED_Hospitalization"] == ["yes"]
