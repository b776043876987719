"""Reading of MIMIC-IV-Ext-CDM's files: PhysioNet's CSVs, or the flattened form.

The flattened form is the output of the authors' code for the CSVs: one dictionary per admission
with the keys `Patient History`, `Physical Examination`, `Laboratory Tests`, ...: as JSON by
`hadm_id`, or as a CSV with one row per admission and Python dictionaries in its cells. Pickles are
never read, because they can run arbitrary code. Formats: docs/benchmarks_formats.md.
"""

import csv
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from ehrr1.errors import UserError
from ehrr1.json_text import BadJsonError, from_json
from ehrr1.records.reading import as_id, as_text, is_data, read_columns, read_header
from ehrr1.tasks.external.benchmark_tasks import DISEASES
from ehrr1.tasks.external.cells import LONGEST, value_of

HISTORY = "history_of_present_illness"

TABLES = {
    HISTORY: ("hpi",),
    "physical_examination": ("pe",),
    "laboratory_tests": ("itemid", "valuestr", "ref_range_lower", "ref_range_upper"),
    "microbiology": ("test_itemid", "valuestr"),
    "radiology_reports": ("note_id", "exam_name", "text"),
    "icd_diagnosis": ("icd_diagnosis",),
    "discharge_diagnosis": ("discharge_diagnosis",),
}
"""PhysioNet's CSVs that are read -> their columns besides `hadm_id`.

Procedures are left out: they are done after the diagnosis.
"""

NEEDED = (HISTORY, "icd_diagnosis")

FLAT = "Patient History"
"""Key that identifies the flattened form."""

MISSING = ("", "nan", "NaN", "None")


@dataclass
class Admission:
    """The data of one admission.

    `labs`: item, value, lower and upper limit; `cultures`: test, result; `reports`: examination,
    text. Missing texts are ""; `disease` is None if the files name none or several.
    """

    hadm_id: int
    subject_id: int | None = None
    disease: str | None = None
    history: str = ""
    examination: str = ""
    labs: list[tuple[str, str, str, str]] = field(default_factory=list)
    cultures: list[tuple[str, str]] = field(default_factory=list)
    reports: list[tuple[str, str]] = field(default_factory=list)
    titles: list[str] = field(default_factory=list)
    diagnosis: str = ""
    """Discharge diagnosis; it determines the disease if no file does, and is never shown."""


@dataclass
class CdmFolder:
    """The admissions by `hadm_id`, the names of tests by item, and counts of other rows.

    `reported` counts unusable admissions by reason; `counts` holds the counts of rows of the side
    tables, by metric.
    """

    admissions: dict[int, Admission]
    names: dict[str, str]
    reported: Counter[str]
    counts: Counter[str] = field(default_factory=Counter)


def read_files(root: Path) -> CdmFolder:
    """Read the admissions of a folder or file.

    Raises UserError if there is nothing to read, or only pickles.
    """
    if not root.exists():
        raise UserError(f"data.root={root}: there is no such file or folder")
    folder = root if root.is_dir() else root.parent
    names = _names(folder)
    if root.is_dir() and _table(root, HISTORY) is not None:
        return _tables(root, names)
    found = CdmFolder({}, names, Counter())
    files = [root]
    if root.is_dir():
        files = sorted(file for file in root.iterdir() if is_data(file.name))
    for file in files:
        named = next((disease for disease in DISEASES if file.name.startswith(disease)), None)
        if file.suffix == ".json" and file.name != "pathology_ids.json":
            _add_flat(found, _json_rows(file), named)
        elif file.suffix == ".csv" and FLAT.lower() in _header(file):
            _add_flat(found, _csv_rows(file), named)
    if not found.admissions and not found.reported:
        pickles = " Pickles are never read, as they can run code: write them as JSON."
        raise UserError(
            f"data.root={root}: neither {HISTORY}.csv nor a .json or .csv of the flattened form is "
            f"there.{pickles * any(file.suffix in ('.pkl', '.pickle') for file in files)}"
        )
    return found


def _names(folder: Path) -> dict[str, str]:
    path = _table(folder, "lab_test_mapping")
    if path is None:
        return {}
    frame = read_columns([path], ["itemid", "label"])
    pairs = zip(as_text(frame["itemid"]), as_text(frame["label"]), strict=True)
    return {_item(item): label for item, label in pairs if item and label}


def _table(folder: Path, name: str) -> Path | None:
    paths = (folder / f"{name}{suffix}" for suffix in (".csv", ".csv.gz"))
    return next((path for path in paths if path.is_file()), None)


def _header(file: Path) -> list[str]:
    return [name.strip().lower() for name in read_header(file)]


def _tables(root: Path, names: dict[str, str]) -> CdmFolder:
    """Read PhysioNet's CSVs.

    Admissions are those of the history or of `pathology_ids.json`. Raises UserError if a needed
    table is missing.
    """
    found = CdmFolder({}, names, Counter())
    diseases = _pathology_ids(root / "pathology_ids.json", found.reported)
    found.admissions |= {hadm_id: Admission(hadm_id) for hadm_id in diseases}
    for table, columns in TABLES.items():
        path = _table(root, table)
        if path is not None:
            _add_table(found, table, _rows(path, columns))
        elif table in NEEDED:
            raise UserError(f"data.root={root}: {table}.csv is missing: fetch it again")
    for admission in found.admissions.values():
        admission.disease = diseases.get(admission.hadm_id) or disease_of(admission.diagnosis)
    return found


def _pathology_ids(path: Path, reported: Counter[str]) -> dict[int, str]:
    """Return admission -> disease, "" if the file (from version 1.1) lists it under several."""
    if not path.is_file():
        return {}
    given = _json(path)
    diseases: dict[int, str] = {}
    for disease, ids in given.items():
        for value in ids if isinstance(ids, list) else [None]:
            hadm_id = _id(value)
            if hadm_id is None:
                reported["bad_hadm_id"] += 1
            elif disease in DISEASES:
                diseases[hadm_id] = "" if hadm_id in diseases else disease
            else:
                reported["unknown_disease"] += 1
    return diseases


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[Any, ...]]:
    """Return `hadm_id, subject_id` and the columns as texts, "" where missing."""
    own = ["subject_id"] if "subject_id" in _header(path) else []
    frame = read_columns([path], ["hadm_id", *own, *columns])
    ids = [as_id(frame[name]) for name in ("hadm_id", *own)]
    ids += [] if own else [pl.Series([None] * frame.height, dtype=pl.Int64)]
    texts = [as_text(frame[name]).fill_null("").str.strip_chars() for name in columns]
    return zip(*ids, *texts, strict=True)


def _add_table(found: CdmFolder, table: str, rows: Iterator[tuple[Any, ...]]) -> None:
    """Add rows to their admissions; count each as kept or by its reason."""
    for hadm_id, subject_id, *cells in rows:
        if table == HISTORY and hadm_id is not None:
            found.admissions.setdefault(hadm_id, Admission(hadm_id))
        admission = found.admissions.get(hadm_id)
        problem = "unknown_admission" if admission is None else _add(admission, table, cells)
        found.counts[f"rows/{table}"] += 1
        found.counts[f"rows_reported/{table}/{problem}" if problem else f"rows_kept/{table}"] += 1
        if admission is not None:
            admission.subject_id = admission.subject_id or subject_id


def _add(admission: Admission, table: str, cells: list[str]) -> str | None:
    """Add a row to its admission.

    Returns the reason if the row is empty or repeats a text, otherwise None.
    """
    if not cells[{"laboratory_tests": 1, "microbiology": 1, "radiology_reports": 2}.get(table, 0)]:
        return "empty"
    match table, cells:
        case "history_of_present_illness", [text] if not admission.history:
            admission.history = text
        case "physical_examination", [text] if not admission.examination:
            admission.examination = text
        case "discharge_diagnosis", [text] if not admission.diagnosis:
            admission.diagnosis = text
        case "icd_diagnosis", [title]:
            admission.titles.append(title)
        case "laboratory_tests", [item, value, low, high]:
            admission.labs.append((_item(item), value, low, high))
        case "microbiology", [item, value]:
            admission.cultures.append((_item(item), value))
        case "radiology_reports", [note, exam, text]:
            admission.reports.append((exam, text))
            # a note's id begins with the patient's id
            admission.subject_id = admission.subject_id or _id(note.partition("-")[0])
        case _:
            return "repeated"
    return None


def _add_flat(found: CdmFolder, rows: Iterator[tuple[Any, Any]], disease: str | None) -> None:
    """Add admissions of the flattened form; `disease` is that of the file's name."""
    for key, given in rows:
        hadm_id = _id(key)
        if hadm_id is None or not isinstance(given, dict):
            found.reported["bad_hadm_id" if hadm_id is None else "bad_row"] += 1
        elif hadm_id in found.admissions:
            found.reported["repeated"] += 1
        else:
            try:
                found.admissions[hadm_id] = _flat(hadm_id, given, disease)
            except (ValueError, AttributeError, TypeError):  # a cell of another shape
                found.reported["bad_row"] += 1


def _flat(hadm_id: int, given: Mapping[str, Any], disease: str | None) -> Admission:
    tests, low, high = (
        {_item(item): _text(value) for item, value in _value(given, key, {}).items()}
        for key in ("Laboratory Tests", "Reference Range Lower", "Reference Range Upper")
    )
    cultures = _value(given, "Microbiology", {}).items()
    reports = _value(given, "Radiology", [])
    diagnosis = _text(given.get("Discharge Diagnosis"))
    named = _text(given.get("category")).lower()
    notes = (_id(_text(report.get("Note ID")).partition("-")[0]) for report in reports)
    return Admission(
        hadm_id,
        _id(given.get("subject_id")) or next(filter(None, notes), None),
        named if named in DISEASES else disease or disease_of(diagnosis),
        _text(given.get(FLAT)),
        _text(given.get("Physical Examination")),
        [(item, v, low.get(item, ""), high.get(item, "")) for item, v in tests.items() if v],
        [(_item(item), text) for item, value in cultures if (text := _text(value))],
        [(_text(r.get("Exam Name")), text) for r in reports if (text := _text(r.get("Report")))],
        [text for title in _value(given, "ICD Diagnosis", []) if (text := _text(title))],
        diagnosis,
    )


def _value(given: Mapping[str, Any], key: str, none: Any) -> Any:
    """Return a dictionary or list, as it is or parsed from a cell; `none` if there is none.

    Raises ValueError for a malformed cell.
    """
    value = given.get(key)
    value = value_of(value) if isinstance(value, str) and value.strip() not in MISSING else value
    return value if isinstance(value, dict | list) else none


def _json_rows(file: Path) -> Iterator[tuple[Any, Any]]:
    yield from _json(file).items()


def _csv_rows(file: Path) -> Iterator[tuple[Any, Any]]:
    csv.field_size_limit(LONGEST)  # a list of reports is longer than the default
    with file.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
        try:
            for row in csv.DictReader(lines):
                whole = None not in row and None not in row.values()
                yield row.get("hadm_id"), row if whole else None
        except csv.Error as error:
            raise UserError(f"{file} cannot be read ({error}): write it again") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        value = from_json(path.read_bytes())
    except BadJsonError as error:
        raise UserError(f"{path} is no JSON: fetch or write it again") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object by hadm_id or disease")
    return value


def disease_of(diagnosis: str) -> str | None:
    """Return the disease that a discharge diagnosis names; None for none or several of the four."""
    named = [disease for disease in DISEASES if disease in diagnosis.lower()]
    return named[0] if len(named) == 1 else None


def _id(value: Any) -> int | None:
    text = str(value).strip().removesuffix(".0")
    return int(text) if text.isdecimal() and len(text) < 19 else None


def _item(value: Any) -> str:
    return str(value).strip().removesuffix(".0")


def _text(value: Any) -> str:
    text = "" if value is None else str(value).strip()
    return "" if text in MISSING else text
