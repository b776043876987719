"""The context of a sample: the events that were known at its cut, oldest first.

A preamble (demographics; codes and notes of the latest earlier stays; the admission in progress) is
followed by the window: the rows that became known in it, whatever stay they belong to. The cut is
made row by row and by available time, so that an event shows only those of its rows that were
known, and columns that become known later are blank until then.
"""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from ehrr1.records.cells import SEPARATOR
from ehrr1.records.events import Event
from ehrr1.records.schema import ORDER, TABLES
from ehrr1.records.store import Patient, Shard, Store
from ehrr1.records.store_schema import NEVER, NO_ID, NO_TIME

EPOCH = datetime(1970, 1, 1)
MICROSECOND = timedelta(microseconds=1)

Made = TypeVar("Made")

ADMISSIONS, DIAGNOSIS = ORDER.index("admissions"), ORDER.index("diagnosis")
EARLIER = tuple(n for n, name in enumerate(ORDER) if TABLES[name].context == "earlier")
IN_WINDOW = np.array([TABLES[name].context == "yes" for name in ORDER])
INPATIENT = np.array([TABLES[name].inpatient for name in ORDER])
CODED = np.array([any(at.of == "admissions" for at in TABLES[name].known_at) for name in ORDER])
"""Tables of codes assigned at the end of a stay, which samples of that stay never see."""
IN_PREAMBLE = np.isin(np.arange(len(ORDER)), [*EARLIER, ADMISSIONS, DIAGNOSIS])

PREAMBLE_TABLES = frozenset(ORDER[n] for n in (*EARLIER, DIAGNOSIS)) | {"patients"}


class Cut(Protocol):
    """The attributes of a sample that determine its context; `samples.Sample` has them."""

    @property
    def subject_id(self) -> int:
        """Return the id of the patient."""

    @property
    def prediction_time(self) -> datetime:
        """Return the time of the question."""

    @property
    def inclusive(self) -> bool:
        """Return whether rows that became known at the prediction time are shown."""

    @property
    def window_start(self) -> datetime:
        """Return the start of the window."""

    @property
    def hadm_id(self) -> int | None:
        """Return the admission of the question, whose codes are hidden."""

    @property
    def current_hadm(self) -> int | None:
        """Return the admission in progress, which the preamble shows."""

    @property
    def hidden_hadm(self) -> int | None:
        """Return the admission whose inpatient rows are hidden."""

    @property
    def ed_stay(self) -> int | None:
        """Return the ED stay whose diagnoses are hidden."""


def context_events(store: Store, cut: Cut) -> list[Event]:
    """Return the events that are known at `cut`.

    Only the patient's rows are read, which takes a few milliseconds at most. Contexts of a patient
    that are read one after the other share their events: each is made once. Raises KeyError for an
    unknown patient.
    """
    rows, patient = store.find(cut.subject_id)
    parts = shown_parts(rows, patient, cut)
    return [parts.demographics, *each_event(rows, parts, _made(rows, patient), _itself)]


def shown_positions(rows: Shard, patient: Patient, cut: Cut) -> np.ndarray:
    """Return the positions in `rows` that are known at `cut`: the preamble, then the window."""
    return np.concatenate(_positions(rows, patient, cut, _limit(cut)))


def shown_events(rows: Shard, patient: Patient, cut: Cut, positions: np.ndarray) -> list[Event]:
    """Return the rows at `positions` as events, after the demographics.

    The rows of an event share table, stay and event time; values that became known later are blank.
    No event spans preamble and window: an event of a table that occurs in both is wholly in one of
    them.
    """
    starts = event_starts(rows, positions)
    demographics = _demographics(patient, cut.prediction_time)
    return [demographics, *grouped_events(rows, positions, starts, _limit(cut))]


def event_starts(rows: Shard, positions: np.ndarray) -> np.ndarray:
    """Return the indices of `positions` at which an event begins."""
    table, time = rows.table[positions], rows.event_time[positions]
    stay, hadm = rows.stay_id[positions], rows.hadm_id[positions]
    owner = np.where(stay != NO_ID, stay, hadm)
    same = (table[1:] == table[:-1]) & (time[1:] == time[:-1]) & (owner[1:] == owner[:-1])
    return np.flatnonzero(np.concatenate([[True], ~same])[: len(positions)])


class Parts(NamedTuple):
    """The parts of a context from which `grouped_events` makes its events.

    positions (rows,): the rows shown, in context order; starts (events,): the indices of
    `positions` at which an event begins; limit: the first microsecond that is not known.
    """

    demographics: Event
    positions: np.ndarray
    starts: np.ndarray
    limit: int


def shown_parts(rows: Shard, patient: Patient, cut: Cut) -> Parts:
    """Return the parts of the context at `cut`."""
    positions = shown_positions(rows, patient, cut)
    demographics = _demographics(patient, cut.prediction_time)
    return Parts(demographics, positions, event_starts(rows, positions), _limit(cut))


EventKey = bytes | tuple[bytes, bytes]
"""The positions of an event's rows, and which of them show no late values, if there are any."""


def each_event(
    rows: Shard, parts: Parts, made: dict[EventKey, Made], make: Callable[[Event], Made]
) -> list[Made]:
    """Return `make` of each event of a context, from `made` where it is there, else added to it.

    Contexts of a patient overlap almost entirely: from one question to the next a few rows become
    known, and a few leave the window. `made` must be of one patient.
    """
    keys = _event_keys(parts, rows.late_time[parts.positions] >= parts.limit)
    missing = [number for number, key in enumerate(keys) if key not in made]
    if missing:
        ends = np.append(parts.starts[1:], len(parts.positions))
        own = [parts.positions[parts.starts[number] : ends[number]] for number in missing]
        starts = np.cumsum([0, *map(len, own[:-1])])
        events = grouped_events(rows, np.concatenate(own), starts, parts.limit)
        for number, event in zip(missing, events, strict=True):
            made[keys[number]] = make(event)
    return [made[key] for key in keys]


def _event_keys(parts: Parts, still_late: np.ndarray) -> list[EventKey]:
    """Return what determines each event, among those of one patient."""
    if not len(parts.starts):
        return []
    size = parts.positions.itemsize
    places, marks = parts.positions.tobytes(), still_late.tobytes()
    begins = parts.starts.tolist()
    ends = [*begins[1:], len(parts.positions)]
    late = np.logical_or.reduceat(still_late, parts.starts).tolist()
    return [
        (places[size * a : size * b], marks[a:b]) if own_late else places[size * a : size * b]
        for a, b, own_late in zip(begins, ends, late, strict=True)
    ]


@lru_cache(maxsize=1)  # as `_known`
def _made(rows: Shard, patient: Patient) -> dict[EventKey, Event]:
    """Return the events that earlier contexts of the patient have shown, to be added to."""
    return {}


def _itself(event: Event) -> Event:
    return event


def preamble_length(events: Sequence[Event]) -> int:
    """Return the number of first events that are never cut: up to the admission, if one follows."""
    for length, event in enumerate(events):
        if event.table not in PREAMBLE_TABLES:
            return length + (event.table == "admissions")
    return len(events)


def _limit(cut: Cut) -> int:
    """Return the first microsecond that is not known."""
    return _micros(cut.prediction_time) + cut.inclusive


def _micros(time: datetime) -> int:
    return (time - EPOCH) // MICROSECOND


class _Known(NamedTuple):
    """One patient's rows that a context may show, of tables of the window and of the preamble.

    window (n,): positions in the order in which the rows became known; known (n,): that time in
    microseconds since 1970. preamble (m,): positions in the order of the store.
    """

    window: np.ndarray
    known: np.ndarray
    preamble: np.ndarray


@lru_cache(maxsize=1)  # contexts are mostly read patient by patient
def _known(rows: Shard, patient: Patient) -> _Known:
    """Return the rows of a patient that have a time."""
    own = patient.first + np.flatnonzero(rows.event_time[patient.first : patient.last] != NO_TIME)
    table = rows.table[own]
    window = own[IN_WINDOW[table]]
    order = np.argsort(rows.available_time[window], kind="stable")
    window = window[order]
    return _Known(window, rows.available_time[window], own[IN_PREAMBLE[table]])


def _positions(
    rows: Shard, patient: Patient, cut: Cut, limit: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the row positions of the preamble and of the window.

    `limit` is the first unknown time in microseconds since 1970.
    """
    own, begin = _known(rows, patient), _micros(cut.window_start)
    first, last = np.searchsorted(own.known, [begin, limit]).tolist()
    window = _not_hidden(rows, np.sort(own.window[first:last]), cut)
    rare = own.preamble[rows.available_time[own.preamble] < limit]
    rare = _not_hidden(rows, rare, cut)
    if cut.hadm_id is not None:
        rare = rare[~_own_codes(rows, rare, cut.hadm_id)]
    in_window = (rows.available_time[rare] >= begin) & IN_WINDOW[rows.table[rare]]
    if cut.current_hadm is not None:  # the preamble shows it
        current = rows.hadm_id[window] == cut.current_hadm
        window = window[~(current & (rows.table[window] == ADMISSIONS))]
    return _preamble(rows, rare, in_window, cut.current_hadm), window


def _not_hidden(rows: Shard, positions: np.ndarray, cut: Cut) -> np.ndarray:
    """Return `positions` without the rows that a question hides although they are known."""
    if cut.hidden_hadm is not None:
        inpatient = INPATIENT[rows.table[positions]]
        positions = positions[~(inpatient & (rows.hadm_id[positions] == cut.hidden_hadm))]
    if cut.ed_stay is not None:
        diagnosis = rows.table[positions] == DIAGNOSIS
        positions = positions[~(diagnosis & (rows.stay_id[positions] == cut.ed_stay))]
    return positions


def _own_codes(rows: Shard, positions: np.ndarray, hadm: int) -> np.ndarray:
    """Return which rows are codes of the stay of the question, which may be over."""
    own: np.ndarray = CODED[rows.table[positions]] & (rows.hadm_id[positions] == hadm)
    return own


def _preamble(
    rows: Shard, rare: np.ndarray, in_window: np.ndarray, current: int | None
) -> np.ndarray:
    """Return each table's rows of the latest earlier stay, and last the admission in progress."""
    table, hadm, stay = rows.table[rare], rows.hadm_id[rare], rows.stay_id[rare]
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
    """Return demographics with the age at `time` in years, "" where missing."""
    age = ""
    if patient.anchor_age is not None and patient.anchor_year is not None:
        age = str(patient.anchor_age + time.year - patient.anchor_year)
    return Event("patients", None, None, ((age, patient.gender or ""),), ("",))


def grouped_events(
    rows: Shard, positions: np.ndarray, starts: np.ndarray, limit: int | None = None
) -> list[Event]:
    """Return events of the rows at `positions`; each index of `starts` begins a new event.

    Values that became known at `limit` (microseconds since 1970) or later are replaced by the text
    shown until then (`Table.until_then`); without a limit everything is shown.
    """
    if not len(positions):
        return []
    table, late = rows.table[positions], rows.late_time[positions]
    still_late = np.zeros(len(late), dtype=bool) if limit is None else late >= limit
    known_at = np.maximum.reduceat(known_times(rows, positions, still_late), starts)

    values = [text.split(SEPARATOR) for text in rows.values(positions)]
    names = rows.names
    items = [names[code] for code in rows.item[positions].tolist()]
    for position in np.flatnonzero(still_late).tolist():
        entry = _TABLES[table[position]]
        for place in _LATE[table[position]]:
            values[position][place] = entry.until_then
        if entry.late_items:
            items[position] = entry.until_then
    cells = [tuple(row) for row in values]
    ends = [*starts[1:].tolist(), len(cells)]
    return [
        Event(_NAMES[number], start_time, available_time, tuple(cells[a:b]), tuple(items[a:b]))
        if _HAS_KEYS[number]
        else Event(_NAMES[number], start_time, available_time, ((),) * (b - a), ("",) * (b - a))
        for number, start_time, available_time, a, b in zip(
            table[starts].tolist(),
            _datetimes(rows.event_time[positions[starts]]),
            _datetimes(known_at),
            starts.tolist(),
            ends,
            strict=True,
        )
    ]


def known_times(rows: Shard, positions: np.ndarray, still_late: np.ndarray) -> np.ndarray:
    """Return when each row, as it is shown, became known, in microseconds since 1970.

    `still_late` (rows,) marks the rows whose late values are not shown. A total without an end was
    never known and does not count.
    """
    late = rows.late_time[positions]
    shown_at = np.where(still_late | (late == NEVER), NO_TIME, late)
    known: np.ndarray = np.maximum(rows.available_time[positions], shown_at)
    return known


_NAMES = ORDER
_TABLES = [TABLES[name] for name in ORDER]
_LATE = [table.late_positions for table in _TABLES]
_HAS_KEYS = [bool(TABLES[name].keys) for name in ORDER]


def _datetimes(micros: np.ndarray) -> list[datetime]:
    times: list[datetime] = micros.astype("datetime64[us]").tolist()
    return times
