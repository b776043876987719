"""A reader of the EHR-R1 release's folder, written from its format alone: pandas and JSON, nothing
of the package. What it gives for the release's own folder are the release's own ready rows.

It fails where the release's reader fails: on a missing file of `index_mapping`, a row without the
code that is looked up, a time that is no text, a target that is no list and no text.
"""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

HEADINGS = {
    "patients": ("Patient Demographics", "Anchor_Age Gender"),
    "admissions": ("Admissions", "Admission_Type Admission_Location Admission_Info"),
    "transfers": ("Transfers", "Eventtype Careunit"),
    "services": ("Services", "Curr_Service"),
    "edstays": ("EDstays", "Gender Race"),
    "triage": (
        "Triage",
        "Temperature Heartrate Resprate O2Sat Sbp Dbp Pain Acuity Chiefcomplaint",
    ),
    "medrecon": ("Medrecon", "Name Atc_Type"),
    "pyxis": ("Pyxis", "Name"),
    "vitalsign": ("Vitalsign", "Temperature Heartrate Resprate O2Sat Sbp Dbp Pain Rhythm"),
    "diagnosis": ("ED Diagnoses on International Classification of Diseases", "Icd_Title Ccs_Type"),
    "omr": ("Online Medical Record", "Result_Name Result_Value"),
    "poe": ("Provider Order Entry", "Order_Type Order_Subtype"),
    "pharmacy": ("Pharmacy", "Medication Proc_Type Status"),
    "prescriptions": ("Prescriptions", "Drug Atc_Type Prod_Strength Dose_Val_Rx Dose_Unit_Rx"),
    "emar": ("Electronic Medicine Administration Record", "Medication Event_Txt"),
    "labevents": (
        "Labotary Test Events",
        "Item_Name Valuenum Valueuom Ref_Range_Lower Ref_Range_Upper Flag Comments",
    ),
    "microbiologyevents": (
        "Microbiology Test Events",
        "Test_Name Dilution_Text Interpretation Comments Ab_Name",
    ),
    "procedures_icd": (
        "Procedures on International Classification of Diseases",
        "Procedures Ccs_Type",
    ),
    "icustays": ("ICUstays", ""),
    "chartevents": ("Chart Events", "Item_Name Valuenum Valueuom Warning"),
    "datetimeevents": ("Datetime Events", "Item_Name"),
    "inputevents": ("Input Events", "Item_Name Amount Amountuom Rate Rateuom"),
    "ingredientevents": ("Ingredient Events", "Item_Name Amount Amountuom Rate Rateuom"),
    "procedureevents": (
        "Procedure Events",
        "Item_Name Value Valueuom Location Locationcategory",
    ),
    "outputevents": ("Output Events", "Item_Name Value Valueuom"),
    "radiology": ("Radiology Examinations", "Note_Type Exam_Name Text"),
    "discharge": ("Discharge", "Note_Type Text"),
    "diagnoses_icd": (
        "Diagnoses on International Classification of Diseases",
        "Diagnoses Ccs_Type",
    ),
}
"""Table -> its heading and the keys that are printed; the two types are printed with a blank."""

MAPPINGS = {
    "labevents": [("itemid", "hosp/d_labitems", "item_name")],
    **{
        table: [("itemid", "icu/d_items", "item_name")]
        for table in (
            *("chartevents", "datetimeevents", "inputevents", "ingredientevents"),
            *("procedureevents", "outputevents"),
        )
    },
    "procedures_icd": [
        ("icd_code", "hosp/d_icd_procedures", "procedures"),
        ("icd_code", "hosp/d_ccs_procedures", "ccs_type"),
    ],
    "diagnoses_icd": [
        ("icd_code", "hosp/d_icd_diagnoses", "diagnoses"),
        ("icd_code", "hosp/d_ccs_diagnoses", "ccs_type"),
    ],
    "diagnosis": [("icd_code", "ed/d_ccs_diagnoses", "ccs_type")],
    "prescriptions": [("ndc", "hosp/d_atc_prescriptions", "atc_type")],
    "medrecon": [("ndc", "ed/d_atc_prescriptions", "atc_type")],
    "radiology": [("note_id", "note/radiology_detail", "exam_name")],
}
"""Table -> what is looked up by which code, in which file."""

HIDDEN = {
    task: ["discharge"] for task in ("diagnoses_icd", "diagnoses_ccs", "diagnosis", "diagnosis_ccs")
}
INDEX = (
    *("subject_id", "hadm_id", "task", "event", "period_begin", "period_end", "admissions_id"),
    *("last_discharge_id", "target"),
)


class ReleaseReader:
    """Samples of a folder: `{input, output, task, ...}` for each row of an index file."""

    def __init__(self, root: Path):
        self.root = root
        files = {file for mappings in MAPPINGS.values() for _, file, _ in mappings}
        self.files = {file: self._mapping(file) for file in sorted(files)}
        self.lists: dict[int, list[dict[str, Any]]] = {}

    def samples(self, name: str) -> list[dict[str, Any]]:
        index = pd.read_csv(self.root / f"{name}.csv")
        assert list(index.columns[: len(INDEX)]) == list(INDEX)
        return [self._sample(row) for row in index.to_dict(orient="records")]

    def similar(self, task: str) -> dict[str, list[Any]]:
        """Item -> the cells behind it."""
        frame = pd.read_csv(self.root / "cache" / "similar_item" / f"{task}.csv")
        return {row.iloc[0]: list(row.iloc[1:].dropna()) for _, row in frame.iterrows()}

    def _sample(self, row: dict[str, Any]) -> dict[str, Any]:
        events = self._events(row["subject_id"])
        task, begin, end = row["task"], int(row["period_begin"]), int(row["period_end"])
        hidden = ["admissions", *HIDDEN.get(task, [])]
        window = [event for event in events[begin:end] if event["file_name"] not in hidden]
        note = admission = ""
        if not pd.isna(row["last_discharge_id"]):
            note = self.printed(events[int(row["last_discharge_id"])])
        if not pd.isna(row["admissions_id"]) and task != "admissions":
            admission = self.printed(events[int(row["admissions_id"])])
        parts = [self.printed(events[0]), note, admission, *map(self.printed, window)]
        answer = json.loads(row["target"])
        assert isinstance(answer, list | str)
        return row | {
            "input": "\n\n".join(parts),
            "label": answer,
            "output": "\n".join(answer) if isinstance(answer, list) else answer,
        }

    def _events(self, subject: int) -> list[dict[str, Any]]:
        if subject not in self.lists:
            path = self.root / "patients_ehr" / f"{subject}.parquet"
            found = json.loads(pd.read_parquet(path).to_json(orient="records"))
            assert json.loads(found[0]["items"])[0]["subject_id"] == str(subject)
            for event in found:
                if event["starttime"]:
                    datetime.strptime(event["starttime"], "%Y-%m-%d %H:%M:%S")
                event["items"] = json.loads(event["items"])
                for row in event["items"]:
                    assert all(isinstance(value, str) for value in row.values())
            self.lists[subject] = found
        return self.lists[subject]

    def _mapping(self, file: str) -> dict[Any, Any]:
        rows = pd.read_csv(self.root / "index_mapping" / f"{file}.csv")
        name = file.split("/")[1]
        if name == "d_atc_prescriptions":
            return {str(c): n for c, n in zip(rows["ndc_code"], rows["atc_name"], strict=True)}
        if name == "radiology_detail":
            own = rows[rows["field_name"] == "exam_name"]
            return {i: sorted(set(g["field_value"])) for i, g in own.groupby("note_id")}
        if name in ("d_items", "d_labitems"):
            return {str(c): n for c, n in zip(rows["itemid"], rows["label"], strict=True)}
        return {
            (str(v), str(c)): n
            for v, c, n in zip(
                rows["icd_version"], rows["icd_code"], rows["long_title"], strict=True
            )
        }

    def named(self, table: str, row: dict[str, str]) -> dict[str, Any]:
        """A row with what its codes are called; KeyError where it lacks one."""
        names: dict[str, Any] = {}
        for code, file, name in MAPPINGS.get(table, []):
            key: Any = row[code]
            if code == "icd_code":
                assert row["icd_version"] in ("9", "10")
                key = (row["icd_version"], key)
            elif code == "ndc":
                key = key.split(".", 1)[0].rjust(11, "0")
            names[name] = self.files[file].get(key)
        return row | names

    def printed(self, event: dict[str, Any]) -> str:
        table = event["file_name"]
        if table not in HEADINGS:
            return ""
        heading, keys = HEADINGS[table]
        shown = [(key.replace("_Type", " Type"), key) for key in keys.split()]
        types = ("Atc_Type", "Ccs_Type")
        titles = [title if key in types else key for title, key in shown]
        rows = [self.named(table, row) for row in event["items"]]
        cells = [[str(row.get(key.lower())) for _, key in shown] for row in rows]
        if len(rows) == 1:
            lines = [f"- {title}: {cell}" for title, cell in zip(titles, cells[0], strict=True)]
        else:
            lines = [f"| {' | '.join(titles)} |", f"| {' | '.join(['------'] * len(titles))} |"]
            lines += [f"| {' | '.join(own)} |" for own in cells]
        return f"## {heading} [{event['starttime']}]\n" + "\n".join(lines)
