"""The context of a sample of `data.protocol=paper`, as in the release, including its leaks.

The event list of a patient is the record grouped as in the release: *consecutive rows of one table*
are one event, whatever their duration; demographics are event 0. A sample refers to the events
`[period_begin, period_end)`. All their rows are shown with all their columns, including totals of
unfinished intervals, results before they were stored, pharmacy, and the admission's orders in an
emergency visit. They are preceded by demographics (with the age at the anchor, not at the time),
the last discharge note of another admission, and the admission event; admission events are shown
only there. For diagnosis tasks, discharge notes of the window are hidden.

`hcpcsevents` and `drgcodes` are events of the list that print nothing. Missing values, which the
release prints as `None` or `nan`, are empty; `records.markdown.released_markdown` prints them.
"""

from dataclasses import replace
from typing import Protocol

import numpy as np

from ehrr1.records.events import Event
from ehrr1.records.release.order import CODED
from ehrr1.records.schema import ORDER
from ehrr1.records.store import Patient, Shard
from ehrr1.records.store_schema import NO_TIME
from ehrr1.tasks.catalog import TASKS
from ehrr1.tasks.context import grouped_events

SILENT = tuple(ORDER.index(name) for name in ("hcpcsevents", "drgcodes"))
"""Tables whose events have a position and print nothing."""
ADMISSIONS, DISCHARGE = ORDER.index("admissions"), ORDER.index("discharge")

NOTE_HIDDEN = frozenset(
    task.key for task in TASKS.values() if task.anchor_table in ("diagnoses_icd", "diagnosis")
)
"""Tasks whose window does not show discharge notes."""
ADMISSION_HIDDEN = "admissions"
"""Task whose answer is the admission, which it therefore does not show."""


class Period(Protocol):
    """The attributes of a sample that determine its context; `samples.Sample` has them."""

    @property
    def task(self) -> str:
        """Return the key of the task."""

    @property
    def period_begin(self) -> int:
        """Return the position of the first event of the window."""

    @property
    def period_end(self) -> int:
        """Return the position behind the last event of the window."""

    @property
    def admissions_id(self) -> int | None:
        """Return the position of the admission event, or None."""

    @property
    def last_discharge_id(self) -> int | None:
        """Return the position of the last discharge note of another admission, or None."""


def event_numbers(table: np.ndarray) -> np.ndarray:
    """Return each row's event in one patient's list, counted from 1, shape (rows,).

    `table` (rows,) holds the table numbers of the patient's rows, in the order of the store.
    """
    begins = np.concatenate([[0], table[1:] != table[:-1]])[: len(table)]
    numbers: np.ndarray = 1 + np.cumsum(begins)
    return numbers


def shown_positions(rows: Shard, patient: Patient, sample: Period) -> np.ndarray:
    """Return the positions in `rows` of all rows shown for `sample`, in context order."""
    table = rows.table[patient.first : patient.last]
    numbers = event_numbers(table)
    window = (numbers >= sample.period_begin) & (numbers < sample.period_end)
    window &= (table != ADMISSIONS) & ~np.isin(table, SILENT)
    if sample.task in NOTE_HIDDEN:
        window &= table != DISCHARGE
    parts = [np.flatnonzero(window)]
    if sample.admissions_id is not None and sample.task != ADMISSION_HIDDEN:
        parts.insert(0, np.flatnonzero(numbers == sample.admissions_id))
    if sample.last_discharge_id is not None:
        parts.insert(0, np.flatnonzero(numbers == sample.last_discharge_id))
    return patient.first + np.concatenate(parts)


def shown_events(rows: Shard, patient: Patient, positions: np.ndarray) -> list[Event]:
    """Return the rows at `positions` as events of the patient's list, after the demographics.

    Codes and cultures without a time in the list are shown without one.
    """
    numbers = event_numbers(rows.table[patient.first : patient.last])[positions - patient.first]
    age = "" if patient.anchor_age is None else str(patient.anchor_age)
    demographics = Event("patients", None, None, ((age, patient.gender or ""),), ("",))
    starts = np.flatnonzero(np.diff(numbers, prepend=-1))
    first = positions[starts]
    no_time = np.isin(rows.table[first], CODED) | (rows.event_time[first] == NO_TIME)
    events = grouped_events(rows, positions, starts)
    return [
        demographics,
        *(
            replace(event, time=None) if without else event
            for event, without in zip(events, no_time.tolist(), strict=True)
        ),
    ]


def with_silent(events: list[Event], rows: Shard, patient: Patient, sample: Period) -> list[Event]:
    """Return `events` with `silent`: the number of following events that print nothing.

    These are events of `SILENT` tables, and the places of the last discharge note and of the
    admission if there is none.
    """
    table = rows.table[patient.first : patient.last]
    begins = np.flatnonzero(np.diff(event_numbers(table), prepend=-1))
    window = table[begins[max(sample.period_begin - 1, 0) : max(sample.period_end - 1, 0)]]
    left_out = window == ADMISSIONS
    if sample.task in NOTE_HIDDEN:
        left_out |= window == DISCHARGE
    admission = sample.admissions_id is not None and sample.task != ADMISSION_HIDDEN
    preamble = [True, sample.last_discharge_id is not None, admission]
    prints = np.concatenate([preamble, ~np.isin(window[~left_out], SILENT)])
    places = np.append(np.flatnonzero(prints), len(prints))
    behind = (np.diff(places) - 1).tolist()
    return [
        replace(event, silent=silent) if silent else event
        for event, silent in zip(events, behind, strict=True)
    ]
