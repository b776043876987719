"""Decision whether records may be shown to anyone, which follows from whose records they are.

Open are the records that this package has generated, recognised by a mark file beside them, and
those of the 100 patients of the open MIMIC-IV demo. All others are closed unless the user declares
them open (`data.open=true`). `stage=prepare` decides once and writes `FILE`; later stages call
`runs.data_is_open`.
"""

from hashlib import sha256
from pathlib import Path
from typing import Any

import polars as pl

from ehrr1.files import read_json, write_json
from ehrr1.runs.paths import DECISION, decision

FILE = DECISION
"""File of that decision."""

MARK = "ehrr1-synthetic.json"
"""File in folders of synthetic patients that identifies these patients."""

INVENTED = "invented patients"

OF_DEMO = "the open MIMIC-IV demo's patients"

DEMO = "81f5d9a5c4a014a0"
"""Result of `whose` for the subject_id of the open MIMIC-IV demo 2.2 (PhysioNet, ODbL 1.0)."""


def whose(subjects: pl.Series) -> str:
    """Return a fingerprint of a set of patients: sixteen hexadecimal digits of a SHA-256."""
    ids = ",".join(map(str, sorted(set(subjects.to_list()))))
    return sha256(ids.encode()).hexdigest()[:16]


def mark(folder: Path, subjects: pl.Series) -> None:
    """Write the mark of synthetic patients to a folder."""
    write_json(folder / MARK, {"invented": True, "patients": whose(subjects)})


def copy_mark(prepare: Path, folder: Path, subjects: pl.Series) -> None:
    """Mark an export of synthetic patients' records."""
    if decision(prepare)["why"] == INVENTED:
        mark(folder, subjects)


def decide(declared: bool | None, folder: Path | None, subjects: pl.Series) -> dict[str, Any]:
    """Return whether the records are open (`open`) and the reason (`why`).

    `declared` is `data.open`; `folder` is None for records that this run has generated itself.
    """
    if declared is not None:
        return {"open": declared, "why": f"data.open={str(declared).lower()}"}
    if folder is None or _marked(folder, subjects):
        return {"open": True, "why": INVENTED}
    if whose(subjects) == DEMO:
        return {"open": True, "why": OF_DEMO}
    return {"open": False, "why": "these are neither invented nor the open demo's patients"}


def _marked(folder: Path, subjects: pl.Series) -> bool:
    found = folder / MARK
    marked = read_json(found) if found.is_file() else None
    return isinstance(marked, dict) and marked.get("patients") == whose(subjects)
