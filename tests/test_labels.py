"""Options of the labels, and that nobody's prediction time knows what came of it."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from ehrr1.records.codes import ClassMaps
from ehrr1.records.mimic import MimicFolder
from ehrr1.records.reading import Folder
from ehrr1.tasks.catalog import TASKS
from ehrr1.tasks.labels import LabelOptions, RiskSamples, cohorts, risk_samples
from tests.test_records import hospital, write_tables
from tests.test_tasks import DAY, HOUR, START, hand_made, icu, stay

__all__ = ["hospital"]  # a fixture

Frames = dict[str, pl.DataFrame]
BY_OUTCOME = ("Readmission_30day", "Readmission_60day", "ICU_Readmission")
"""Deaths in the window and in the first ICU stay are left out, as the task's definition asks."""


def parents(root: Path) -> Frames:
    source = MimicFolder(Folder(root), ClassMaps({}), patients_per_shard=1000)
    source.want([0])
    return source.parents


@pytest.fixture(scope="module")
def frames(hospital: Path) -> Frames:
    return parents(hospital)


def asked(found: RiskSamples, cohort_tasks: list[str]) -> list[tuple[Any, ...]]:
    keys = ["task", "subject_id", "stay_id", "prediction_time", "window_start"]
    own = found.frame.filter(pl.col("task").is_in(cohort_tasks))
    return sorted(own.select(keys).rows(), key=str)


def tasks_of(start: str) -> list[str]:
    return [key for key in TASKS if key.startswith(start) and key not in BY_OUTCOME]


def after(name: str, limit: pl.Expr, new: pl.Expr) -> pl.Expr:
    """Changes the times that lie after `limit`."""
    return pl.when(pl.col(name) > limit).then(new).otherwise(pl.col(name)).alias(name)


def no_deaths(frames: Frames) -> Frames:
    """Nobody dies who has not died within a day of every start."""
    patients = frames["patients"].with_columns(pl.lit(None, pl.Datetime("us")).alias("dod"))
    admissions = frames["admissions"].with_columns(
        pl.lit(None, pl.Datetime("us")).alias("deathtime"),
        pl.lit("0").alias("hospital_expire_flag"),
    )
    return {**frames, "patients": patients, "admissions": admissions}


def same_question_other_answer(one: Frames, other: Frames, tasks: list[str]) -> None:
    first, second = risk_samples(one, tasks), risk_samples(other, tasks)
    assert asked(first, tasks) == asked(second, tasks)
    assert len(asked(first, tasks)) > 10
    columns = ["task", "subject_id", "prediction_time", "stay_id"]
    assert not first.frame.sort(columns)["label"].equals(second.frame.sort(columns)["label"])


def test_deaths_change_no_question(frames: Frames) -> None:
    """Those who died by the prediction time are left out; the others are asked all the same."""
    times = [{n: f["prediction_time"].to_list() for n, f in cohorts(p).items()} for p in
             (frames, no_deaths(frames))]  # fmt: skip
    assert times[0] == times[1]
    tasks = [*tasks_of("Inpatient"), *tasks_of("ICU_Mortality"), *tasks_of("ED_")]
    before, now = risk_samples(frames, tasks), risk_samples(no_deaths(frames), tasks)
    gone = set(asked(now, tasks)) - set(asked(before, tasks))
    assert not set(asked(before, tasks)) - set(asked(now, tasks))
    died = [n for reason, n in before.excluded.items() if reason.endswith("died_by_then")]
    assert len(gone) <= sum(died)


def test_the_end_of_a_hospital_stay_changes_no_question_about_it(frames: Frames) -> None:
    admissions = frames["admissions"].with_columns(
        after(time, pl.col("admittime") + DAY, pl.col(time) + 9 * DAY)
        for time in ("end_of_stay", "dischtime", "deathtime")
    )
    tasks = tasks_of("LengthOfStay")
    same_question_other_answer(frames, {**frames, "admissions": admissions}, tasks)


def test_the_end_of_the_last_icu_stay_changes_no_question_about_it(frames: Frames) -> None:
    last = pl.col("intime") == pl.col("intime").max().over("subject_id", "hadm_id")
    later = after("outtime", pl.col("intime") + DAY, pl.col("outtime") + 9 * DAY)
    longer = frames["icustays"].with_columns(
        pl.when(last).then(later).otherwise("outtime").alias("outtime")
    )
    same_question_other_answer(frames, {**frames, "icustays": longer}, tasks_of("ICU_Stay"))


def test_what_follows_an_emergency_visit_changes_no_question_about_it(frames: Frames) -> None:
    """Dispositions, links to admissions, ICU entries after the prediction time: dealt out anew."""
    now = pl.col("intime") + HOUR
    linked = frames["edstays"].join(
        frames["admissions"].select("hadm_id", "admittime"), on="hadm_id", how="left"
    )
    coming = ~(pl.col("admittime") <= now).fill_null(False)
    visits = linked.with_columns(
        pl.when(~coming).then("hadm_id").alias("hadm_id"),
        pl.lit("HOME").alias("disposition"),
        after("outtime", now, pl.col("outtime") + timedelta(minutes=7)),
    ).drop("admittime")
    changed = {**frames, "edstays": visits, "icustays": frames["icustays"].clear()}
    tasks = ["ED_Hospitalization", "ED_Inpatient_Mortality"]
    same_question_other_answer(frames, changed, tasks)
    icu_tasks = ["ED_ICU_Tranfer_12hour", "ED_Critical_Outcomes"]
    before, after_change = risk_samples(frames, icu_tasks), risk_samples(changed, icu_tasks)
    there = before.excluded.get("ED_ICU_Tranfer_12hour/in_icu_by_then", 0)
    assert len(after_change.frame) - len(before.frame) == 2 * there


def test_later_stays_change_no_question_at_discharge_or_going_home(frames: Frames) -> None:
    """Only the first hospital stay and the first visit of each patient are left."""

    def first(name: str, time: str) -> pl.DataFrame:
        return frames[name].sort(time).unique("subject_id", keep="first", maintain_order=True)

    alone = {**frames, "admissions": first("admissions", "admittime")}
    alone["edstays"] = first("edstays", "intime").with_columns(
        pl.when(pl.col("hadm_id").is_in(alone["admissions"]["hadm_id"].implode()))
        .then("hadm_id")
        .alias("hadm_id")
    )
    for task, stays in (("Readmission_60day", "admissions"), ("ED_Reattendance_3day", "edstays")):
        one, other = risk_samples(frames, [task]).frame, risk_samples(alone, [task]).frame
        key = "hadm_id" if stays == "admissions" else "stay_id"
        joined = other.join(one, on=["subject_id", key], how="left", suffix="_before")
        both = joined.drop_nulls("prediction_time_before")
        assert len(both) > 5 and not other["label"].any() and one["label"].any()
        assert both["prediction_time"].equals(both["prediction_time_before"])
        # a death in the window without a return is left out of readmission only
        assert len(both) == len(joined) or task == "Readmission_60day"


def test_home_with_an_admission_that_begins_later_is_home(tmp_path: Path) -> None:
    """That a visit will be linked to an admission hours after going home is not known then."""
    visit = {"subject_id": 1, "stay_id": 31, "intime": START, "outtime": START + 4 * HOUR}
    visit |= {"disposition": "HOME", "gender": "F", "hadm_id": 11}
    for admitted, sent_home in ((START + 9 * HOUR, 1), (START + 2 * HOUR, 0)):
        tables = hand_made(
            ed__edstays=[visit], hosp__admissions=[stay(11, admitted, START + 2 * DAY)]
        )
        found = risk_samples(
            parents(write_tables(tmp_path / str(sent_home), tables)), ["ED_Reattendance_3day"]
        )
        assert len(found.frame) == sent_home
        assert found.excluded.get("ED_Reattendance_3day/not_sent_home", 0) == 1 - sent_home


def test_options(tmp_path: Path, frames: Frames) -> None:
    triage = risk_samples(frames, tasks_of("ED_"), LabelOptions(ed_time="triage")).frame
    visits = triage.filter(pl.col("task") == "ED_Hospitalization")
    assert (visits["prediction_time"] - visits["window_start"]).unique().to_list() == [
        timedelta(seconds=1)
    ]
    died = stay(11, START, START + 5 * DAY, hospital_expire_flag=1)
    own = parents(write_tables(tmp_path / "died", hand_made(hosp__admissions=[died])))
    tasks = ["LengthOfStay_3day", "LengthOfStay_7day"]
    released = risk_samples(own, tasks)
    assert released.noted["died_in_window/LengthOfStay_3day"] == 0
    assert released.noted["died_in_window/LengthOfStay_7day"] == 1
    without = risk_samples(own, tasks, LabelOptions(died_in_stay="exclude"))
    assert without.frame["task"].to_list() == ["LengthOfStay_3day"] and not without.noted
    assert without.excluded["LengthOfStay_7day/died_in_window"] == 1


@pytest.mark.parametrize("kind", ["ELECTIVE", "SURGICAL SAME DAY ADMISSION"])
def test_planned_admissions_need_not_be_readmissions(tmp_path: Path, kind: str) -> None:
    again = [
        stay(11, START, START + 5 * DAY),
        stay(12, START + 9 * DAY, START + 10 * DAY, admission_type=kind),
        stay(13, START + 40 * DAY, START + 41 * DAY),
    ]
    own = parents(write_tables(tmp_path, hand_made(hosp__admissions=again)))
    counted, passed = (
        risk_samples(own, [f"Readmission_{days}day" for days in (30, 60)], LabelOptions(planned=p))
        .frame.sort("task", "prediction_time")["label"]
        .to_list()
        for p in ("count", "exclude")
    )
    assert counted == [True, True, False, True, True, False]
    assert passed == [False, True, False, True, True, False]


def test_a_stay_that_another_one_overlaps_is_not_asked_about_readmission(tmp_path: Path) -> None:
    stays = [stay(11, START, START + 5 * DAY), stay(12, START + 4 * DAY, START + 9 * DAY)]
    own = parents(write_tables(tmp_path, hand_made(hosp__admissions=stays)))
    found = risk_samples(own, ["Readmission_30day"])
    assert found.frame["hadm_id"].to_list() == [12]
    assert found.excluded == {"Readmission_30day/admitted_by_then": 1}


def test_who_dies_in_the_first_icu_stay_is_counted(tmp_path: Path) -> None:
    died = stay(11, START, START + 5 * DAY, deathtime=START + 5 * DAY, hospital_expire_flag=1)
    tables = hand_made(hosp__admissions=[died], icu__icustays=[icu(31, START, START + 6 * DAY)])
    found = risk_samples(parents(write_tables(tmp_path, tables)), ["ICU_Readmission"])
    assert found.frame.is_empty() and found.excluded == {"ICU_Readmission/died_in_icu": 1}
