"""data.protocol=paper: whole hospitals against a slow reading of the rules; index, stages, demo."""

from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from ehrr1.errors import UserError
from ehrr1.records.schema import ORDER
from ehrr1.tasks.catalog import TASKS
from ehrr1.tasks.context import preamble_length
from ehrr1.tasks.paper import context as paper_context
from ehrr1.tasks.samples import Prepared, Sample
from tests.conftest import CommandLine
from tests.test_records import Metrics, hospital, prepared
from tests.test_tasks import DAY, some

__all__ = ["hospital"]  # a fixture

# --- against a slow reading of the rules ------------------------------------------------------

Item = tuple[int, datetime, int | None, list[str], int | None]
"""Table, start, admission, names, stay."""


def slow_list(rows: pl.DataFrame, visits: dict[int, int | None], names: list[str]) -> list[Item]:
    """One patient's events after the demographics, row by row."""
    found: list[Item] = []
    for row in rows.iter_rows(named=True):
        if not found or found[-1][0] != row["table"]:
            hadm = None if row["hadm_id"] == -1 else row["hadm_id"]
            if ORDER[row["table"]] == "edstays":
                hadm = visits[row["stay_id"]]
            found.append((row["table"], row["event_time"], hadm, [], row["stay_id"]))
        name = names[row["item"]]
        if name and name not in found[-1][3]:
            found[-1][3].append(name)
    return found


def is_timed(item: Item) -> bool:
    """Return whether the release's list has a time for the event."""
    return ORDER[item[0]] not in ("diagnoses_icd", "drgcodes") and item[1].year > 1


def slow_samples(items: list[Item], outtimes: dict[int, datetime]) -> set[tuple[Any, ...]]:
    """Some tasks' index rows: task, begin, end, admission, last discharge note, target."""
    samples: set[tuple[Any, ...]] = set()
    latest: dict[str, tuple[int, int | None]] = {}
    numbered = list(enumerate(items, start=1))
    for place, (table, start, hadm, target, stay_id) in numbered:
        name = ORDER[table]
        latest[name] = place, hadm
        if name not in (*SLOW, "edstays", "icustays"):
            continue
        admission, note = (
            latest.get("admissions", (None, -1)),
            latest.get("discharge", (None, hadm)),
        )
        extra = (
            admission[0] if admission[1] == hadm else None,
            note[0] if note[1] != hadm else None,
        )
        timed = [(n, other) for n, other in numbered if is_timed(other)]
        own = [(n, other) for n, other in timed if other[2] == hadm]
        after = [(n, other) for n, other in timed if n > place]
        if name == "edstays":
            ends = [n for n, other in after if other[1] < outtimes[stay_id or 0]]
            yes = hadm and any(n > place and ORDER[other[0]] == "admissions" for n, other in own)
            found = ("ED_Hospitalization", place, max(ends, default=-1) + 1, "yes" if yes else "no")
        elif name == "icustays":
            ends = [n for n, other in own if n > place and other[1] - start < DAY]
            yes = any(n > place and ORDER[other[0]] == "icustays" for n, other in own)
            found = ("ICU_Readmission", place, max(ends, default=-1) + 1, "yes" if yes else "no")
        else:
            before = [n for n, other in own if n < place and start - other[1] < DAY]
            found = (name, min(before, default=place), place, tuple(target))
        if 10 < found[2] - found[1] < 100 and found[3]:
            samples.add((*found[:3], *extra, found[3]))
    return samples


UNTIMED = ("diagnoses_icd", "drgcodes")
SLOW = ("labevents", "emar", "services", "diagnosis", "ED_Hospitalization", "ICU_Readmission")


def check_against_slow(world: Prepared, root: Path, patients: slice = slice(None)) -> set[str]:
    """Compares patients' index rows; the tasks that they have."""
    rows = pl.read_ipc(world.folder / "store" / "0000" / "rows.arrow").drop("values")
    stays = pl.read_csv(next((root / "ed").glob("edstays.csv*")), infer_schema_length=None)
    visits = dict(zip(stays["stay_id"], stays["hadm_id"], strict=True))
    times = stays["outtime"].str.to_datetime()
    outtimes = dict(zip(stays["stay_id"], times, strict=True))
    names = world.store.shard(0).names
    samples: dict[int, set[tuple[object, ...]]] = {}
    for s in world.samples(tasks=SLOW):
        target = s.target[0] if TASKS[s.task].kind == "risk" else s.target
        row = s.task, s.period_begin, s.period_end, s.admissions_id, s.last_discharge_id, target
        samples.setdefault(s.subject_id, set()).add(row)
    found = set()
    for subject in sorted(world.store.shard(0).patients)[patients]:
        items = slow_list(rows.filter(subject_id=subject), visits, names)
        expected = slow_samples(items, outtimes) if len(items) < 1200 else set()
        assert samples.get(subject, set()) == expected, subject
        found |= {row[0] for row in expected}
    return found


def test_a_slow_reading_gives_the_same_samples(hospital: Path, tmp_path: Path) -> None:
    world, _ = prepared(hospital, tmp_path, protocol="paper", tasks=list(SLOW))
    assert check_against_slow(world, hospital) == set(SLOW)


# --- the whole --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(hospital: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Prepared, Metrics]:
    return prepared(hospital, tmp_path_factory.mktemp("paper"), protocol="paper")


RELEASED = (
    *("subject_id", "hadm_id", "task", "event", "period_begin", "period_end", "admissions_id"),
    *("last_discharge_id", "target"),
)


def test_the_index_has_the_releases_columns_and_sums(world: tuple[Prepared, Metrics]) -> None:
    index, metrics = world[0].index(), world[1]
    assert set(RELEASED) <= set(index.columns)
    assert index["sample_id"].is_unique().all()
    known = ["event", "split", "prediction_time", "context_id", "n_context_rows", "target"]
    assert not sum(index.select(known).null_count().row(0))
    length = index["period_end"] - index["period_begin"]
    assert length.min() > 10 and length.max() < 100
    counts = dict(index["task"].value_counts().iter_rows())
    assert all(metrics[f"samples/{task}"] == counts.get(task, 0) for task in TASKS)
    for kind in ("Readmission", "LengthOfStay", "ICU_Mortality", "ED_"):
        # Tasks of one anchor ask about as many candidates.
        asked = {
            counts.get(task, 0)
            + sum(int(n) for name, n in metrics.items() if name.startswith(f"excluded/{task}/"))
            for task in TASKS
            if task.startswith(kind)
        }
        assert len(asked) == 1, kind


def test_one_context_id_is_one_context_and_positions_are_its_rows(
    world: tuple[Prepared, Metrics],
) -> None:
    by_context: dict[str, list[Sample]] = {}
    for sample in some(world[0].samples(), 30):
        by_context.setdefault(sample.context_id, []).append(sample)
    for own in by_context.values():
        events = world[0].context(own[0])
        assert all(world[0].context(sample) == events for sample in own[1:])
        rows, patient = world[0].store.find(own[0].subject_id)
        positions = paper_context.shown_positions(rows, patient, own[0])
        assert len(positions) == sum(len(event.rows) for event in events[1:])
        rest = [event.time for event in events[preamble_length(events) :] if event.time]
        assert all(one <= other for one, other in pairwise(rest))
    assert len(by_context) > 200


def test_other_windows_and_protocols_are_refused(hospital: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.window_hours=12: the release's window is 24 hours"):
        prepared(hospital, tmp_path, protocol="paper", window_hours=12)
    with pytest.raises(UserError, match=r"data.protocol=loose: it must be one of strict, paper"):
        prepared(hospital, tmp_path, protocol="loose")


@pytest.mark.slow
def test_command_line_export_and_a_change_of_protocol(
    command_line: CommandLine, hospital: Path, tmp_path: Path
) -> None:
    own = ["data=mimic", f"data.root={hospital}", f"output_root={tmp_path}", "data.open=true"]
    assert command_line("stage=prepare", "data.protocol=paper", *own).returncode == 0
    export = ["stage=export", "export.layout=jsonl", "export.limit=20"]
    done = command_line(*export, "data.protocol=paper", *own)
    assert done.returncode == 0, done.stderr
    (rows,) = tmp_path.rglob("samples.jsonl")
    assert len(rows.read_text().splitlines()) == 20
    other = command_line("stage=prepare", *own)
    assert other.returncode == 2 and "protocol" in other.stderr


def test_the_mimic_demo(mimic_demo: Path, tmp_path: Path) -> None:
    """About 30 of 100 patients have more than 1,200 events; 24 of 140 ICU stays pass 10-100."""
    world, metrics = prepared(mimic_demo, tmp_path, protocol="paper")
    shard = world.store.shard(0)
    lengths = [
        paper_context.event_numbers(shard.table[patient.first : patient.last]).max(initial=0) + 1
        for patient in shard.patients.values()
    ]
    assert sum(length > 1200 for length in lengths) == 27
    assert metrics["samples/ICU_Stay_7day"] == 22  # and 2 of patients with more than 1,200
    out = [int(n) for name, n in metrics.items() if name.startswith("excluded/ICU_Stay_7day/")]
    assert sum(out) == 118
    assert metrics["samples/next_event"] > 15_000
    for sample in some(world.samples(), 3):
        assert len(world.context(sample)) <= 2 + sample.period_end - sample.period_begin
    check_against_slow(world, mimic_demo, slice(0, None, 8))
