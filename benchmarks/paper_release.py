"""Compare `data.protocol=paper` with a folder that the release's own code wrote, sample by sample.

ls RELEASE/patients_ehr | cut -d. -f1 > subjects.txt
python run.py stage=prepare experiment=mimic_demo data.protocol=paper data.root=DIR \
    data.subjects_file=subjects.txt \
    data.maps.atc=RELEASE/index_mapping/hosp/d_atc_prescriptions.csv \
    data.maps.ccs_diagnoses=RELEASE/index_mapping/hosp/d_ccs_diagnoses.csv \
    data.maps.ccs_procedures=RELEASE/index_mapping/hosp/d_ccs_procedures.csv
python -m benchmarks.paper_release RELEASE outputs/mimic_demo/prepare
"""

import csv
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import polars as pl

from ehrr1.records.release.order import CODED
from ehrr1.records.schema import ORDER, TABLES
from ehrr1.records.store_schema import NO_ID, NO_TIME
from ehrr1.tasks.samples import Prepared

INDICES = (
    *("ehr_ins/ehr_ins.csv", "ehr_bench/ehr_bench_decision_making.csv"),
    "ehr_bench/ehr_bench_risk_prediction.csv",
)
PLACES = ("period_begin", "period_end", "admissions_id", "last_discharge_id")

Key = tuple[Any, ...]
"""subject_id, task, hadm_id, then `PLACES`: everything that an index row says but its answer."""
Answers = dict[Key, frozenset[str]]

MISSING = ("None", "nan", "")


@dataclass
class Samples:
    """One task's samples: of the release, of ours, and of both with the same answer."""

    release: int
    ours: int
    equal: int
    answers: int
    """In both, with another answer."""
    only_release: int
    only_ours: int
    not_drawn: int
    """Those only ours of patients whom the release tests on: it draws at most 500 a task."""


def number(text: str) -> int | None:
    """An id or a position; None for one that is missing."""
    return None if text in MISSING else int(float(text))


def released(folder: Path) -> tuple[Answers, set[int]]:
    """The release's samples, and the patients whom it tests on."""
    found: Answers = {}
    tested: set[int] = set()
    for name in INDICES:
        with (folder / name).open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                key = (number(row["subject_id"]), row["task"], number(row["hadm_id"]))
                target = json.loads(row["target"])
                answer = target if isinstance(target, list) else [target]
                found[*key, *(number(row[place]) for place in PLACES)] = frozenset(answer)
                if name.startswith("ehr_bench"):
                    tested.add(int(row["subject_id"]))
    return found, tested


def ours(prepared: Prepared) -> Answers:
    """Our samples."""
    return {
        (s.subject_id, s.task, s.hadm_id, *(getattr(s, place) for place in PLACES)): frozenset(
            s.target
        )
        for s in prepared.samples()
    }


def compared(folder: Path, prepared: Prepared) -> dict[str, Samples]:
    """Task -> how its samples compare."""
    theirs, tested = released(folder)
    mine = ours(prepared)
    found = {}
    for task in sorted({key[1] for key in (*theirs, *mine)}):
        one = {key: answer for key, answer in theirs.items() if key[1] == task}
        other = {key: answer for key, answer in mine.items() if key[1] == task}
        both = one.keys() & other.keys()
        equal = sum(one[key] == other[key] for key in both)
        extra = other.keys() - one.keys()
        not_drawn = sum(key[0] in tested for key in extra) if len(one) >= 500 else 0
        found[task] = Samples(
            *(len(one), len(other), equal, len(both) - equal, len(one) - len(both)),
            *(len(extra) - not_drawn, not_drawn),
        )
    return found


def lists(folder: Path, prepared: Prepared) -> tuple[int, int]:
    """Patients whose list of events is the same (tables, times, admissions, numbers of rows), and
    all of the folder."""
    rows = pl.concat(
        pl.read_ipc(path).drop("values")
        for path in sorted((prepared.folder / "store").glob("*/rows.arrow"))
    )
    visits = dict(prepared.parents["edstays"].select("stay_id", "hadm_id").iter_rows())
    files = sorted((folder / "patients_ehr").glob("*.parquet"))
    same = 0
    for path in files:
        theirs = [
            (
                e["file_name"],
                e["starttime"],
                number(e["hadm_id"] or ""),
                len(json.loads(e["items"])),
            )
            for e in pl.read_parquet(path).iter_rows(named=True)
        ]
        own = rows.filter(subject_id=int(path.stem)).iter_rows(named=True)
        same += theirs[1:] == list(our_list(own, visits))
    return same, len(files)


def our_list(rows: Iterable[dict[str, Any]], visits: dict[int, int | None]) -> Iterable[Key]:
    """The events of one patient's rows as the release's files tell them."""
    for table, event in groupby(rows, key=lambda row: row["table"]):
        own = list(event)
        first = own[0]
        hadm = None if first["hadm_id"] == NO_ID else first["hadm_id"]
        if ORDER[table] == "edstays":
            hadm = visits[first["stay_id"]]
        untimed = table in CODED or first["event_time"].year == NO_YEAR
        yield ORDER[table], None if untimed else str(first["event_time"]), hadm, len(own)


NO_YEAR = 1970 + NO_TIME // 31_556_952_000_000
"""The year that stands for no time in the store."""


# --- what ready rows show ---------------------------------------------------------------------


def texts(folder: Path, prepared: Prepared) -> Counter[str]:
    """Count differences in the contexts of the ready rows: `events` that are compared, those with
    another heading or number of rows, `cells`, and cells by kind of difference."""
    samples = {(s.subject_id, s.task, s.period_begin, s.period_end): s for s in prepared.samples()}
    found: Counter[str] = Counter()
    with (folder / "ehr_bench.jsonl").open(encoding="utf-8") as file:
        for row in map(json.loads, file):
            info = row["task_info"]
            place = (int(info[name]) for name in ("subject_id", "period_begin", "period_end"))
            subject, begin, end = place
            context = prepared.context(samples[subject, info["task"], begin, end])
            events = re.split(r"\n\n+(?=## )", row["input"].strip())
            found["records"] += 1
            found["other number of events"] += len(events) != len(context)
            for text, event in zip(events, context, strict=False):
                found.update(event_differences(text, event.table, event.time, event.rows))
    return found


def event_differences(
    text: str, table: str, time: Any, rows: tuple[tuple[str, ...], ...]
) -> Counter[str]:
    """Count how one event of a ready row differs from ours."""
    heading, *lines = text.strip().split("\n")
    keys, theirs = cells(lines)
    if heading != f"## {TABLES[table].heading} [{time}]" or (keys and len(theirs) != len(rows)):
        return Counter({"events": 1, "other heading or rows": 1})
    found = Counter({"events": 1, "column Org_Name": "Org_Name" in TABLES[table].keys})
    own = list(TABLES[table].keys)
    for one, other in zip(theirs, rows, strict=False):
        for key, cell in zip(keys, one, strict=True):
            found["cells"] += 1
            found[kind(cell, other[own.index(key)])] += 1
    return found


def cells(lines: list[str]) -> tuple[list[str], list[list[str]]]:
    """The keys and the rows of an event's lines."""
    if lines and lines[0].startswith("| "):
        rows = [line.strip("|").strip(" ").split(" | ") for line in lines]
        return rows[0], rows[2:]
    pairs = [line.removeprefix("- ").split(": ", 1) for line in lines]
    return [key for key, _ in pairs], [[value for _, value in pairs]] if pairs else []


def kind(theirs: str, mine: str) -> str:
    """Tell how a cell differs."""
    if theirs == mine:
        return "equal"
    if theirs in MISSING:
        return "missing: None or nan, ours empty" if not mine else "a result in words, theirs nan"
    try:
        close = math.isclose(float(theirs), float(mine), rel_tol=1e-3)
    except ValueError:
        close = False
    if close:
        return "a number written otherwise"
    return "outer blanks" if " ".join(theirs.split()) == mine else "other"


def main() -> None:
    """Print everything that differs."""
    folder, prepared = Path(sys.argv[1]), Prepared(Path(sys.argv[2]))
    print("equal lists of events: {} of {}".format(*lists(folder, prepared)))
    print("task, release, ours, equal, other answer, only release, only ours, not drawn there")
    tasks = compared(folder, prepared)
    for task, own in tasks.items():
        counts = (own.release, own.ours, own.equal, own.answers, own.only_release, own.only_ours)
        print(task, *counts, own.not_drawn, sep=", ")
    print("all", sum(own.release for own in tasks.values()), sep=", ", end=", equal: ")
    print(sum(own.equal for own in tasks.values()))
    for name, count in sorted(texts(folder, prepared).items()):
        print(f"{name}: {count:,}")


if __name__ == "__main__":
    main()
