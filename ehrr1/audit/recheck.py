"""Comparison of contexts with the raw files, by the rules of `raw_rules`.

For each event of a context, the files must contain at least as many rows of that table, patient and
time that were known by then. Further checks: no code of the stay of the question, no heading or key
that must never be shown, no row of a future admission, no total before its interval is over, no
type of a stay before it is decided, and a prediction time that follows from the files without the
outcome.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import polars as pl

from ehrr1.audit.raw_rules import (
    INPATIENT,
    NEVER_KEYS,
    NEVER_TABLES,
    RULES,
    Raw,
    known_rows,
    stay_ends,
)
from ehrr1.records.events import Event
from ehrr1.records.markdown import event_markdown
from ehrr1.records.schema import TABLES
from ehrr1.tasks.catalog import ALL_TASKS
from ehrr1.tasks.samples import Sample

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
UNDECIDED = "OBSERVATION"

_HEADINGS = {TABLES[name].heading: name for name in TABLES}


KINDS = {
    "early": "rows known later",
    "total": "totals of intervals that were not over",
    "type_of_stay": "types of stays that were not decided yet",
    "coming_admission": "rows of an admission that had not begun",
    "never_shown": "headings or keys that must never be shown",
    "prediction_time": "prediction times that do not follow from the files",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """A fault of a sample: `kind` is a key of `KINDS`, `where` names the table, key or time."""

    sample_id: str
    kind: str
    where: str


@dataclass(frozen=True, slots=True)
class _Row:
    known: datetime
    hadm_id: int | None
    total_known: datetime | None


class Recheck:
    """Checker of contexts against the raw files.

    `ed_delay` is the time from arrival to the prediction time of ED visits.
    """

    def __init__(self, raw: Raw, ed_delay: timedelta):
        self.subjects = frozenset(map(int, raw.subjects))
        self.rows: dict[tuple[int, str, datetime], list[_Row]] = {}
        self.tables = set()
        for rule in RULES:
            found = known_rows(raw, rule)
            if found is None:
                continue
            self.tables.add(rule.table)
            for subject, hadm, happened, *times in found.iter_rows():
                row = _Row(times[0], hadm, times[1])
                self.rows.setdefault((subject, rule.table, happened), []).append(row)
        self.anchors = _anchors(raw, ed_delay)
        self.admitted, self.decided = _stays(raw)

    def judge(self, samples: Sequence[Sample], events: Sequence[Event]) -> list[Finding]:
        """Return the findings in one context and in the samples that share it."""
        first = samples[0]
        found = {
            place for event in events for place in (*self._event(first, event), *never_shown(event))
        }
        findings = [Finding(first.sample_id, kind, where) for kind, where in sorted(found)]
        for sample in samples:
            findings += [
                Finding(sample.sample_id, "prediction_time", where)
                for where in self._time_problems(sample)
            ]
        return findings

    def _event(self, sample: Sample, event: Event) -> Iterator[tuple[str, str]]:
        if event.time is None or event.table not in self.tables:
            return
        rows = self.rows.get((sample.subject_id, event.table, event.time), [])
        known = [row for row in rows if self._by(sample, row.known)]
        if len(event.rows) > len(known):
            yield "early", event.table
        coming = self._coming(sample)
        if coming is not None and event.table in INPATIENT:
            others = [row for row in known if row.hadm_id != coming]
            if len(event.rows) > len(others):
                yield "coming_admission", event.table
        rule = next(rule for rule in RULES if rule.table == event.table)
        if rule.total:
            keys = list(TABLES[event.table].keys)
            places = [keys.index(key) for key in rule.total]
            shown = sum(any(cells[place] for place in places) for cells in event.rows)
            if shown > sum(self._by(sample, row.total_known) for row in rows):
                yield "total", event.table
        if event.table == "admissions":
            yield from self._types(sample, event)

    def _types(self, sample: Sample, event: Event) -> Iterator[tuple[str, str]]:
        """Yield a finding if the type of an observation stay is shown before it is decided."""
        for row in self.rows.get((sample.subject_id, "admissions", event.time or datetime.min), []):
            decided = self.decided.get(row.hadm_id or 0)
            undecided = decided is not None and not self._by(sample, decided)
            if undecided and any(cells[0] != UNDECIDED for cells in event.rows):
                yield "type_of_stay", event.table

    def _by(self, sample: Sample, time: datetime | None) -> bool:
        if time is None:
            return False
        now = sample.prediction_time
        return time <= now if ALL_TASKS[sample.task].kind == "risk" else time < now

    def _coming(self, sample: Sample) -> int | None:
        """Return the admission that an ED visit leads to, if it has not begun; otherwise None."""
        if ALL_TASKS[sample.task].anchor_table != "edstays" or sample.hadm_id is None:
            return None
        begins = self.admitted.get(sample.hadm_id)
        coming = begins is not None and begins > sample.prediction_time
        return sample.hadm_id if coming else None

    def _time_problems(self, sample: Sample) -> Iterator[str]:
        task = ALL_TASKS[sample.task]
        now = sample.prediction_time
        if task.kind == "risk" and task.anchor_table == "any":
            return  # the user's own labels: no table has their times
        if task.kind == "risk":
            kind = "leaving" if sample.task in AT_THE_END else task.anchor_table
            stay = sample.hadm_id if task.anchor_table == "admissions" else sample.stay_id
            expected = self.anchors.get((task.anchor_table, kind, stay or 0))
            if expected != now:
                yield f"{now} instead of {expected}"
        elif (
            task.anchor_table in self.tables
            and (sample.subject_id, task.anchor_table, now) not in self.rows
        ):
            yield f"no row of {task.anchor_table} at {now}"


AT_THE_END = ("ED_Reattendance_3day", "Readmission_30day", "Readmission_60day")
"""Risk tasks posed at the end of the stay; the others are posed some time after its start."""


def _anchors(raw: Raw, ed_delay: timedelta) -> dict[tuple[str, str, int], datetime]:
    """Return (table, kind of time, stay) -> the prediction time of the questions on that stay."""
    found: dict[tuple[str, str, int], datetime] = {}
    for name, stay, begins, ends in stay_ends(raw).select(
        pl.lit("admissions"), pl.col("hadm_id").cast(pl.Int64), "admittime", "end_of_stay"
    ).iter_rows():  # fmt: skip
        found[name, name, stay] = begins + DAY
        found[name, "leaving", stay] = ends
    for module, name, delay in (("ed", "edstays", ed_delay), ("icu", "icustays", DAY)):
        stays = raw.table(module, name)
        if stays is None:
            continue
        columns = stays.select(pl.col("stay_id").cast(pl.Int64), "intime", "outtime")
        for stay, begins, ends in columns.iter_rows():
            if begins is not None:
                found[name, name, stay] = begins + delay
            if ends is not None:
                found[name, "leaving", stay] = ends
    return found


def _stays(raw: Raw) -> tuple[dict[int, datetime], dict[int, datetime]]:
    """Return when each stay began, and when the type of each observation stay is decided.

    The type is decided by the first order to admit a patient who is finally admitted, otherwise
    when the stay is over.
    """
    ends = stay_ends(raw).with_columns(pl.col("hadm_id").cast(pl.Int64))
    began = dict(ends.select("hadm_id", "admittime").iter_rows())
    admissions = raw.table("hosp", "admissions")
    assert admissions is not None, "nothing is prepared without admissions"
    kinds = admissions.select(pl.col("hadm_id").cast(pl.Int64), "admission_type")
    decided = {}
    orders = _admit_orders(raw)
    for stay, kind, end in kinds.join(
        ends.select("hadm_id", "end_of_stay"), on="hadm_id"
    ).iter_rows():
        if kind is not None and UNDECIDED in kind and end is not None:
            ordered = orders.get(stay) if kind == "OBSERVATION ADMIT" else None
            decided[stay] = end if ordered is None else min(end, max(ordered, began[stay]))
    return began, decided


def _admit_orders(raw: Raw) -> dict[int, datetime]:
    detail, orders = raw.table("hosp", "poe_detail"), raw.table("hosp", "poe")
    if detail is None or orders is None:
        return {}
    admit = detail.filter(pl.col("field_value") == "Admit to inpatient")
    found = orders.join(admit.select("poe_id").unique(), on="poe_id", how="semi")
    first = found.group_by(pl.col("hadm_id").cast(pl.Int64)).agg(pl.col("ordertime").min())
    return dict(first.drop_nulls().iter_rows())


def never_shown(event: Event) -> Iterator[tuple[str, str]]:
    """Yield the heading and the keys of a rendered event that must never be shown."""
    heading, *lines = event_markdown(event).split("\n")
    name = heading.removeprefix("## ").rpartition(" [")[0]
    if _HEADINGS.get(name) in NEVER_TABLES:
        yield "never_shown", name
    if len(event.rows) == 1:
        # The lines after the last key may be those of a note.
        keys = [line.removeprefix("- ").partition(":")[0] for line in lines[: len(event.rows[0])]]
    else:
        keys = lines[0].strip("| ").split(" | ") if lines else []
    yield from (("never_shown", key) for key in keys if key.strip().lower() in NEVER_KEYS)
