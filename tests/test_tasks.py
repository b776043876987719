"""Samples: what a context may know, labels, prediction times, splits."""

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ehrr1.prompts.messages import answer_text, completion
from ehrr1.prompts.wording import OURS
from ehrr1.records.codes import ClassMaps
from ehrr1.records.events import Event
from ehrr1.records.mimic import MimicFolder
from ehrr1.records.reading import Folder
from ehrr1.records.schema import MIMIC_TABLES, TABLES
from ehrr1.tasks import labels
from ehrr1.tasks.catalog import SUITES, TASKS
from ehrr1.tasks.labels import cohorts, risk_samples
from ehrr1.tasks.samples import Prepared, Sample, preamble_length
from ehrr1.tasks.selection import select
from ehrr1.tasks.splits import split_patients
from tests.test_records import Metrics, copied, hospital, prepared, read_text, write_tables

__all__ = ["hospital"]  # a fixture

DAY, HOUR = timedelta(days=1), timedelta(hours=1)
START = datetime(2150, 1, 1, 8)


@pytest.fixture(scope="module")
def world(hospital: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Prepared, Metrics]:
    return prepared(hospital, tmp_path_factory.mktemp("world"))


def some(samples: Sequence[Sample], step: int) -> Iterator[Sample]:
    """Every task has its share: samples of each, evenly spread."""
    by_task: dict[str, list[Sample]] = {}
    for sample in samples:
        by_task.setdefault(sample.task, []).append(sample)
    for own in by_task.values():
        yield from own[:: max(1, len(own) // step)]


# --- the catalogue ---------------------------------------------------------------------------


def test_the_catalogue_has_every_task_once_and_words_of_its_own() -> None:
    assert len(TASKS) == 46
    assert len(SUITES["paper42"]) == 42 and len(SUITES["release45"]) == 45
    assert sum(TASKS[key].kind == "risk" for key in SUITES["paper42"]) == 18
    assert len({task.instruction for task in TASKS.values()}) == 46
    assert all(task.anchor_table in TABLES or task.key == "next_event" for task in TASKS.values())
    assert set(labels.RULES) == {key for key, task in TASKS.items() if task.kind == "risk"}


def test_messages() -> None:
    assert OURS.asked("labevents", think=True).endswith("? /think")
    system, user = OURS.chat("ICU_Mortality_7day", "RECORD", think=False)
    assert system["role"] == "system" and user["role"] == "user"
    assert user["content"].startswith("RECORD\n\nOne day into this intensive care stay")
    assert user["content"].endswith("Answer yes or no. /no_think")
    assert answer_text(("b", "a", "b")) == "a\nb"
    assert completion("a", None) == "a"
    assert completion("a", "why") == "<think>\nwhy\n</think>\n\na"


# --- what a context may know ------------------------------------------------------------------


def test_nothing_shown_became_known_too_late(world: tuple[Prepared, Metrics]) -> None:
    """By the events' own account: strictly before the target, or by the prediction time."""
    for sample in some(world[0].samples(), 20):
        events = world[0].context(sample)
        known = [e.available_time for e in events if e.available_time is not None]
        late = [t for t in known if t > sample.prediction_time]
        if TASKS[sample.task].kind == "decision":
            late += [t for t in known if t == sample.prediction_time]
        assert not late, sample


@cache
def raw(hospital: Path, name: str) -> dict[int, list[dict[str, str]]]:
    rows: dict[int, list[dict[str, str]]] = {}
    for row in read_text(hospital / f"{name}.csv.gz").iter_rows(named=True):
        rows.setdefault(int(row["subject_id"]), []).append(row)
    return rows


def known_rows(
    rows: Sequence[dict[str, str]], sample: Sample, happened: str, stored: str, delay: timedelta
) -> list[dict[str, str]]:
    """The rows of the window, straight from the file, by the words of the specification."""
    start, cut = sample.window_start, sample.prediction_time
    inclusive = TASKS[sample.task].kind == "risk"
    shown = []
    for row in rows:
        event = datetime.fromisoformat(row[happened])
        known = datetime.fromisoformat(row[stored]) if row[stored] else event + delay
        known = max(event, known)
        if start <= known and (known <= cut if inclusive else known < cut):
            shown.append(row)
    return shown


@pytest.mark.parametrize(
    ("name", "happened", "stored"),
    [
        ("hosp/labevents", "charttime", "storetime"),
        ("hosp/emar", "charttime", "storetime"),
        ("hosp/poe", "ordertime", "ordertime"),
        ("icu/chartevents", "charttime", "storetime"),
        ("ed/vitalsign", "charttime", "charttime"),
        ("note/radiology", "charttime", "storetime"),
    ],
)
def test_a_window_holds_exactly_what_the_files_say_was_known(
    world: tuple[Prepared, Metrics], hospital: Path, name: str, happened: str, stored: str
) -> None:
    table = TABLES[name.split("/")[1]]
    rows = raw(hospital, name)
    seen = 0
    for sample in some(world[0].samples(), 8):
        if sample.ed_stay is not None and table.inpatient:
            continue
        own = rows.get(sample.subject_id, [])
        expected = known_rows(own, sample, happened, stored, table.delay)
        events = [e for e in world[0].context(sample) if e.table == table.name]
        times = Counter(str(e.time) for e in events for _ in e.rows)
        assert times == Counter(row[happened] for row in expected), sample
        seen += len(expected)
    assert seen > 100


def test_totals_are_blank_until_their_interval_is_over(tmp_path: Path) -> None:
    drip = {"subject_id": 1, "hadm_id": 11, "stay_id": 31, "itemid": 7, "orderid": 1, "rate": 5}
    drip |= {"amount": "50.000000001", "amountuom": "ml", "rateuom": "mL/hour"}
    begin = START + 2 * HOUR
    tables = hand_made(
        [lab(n, str(START + n * HOUR)) for n in range(1, 24)],
        icu__icustays=[icu(31, START, START + 3 * DAY)],
        icu__d_items=[{"itemid": 7, "label": "Saline"}],
        icu__inputevents=[
            {**drip, "starttime": begin, "endtime": begin + 10 * HOUR, "storetime": begin},
            {**drip, "starttime": begin + HOUR, "storetime": begin + HOUR},  # no end: never known
        ],
    )
    world, _ = prepared(write_tables(tmp_path / "hospital", tables), tmp_path / "run")
    for sample in world.samples(tasks=["labevents", "ICU_Stay_7day"]):
        events = [e for e in world.context(sample) if e.table == "inputevents"]
        assert bool(events) == (sample.prediction_time > begin)
        for event in events:
            over = event.time == begin and sample.prediction_time > begin + 10 * HOUR
            amount = ("50", "ml") if over else ("", "")
            assert event.rows == (("Saline", *amount, "5", "mL/hour"),)
            assert event.available_time == (begin + 10 * HOUR if over else event.time)


def test_ed_contexts_hide_what_tells_of_the_admission(tmp_path: Path) -> None:
    visit = {"subject_id": 1, "stay_id": 31, "intime": START, "outtime": START + 4 * HOUR}
    order = {"subject_id": 1, "order_type": "Lab"}
    coded = {"subject_id": 1, "stay_id": 31, "icd_code": "I10", "icd_version": 10}
    tables = hand_made(
        # The first is drawn in the emergency department and linked in hindsight.
        [lab(1, str(START + HOUR / 2)), lab(2, str(START + 6 * HOUR))],
        hosp__admissions=[stay(11, START + 3 * HOUR, START + 5 * DAY)],
        ed__edstays=[{**visit, "hadm_id": 11, "disposition": "ADMITTED", "gender": "F"}],
        ed__diagnosis=[{**coded, "icd_title": "HYPERTENSION"}],
        hosp__poe=[
            {**order, "hadm_id": 11, "ordertime": START + HOUR / 3},
            {**order, "hadm_id": None, "ordertime": START + HOUR / 4},
        ],
        hosp__transfers=[{"subject_id": 1, "hadm_id": 11, "eventtype": "ED", "intime": START}],
    )
    world, _ = prepared(write_tables(tmp_path / "hospital", tables), tmp_path / "run")
    (sample,) = world.samples(tasks=["ED_Hospitalization"])
    assert sample.prediction_time == START + HOUR and sample.window_start == START
    events = world.context(sample)
    assert [e.table for e in events] == ["patients", "transfers", "edstays", "poe", "labevents"]
    assert events[3].time == START + HOUR / 4
    later = world.samples(tasks=["labevents"])[-1]
    tables_later = [e.table for e in world.context(later)]
    assert tables_later.count("poe") == 2 and "diagnosis" in tables_later
    assert preamble_length(world.context(later)) == 2  # demographics, the admission in progress


def test_the_preamble_comes_first_and_tells_of_earlier_stays(
    world: tuple[Prepared, Metrics], hospital: Path
) -> None:
    discharged = {
        (subject, row["hadm_id"]): row["dischtime"]
        for subject, rows in raw(hospital, "hosp/admissions").items()
        for row in rows
    }
    notes = 0
    for sample in some(world[0].samples(tasks=["diagnoses_icd", "Readmission_30day", "emar"]), 40):
        events = world[0].context(sample)
        length = preamble_length(events)
        assert events[0].table == "patients"
        rest = [event.time for event in events[length:] if event.time]
        assert rest == sorted(rest)
        earlier = [e for e in events if TABLES[e.table].context == "earlier"]
        assert all(event in events[:length] for event in earlier)
        notes += any(event.table == "discharge" for event in earlier)
        own = discharged[sample.subject_id, str(sample.hadm_id)] if sample.hadm_id else ""
        if sample.task != "emar":
            assert all(str(event.time) != own for event in earlier)
            assert events[length - 1].table == "admissions"
    assert notes > 3


def test_one_context_id_is_one_context(world: tuple[Prepared, Metrics]) -> None:
    samples = world[0].samples()
    assert len({sample.sample_id for sample in samples}) == len(samples)
    by_context: dict[str, list[Sample]] = {}
    for sample in samples:
        by_context.setdefault(sample.context_id, []).append(sample)
    several = [own for own in by_context.values() if len(own) > 1]
    assert len(several) > 1000
    for own in several[::200]:
        first = world[0].context(own[0])
        assert all(world[0].context(sample) == first for sample in own[1:])


def test_the_target_is_what_comes_next(world: tuple[Prepared, Metrics], hospital: Path) -> None:
    given_drugs = raw(hospital, "hosp/emar")
    for sample in some(world[0].samples(tasks=["emar"]), 50):
        at_time = [
            row["medication"]
            for row in given_drugs[sample.subject_id]
            if row["charttime"] == str(sample.prediction_time)
            and (row["hadm_id"] or "") == str(sample.hadm_id or "")
        ]
        assert set(sample.target) == {" ".join(name.split()) for name in at_time if name}
    headings = {table.heading for table in TABLES.values()}
    for sample in some(world[0].samples(tasks=["next_event"]), 50):
        assert len(sample.target) == 1 and sample.target[0] in headings
    assert all(len(s.target) <= 9 for s in world[0].samples(tasks=["chartevents"]))
    (note, *_) = world[0].samples(tasks=["discharge"])
    assert len(note.target) == 1 and len(note.target[0]) > 100


# --- what is known later changes nothing ------------------------------------------------------


def contexts(world: Prepared, until: datetime, subject: int) -> dict[str, list[Event]]:
    return {
        sample.sample_id: world.context(sample)
        for sample in world.samples()
        if sample.subject_id == subject and sample.prediction_time <= until
    }


def test_a_row_that_is_known_later_changes_nothing_before(
    world: tuple[Prepared, Metrics], hospital: Path, tmp_path: Path
) -> None:
    icu = world[0].samples(tasks=["ICU_Mortality_7day"])[0]
    now, subject = icu.prediction_time, icu.subject_id

    def later(name: str, frame: pl.DataFrame) -> pl.DataFrame:
        """Adds laboratory results drawn before `now` and stored after it, and later orders."""
        if name not in ("hosp/labevents", "hosp/poe", "icu/inputevents"):
            return frame
        own = frame.filter(pl.col("subject_id") == str(subject)).head(5)
        soon, after = (str(now + timedelta(seconds=s)) for s in (1, 7200))
        changes = {"ordertime": soon, "starttime": soon, "endtime": after, "storetime": after}
        if name == "hosp/labevents":
            changes = {"charttime": str(now), "storetime": after}
        added = own.with_columns(
            pl.lit(value).alias(c) for c, value in changes.items() if c in own.columns
        )
        return pl.concat([frame, added])

    root = copied(hospital, tmp_path / "hospital", later)
    changed, _ = prepared(root, tmp_path / "run")
    before, after = (contexts(w, now, subject) for w in (world[0], changed))
    # A new event at `now` is a new question at `now`, about what was not known; none goes.
    new = {sample_id.split("/")[0] for sample_id in set(after) - set(before)}
    assert not set(before) - set(after)
    assert new <= {"labevents", "next_event"}
    assert all(after[sample_id] == events for sample_id, events in before.items())


@st.composite
def laboratory(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Minutes after `START` at which a sample is drawn, and from then until it is stored."""
    return draw(
        st.lists(st.tuples(st.integers(0, 4000), st.integers(-60, 3000)), min_size=1, max_size=12)
    )


@settings(max_examples=25, deadline=None)
@given(laboratory())
def test_known_by_the_cut_for_any_times(rows: list[tuple[int, int]]) -> None:
    minute = timedelta(minutes=1)
    drawn = [START + a * minute for a, _ in rows]
    stored = [time + b * minute for time, (_, b) in zip(drawn, rows, strict=True)]
    tables = hand_made(
        labs=[
            {**lab(n, str(a)), "storetime": b}
            for n, (a, b) in enumerate(zip(drawn, stored, strict=True))
        ]
    )
    with TemporaryDirectory() as folder:
        root = write_tables(Path(folder) / "hospital", tables)
        world, _ = prepared(root, Path(folder) / "run")
        available = [max(a, b) for a, b in zip(drawn, stored, strict=True)]
        for sample in world.samples():
            inclusive = sample.task in labels.RULES
            expected = sum(
                sample.window_start <= t < sample.prediction_time
                or (inclusive and t == sample.prediction_time)
                for t in available
            )
            events = [e for e in world.context(sample) if e.table == "labevents"]
            assert sum(len(event.rows) for event in events) == expected


# --- labels -----------------------------------------------------------------------------------


def lab(number: int, time: str) -> dict[str, object]:
    own = {"subject_id": 1, "hadm_id": 11, "labevent_id": number, "itemid": 50, "valuenum": 1}
    return {**own, "charttime": time, "storetime": time}


def hand_made(
    labs: Sequence[dict[str, object]] = (), **more: Sequence[dict[str, object]]
) -> dict[str, Sequence[dict[str, object]]]:
    """One patient, one stay of five days; `more` replaces or adds tables (`__` for the slash)."""
    tables: dict[str, Sequence[dict[str, object]]] = {
        "hosp/patients": [{"subject_id": 1, "gender": "F", "anchor_age": 60, "anchor_year": 2149}],
        "hosp/admissions": [stay(11, START, START + 5 * DAY)],
        "hosp/d_labitems": [{"itemid": 50, "label": "Lactate"}],
        "hosp/labevents": list(labs) or [lab(1, str(START))],
    }
    return tables | {name.replace("__", "/"): rows for name, rows in more.items()}


def stay(hadm_id: int, admit: datetime, discharge: datetime, **more: object) -> dict[str, object]:
    own = {"subject_id": 1, "hadm_id": hadm_id, "admittime": admit, "dischtime": discharge}
    return {**own, "admission_type": "URGENT", "hospital_expire_flag": 0, **more}


def icu(stay_id: int, start: datetime, end: datetime) -> dict[str, object]:
    return {"subject_id": 1, "hadm_id": 11, "stay_id": stay_id, "intime": start, "outtime": end}


def answers(tmp_path: Path, tables: dict[str, Any]) -> tuple[dict[str, list[str]], Metrics]:
    """Task -> answers in order of time, risk tasks only."""
    world, metrics = prepared(write_tables(tmp_path / "hospital", tables), tmp_path / "run")
    found: dict[str, list[str]] = {}
    for sample in world.samples(tasks=list(labels.RULES)):
        found.setdefault(sample.task, []).append(sample.target[0])
    return found, metrics


def test_length_of_stay_and_death_in_hospital(tmp_path: Path) -> None:
    found, metrics = answers(tmp_path, hand_made())
    assert found["LengthOfStay_3day"] == ["yes"]
    assert found["LengthOfStay_7day"] == found["Inpatient_Mortality"] == ["no"]
    died = stay(11, START, START + 5 * DAY, hospital_expire_flag=1)
    found, metrics = answers(tmp_path / "died", hand_made(hosp__admissions=[died]))
    assert found["Inpatient_Mortality"] == ["yes"] and found["LengthOfStay_7day"] == ["no"]
    assert metrics["died_in_window/LengthOfStay_7day"] == 1
    assert "Readmission_30day" not in found
    assert metrics["excluded/Readmission_30day/died_in_hospital"] == 1
    short = stay(11, START, START + 20 * HOUR)
    found, metrics = answers(tmp_path / "short", hand_made(hosp__admissions=[short]))
    assert "LengthOfStay_3day" not in found
    assert metrics["excluded/LengthOfStay_3day/left_by_then"] == 1


def test_readmission_and_death_after_discharge(tmp_path: Path) -> None:
    again = [stay(11, START, START + 5 * DAY), stay(12, START + 45 * DAY, START + 46 * DAY)]
    labs = [lab(1, str(START + 5 * DAY - HOUR)), lab(2, str(START + 46 * DAY - HOUR))]
    found, _ = answers(tmp_path, hand_made(labs, hosp__admissions=again))
    assert found["Readmission_30day"] == ["no", "no"]
    assert found["Readmission_60day"] == ["yes", "no"]
    patient = {"subject_id": 1, "gender": "F", "anchor_age": 60, "anchor_year": 2149}
    dead = hand_made(labs, hosp__patients=[{**patient, "dod": (START + 25 * DAY).date()}])
    found, metrics = answers(tmp_path / "dead", dead)
    assert "Readmission_30day" not in found
    assert metrics["excluded/Readmission_30day/died_in_window"] == 1
    assert found["Inpatient_Mortality"] == ["no"]


def test_icu_stays_are_merged_and_death_is_at_the_end_of_its_day(tmp_path: Path) -> None:
    stays = [icu(31, START, START + 30 * HOUR), icu(32, START + 40 * HOUR, START + 90 * HOUR)]
    patient = {"subject_id": 1, "gender": "F", "anchor_age": 60, "anchor_year": 2149}
    tables = hand_made(
        icu__icustays=stays,
        hosp__patients=[{**patient, "dod": (START + 9 * DAY).date()}],
        hosp__admissions=[stay(11, START, START + 8 * DAY)],
    )
    found, metrics = answers(tmp_path, tables)
    assert found["ICU_Mortality_7day"] == ["no"]  # asked on day 1; day 9 ends 8.7 days later
    assert found["ICU_Mortality_14day"] == ["yes"]
    assert found["ICU_Stay_7day"] == ["no"] and found["ICU_Readmission"] == ["no"]
    tables["icu/icustays"] = [stays[0], icu(32, START + 70 * HOUR, START + 90 * HOUR)]
    found, metrics = answers(tmp_path / "again", tables)
    assert found["ICU_Readmission"] == ["yes"]
    assert metrics["excluded/ICU_Readmission/left_by_then"] == 1  # the second: under 24 h


def test_emergency_visits(tmp_path: Path) -> None:
    def visit(number: int, day: int, **more: object) -> dict[str, object]:
        come = START + day * DAY
        own = {"subject_id": 1, "stay_id": 30 + number, "intime": come, "gender": "F"}
        return {**own, "outtime": come + 4 * HOUR, "disposition": "HOME", **more}

    tables = hand_made(
        ed__edstays=[
            visit(0, -30),
            visit(1, -28),
            visit(2, -10, outtime=START - 10 * DAY + HOUR / 2),
            visit(3, 0, disposition="ADMITTED", hadm_id=11),
        ],
        icu__icustays=[icu(41, START + 15 * HOUR, START + 60 * HOUR)],
        hosp__admissions=[stay(11, START + 3 * HOUR, START + 5 * DAY)],
    )
    found, metrics = answers(tmp_path, tables)
    assert found["ED_Hospitalization"] == ["no", "no", "yes"]
    assert found["ED_ICU_Tranfer_12hour"] == found["ED_Critical_Outcomes"] == ["no", "no", "yes"]
    assert found["ED_Inpatient_Mortality"] == ["no", "no", "no"]
    assert found["ED_Reattendance_3day"] == ["yes", "no", "no"]
    assert metrics["excluded/ED_Hospitalization/left_by_then"] == 1
    assert metrics["excluded/ED_Reattendance_3day/not_sent_home"] == 1


OUTCOMES = {
    "hosp/patients": ["dod"],
    "hosp/admissions": ["deathtime", "hospital_expire_flag"],
    "ed/edstays": ["disposition", "hadm_id"],
}


def test_prediction_times_do_not_depend_on_outcomes(hospital: Path, tmp_path: Path) -> None:
    """Outcomes are dealt out anew between the rows: every candidate is asked at the same time."""

    def swapped(name: str, frame: pl.DataFrame) -> pl.DataFrame:
        return frame.with_columns(pl.col(c).reverse() for c in OUTCOMES.get(name, []))

    times = []
    frames = []
    for root in (hospital, copied(hospital, tmp_path / "hospital", swapped)):
        source = MimicFolder(Folder(root), ClassMaps({}), patients_per_shard=1000)
        source.want([0])
        key = ["subject_id", "hadm_id", "stay_id", "prediction_time", "window_start"]
        times.append(
            {
                name: frame.with_columns(hadm_id=pl.lit(None)).select(key).sort(pl.all()).rows()
                if name.startswith("ed")
                else frame.select(key).sort(pl.all()).rows()
                for name, frame in cohorts(source.parents).items()
                if name != "discharge"  # asked when the stay is over, as nobody is who died in it
            }
        )
        frames.append(risk_samples(source.parents, TASKS).frame)
    assert times[0] == times[1]
    assert not frames[0].equals(frames[1])


# --- splits, sums, the real thing -------------------------------------------------------------


def test_splits_are_by_patient_exact_and_seeded() -> None:
    subjects = pl.Series(range(1000))
    one = split_patients(subjects, validation=0.1, test=0.25, seed=1)
    shares = dict(one["split"].value_counts().iter_rows())
    assert shares == {"train": 650, "validation": 100, "test": 250}
    again = split_patients(subjects.reverse(), validation=0.1, test=0.25, seed=1)
    assert one.equals(again)
    assert not one.equals(split_patients(subjects, validation=0.1, test=0.25, seed=2))


def test_every_task_has_samples_and_no_patient_is_in_two_splits(
    world: tuple[Prepared, Metrics],
) -> None:
    prepared_world, metrics = world
    counts = Counter(sample.task for sample in prepared_world.samples())
    assert all(metrics[f"samples/{task}"] == counts[task] for task in TASKS)
    assert not [task for task in TASKS if not counts[task]]
    splits = {(sample.subject_id, sample.split) for sample in prepared_world.samples()}
    assert len(splits) == len({subject for subject, _ in splits})
    assert set(prepared_world.splits.iter_rows()) >= splits


def test_chosen_tasks_only(hospital: Path, tmp_path: Path) -> None:
    world, metrics = prepared(hospital, tmp_path, tasks=["emar", "ICU_Stay_7day"])
    assert {sample.task for sample in world.samples()} == {"emar", "ICU_Stay_7day"}
    assert metrics["samples/labevents"] == 0


@pytest.mark.slow
def test_the_mimic_demo(mimic_demo: Path, tmp_path: Path) -> None:
    world, metrics = prepared(mimic_demo, tmp_path)
    assert metrics["subjects"] == 100 and metrics["rows/chartevents"] == 668_862
    assert all(
        metrics[f"rows/{n}"] == metrics[f"rows_kept/{n}"] + metrics[f"rows_reported/{n}"]
        for n in MIMIC_TABLES
    )
    assert metrics["availability_assumed/labevents"] == 992
    assert metrics["samples/radiology"] == metrics["missing_maps/atc"] - 1 == 0
    samples = world.samples()
    assert len(samples) > 100_000
    for sample in some(samples, 4):
        events = world.context(sample)
        known = [e.available_time for e in events if e.available_time is not None]
        assert max(known) <= sample.prediction_time


def test_select_keeps_contexts_together_and_balances() -> None:
    tasks = ("ICU_Stay_7day", "ICU_Stay_14day")
    index = pl.DataFrame(
        [(f"{task}/{n}", task, f"c{n // 2}", [int(n < 20)]) for n in range(100) for task in tasks],
        schema=["sample_id", "task", "context_id", "target"],
        orient="row",
    )
    some = select(index, 10, seed=0)
    assert some["task"].value_counts().sort("task")["count"].to_list() == [10, 10]
    assert some["context_id"].n_unique() == 5
    assert some.equals(select(index, 10, seed=0)) and not some.equals(select(index, 10, seed=1))
    by_task = select(index, {"ICU_Stay_7day": 3, "ICU_Stay_14day": 5}, seed=0)
    assert sorted(by_task["task"].value_counts()["count"]) == [3, 5]
    balanced = select(index, 50, seed=0, balance=True)
    assert balanced.group_by("task", "target").len()["len"].to_list() == [20] * 4
    assert select(index, None, seed=0).equals(index)


def test_what_is_not_chosen_need_not_be_read() -> None:
    task = pl.Series(["ICU_Stay_7day", "labevents", "emar"])
    number = pl.int_range(30_000, eager=True)
    index = pl.DataFrame({"task": task.gather(number % 3), "number": number}).select(
        "task",
        pl.format("{}", "number").alias("sample_id"),
        pl.format("c{}", pl.col("number") // 6).alias("context_id"),
        (pl.col("number") % 7).reshape((-1, 1)).arr.to_list().alias("target"),
    )
    for asked in (10, 700, 10**9, {"ICU_Stay_7day": 9, "labevents": None, "emar": 0}, None):
        for balance in (False, True):
            lazily = select(index.lazy(), asked, seed=0, balance=balance)
            assert lazily.equals(select(index, asked, seed=0, balance=balance))
