"""data.protocol=paper: the order of the list of events, what has no time in it, limits, classes."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from ehrr1.errors import UserError
from ehrr1.records.codes import ClassMaps
from ehrr1.records.schema import ORDER
from ehrr1.tasks.samples import Prepared
from tests.test_paper import busy, emergency, every, only, paper
from tests.test_records import configured, prepared, write_tables
from tests.test_tasks import DAY, HOUR, START, hand_made, icu, lab, stay

MINUTE = timedelta(minutes=1)
CODED = {"subject_id": 1, "hadm_id": 11, "icd_code": "I10", "icd_version": 10}
TITLES = {
    "hosp__diagnoses_icd": [CODED],
    "hosp__d_icd_diagnoses": [{"icd_code": "I10", "icd_version": 10, "long_title": "HTN"}],
}


def tables_of(world: Prepared) -> list[str]:
    """The table of each row of the only patient, in the order of the store."""
    return [ORDER[number] for number in world.store.shard(0).table.tolist()]


def culture(name: str, **time: object) -> dict[str, object]:
    return {"subject_id": 1, "hadm_id": 11, "test_name": name, "chartdate": START.date(), **time}


def day_of(hours: float) -> list[dict[str, object]]:
    """One billed service, dated so many hours after the start."""
    date = (START + hours * HOUR).date()
    return [{"subject_id": 1, "hadm_id": 11, "chartdate": date, "short_description": "x"}]


def test_rows_without_a_time_stand_behind_the_first_row_and_at_the_end(tmp_path: Path) -> None:
    tables = hand_made(
        labs=[lab(1, str(START)), lab(2, str(START)), lab(3, str(START + HOUR))],
        hosp__microbiologyevents=[culture("A"), culture("B"), culture("C", charttime=START)],
        hosp__drgcodes=[{"subject_id": 1, "hadm_id": 11, "description": "y"}],
        **TITLES,
    )
    world, _ = paper(tmp_path, tables)
    untimed = ["microbiologyevents"] * 4
    assert tables_of(world) == [
        *("admissions", *untimed, "microbiologyevents"),
        *("labevents", "labevents", "labevents", *untimed, "diagnoses_icd", "drgcodes"),
    ]  # fmt: skip
    shard = world.store.shard(0)
    names = [shard.names[code] for code in shard.item.tolist()]
    # Backwards, then forwards; the culture with a time follows, in one event with them.
    assert names[1:6] == ["B", "A", "A", "B", "C"] and names[9:13] == ["B", "A", "A", "B"]


def test_rows_of_one_time_stand_by_module_stay_and_table(tmp_path: Path) -> None:
    chart = {"subject_id": 1, "hadm_id": 11, "itemid": 7, "charttime": START}
    tables = hand_made(
        icu__icustays=[icu(31, START, START + DAY), icu(32, START, START + DAY)],
        icu__d_items=[{"itemid": 7, "label": "Item"}],
        icu__outputevents=[{**chart, "stay_id": 31}],
        icu__chartevents=[{**chart, "stay_id": 32}, {**chart, "stay_id": 31}],
        hosp__poe=[{"subject_id": 1, "hadm_id": 11, "ordertime": START, "order_type": "Lab"}],
        hosp__emar=[{"subject_id": 1, "hadm_id": 11, "charttime": START, "medication": "A"}],
    )
    world, _ = paper(tmp_path, tables)
    assert tables_of(world) == [
        *("admissions", "labevents", "emar", "poe", "icustays", "chartevents", "outputevents"),
        *("icustays", "chartevents"),
    ]  # fmt: skip


def test_codes_are_asked_from_the_event_before_them(tmp_path: Path) -> None:
    """They have no time, and stand behind the stay's last event, which may be after its end."""
    late = {"subject_id": 1, "hadm_id": 11, "drug": "Aspirin"}
    times = [START - HOUR, *every(HOUR, 12)]
    tables = hand_made(
        hosp__admissions=[stay(11, START, START + 15 * HOUR)],
        hosp__prescriptions=[{**late, "starttime": START + 23 * HOUR + MINUTE}],
        **busy(times),
        **TITLES,
    )
    world, _ = paper(tmp_path, tables, tasks=["diagnoses_icd"])
    assert tables_of(world)[-2:] == ["prescriptions", "diagnoses_icd"]
    # What is ordered an hour before the admission lies 24 hours and a minute before.
    assert not world.samples()
    tables["hosp/prescriptions"] = [{**late, "starttime": START + 23 * HOUR - MINUTE}]
    world, _ = paper(tmp_path / "earlier", tables, tasks=["diagnoses_icd"])
    sample = only(world, "diagnoses_icd")
    assert (sample.period_begin, sample.period_end, sample.admissions_id) == (1, 16, 2)
    assert sample.prediction_time == START + 15 * HOUR  # when the stay ends


def test_a_billed_service_stretches_an_emergency_visit(tmp_path: Path) -> None:
    """Its second place is the end of the list, and its date lies before the out time."""
    tables: dict[str, Any] = hand_made(**emergency(START - 4 * HOUR, hadm_id=11))
    tables["hosp/poe"] = [
        {"subject_id": 1, "hadm_id": 11, "order_type": "Lab", "ordertime": START + n * HOUR}
        for n in range(3, 9)
    ]
    world, _ = paper(tmp_path / "without", tables, tasks=["ED_Hospitalization"])
    assert only(world, "ED_Hospitalization").period_end == 15
    tables["hosp/hcpcsevents"] = day_of(0)
    world, _ = paper(tmp_path / "with", tables, tasks=["ED_Hospitalization"])
    sample = only(world, "ED_Hospitalization")
    # In front stands the service; behind the visit its diagnosis, the orders, and the service.
    assert (sample.period_begin, sample.period_end) == (1, 19)
    assert "hcpcsevents" not in {event.table for event in world.context(sample)}


# --- settings ---------------------------------------------------------------------------------


def test_limits_are_settings(tmp_path: Path) -> None:
    tables = hand_made(**busy(every(10 * MINUTE, 5)))
    task = "LengthOfStay_3day"
    _, metrics = paper(tmp_path / "released", tables, tasks=[task])
    assert metrics[f"excluded/{task}/at_most_10_events"] == 1
    _, metrics = paper(tmp_path / "fewer", tables, tasks=[task], paper={"more_than": 5})
    assert metrics[f"samples/{task}"] == 1
    limits: dict[str, int | None] = {"more_than": 2, "fewer_than": 6}
    _, metrics = paper(tmp_path / "many", tables, tasks=[task], paper=limits)
    assert metrics[f"excluded/{task}/at_least_6_events"] == 1
    limits = {"more_than": 5, "patient_events": 6}  # demographics, the admission, five others
    _, metrics = paper(tmp_path / "long", tables, tasks=[task], paper=limits)
    assert metrics[f"excluded/{task}/patient_over_6_events"] == 1
    limits["patient_events"] = None
    _, metrics = paper(tmp_path / "any", tables, tasks=[task], paper=limits)
    assert metrics[f"samples/{task}"] == 1


def test_limits_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    root = write_tables(tmp_path / "hospital", hand_made())
    alone = r"data\.paper\.patient_events=null: only data\.protocol=paper .*leave it out"
    with pytest.raises(UserError, match=alone):
        prepared(root, tmp_path / "a", paper={"patient_events": None})
    none = r"data\.paper\.more_than=99, data\.paper\.fewer_than=100: no context"
    with pytest.raises(UserError, match=none):
        prepared(root, tmp_path / "b", protocol="paper", paper={"more_than": 99})
    with pytest.raises(UserError, match=r"data\.paper\.atc=none: .*released, all"):
        configured(root, paper={"atc": "none"})


def test_a_drug_whose_code_begins_with_a_zero_has_no_class_in_the_release(tmp_path: Path) -> None:
    path = tmp_path / "atc.csv"
    path.write_text("ndc_code,atc_name\n00002821501,INSULINS\n63323026201,HEPARINS\n")
    drugs = pl.DataFrame({"ndc": ["00002821501", "2821501.0", "63323026201.0", "0", None]})
    released = ClassMaps({"atc": path}, ndc_as_number=True).classes("atc", drugs)
    assert released.to_list() == [None, None, "HEPARINS", None, None]
    every_one = ClassMaps({"atc": path}).classes("atc", drugs)
    assert every_one.to_list() == ["INSULINS", "INSULINS", "HEPARINS", None, None]
