"""The synthetic hospital's dictionaries (`d_*`), code maps, and list of planted associations."""

import gzip
from pathlib import Path

import polars as pl

from ehrr1.synthetic.codes import (
    DIAGNOSIS_CLASSES,
    DIAGNOSIS_TITLES,
    PROCEDURE_CLASSES,
    PROCEDURE_TITLES,
)
from ehrr1.synthetic.columns import COLUMNS
from ehrr1.synthetic.conditions import CONDITIONS
from ehrr1.synthetic.emit import CAREGIVERS, PROVIDERS, sign_rise
from ehrr1.synthetic.labs import TESTS
from ehrr1.synthetic.problems import PROBLEMS
from ehrr1.synthetic.signs import LATENTS, SLOTS
from ehrr1.synthetic.vocabulary import (
    CHARTED,
    DATED,
    DRUGS,
    INGREDIENTS,
    INPUTS,
    OUTPUTS,
    PROCEDURES,
)

_ITEM_TABLES = {
    "inputevents": INPUTS,
    "ingredientevents": INGREDIENTS,
    "procedureevents": PROCEDURES,
    "outputevents": OUTPUTS,
    "datetimeevents": DATED,
    "chartevents": CHARTED,
}
_SLOT_TABLES = {
    "medrecon": "ed/medrecon",
    "dispensed": "ed/pyxis",
    "orders_ed": "hosp/poe",
    "orders": "hosp/poe",
    "drugs": "hosp/prescriptions",
    "infusions": "icu/inputevents",
    "charted": "icu/chartevents",
    "icu_procedures": "icu/procedureevents",
    "dated": "icu/datetimeevents",
    "outputs": "icu/outputevents",
}
_PROBLEM_TABLES = {
    "complaints": "ed/triage",
    "dispensed": "ed/pyxis",
    "drugs": "hosp/prescriptions",
    "infusions": "icu/inputevents",
    "cultures": "hosp/microbiologyevents",
    "examinations": "note/radiology",
    "icu_procedures": "icu/procedureevents",
    "orders": "hosp/poe",
}


def write_dictionaries(folder: Path) -> None:
    """Write the `d_*` tables, provider and caregiver lists, and the maps below `folder`."""
    _write(folder, "hosp/d_labitems", [[t.itemid, t.label, t.fluid, t.category] for t in TESTS])
    _write(folder, "icu/d_items", _items())
    _write(folder, "hosp/d_icd_diagnoses", _codes(DIAGNOSIS_TITLES))
    _write(folder, "hosp/d_icd_procedures", _codes(PROCEDURE_TITLES))
    name = "Hospital observation per hr"
    _write(folder, "hosp/d_hcpcs", [["G0378", None, name, name]])
    _write(folder, "hosp/provider", [[name] for name in sorted(set(PROVIDERS))])
    _write(folder, "icu/caregiver", [[number] for number in CAREGIVERS])
    products = sorted({(drug.ndc, drug.atc) for drug in DRUGS})
    _write(folder, "maps/d_atc_prescriptions", [list(row) for row in products])
    _write(folder, "maps/d_ccs_diagnoses", _codes(DIAGNOSIS_CLASSES))
    _write(folder, "maps/d_ccs_procedures", _codes(PROCEDURE_CLASSES))


def _codes(titles: dict[tuple[str, int], str]) -> list[list[object]]:
    return [[code, version, title] for (code, version), title in sorted(titles.items())]


def _items() -> list[list[object]]:
    numeric = {"inputevents", "ingredientevents", "outputevents"}
    rows: dict[int, list[object]] = {}
    for table, items in _ITEM_TABLES.items():
        kind = "Numeric" if table in numeric else "Text"
        for item in items:
            unit = item.unit or None
            rows[item.itemid] = [
                *(item.itemid, item.label, item.label, table, item.category),
                *(unit, kind, None, None),
            ]
    return [rows[itemid] for itemid in sorted(rows)]


def _write(folder: Path, name: str, rows: list[list[object]]) -> None:
    frame = pl.DataFrame(rows, schema=COLUMNS[name], orient="row", infer_schema_length=None)
    text = frame.write_csv().encode()
    if name.startswith("maps/"):
        (folder / f"{name}.csv").write_bytes(text)
    else:
        (folder / f"{name}.csv.gz").write_bytes(gzip.compress(text, 6, mtime=0))


def links() -> pl.DataFrame:
    """Return the planted associations of a cause (latent, problem or condition) with a name.

    `strength` is the difference between the shares of visits that have the name, with and without
    the cause; `target` is what the cause determines: an outcome, or a diagnosis title.
    """
    rows = []
    for slot in SLOTS:
        table, meaning = _SLOT_TABLES[slot.place], LATENTS[slot.latent]
        rise = sign_rise(slot.latent)
        rows.append((f"latent_{slot.latent}", "latent", table, slot.high, meaning, rise))
        rows.append((f"latent_{slot.latent}", "latent", table, slot.low, meaning, -rise))
    for problem in PROBLEMS:
        title = DIAGNOSIS_TITLES[problem.codes[0][1], 10]
        for attribute, table in _PROBLEM_TABLES.items():
            for name in getattr(problem, attribute):
                rows.append((problem.name, "problem", table, name, title, 0.7))
    for condition in CONDITIONS:
        title = DIAGNOSIS_TITLES[condition.codes[1], 10]
        for name in condition.drugs:
            rows.append((condition.name, "condition", "hosp/prescriptions", name, title, 0.6))
    schema = ["condition", "kind", "table", "sign", "target", "strength"]
    return pl.DataFrame(rows, schema=schema, orient="row")
