"""The context of a sample: the events that were known at its cut, oldest first.

A preamble (demographics; what is coded and written of the latest earlier stays; the admission in
progress) is followed by the window: the rows that became known in it, whatever stay they belong
to. The cut is made row by row and by available time, so that an event shows only those of its rows
that were known, and columns that become known later are blank until then.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Protocol

import numpy as np

from ehrr1.records.events import Event
from ehrr1.records.rows import SEPARATOR
from ehrr1.records.schema import ORDER, TABLES
from ehrr1.records.store import NO_ID, NO_TIME, Patient, Shard, Store

EPOCH = datetime(1970, 1, 1)
MICROSECOND = timedelta(microseconds=1)

ADMISSIONS, DIAGNOSIS = ORDER.index("admissions"), ORDER.index("diagnosis")
EARLIER = tuple(n for n, name in enumerate(ORDER) if TABLES[name].context == "earlier")
IN_WINDOW = np.array([TABLES[name].context == "yes" for name in ORDER])
INPATIENT = np.array([TABLES[name].inpatient for name in ORDER])
IN_PREAMBLE = np.isin(np.arange(len(ORDER)), [*EARLIER, ADMISSIONS, DIAGNOSIS])

PREAMBLE_TABLES = frozenset(ORDER[n] for n in (*EARLIER, DIAGNOSIS)) | {"patients"}


class Cut(Protocol):
    """What a context depends on; `samples.Sample` has it."""

    @property
    def subject_id(self) -> int: ...
    @property
    def prediction_time(self) -> datetime: ...
    @property
    def inclusive(self) -> bool: ...
    @property
    def window_start(self) -> datetime: ...
    @property
    def current_hadm(self) -> int | None: ...
    @property
    def hidden_hadm(self) -> int | None: ...
    @property
    def ed_stay(self) -> int | None: ...


def context_events(store: Store, cut: Cut) -> list[Event]:
    """The events that `cut` may know. Reads the patient's rows only; a few milliseconds at most."""
    shard, patient = store.find(cut.subject_id)
    limit = _micros(cut.prediction_time) + cut.inclusive
    preamble, window = _positions(shard, patient, cut, limit)
    return [
        _demographics(patient, cut.prediction_time),
        *_events(shard, preamble, limit),
        *_events(shard, window, limit),
    ]


def preamble_length(events: Sequence[Event]) -> int:
    """How many of the first events are never cut: all up to the admission event, if one follows."""
    for length, event in enumerate(events):
        if event.table not in PREAMBLE_TABLES:
            return length + (event.table == "admissions")
    return len(events)


def _micros(time: datetime) -> int:
    return (time - EPOCH) // MICROSECOND


def _positions(
    shard: Shard, patient: Patient, cut: Cut, limit: int
) -> tuple[np.ndarray, np.ndarray]:
    """Row positions of the preamble and of the window; `limit` is the first unknown microsecond."""
    first = patient.first
    # A row is never known before its event: later events need not be looked at.
    last = first + int(np.searchsorted(shard.event_time[first : patient.last], limit))
    available = shard.available_time[first:last]
    table = shard.table[first:last]
    known = available < limit
    if cut.hidden_hadm is not None:
        known &= ~(INPATIENT[table] & (shard.hadm_id[first:last] == cut.hidden_hadm))
    if cut.ed_stay is not None:
        known &= ~((table == DIAGNOSIS) & (shard.stay_id[first:last] == cut.ed_stay))
    in_window = known & (available >= _micros(cut.window_start)) & IN_WINDOW[table]
    rare = first + np.flatnonzero(known & IN_PREAMBLE[table])
    preamble = _preamble(shard, rare, in_window[rare - first], cut.current_hadm)
    window = first + np.flatnonzero(in_window)
    return preamble, window[~np.isin(window, preamble)] if len(preamble) else window


def _preamble(
    shard: Shard, rare: np.ndarray, in_window: np.ndarray, current: int | None
) -> np.ndarray:
    """Of each table the rows of the latest earlier stay; the admission in progress comes last."""
    table, hadm, stay = shard.table[rare], shard.hadm_id[rare], shard.stay_id[rare]
    parts = []
    for number in EARLIER:
        own = np.flatnonzero((table == number) & (hadm != (current or NO_ID)))
        if len(own):
            parts.append(own[hadm[own] == hadm[own[-1]]])
    diagnoses = np.flatnonzero((table == DIAGNOSIS) & ~in_window)
    if len(diagnoses):
        parts.append(diagnoses[stay[diagnoses] == stay[diagnoses[-1]]])
    earlier = np.sort(np.concatenate(parts)) if parts else np.empty(0, dtype=np.int64)
    admission = np.flatnonzero((table == ADMISSIONS) & (hadm == (current or NO_ID)))
    return rare[np.concatenate([earlier, admission]).astype(np.int64)]


def _demographics(patient: Patient, time: datetime) -> Event:
    """Age at the time, in years; "" where the file has none."""
    age = ""
    if patient.anchor_age is not None and patient.anchor_year is not None:
        age = str(patient.anchor_age + time.year - patient.anchor_year)
    return Event("patients", None, None, ((age, patient.gender or ""),), ("",))


def _events(shard: Shard, positions: np.ndarray, limit: int) -> list[Event]:
    """Groups rows of one table, stay and event time; blanks what was known later."""
    if not len(positions):
        return []
    table, time = shard.table[positions], shard.event_time[positions]
    stay, hadm = shard.stay_id[positions], shard.hadm_id[positions]
    owner = np.where(stay != NO_ID, stay, hadm)
    late = shard.late_time[positions]
    still_late = late >= limit
    shown_at = np.where(still_late, NO_TIME, late)
    available = np.maximum(shard.available_time[positions], shown_at)
    same = (table[1:] == table[:-1]) & (time[1:] == time[:-1]) & (owner[1:] == owner[:-1])
    starts = np.flatnonzero(np.concatenate([[True], ~same]))
    known_at = np.maximum.reduceat(available, starts)

    values = [text.split(SEPARATOR) for text in shard.values(positions)]
    for position in np.flatnonzero(still_late).tolist():
        for place in _LATE[table[position]]:
            values[position][place] = ""
    names = shard.names
    items = [names[code] for code in shard.item[positions].tolist()]
    rows = [tuple(cells) for cells in values]
    ends = [*starts[1:].tolist(), len(rows)]
    return [
        Event(_NAMES[number], start_time, available_time, tuple(rows[a:b]), tuple(items[a:b]))
        if _HAS_KEYS[number]
        else Event(_NAMES[number], start_time, available_time, ((),) * (b - a), ("",) * (b - a))
        for number, start_time, available_time, a, b in zip(
            table[starts].tolist(),
            _datetimes(time[starts]),
            _datetimes(known_at),
            starts.tolist(),
            ends,
            strict=True,
        )
    ]


_NAMES = ORDER
_LATE = [TABLES[name].late_positions for name in ORDER]
_HAS_KEYS = [bool(TABLES[name].keys) for name in ORDER]


def _datetimes(micros: np.ndarray) -> list[datetime]:
    times: list[datetime] = micros.astype("datetime64[us]").tolist()
    return times
