"""MIMIC-IV's tables in hindsight: ends of stays, entries of prescriptions, types of stays;
and what it is called: names, numbers, classes of codes."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from ehrr1.records.codes import ClassMaps
from ehrr1.records.hindsight import END
from ehrr1.records.markdown import record_markdown
from ehrr1.records.schema import ORDER
from ehrr1.tasks.context import shown_positions
from ehrr1.tasks.label_options import LabelOptions
from ehrr1.tasks.labels import risk_samples
from ehrr1.tasks.samples import Prepared, Sample
from ehrr1.tasks.stays import stays_in_turn
from tests.test_labels import parents
from tests.test_records import prepared, store_rows, write_tables
from tests.test_tasks import DAY, HOUR, START, hand_made, icu, lab, stay

Rows = Sequence[dict[str, Any]]


def world_of(folder: Path, labs: Rows = (), **tables: Rows) -> Prepared:
    return prepared(write_tables(folder / "hospital", hand_made(labs, **tables)), folder / "run")[0]


def shown(world: Prepared, sample: Sample) -> str:
    return record_markdown(world.context(sample))


def code(hadm_id: int, **more: object) -> dict[str, object]:
    own = {"subject_id": 1, "hadm_id": hadm_id, "seq_num": 1, "icd_code": "I10", "icd_version": 10}
    return own | more


TITLES = {"hosp__d_icd_diagnoses": [{"icd_code": "I10", "icd_version": 10, "long_title": "High"}]}


# --- the end of a stay ------------------------------------------------------------------------


def test_the_end_of_a_stay_is_the_latest_that_is_told(tmp_path: Path) -> None:
    """Discharge at midnight and death at eight, the bed left at ten."""
    midnight = datetime(2150, 1, 3)
    move = {"subject_id": 1, "hadm_id": 11, "eventtype": "discharge"}
    death = stay(11, START, midnight, deathtime=midnight + 8 * HOUR, hospital_expire_flag=1)
    own = parents(
        write_tables(
            tmp_path,
            hand_made(
                hosp__admissions=[
                    death,
                    stay(12, START + 9 * DAY, START + 10 * DAY),
                    stay(13, START + 20 * DAY, START + 19 * DAY),  # before it began
                    stay(14, START + 30 * DAY, START + 29 * DAY),
                ],
                hosp__transfers=[
                    {**move, "intime": midnight + 8 * HOUR},
                    {**move, "hadm_id": 12, "intime": START + 10 * DAY + HOUR / 12},
                    {**move, "hadm_id": 14, "intime": START + 31 * DAY},
                ],
                icu__icustays=[icu(31, START, midnight + 10 * HOUR)],
            ),
        )
    )
    ends = own["admissions"].sort("hadm_id")[END].to_list()
    left = midnight + 10 * HOUR
    assert ends == [left, START + 10 * DAY + HOUR / 12, None, START + 31 * DAY]


def test_a_death_after_a_midnight_discharge_is_asked_about(tmp_path: Path) -> None:
    """Dead on the second day, "discharged" at 00:00 of it: in hospital after 24 hours."""
    midnight = datetime(2150, 1, 2)
    death = stay(11, START, midnight, deathtime=midnight + 20 * HOUR, hospital_expire_flag=1)
    own = parents(write_tables(tmp_path, hand_made(hosp__admissions=[death])))
    found = risk_samples(own, ["Inpatient_Mortality"])
    assert found.frame["label"].to_list() == [True] and not found.excluded


def test_a_stay_without_a_believable_end_is_reported(tmp_path: Path) -> None:
    stays = [stay(11, START, START - DAY)]
    tables = hand_made(hosp__admissions=stays, hosp__diagnoses_icd=[code(11)], **TITLES)
    world, metrics = prepared(write_tables(tmp_path / "hospital", tables), tmp_path / "run")
    assert metrics["rows_reported/diagnoses_icd"] == 1
    assert metrics["excluded/Readmission_30day/no_end_of_stay"] == 1
    assert not world.samples(tasks=["Readmission_30day", "diagnoses_icd"])


def test_no_sample_sees_the_codes_of_its_own_stay(tmp_path: Path) -> None:
    """A drug is charted after the end of the stay, when its codes are known."""
    late = START + 5 * DAY + 2 * HOUR
    given = {"subject_id": 1, "hadm_id": 11, "medication": "Aspirin", "emar_seq": 1}
    world = world_of(
        tmp_path,
        [lab(1, str(late - HOUR))],
        hosp__diagnoses_icd=[code(11)],
        hosp__emar=[
            {**given, "charttime": late, "storetime": late},
            {**given, "hadm_id": None, "charttime": late, "storetime": late},
        ],
        **TITLES,
    )
    own, without = sorted(world.samples(tasks=["emar"]), key=lambda s: s.hadm_id is None)
    assert own.hadm_id == 11 and own.current_hadm is None
    assert "High" not in shown(world, own) and "High" in shown(world, without)
    assert own.context_id != without.context_id


def test_the_discharge_transfer_is_within_the_stay(tmp_path: Path) -> None:
    """It stands minutes behind `dischtime`: the codes must not give it away."""
    gone = START + 5 * DAY + HOUR / 10
    move = {"subject_id": 1, "hadm_id": 11, "eventtype": "discharge", "intime": gone}
    world = world_of(
        tmp_path,
        [lab(1, str(gone - HOUR))],
        hosp__transfers=[move],
        hosp__diagnoses_icd=[code(11)],
        **TITLES,
    )
    (sample,) = world.samples(tasks=["transfers"])
    assert sample.prediction_time == gone and sample.current_hadm == 11
    text = shown(world, sample)
    assert "Admissions" in text and "High" not in text
    (coded,) = world.samples(tasks=["diagnoses_icd"])
    assert coded.prediction_time == gone


def test_nested_and_overlapping_stays_keep_the_outer_one(tmp_path: Path) -> None:
    day = [START + n * DAY for n in range(13)]
    stays = [
        *(stay(11, day[0], day[9]), stay(12, day[2], day[3])),  # the second lies in the first
        *(stay(13, day[8], day[12]),),  # this one begins in the first
    ]
    own = parents(write_tables(tmp_path, hand_made(hosp__admissions=stays)))
    turns = stays_in_turn(own["admissions"])
    assert turns.select("in_progress", "after", "over").rows() == [
        (11, day[0], day[9]),
        (13, day[9], day[12]),
    ]
    asked = risk_samples(own, ["Readmission_30day", "LengthOfStay_3day"])
    assert asked.frame.filter(pl.col("task") == "LengthOfStay_3day")["hadm_id"].to_list() == [
        11,
        13,
    ]
    # When the first is over the patient is in the third already.
    assert asked.frame.filter(pl.col("task") == "Readmission_30day")["hadm_id"].to_list() == [13]
    assert asked.excluded["Readmission_30day/inside_another_stay"] == 1
    assert asked.excluded["Readmission_30day/admitted_by_then"] == 1


def test_options_of_readmission(tmp_path: Path) -> None:
    day = [START + n * DAY for n in range(40)]
    ends = ("AGAINST ADVICE", "HOSPICE", "ACUTE HOSPITAL")
    stays = [
        stay(11 + n, day[5 * n], day[5 * n + 2], discharge_location=end)
        for n, end in enumerate(ends)
    ]
    stays += [
        stay(21, day[20], day[22]),
        stay(22, day[22] + 5 * HOUR, day[25], admission_type="EU OBSERVATION"),
        stay(23, day[30], day[31]),
    ]
    own = parents(write_tables(tmp_path, hand_made(hosp__admissions=stays)))
    task = "Readmission_30day"
    found = risk_samples(own, [task])
    assert found.frame["hadm_id"].to_list() == [11, 12, 13, 21, 22, 23]
    kinds = ("against_advice", "hospice", "transfer", "observation", "handed_off")
    assert [found.noted[f"{kind}/{task}"] for kind in kinds] == [1, 1, 1, 1, 1]
    some = risk_samples(
        own, [task], LabelOptions(transfers="merge", leave_out=("against_advice", "observation"))
    )
    assert some.frame["hadm_id"].to_list() == [12, 13, 23]
    left_out = ("against_advice", "observation", "handed_off")
    assert [some.excluded[f"{task}/{kind}"] for kind in left_out] == [1, 1, 1]


def test_deaths_in_the_window_of_intensive_care(tmp_path: Path) -> None:
    death = stay(11, START, START + 5 * DAY, deathtime=START + 5 * DAY, hospital_expire_flag=1)
    own = parents(
        write_tables(
            tmp_path,
            hand_made(hosp__admissions=[death], icu__icustays=[icu(31, START, START + 3 * DAY)]),
        )
    )
    tasks = ["ICU_Stay_7day", "ICU_Readmission"]
    found = risk_samples(own, tasks)
    assert [found.noted[f"died_in_window/{task}"] for task in tasks] == [1, 1]
    left = risk_samples(own, tasks, LabelOptions(died_in_stay="exclude"))
    assert not left.frame.height
    assert [left.excluded[f"{task}/died_in_window"] for task in tasks] == [1, 1]


# --- prescriptions, types of stays -------------------------------------------------------------


@pytest.mark.parametrize(
    ("entered", "ordered", "known"),
    [
        (START + 4 * HOUR, None, START + 4 * HOUR),
        (START + 4 * HOUR, START + 3 * HOUR, START + 3 * HOUR),
        (START + 4 * HOUR, START + 5 * HOUR, START + 4 * HOUR),
        (START - HOUR, None, START + 2 * HOUR),
        (None, None, START + 3 * HOUR),
    ],
)
def test_a_prescription_is_known_when_it_is_entered(
    entered: datetime | None, ordered: datetime | None, known: datetime, tmp_path: Path
) -> None:
    """Dated to ten o'clock; nobody says when: an hour later, and counted."""
    own = {"subject_id": 1, "hadm_id": 11, "pharmacy_id": 5}
    drug = {**own, "poe_id": "1-7", "starttime": START + 2 * HOUR, "drug": "Norepinephrine"}
    tables = hand_made(hosp__prescriptions=[drug])
    if entered:
        tables["hosp/pharmacy"] = [{**own, "medication": "Norepinephrine", "entertime": entered}]
    if ordered:
        order = {"subject_id": 1, "hadm_id": 11, "poe_seq": 7, "order_type": "Medications"}
        tables["hosp/poe"] = [{**order, "ordertime": ordered}]
    _, metrics = prepared(write_tables(tmp_path / "hospital", tables), tmp_path / "run")
    rows = store_rows(tmp_path / "run").filter(pl.col("item") == "Norepinephrine")
    (row,) = rows.filter(pl.col("event_time") == START + 2 * HOUR).rows(named=True)
    assert row["available_time"] == known
    assert metrics.get("availability_assumed/prescriptions", 0) == (entered is None)


@pytest.mark.parametrize("ordered", [False, True])
def test_the_type_of_an_observation_stay_is_shown_when_it_is_decided(
    ordered: bool, tmp_path: Path
) -> None:
    order = {"subject_id": 1, "hadm_id": 11, "poe_seq": 7, "order_type": "ADT orders"}
    detail = {"poe_id": "1-7", "poe_seq": 7, "subject_id": 1, "field_name": "Admit category"}
    tables: dict[str, Rows] = {"hosp__poe": [{**order, "ordertime": START + 10 * HOUR}]}
    if ordered:
        tables["hosp__poe_detail"] = [{**detail, "field_value": "Admit to inpatient"}]
    world = world_of(
        tmp_path,
        [lab(n, str(START + n * HOUR)) for n in (1, 9, 11)],
        hosp__admissions=[stay(11, START, START + 5 * DAY, admission_type="OBSERVATION ADMIT")],
        **tables,
    )
    before, after = world.samples(tasks=["labevents"])[-2:]
    events = [{e.table: e for e in world.context(s)}["admissions"] for s in (before, after)]
    kinds = [(event.rows[0][0], event.items[0]) for event in events]
    late = "OBSERVATION ADMIT" if ordered else "OBSERVATION"
    assert kinds == [("OBSERVATION",) * 2, (late,) * 2]
    assert ("- Admission_Type: OBSERVATION\n" in shown(world, after)) == (not ordered)


# --- names, numbers, codes ---------------------------------------------------------------------


def test_names_are_spelled_as_the_file_spells_them(tmp_path: Path) -> None:
    names = ["Sodium Chloride 0.9%  Flush", "A | B", " outer ", "two\nlines", "Aspirin", "aspirin"]
    own = {"subject_id": 1, "hadm_id": 11, "charttime": START + HOUR, "storetime": START + HOUR}
    given = [{**own, "medication": name, "emar_seq": n} for n, name in enumerate(names)]
    world = world_of(tmp_path, hosp__emar=given)
    (sample,) = world.samples(tasks=["emar"])
    spelled = (*names[:2], "outer", "two lines", "Aspirin", "aspirin")
    assert sample.target == spelled
    rows = store_rows(tmp_path / "run").filter(pl.col("item").is_in(spelled))
    assert rows["values"].str.split("\x1f").list.first().to_list() == list(spelled)


def test_numbers_keep_their_digits(tmp_path: Path) -> None:
    numbers = {
        **{"0.000041666667": "0.00004167", "0.012345678901": "0.01235", "-0.0000": "0"},
        **{"1234567.123456": "1234567.1235", "7.10": "7.10", "60.0": "60", "-0": "0"},
    }
    labs = [lab(n, str(START + n * HOUR)) | {"valuenum": x} for n, x in enumerate(numbers)]
    world_of(tmp_path, labs)
    rows = store_rows(tmp_path / "run").filter(pl.col("item") == "Lactate")
    shown_numbers = rows["values"].str.split("\x1f").list.get(1).to_list()
    assert shown_numbers == list(numbers.values())


def test_an_organism_is_part_of_the_result(tmp_path: Path) -> None:
    culture = {"subject_id": 1, "hadm_id": 11, "microevent_id": 1, "test_name": "BLOOD CULTURE"}
    culture |= {"charttime": START, "storetime": START + HOUR, "org_name": "ESCHERICHIA COLI"}
    world = world_of(tmp_path, [lab(1, str(START + 2 * HOUR))], hosp__microbiologyevents=[culture])
    (sample,) = world.samples(tasks=["labevents"])
    assert "- Org_Name: ESCHERICHIA COLI" in shown(world, sample)


CLASSES = {
    "I25.10": "Coronary atherosclerosis and other heart disease",
    "E1142": "Diabetes mellitus with complications",
    "I10": "Essential hypertension",
    "J449": "Chronic obstructive pulmonary disease and bronchiectasis",
    "R7881": "Septicemia (except in labor)",
    "R6521": "Septicemia (except in labor)",
    "T45515A": "E Codes: Adverse effects of medical drugs",
    "G92": "Other nervous system disorders",
    "E1165": "Diabetes mellitus with complications",
}
"""ICD-10 codes with several targets; by AHRQ's own names."""


def test_a_code_has_the_class_of_its_principal_member() -> None:
    codes = pl.DataFrame({"icd_code": list(CLASSES), "icd_version": "10"})
    assert ClassMaps({}).classes("ccs_diagnoses", codes).to_list() == list(CLASSES.values())
    icd9 = pl.DataFrame({"icd_code": ["42789", "34839", "7102"], "icd_version": "9"})
    refined = ClassMaps({}, ccsr=True).classes("ccs_diagnoses", icd9)
    assert refined.to_list() == ["CIR017", "NVS020", "MUS024"]


def test_the_open_demo_shows_nothing_in_hindsight(mimic_demo: Path, tmp_path: Path) -> None:
    """15 deaths, 4 of them discharged at midnight; 1,084 prescriptions dated back."""
    tasks = ["transfers", "Readmission_30day", "emar"]
    world, metrics = prepared(mimic_demo, tmp_path, tasks=tasks)
    stays = world.parents["admissions"]
    assert (stays[END] > stays["dischtime"]).sum() > 200 and not stays[END].null_count()
    late = (stays[END] - stays["dischtime"]).dt.total_hours()
    assert (late.filter(stays["deathtime"].is_not_null()) >= 10).sum() == 4
    rows = store_rows(tmp_path).filter(pl.col("table") == ORDER.index("prescriptions"))
    assert (rows["available_time"] > rows["event_time"]).sum() == 1_084
    assert "availability_assumed/prescriptions" not in metrics
    codes = [ORDER.index(name) for name in ("diagnoses_icd", "procedures_icd")]
    of_others = 0
    for sample in world.samples(tasks=["transfers", "Readmission_30day"]):
        shard, patient = world.store.find(sample.subject_id)
        shown_rows = shown_positions(shard, patient, sample)
        coded = shown_rows[np.isin(shard.table[shown_rows], codes)]
        assert sample.hadm_id not in shard.hadm_id[coded].tolist()
        of_others += len(coded) > 0
    assert of_others > 300  # those of earlier stays are there
