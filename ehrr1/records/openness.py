"""Whether records may be shown to anyone: it follows from whose they are, not from a command.

Open are records that this package has invented, by the mark that lies beside them, and those of the
100 patients of the open MIMIC-IV demo. All others are closed unless the user says that they are not
(`data.open=true`). `stage=prepare` decides once and writes `FILE`; everything later asks
`runs.data_is_open`.
"""

from hashlib import sha256
from pathlib import Path
from typing import Any

import polars as pl

from ehrr1.files import read_json, write_json

FILE = "open.json"
"""What `stage=prepare` leaves: whether its records are open, and why."""

MARK = "ehrr1-synthetic.json"
"""Lies in folders of invented patients and tells which they are."""

INVENTED = "invented patients"

DEMO = "81f5d9a5c4a014a0"
"""`whose` of the subject_id of the open MIMIC-IV demo 2.2 (PhysioNet, ODbL 1.0)."""


def whose(subjects: pl.Series) -> str:
    """Sixteen hexadecimal digits that tell these patients from any others."""
    ids = ",".join(map(str, sorted(set(subjects.to_list()))))
    return sha256(ids.encode()).hexdigest()[:16]


def mark(folder: Path, subjects: pl.Series) -> None:
    """Say in a folder that its patients are invented."""
    write_json(folder / MARK, {"invented": True, "patients": whose(subjects)})


def copy_mark(prepare: Path, folder: Path, subjects: pl.Series) -> None:
    """Mark an export of invented patients' records."""
    decided = prepare / FILE
    if decided.exists() and read_json(decided)["why"] == INVENTED:
        mark(folder, subjects)


def decide(said: bool | None, folder: Path | None, subjects: pl.Series) -> dict[str, Any]:
    """`open`, and `why`. `said` is `data.open`; `folder` is None for records that this run has
    invented itself."""
    if said is not None:
        return {"open": said, "why": f"data.open={str(said).lower()}"}
    if folder is None or _marked(folder, subjects):
        return {"open": True, "why": INVENTED}
    if whose(subjects) == DEMO:
        return {"open": True, "why": "the open MIMIC-IV demo's patients"}
    return {"open": False, "why": "these are neither invented nor the open demo's patients"}


def _marked(folder: Path, subjects: pl.Series) -> bool:
    found = folder / MARK
    return found.is_file() and read_json(found).get("patients") == whose(subjects)
