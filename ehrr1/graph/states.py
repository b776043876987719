"""Derive the states of items: what a row says about an item besides its name.

    labevents      high, low, normal, abnormal      value, reference range and flag of the row
    chartevents    abnormal                         warning of the row
    emar           given, not given, held, ...      event_txt of the row
    both           rising, falling                  values of the item in the whole context
    codes, drugs   once, repeated                   events of the context that show the item

Each state has one rule, so that a reader can check it in the record. There are few of them,
because each is counted as a concept of its own.
"""

import math
import re
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from typing import NamedTuple

from ehrr1.records.events import Event
from ehrr1.records.schema import TABLES

HIGH, LOW, NORMAL, ABNORMAL = "high", "low", "normal", "abnormal"
RISING, FALLING = "rising", "falling"
ONCE, REPEATED = "once", "repeated"
GIVEN, NOT_GIVEN, HELD, REFUSED, STOPPED = "given", "not given", "held", "refused", "stopped"

NOT_DONE = frozenset({NOT_GIVEN, HELD, REFUSED})
"""States of a drug that was not given: no evidence that the patient had it."""

VALUE_KEYS = {"Valuenum", "Value", "Result_Value", "Amount", "Dose_Val_Rx"}
"""Shown keys that hold a measured, given or ordered value; a table has at most one of them."""

LONGEST_VALUE = 12
"""Maximum length of a value that a chain cites, in characters; longer ones are prose."""

ADMINISTRATION = (
    (REFUSED, re.compile(r"refus")),
    (HELD, re.compile(r"\bh(?:old|eld)\b")),
    (NOT_GIVEN, re.compile(r"\bnot (?:given|administered|flushed|applied|started)\b|^delayed$")),
    ("", re.compile(r"\bnot\b")),
    (STOPPED, re.compile(r"\bstopped\b|^removed(?! existing)")),
    (
        GIVEN,
        re.compile(
            r"administered|\bgiven\b|applied|flushed|confirmed|started|rate change|bolus"
            r"|infusion reconciliation"
        ),
    ),
)
"""State of an administration -> the words of `event_txt`, in any case, that mean it; first wins.

"Assessed", "Read" and "Not Stopped" are about what was given before, and a blank says nothing: they
have no state.
"""

TRENDS = frozenset({"labevents", "chartevents"})
"""Tables whose values have trends."""

RELATIVE_CHANGE = 0.2
"""Change that is a trend, as a share of the first value, for values without a reference range."""

RANGE_SHARE = 0.5
"""Change that is a trend, as a share of the width of the reference range."""

REPEATABLE = frozenset(
    [
        *("diagnoses_icd", "diagnosis", "procedures_icd", "prescriptions", "pyxis"),
        *("microbiologyevents", "radiology", "procedureevents", "inputevents"),
    ]
)
"""Tables whose items are distinguished by whether the context shows them once or repeatedly."""

REMEMBERED = 2**13
"""Number of events whose rows are read only once, because contexts of a patient share events."""

Key = tuple[str, str]
"""Table and name of an item."""


class Stated(NamedTuple):
    """An item, its state ("" for none) and the value of its row ("" for none)."""

    name: str
    state: str
    value: str


class Measured(NamedTuple):
    """A numeric value of an item, the position of its event, and the value as shown."""

    event: int
    value: float
    shown: str


def row_states(event: Event) -> tuple[Stated, ...]:
    """Return each row's item without a state, then with each state that the row gives it.

    A row of `emar` has its item only with a state: a drug on the administration record was given,
    or was not. Rows without an item have nothing.
    """
    found = []
    columns = _columns(event.table)
    for item, row in zip(event.items, event.rows, strict=True):
        if item:
            value = _cited(row[columns[VALUE]]) if VALUE in columns else ""
            state = _state(event.table, row, columns)
            if event.table != "emar":
                found.append(Stated(item, "", value))
            if state:
                found.append(Stated(item, state, value))
    return tuple(found)


def context_states(context: Sequence[Event]) -> Iterator[tuple[int, Stated]]:
    """Yield the states that follow from several events, each with the position of an event.

    rising, falling: the last value of the context differs from the first by at least half of the
    width of the reference range (without a range: 20 % of the first value) and is the highest
    (lowest) of all. The state holds at the events of the first and last value. Only values of the
    same unit and range are compared. once, repeated: one event of the context shows the item, or at
    least two.
    """
    series: dict[tuple[str, ...], list[Measured]] = {}
    places: dict[Key, list[int]] = {}
    for position, event in enumerate(context):
        if event.table in TRENDS:
            for key, value, shown in _measurements(event):
                series.setdefault(key, []).append(Measured(position, value, shown))
        elif event.table in REPEATABLE:
            for item in dict.fromkeys(filter(None, event.items)):
                places.setdefault((event.table, item), []).append(position)
    for (_, item), positions in places.items():
        state = ONCE if len(positions) == 1 else REPEATED
        yield from ((position, Stated(item, state, "")) for position in positions)
    for (_, item, _, lower, upper), values in series.items():
        if state := trend(values, _number(lower), _number(upper)):
            for end in (values[0], values[-1]):
                yield end.event, Stated(item, state, _cited(end.shown))


def trend(values: Sequence[Measured], lower: float | None, upper: float | None) -> str:
    """Return "rising", "falling" or "" for the values of an item in order of time."""
    first, last = values[0], values[-1]
    if first.event == last.event:
        return ""
    needed = RELATIVE_CHANGE * abs(first.value)
    if lower is not None and upper is not None and upper > lower:
        needed = RANGE_SHARE * (upper - lower)
    change = last.value - first.value
    if change == 0 or round(abs(change), 9) < round(needed, 9):  # 4.8 - 4.0 is below 0.8
        return ""
    numbers = [one.value for one in values]
    if change > 0:
        return RISING if last.value == max(numbers) else ""
    return FALLING if last.value == min(numbers) else ""


def administration(event_txt: str) -> str:
    """Return the state of an administration, or "" if the text does not say."""
    text = event_txt.strip().casefold()
    return next((state for state, words in ADMINISTRATION if words.search(text)), "")


def level(value: str, lower: str, upper: str, flag: str) -> str:
    """Return the state of a laboratory value by its reference range and flag.

    A value beyond the range is high or low. Otherwise a flagged value is abnormal, and a value with
    a range is normal. A value without a range or flag has no state.
    """
    number, least, most = _number(value), _number(lower), _number(upper)
    if number is not None and most is not None and number > most:
        return HIGH
    if number is not None and least is not None and number < least:
        return LOW
    if flag.casefold() == "abnormal":
        return ABNORMAL
    ranged = least is not None or most is not None
    return NORMAL if number is not None and ranged else ""


VALUE, UNIT, LOWER, UPPER, FLAG = "value", "Valueuom", "Ref_Range_Lower", "Ref_Range_Upper", "Flag"
WARNING, EVENT_TXT = "Warning", "Event_Txt"


@cache
def _columns(table: str) -> dict[str, int]:
    """Return the position of each shown key of a table; `VALUE` is that of its value, if any."""
    columns = {key: place for place, key in enumerate(TABLES[table].keys)}
    values = [place for key, place in columns.items() if key in VALUE_KEYS]
    return columns | ({VALUE: values[0]} if values else {})


def _state(table: str, row: Sequence[str], columns: dict[str, int]) -> str:
    if table == "labevents":
        return level(*(row[columns[key]] for key in (VALUE, LOWER, UPPER, FLAG)))
    if table == "emar":
        return administration(row[columns[EVENT_TXT]])
    if table == "chartevents":
        return ABNORMAL if row[columns[WARNING]] in ("1", "1.0") else ""
    return ""


@lru_cache(maxsize=REMEMBERED)
def _measurements(event: Event) -> tuple[tuple[tuple[str, ...], float, str], ...]:
    """Return the series, number and shown text of each numeric value of an event.

    The series is (table, item, unit, lower, upper).
    """
    columns = _columns(event.table)
    found = []
    for item, row in zip(event.items, event.rows, strict=True):
        shown = row[columns[VALUE]]
        number = _number(shown)
        if item and number is not None:
            about = (row[columns[key]] if key in columns else "" for key in (UNIT, LOWER, UPPER))
            found.append(((event.table, item, *about), number, shown))
    return tuple(found)


def _cited(value: str) -> str:
    """Return a value that a chain can cite, or "" if it is prose or says nothing ("___")."""
    fits = len(value) <= LONGEST_VALUE and any(map(str.isalnum, value))
    return value if fits else ""


@lru_cache(maxsize=2**16)
def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
