"""data=ehrshot: the authors' folder and their MEDS export, in rows of our own."""

import csv
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from ehrr1.errors import UserError
from ehrr1.evaluation.baselines.features import bag_of_events
from ehrr1.records.markdown import record_markdown
from ehrr1.runs import Run
from ehrr1.stages import export, prepare
from ehrr1.tasks.catalog import ALL_TASKS, SUITES
from ehrr1.tasks.external.benchmark_tasks import EHRSHOT_QUESTIONS
from ehrr1.tasks.external.ehrshot_text import CodedRow, PatientText
from ehrr1.tasks.samples import Prepared, preamble_length
from tests.metrics_page import not_on_the_page
from tests.settings import composed

EVENTS = [
    ("1", "1950-06-01 00:00:00", "SNOMED/3950001", "", "", "", "person"),
    ("1", "1950-06-01 00:00:00", "Gender/F", "", "", "", "person"),
    ("1", "1950-06-01 00:00:00", "Race/5", "", "", "", "person"),
    ("1", "2015-03-01 08:00:00", "Visit/IP", "", "", "10", "visit_occurrence"),
    ("1", "2015-03-01 08:10:00", "LOINC/2160-0", "1.0", "mg/dL", "10", "measurement"),
    ("1", "2015-03-01 09:00:00", "LOINC/718-7", "11.5", "g/dL", "10", "measurement"),
    ("1", "2015-03-01 09:00:00", "LOINC/718-7", "11.5", "g/dL", "10", "measurement"),
    ("1", "2015-03-01 12:00:00", "RxNorm/1", "nan", "", "10", "drug_exposure"),
    ("1", "2015-03-02 00:00:00", "LOINC/777-3", "Low | very", "", "10", "measurement"),
    ("2", "1980-01-01 00:00:00", "Gender/M", "", "", "", "person"),
    ("2", "2016-01-01 07:00:00", "ICD10CM/I10", "", "", "", "condition_occurrence"),
    ("3", "2016-01-01 07:00:00", "ICD10CM/I10", "", "", "", "condition_occurrence"),
    ("4", "2016-01-01 07:00:00", "ICD10CM/I10", "", "", "", "condition_occurrence"),
    ("9", "2016-01-01 07:00:00", "ICD10CM/I10", "", "", "", "condition_occurrence"),
]
HEADER = ("patient_id", "start", "code", "value", "unit", "visit_id", "omop_table")
BROKEN = [
    ("", "2016-01-01 07:00:00", "ICD10CM/I10", "", "", "", ""),
    ("2", "", "ICD10CM/I10", "", "", "", "condition_occurrence"),
    ("2", "2016-01-01 07:00:00", "", "", "", "", "condition_occurrence"),
]
SPLIT = {1: "test", 2: "train", 3: "train", 4: "val"}
LABELS: dict[str, list[tuple[Any, str, Any]]] = {
    "guo_icu": [
        (1, "2015-03-01 23:59:00", True),
        (2, "2016-02-01 00:00:00", False),
        (3, "2016-02-01 00:00:00", True),
        (4, "2016-02-01 00:00:00", False),
    ],
    "lab_anemia": [(1, "2015-03-01 09:00:00", 0), (1, "2015-03-01 23:59:00", 3)],
}
RECORD = """## Patient Demographics [None]
- Anchor_Age: 64
- Gender: F
- Race: White

## Visit Occurrence [2015-03-01 08:00:00]
- Item_Name: Visit/IP

## Measurement [2015-03-01 08:10:00]
| Item_Name | Value | Unit |
| ------ | ------ | ------ |
| Creatinine | 1 | mg/dL |
| LOINC/718-7 | 11.5 | g/dL |"""


def write_csv(path: Path, header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def assets(root: Path, events: list[tuple[str, ...]] = EVENTS) -> Path:
    """The authors' folder."""
    base = root / "EHRSHOT_ASSETS"
    # the end of a stay must not be read
    ended = [(*row[:2], "2099-01-01 00:00:00", *row[2:]) for row in events]
    write_csv(base / "data" / "ehrshot.csv", (*HEADER[:2], "end", *HEADER[2:]), ended)
    write_csv(
        base / "splits" / "person_id_map.csv", ("split", "omop_person_id"),
        [(split, subject) for subject, split in SPLIT.items()],
    )  # fmt: skip
    for task, labels in LABELS.items():
        kind = "categorical" if task.startswith("lab_") else "boolean"
        write_csv(
            base / "benchmark" / task / "labeled_patients.csv",
            ("patient_id", "prediction_time", "value", "label_type"),
            [(subject, time.replace(" ", "T"), label, kind) for subject, time, label in labels],
        )
    words = base / "models" / "clmbr"
    words.mkdir(parents=True)
    (words / "token_2_code.json").write_text(json.dumps({"0": "LOINC/2160-0", "1": "Race/5"}))
    (words / "token_2_description.json").write_text(json.dumps({"0": "Creatinine", "1": "White"}))
    return base


def meds(root: Path) -> Path:
    """The same as MEDS."""
    for folder in ("data", "metadata", *(f"labels/{task}" for task in LABELS)):
        (root / folder).mkdir(parents=True)
    subject, time, code, value, unit, visit, table = map(list, zip(*EVENTS, strict=True))
    numbers = [float(v) if v.replace(".", "").isdigit() else None for v in value]
    pl.DataFrame(
        {
            "subject_id": list(map(int, subject)),
            "time": pl.Series(time).str.to_datetime(time_unit="us"),
            "code": code,
            "numeric_value": pl.Series(numbers, dtype=pl.Float32),
            "text_value": [v if n is None else None for v, n in zip(value, numbers, strict=True)],
            "unit": unit,
            "visit_id": pl.Series(visit).cast(pl.Int64, strict=False),
            "omop_table": table,
        }
    ).write_parquet(root / "data" / "data.parquet")
    names = {"train": "train", "val": "tuning", "test": "held_out"}
    splits = {"subject_id": list(SPLIT), "split": [names[split] for split in SPLIT.values()]}
    pl.DataFrame(splits).write_parquet(root / "metadata" / "subject_splits.parquet")
    pl.DataFrame(
        {"code": ["LOINC/2160-0", "Race/5", "Gender/F"], "description": ["Creatinine", "White", ""]}
    ).write_parquet(root / "metadata" / "codes.parquet")
    for task, labels in LABELS.items():
        subjects, times, values = zip(*labels, strict=True)
        lab = task.startswith("lab_")
        pl.DataFrame(
            {
                "subject_id": subjects,
                "prediction_time": pl.Series(times).str.to_datetime(time_unit="us"),
                "boolean_value": pl.Series([None if lab else v for v in values], dtype=pl.Boolean),
                "integer_value": pl.Series([v if lab else None for v in values], dtype=pl.Int64),
            }
        ).write_parquet(root / "labels" / task / "labels.parquet")
    return root


def prepared(root: Path, folder: Path, **data: Any) -> tuple[Prepared, dict[str, float | int]]:
    folder.mkdir()
    settings = {"root": str(root), "samples_per_task": None} | data
    cfg = composed("data=ehrshot", data=settings)
    metrics = prepare.run(cfg, Run(folder, "prepare"))
    assert not not_on_the_page("prepare", metrics)
    return Prepared(folder), metrics


def test_both_forms_give_the_same_samples(tmp_path: Path) -> None:
    world, metrics = prepared(assets(tmp_path), tmp_path / "csv")
    other, _ = prepared(meds(tmp_path / "meds"), tmp_path / "other")
    assert other.index().equals(world.index()) and other.splits.equals(world.splits)
    assert metrics["rows/benchmark"] == metrics["rows_kept/benchmark"] == 6
    assert [(s.task, s.split, s.target) for s in world.samples()] == [
        ("lab_anemia", "test", ("yes",)),  # yes: normal
        ("guo_icu", "test", ("yes",)),
        ("lab_anemia", "test", ("no",)),  # severe
        ("guo_icu", "train", ("no",)),
        ("guo_icu", "train", ("yes",)),
        ("guo_icu", "validation", ("no",)),
    ]
    for one, same in zip(world.samples(), other.samples(), strict=True):
        assert record_markdown(world.context(one)) == record_markdown(other.context(same))


def test_its_questions_are_exported(tmp_path: Path) -> None:
    world, _ = prepared(assets(tmp_path), tmp_path / "csv")
    (tmp_path / "export").mkdir()
    run = Run(tmp_path / "export", "export", {"prepare": world.folder})
    assert export.write(composed("export.layout=jsonl", "export.split=all"), run) == {"rows": 6}
    lines = (tmp_path / "export" / "samples.jsonl").read_text().splitlines()
    assert [(one["task_info"]["event"], one["output"]) for one in map(json.loads, lines)] == [
        (sample.task, *sample.target) for sample in world.samples()
    ]


def test_a_context_is_what_was_known(tmp_path: Path) -> None:
    world, _ = prepared(assets(tmp_path), tmp_path / "prepare")
    early, icu, late, *_ = world.samples("test")
    events = world.context(early)
    assert record_markdown(events) == RECORD  # up to and with the prediction time
    assert preamble_length(events) == 1
    assert [event.time for event in events][1:] == [
        datetime(2015, 3, 1, 8),
        datetime(2015, 3, 1, 8, 10),
    ]
    assert icu.context_id == late.context_id != early.context_id
    later = record_markdown(world.context(late))
    drug = "\n\n## Drug Exposure [2015-03-01 12:00:00]\n- Item_Name: RxNorm/1"
    assert later == RECORD + drug
    assert "2099" not in later and "Low" not in later
    assert (early.n_context_rows, late.n_context_rows) == (4, 5)
    who, measured = bag_of_events(events[:1]), bag_of_events(events[2:3])
    assert who.counts == {
        "Patient Demographics": 1,
        "Patient Demographics.Gender=F": 1,
        "Patient Demographics.Race=White": 1,
    }
    assert who.numbers["Patient Demographics.Anchor_Age latest"] == 64
    assert measured.counts == {
        "Measurement": 1,
        "Measurement/Creatinine": 1,
        "Measurement/LOINC/718-7": 1,
    }
    assert measured.numbers["Measurement/LOINC/718-7.Value latest"] == 11.5


def test_long_records_lose_their_oldest_rows(tmp_path: Path) -> None:
    world, metrics = prepared(assets(tmp_path), tmp_path / "prepare", max_events=2)
    *_, late = world.samples("test")
    text = record_markdown(world.context(late))
    assert "Creatinine" not in text and "718-7" in text and "RxNorm/1" in text
    assert text.startswith("## Patient Demographics [None]\n- Anchor_Age: 64")
    assert metrics["cut_events"] == 2 + 3 and metrics["cut_contexts"] == 2  # two contexts of one


def test_a_table_is_one_line_a_row() -> None:
    time = datetime(2015, 3, 2)
    rows = [CodedRow(time, "A|B", "Low | \nvery", "", "", ""), CodedRow(time, "C", "", "", "", "")]
    text, shown, cut = PatientText(rows, {}).record(time, 10) or ("", 0, 0)
    assert (shown, cut) == (2, 0)
    assert text.split("\n\n")[1].splitlines() == [
        "## Medical Events [2015-03-02 00:00:00]",
        "| Item_Name | Value |",
        "| ------ | ------ |",
        "| A\\|B | Low \\| very |",
        "| C |  |",
    ]
    assert PatientText(rows, {}).record(datetime(2015, 3, 1), 10) is None


def test_every_label_and_event_is_kept_or_reported(tmp_path: Path) -> None:
    base = assets(tmp_path, EVENTS + BROKEN)
    bad = [
        ("", "2016-02-01T00:00:00", "True", "boolean"),
        ("2", "soon", "True", "boolean"),
        ("2", "2016-03-01T00:00:00", "", "boolean"),
        ("2", "2016-03-01T00:00:00", "2", "boolean"),
        ("9", "2016-03-01T00:00:00", "True", "boolean"),
        ("2", "2016-02-01T00:00:00", "True", "boolean"),
        ("2", "2010-02-01T00:00:00", "True", "boolean"),
    ]
    with (base / "benchmark" / "guo_icu" / "labeled_patients.csv").open("a", newline="") as file:
        csv.writer(file).writerows(bad)
    write_csv(
        base / "benchmark" / "chexpert" / "labeled_patients.csv",
        ("patient_id", "prediction_time", "value", "label_type"),
        [(1, "2015-03-01T00:00:00", 8192, "categorical")],
    )
    world, metrics = prepared(base, tmp_path / "prepare")
    reported = json.loads((world.folder / "reported.json").read_text())["benchmark"]
    assert reported == {
        **{"unknown_task": 1, "no_subject": 1, "bad_time": 1, "bad_label": 2, "no_split": 1},
        **{"repeated": 1, "no_events": 1},
    }
    assert metrics["rows/benchmark"] == 6 + len(bad) + 1
    assert metrics["rows_kept/benchmark"] == 6 == len(world.samples())
    told = {name: count for name, count in metrics.items() if "/events" in name}
    assert told.pop("rows/events") == len(EVENTS) + len(BROKEN) == sum(told.values())
    reasons = ("no_subject", "no_time", "no_code", "not_asked_about", "later")
    assert [told[f"rows_reported/events/{why}"] for why in reasons] == [1] * 5


def test_a_draw_is_blind_and_keeps_the_benchmark_s_examples(tmp_path: Path) -> None:
    base = assets(tmp_path)
    named = {"patient_ids_train_k": [3, 3], "label_times_train_k": ["2016-02-01T00:00:00"] * 2}
    sets = {"guo_icu": {"1": {"0": named}, "-1": {"0": named}}}
    (base / "benchmark" / "guo_icu" / "all_shots_data.json").write_text(json.dumps(sets))
    world, _ = prepared(base, tmp_path / "prepare", samples_per_task=1)
    counts = world.index().group_by("task", "split").len().sort("task", "split")
    assert counts.filter(pl.col("split") != "train")["len"].to_list() == [1, 1, 1]
    reported = json.loads((world.folder / "reported.json").read_text())["benchmark"]
    assert reported == {"not_drawn": 6 - len(world.samples())}
    shots = pl.read_parquet(world.folder / "shots.parquet")
    assert shots.to_dicts() == [
        {"sample_id": "guo_icu/3/2016-02-01T00:00:00", "k": 1, "replicate": 0}
    ]


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    base = assets(tmp_path)
    for problem, setting, break_it in (
        ("no such folder", tmp_path / "none", lambda: None),
        ("neither data/ehrshot.csv", tmp_path / "empty", lambda: None),
        ("no usable label", base, lambda: write_csv(base / "data" / "ehrshot.csv", HEADER, [])),
        ("lacks the column start", base, lambda: write_csv(
            base / "data" / "ehrshot.csv", ("patient_id", "code"), [])),
        ("lacks the column value", base, lambda: write_csv(
            base / "benchmark" / "guo_icu" / "labeled_patients.csv",
            ("patient_id", "prediction_time"), [(1, "2016-02-01T00:00:00")])),
        ("two splits", base, lambda: write_csv(
            base / "splits" / "person_id_map.csv", ("split", "omop_person_id"),
            [("train", 1), ("test", 1)])),
        ("person_id_map.csv is missing", base, lambda: (
            base / "splits" / "person_id_map.csv").unlink()),
    ):  # fmt: skip
        break_it()
        with pytest.raises(UserError, match=problem) as raised:
            prepared(setting, tmp_path / problem.replace("/", "-"))
        assert "\n" not in str(raised.value)
        assert not (tmp_path / problem.replace("/", "-") / "texts.arrow").exists()
    with pytest.raises(UserError, match=r"data.max_events=0"):
        prepared(base, tmp_path / "setting", max_events=0)


def test_descriptions_come_from_omop_s_vocabulary_too(tmp_path: Path) -> None:
    base = assets(tmp_path)
    concepts = base / "athena_download" / "CONCEPT.csv"
    concepts.parent.mkdir()
    concepts.write_text(
        "concept_id\tconcept_name\tdomain_id\tvocabulary_id\tconcept_code\n"
        '1\tHaemoglobin "total"\tMeasurement\tLOINC\t718-7\n'
        "2\tunused\tMeasurement\tLOINC\t1-1\n"
    )
    world, _ = prepared(base, tmp_path / "prepare")
    text = record_markdown(world.context(world.samples("test")[0]))
    assert '| Haemoglobin "total" | 11.5 | g/dL |' in text and "| Creatinine | 1 |" in text


def test_the_questions_say_what_yes_means() -> None:
    assert SUITES["ehrshot"] == tuple(EHRSHOT_QUESTIONS) and len(EHRSHOT_QUESTIONS) == 14
    for key in SUITES["ehrshot"]:
        task = ALL_TASKS[key]
        assert task.kind == "risk" and task.instruction.endswith("? Answer yes or no.")
        assert ("normal" in task.instruction) == key.startswith("lab_")
