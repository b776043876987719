"""Rows of every table of MIMIC-IV, small and made by rule, for tests that damage or shuffle them.

Patient `p` has the ids `SUBJECT + p`, `HADM + p`, `ED + p` and `ICU + p` (times ten plus the number
of the stay). Text cells hold `<table>#<number>`, so that a row can be found again wherever it is
shown, and so that patient text can be told from other text.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path

import polars as pl

from ehrr1.records.mimic import needed_columns
from ehrr1.records.schema import TABLES
from ehrr1.records.table_spec import NUMBERS
from ehrr1.records.typed import TIMES

SUBJECT, HADM, ED, ICU = 10_000_000, 20_000_000, 30_000_000, 35_000_000
START = datetime(2150, 1, 1, 8)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
ITEMS = ("50000", "50001", "50002")
ICD = ("I10", "E119", "J189")
NDC = ("00002821501", "00004040404", "00005050505")

Rows = list[dict[str, str]]

_LATER = {
    "storetime": 30 * MINUTE,
    "endtime": HOUR,
    "dischtime": 5 * DAY,
    "outtime": 3 * DAY,
    **dict.fromkeys(("chartdate", "storedate"), timedelta(0)),
}
"""How long after its event time a row's other times are."""


def row(name: str, number: int, patient: int, time: datetime, **given: object) -> dict[str, str]:
    """One row of a table with the columns that are read; `given` replaces cells, None empties."""
    table = TABLES[name]
    token = f"{name}#{number}"
    cells: dict[str, object] = {
        "subject_id": SUBJECT + patient,
        "hadm_id": HADM + 10 * patient,
        "stay_id": (ED if table.module == "ed" else ICU) + 10 * patient,
        **{"gender": "F", "anchor_age": 60, "anchor_year": 2149, "hospital_expire_flag": 0},
        **{"disposition": "HOME", "icd_code": ICD[number % 3], "icd_version": 10},
        **{"ndc": NDC[number % 3], "itemid": ITEMS[number % 3], "note_id": token},
        **({table.order_by: number} if table.order_by else {}),
    }
    for column in needed_columns(table):
        if column in ("dod", "deathtime"):
            cells[column] = None
        elif column in TIMES:
            at = time + _LATER.get(column, timedelta(0))
            cells[column] = at.date() if column.endswith("date") else at
        elif column in NUMBERS:
            cells[column] = f"{number}.5"
        else:
            cells.setdefault(column, token)
    wanted = {column: cells[column] for column in needed_columns(table)} | given
    return {column: "" if cell is None else str(cell) for column, cell in wanted.items()}


DICTIONARIES: dict[str, Rows] = {
    "hosp/d_labitems": [{"itemid": item, "label": f"Lab {item}"} for item in ITEMS],
    "icu/d_items": [{"itemid": item, "label": f"Item {item}"} for item in ITEMS],
    **{
        f"hosp/d_icd_{kind}": [
            {"icd_code": code, "icd_version": "10", "long_title": f"Title of {code}"}
            for code in ICD
        ]
        for kind in ("diagnoses", "procedures")
    },
    "note/radiology_detail": [
        {"note_id": f"radiology#{number}", "field_name": "exam_name", "field_value": "CHEST"}
        for number in range(6)
    ],
}

MAPS: dict[str, Rows] = {
    "atc": [{"ndc_code": ndc, "atc_name": f"Class {ndc}"} for ndc in NDC],
    **{
        kind: [
            {"icd_code": code, "icd_version": "10", "long_title": f"Class {code}"} for code in ICD
        ]
        for kind in ("ccs_diagnoses", "ccs_procedures")
    },
}


def place(name: str) -> str:
    """module/table."""
    return f"{TABLES[name].module}/{name}"


def frame(rows: Sequence[Mapping[str, str]], columns: Sequence[str]) -> pl.DataFrame:
    """Text columns; empty cells are null."""
    cells = [[own.get(column) or None for column in columns] for own in rows]
    return pl.DataFrame(cells, schema=dict.fromkeys(columns, pl.String), orient="row")


def write_csv(root: Path, tables: Mapping[str, Rows]) -> Path:
    """`module/name` -> rows, as `.csv` below `root`."""
    for name, rows in tables.items():
        table = TABLES.get(name.split("/")[1])
        columns = list(rows[0]) if rows or table is None else needed_columns(table)
        path = root / f"{name}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        frame(rows, columns).write_csv(path)
    return root
