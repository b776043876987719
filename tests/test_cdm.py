"""data=mimiciv_cdm: PhysioNet's CSVs and the flattened form, in rows of our own."""

import csv
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from ehrr1.errors import UserError
from ehrr1.evaluation.baselines.features import bag_of_events
from ehrr1.records.markdown import record_markdown
from ehrr1.runs import Run
from ehrr1.stages import export, prepare
from ehrr1.tasks.catalog import ALL_TASKS, ONE_ITEM, SUITES
from ehrr1.tasks.external.benchmark_tasks import DISEASES
from ehrr1.tasks.external.cdm import hide
from ehrr1.tasks.external.cells import value_of
from ehrr1.tasks.samples import Prepared, preamble_length
from tests.metrics_page import not_on_the_page
from tests.settings import composed

REPORT = "CT abdomen\n\n## FINDINGS\nAcute ____ is likely; no Diverticulitis."

TABLES: dict[str, tuple[tuple[str, ...], list[tuple[Any, ...]]]] = {
    "history_of_present_illness": (
        ("hadm_id", "hpi"),
        [(20, "Pain since\nyesterday."), (21, "Fever."), (22, "Vomiting.")],
    ),
    "physical_examination": (("hadm_id", "pe"), [(20, "Tender; acute Appendicitis?"), (22, "")]),
    "laboratory_tests": (
        ("hadm_id", "itemid", "valuestr", "ref_range_lower", "ref_range_upper"),
        [(20, 51301, "12.0 K/uL", 4, 10.5), (20, 50000, "HOLD", "", ""), (99, 51301, "1", "", "")],
    ),
    "microbiology": (
        ("hadm_id", "test_itemid", "valuestr", "spec_itemid"),
        [(20, 90201, "NO GROWTH", 70012), (20, 90201, "", 70012)],
    ),
    "radiology_reports": (
        ("hadm_id", "note_id", "modality", "region", "exam_name", "text"),
        [
            (20, "10000032-RR-5", "CT", "Abdomen", "CT ABD", REPORT),
            (22, "10000032-RR-9", "CT", "Abdomen", "CT", "Clear."),
        ],
    ),
    "discharge_diagnosis": (
        ("hadm_id", "discharge_diagnosis"),
        [(20, "Acute appendicitis"), (21, "Pancreatitis"), (22, "cholecystitis, pancreatitis")],
    ),
    "icd_diagnosis": (
        ("hadm_id", "icd_diagnosis"),
        [(20, "Acute appendicitis"), (20, "Tobacco use"), (20, "Tobacco use"), (21, "Fever")],
    ),
    "icd_procedures": (
        ("hadm_id", "icd_code", "icd_title", "icd_version"),
        [(20, "0DTJ4ZZ", "Resection of Appendix", 10)],
    ),
    "lab_test_mapping": (
        ("label", "fluid", "category", "itemid", "count", "corresponding_ids"),
        [("White Blood Cells", "Blood", "Hematology", 51301, 5, "[51301]")],
    ),
}
RECORD = """## Patient Demographics [None]
- Patient_History: Pain since
yesterday.
- Physical_Examination: Tender; ____?

## Labotary Test Events [None]
| Item_Name | Valuenum | Valueuom | Ref_Range_Lower | Ref_Range_Upper |
| ------ | ------ | ------ | ------ | ------ |
| White Blood Cells | 12 | K/uL | 4 | 10.5 |
| 50000 | HOLD |  |  |  |

## Microbiology Test Events [None]
| Test_Name | Comments |
| ------ | ------ |
| 90201 | NO GROWTH |

## Radiology Examinations [None]
- Exam_Name: CT ABD
- Text: CT abdomen

\\## FINDINGS
Acute ____ is likely; no Diverticulitis."""


def physionet(root: Path, **ids: list[Any]) -> Path:
    root.mkdir()
    for name, (header, rows) in TABLES.items():
        with (root / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([header, *rows])
    if ids:
        (root / "pathology_ids.json").write_text(json.dumps(ids))
    return root


def flat() -> dict[str, Any]:
    """Admission 20 as the authors' code has it."""
    return {
        "Patient History": "Pain since\nyesterday.",
        "Physical Examination": "Tender; acute Appendicitis?",
        "Laboratory Tests": {51301: "12.0 K/uL", 50000: "HOLD"},
        "Reference Range Lower": {51301: 4.0, 50000: float("nan")},
        "Reference Range Upper": {51301: 10.5, 50000: float("nan")},
        "Microbiology": {90201: "NO GROWTH"},
        "Microbiology Spec": {90201: 70012},
        "Radiology": [{"Note ID": "10000032-RR-5", "Exam Name": "CT ABD", "Report": REPORT}],
        "Discharge": "The whole discharge note.",
        "Discharge Diagnosis": "Acute appendicitis",
        "ICD Diagnosis": ["Acute appendicitis", "Tobacco use"],
        "Procedures ICD10 Title": ["Resection of Appendix"],
    }


def prepared(
    root: Path, folder: Path, validation: float = 0.0, test: float = 1.0
) -> tuple[Prepared, dict[str, float | int]]:
    folder.mkdir()
    split = {"validation": validation, "test": test}
    cfg = composed("data=mimiciv_cdm", data={"root": str(root), "split": split})
    metrics = prepare.run(cfg, Run(folder, "prepare"))
    assert not not_on_the_page("prepare", metrics)
    return Prepared(folder), metrics


def test_admissions_become_samples(tmp_path: Path) -> None:
    world, metrics = prepared(physionet(tmp_path / "cdm"), tmp_path / "prepare")
    disease, icd, *others = world.samples("test")
    assert disease.target == ("appendicitis",) and disease.candidates == DISEASES
    assert icd.target == ("Acute appendicitis", "Tobacco use") and icd.candidates == ()
    assert disease.context_id == icd.context_id and disease.hadm_id == 20
    assert disease.subject_id == 10000032  # by the note's id
    events = world.context(disease)
    assert record_markdown(events) == RECORD and preamble_length(events) == 1
    assert [event.time for event in events] == [None] * 4
    laboratory = bag_of_events(events[1:2])
    assert laboratory.counts == {
        "Labotary Test Events": 1,
        "Labotary Test Events/White Blood Cells": 1,
        "Labotary Test Events/50000": 1,
        "Labotary Test Events/50000.Valuenum=hold": 1,
    }
    assert laboratory.numbers["Labotary Test Events/White Blood Cells.Valuenum max"] == 12
    assert [(s.task, s.target, s.subject_id) for s in others] == [
        ("cdm_disease", ("pancreatitis",), 21),  # no note: the admission stands for the patient
        ("cdm_icd", ("Fever",), 21),
    ]
    reported = json.loads((world.folder / "reported.json").read_text())["benchmark"]
    assert reported == {"no_disease": 1, "no_icd_titles": 1}  # 22: two diseases, no titles
    assert metrics["rows/benchmark"] == 6 == metrics["rows_kept/benchmark"] + 2
    assert metrics["masked_contexts"] == 1
    for table in ("laboratory_tests", "microbiology", "physical_examination"):
        lost = [n for name, n in metrics.items() if name.startswith(f"rows_reported/{table}/")]
        assert sum(lost) == 1 == metrics[f"rows/{table}"] - metrics[f"rows_kept/{table}"]


def test_its_questions_are_exported(tmp_path: Path) -> None:
    world, _ = prepared(physionet(tmp_path / "cdm"), tmp_path / "prepare")
    (tmp_path / "export").mkdir()
    run = Run(tmp_path / "export", "export", {"prepare": world.folder})
    assert export.write(composed("export.layout=jsonl"), run) == {"rows": 4}
    lines = (tmp_path / "export" / "samples.jsonl").read_text().splitlines()
    disease, icd, *_ = map(json.loads, lines)
    assert disease["task_info"]["event"] == "cdm_disease" == disease["task_info"]["task"]
    assert disease["output"] == "appendicitis" and disease["candidates"] == [*DISEASES]
    assert icd["output"] == "Acute appendicitis\nTobacco use" and icd["candidates"] is None
    assert disease["input"] == icd["input"] == RECORD


def test_the_answers_are_not_in_the_context(tmp_path: Path) -> None:
    world, _ = prepared(physionet(tmp_path / "cdm"), tmp_path / "prepare")
    for sample in world.samples():
        text = record_markdown(world.context(sample)).lower()
        assert "resection" not in text and "tobacco" not in text
        if sample.task == "cdm_disease":
            assert sample.target[0] not in text


def test_the_file_s_diseases_come_first(tmp_path: Path) -> None:
    ids = {"cholecystitis": [22], "appendicitis": [20, "x"], "gastritis": [5]}
    world, metrics = prepared(physionet(tmp_path / "cdm", **ids), tmp_path / "prepare")
    found = {s.hadm_id: s.target for s in world.samples(tasks=["cdm_disease"])}
    assert found == {20: ("appendicitis",), 21: ("pancreatitis",), 22: ("cholecystitis",)}
    reported = json.loads((world.folder / "reported.json").read_text())["benchmark"]
    assert reported == {"bad_hadm_id": 2, "unknown_disease": 2, "no_icd_titles": 1}
    assert metrics["rows/benchmark"] == metrics["rows_kept/benchmark"] + sum(reported.values())


@pytest.mark.parametrize("form", ["json", "csv"])
def test_the_flattened_form_gives_the_same(tmp_path: Path, form: str) -> None:
    root = tmp_path / "flat"
    root.mkdir()
    (root / "lab_test_mapping.csv").write_text("itemid,label\n51301,White Blood Cells\n")
    if form == "json":
        rows = {"20": flat(), "x": flat(), "30": [], "31": flat() | {"Radiology": ["text"]}}
        text = json.dumps(rows)
        (root / "appendicitis_hadm_info_first_diag.json").write_text(text)
    else:
        keys = ["hadm_id", "category", *flat()]
        lines = [
            ["20", "appendicitis", *flat().values()],
            ["20", "appendicitis", *flat().values()],
            ["30", "appendicitis"],
            ["31", "appendicitis", *(flat() | {"Radiology": "__import__('os')"}).values()],
        ]
        with (root / "mimiciv_cdm_test.csv").open("w", newline="") as file:
            csv.writer(file).writerows([keys, *lines])
    world, metrics = prepared(root, tmp_path / "prepare")
    disease, icd = world.samples()
    assert record_markdown(world.context(disease)) == RECORD
    assert (disease.target, disease.subject_id) == (("appendicitis",), 10000032)
    assert icd.target == ("Acute appendicitis", "Tobacco use")
    reported = json.loads((world.folder / "reported.json").read_text())["benchmark"]
    assert reported == {"bad_hadm_id" if form == "json" else "repeated": 2, "bad_row": 4}
    assert metrics["rows/benchmark"] == 2 + 6


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    root = tmp_path / "pickles"
    root.mkdir()
    with (root / "appendicitis_hadm_info_first_diag.pkl").open("wb") as file:
        pickle.dump(flat(), file)
    for setting, problem in (
        (root, "Pickles are never read, as they can run code: write them as JSON"),
        (tmp_path / "none", "no such file or folder"),
    ):
        with pytest.raises(UserError, match=problem):
            prepared(setting, tmp_path / problem[:5])
    cdm = physionet(tmp_path / "cdm")
    (cdm / "icd_diagnosis.csv").unlink()
    with pytest.raises(UserError, match=r"icd_diagnosis.csv is missing"):
        prepared(cdm, tmp_path / "missing")
    (root / "empty.json").write_text('{"1": {}}')
    with pytest.raises(UserError, match=r"no usable admission \(no_history 2\)"):
        prepared(root, tmp_path / "unusable")
    (root / "empty.json").write_text("{")
    with pytest.raises(UserError, match=r"empty.json is no JSON"):
        prepared(root, tmp_path / "broken")


def test_names_are_hidden_as_the_benchmark_does() -> None:
    text = "Acute cholecystitis, CHOLECYSTITIS, cholecystostomy; appendicitis, appendectomy"
    assert hide(text, "cholecystitis") == "____, ____, ____; appendicitis, appendectomy"
    assert hide(text, None) == "____, ____, ____; ____, ____"


@pytest.mark.parametrize("cell", ["__import__('os').getcwd()", "[" * 10_000, "x", "(1).real", "1+"])
def test_cells_are_never_evaluated(cell: str) -> None:
    with pytest.raises(ValueError, match="no JSON and no Python literal"):
        value_of(cell)


def test_cells_are_read() -> None:
    assert value_of("{1: nan, 'b': ['nan', None]}") == {1: None, "b": ["nan", None]}
    assert value_of('["a", null]') == ["a", None]
    with pytest.raises(ValueError, match="too long"):
        value_of(" " * 4_000_001)


def test_the_tasks() -> None:
    assert SUITES["mimiciv_cdm"] == ("cdm_disease", "cdm_icd") and "cdm_disease" in ONE_ITEM
    assert all(ALL_TASKS[key].kind == "decision" for key in SUITES["mimiciv_cdm"])
    assert all(disease in ALL_TASKS["cdm_disease"].instruction for disease in DISEASES)


def test_patients_are_divided(tmp_path: Path) -> None:
    root = tmp_path / "flat"
    root.mkdir()
    rows = {str(n): flat() | {"Radiology": []} for n in range(1, 21)}
    (root / "pancreatitis.json").write_text(json.dumps(rows))
    world, _ = prepared(root, tmp_path / "prepare", validation=0.1, test=0.8)
    counts = world.index()["split"].value_counts().sort("split")
    assert counts["count"].to_list() == [32, 4, 4]  # test, train, validation
