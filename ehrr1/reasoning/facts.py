"""Look up what a context states about a cited item: its value, unit, status, level and trend."""

import math
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache, cached_property, lru_cache
from typing import NamedTuple

from ehrr1.graph.concepts import CLASS_KEYS, TEXT_KEYS, event_texts
from ehrr1.graph.states import VALUE_KEYS
from ehrr1.reasoning.chain import Citation, written_time
from ehrr1.reasoning.names import Names, key_of
from ehrr1.reasoning.statuses import Status, administered, mentioned
from ehrr1.records.events import Event
from ehrr1.records.schema import TABLES

UNIT_KEYS = {"Valueuom", "Amountuom", "Dose_Unit_Rx"}
"""Shown keys that hold the unit of that value."""

NOTE_KEYS = {"Event_Txt", "Org_Name", "Interpretation"}
"""Shown keys that may be cited behind a name as a value may: what became of a drug or a culture."""

TRENDS = frozenset({"rising", "falling"})


class Fact(NamedTuple):
    """An item in one row of the context, or words of its free text.

    event: position of the event. Cells are as shown, "" if missing. status: whether the item is
    present (`reasoning.statuses`).
    """

    name: str
    table: str
    event: int
    value: str = ""
    unit: str = ""
    lower: str = ""
    upper: str = ""
    flag: str = ""
    notes: tuple[str, ...] = ()
    status: Status = ""

    def reads(self, written: str) -> bool:
        """Return whether this is the value, alone or with its unit, or a note."""
        if not written:
            return False
        if written in (self.value, f"{self.value} {self.unit}", *self.notes):
            return True
        digits, _, unit = written.partition(" ")
        said = number(digits)
        return said is not None and said == number(self.value) and unit in ("", self.unit)


class Citable:
    """The facts of a context that a chain can cite; it is false if there are none.

    Facts are looked up by heading and time, each accepted form of it. Events that exist only as
    text have no items and support no citations.
    """

    def __init__(self, context: Sequence[Event], prediction_time: datetime):
        self.events = [event for event in context if event.rows]
        self.places: dict[tuple[str, str], list[int]] = {}
        for position, event in enumerate(self.events):
            times = {written_time(event.time, prediction_time)}
            if event.time is not None:
                times |= {str(event.time), event.time.strftime("%Y-%m-%d %H:%M")}
            for time in times:
                self.places.setdefault((TABLES[event.table].heading, time), []).append(position)
        self._facts: dict[int, Mapping[str, list[Fact]]] = {}

    def __bool__(self) -> bool:
        return bool(self.events)

    def __contains__(self, citation: Citation) -> bool:
        return bool(self.find(citation))

    def find(self, citation: Citation) -> list[Fact]:
        """Return the facts that a citation refers to; none if the context does not support it.

        Names are tried with and without each value that they may hold, so that a colon in "Stool:
        culture" is not taken for the beginning of a value. From a free text, whole words can be
        cited in any case.
        """
        found: list[Fact] = []
        for position in self.places.get((citation.heading, citation.time), ()):
            facts = self.facts(position)
            found += facts.get(citation.name, ())
            for base, rest in value_splits(citation.name):
                found += [fact for fact in facts.get(base, ()) if self._says(fact, rest)]
            found += self._words(position, citation.name)
        return found

    def facts(self, position: int) -> Mapping[str, list[Fact]]:
        """Return the facts of the rows of an event by name."""
        if position not in self._facts:
            named: dict[str, list[Fact]] = {}
            for fact in _row_facts(self.events[position], position):
                named.setdefault(fact.name, []).append(fact)
            self._facts[position] = named
        return self._facts[position]

    def _says(self, fact: Fact, rest: str) -> bool:
        return fact.reads(rest) or self.holds(rest.casefold(), fact) is True

    def _words(self, position: int, words: str) -> list[Fact]:
        """Return the words of a citation in the free texts of an event, one fact for each place.

        If the patient has them in one place, the places that deny them do not count.
        """
        event = self.events[position]
        texts = event_texts(event)
        if not texts or not words:
            return []
        written = re.escape(words).replace(r"\ ", r"\s+")  # texts are wrapped between any words
        pattern = re.compile(rf"(?<!\w){written}(?!\w)", re.IGNORECASE)
        facts = [
            Fact(words, event.table, position, status=mentioned(text, *found.span()))
            for text in texts
            for found in pattern.finditer(text)
        ]
        return [fact for fact in facts if fact.status == "present"] or facts

    @cached_property
    def by_name(self) -> dict[str, list[Fact]]:
        """Return the facts of all rows by `key_of` their names, in order of time."""
        named: dict[str, list[Fact]] = {}
        for position in range(len(self.events)):
            for name, facts in self.facts(position).items():
                named.setdefault(key_of(name), []).extend(facts)
        return named

    @cached_property
    def names(self) -> Names:
        """Return the index of these names, to find them in prose."""
        return Names({fact.name for facts in self.by_name.values() for fact in facts})

    def holds(self, state: str, fact: Fact) -> bool | None:
        """Return whether a state is true of a fact; None if the record does not tell.

        States are high, low, normal and abnormal (by reference range and flag), rising and falling
        (the value differs in that direction from the value before or from the first of the context,
        and there is one), once and repeated (by the events that show the item).
        """
        if state in TRENDS:
            return self._moves(state, fact)
        if state in ("once", "repeated"):
            events = {one.event for one in self._same(fact)}
            return (len(events) > 1) == (state == "repeated")
        return level_holds(state, fact)

    def _moves(self, state: str, fact: Fact) -> bool | None:
        last = number(fact.value)
        if last is None:
            return None
        values = (number(one.value) for one in self._same(fact) if one.event < fact.event)
        before = [value for value in values if value is not None]
        if not before:
            return False
        sign = 1 if state == "rising" else -1
        return any(sign * (last - value) > 0 for value in (before[0], before[-1]))

    def _same(self, fact: Fact) -> list[Fact]:
        return [one for one in self.by_name.get(key_of(fact.name), ()) if one.table == fact.table]


def value_splits(name: str) -> list[tuple[str, str]]:
    """Return each way to read `Name: value` as a name and a value, the longest name first."""
    parts = name.split(": ")
    return [
        (": ".join(parts[:end]), ": ".join(parts[end:])) for end in range(len(parts) - 1, 0, -1)
    ]


def level_holds(state: str, fact: Fact) -> bool | None:
    """Return whether high, low, normal or abnormal is true of a value; None if it is unknown."""
    value, least, most = number(fact.value), number(fact.lower), number(fact.upper)
    if state not in ("high", "low", "normal", "abnormal"):
        return None
    if value is None or (least is None and most is None):
        known = bool(fact.flag) and state in ("normal", "abnormal")
        return state == "abnormal" if known else None
    high, low = most is not None and value > most, least is not None and value < least
    if (state == "high" and most is None and not low) or (state == "low" and least is None):
        return False if high else None
    outside = high or low or bool(fact.flag)
    return {"high": high, "low": low, "normal": not outside, "abnormal": outside}[state]


@lru_cache(maxsize=2**16)
def number(text: str) -> float | None:
    """Return the finite number that a cell holds, or None."""
    try:
        value = float(text.replace(",", ""))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


class _Columns(NamedTuple):
    """The positions of a table's keys by what they hold; None if it has no such key."""

    value: int | None
    unit: int | None
    lower: int | None
    upper: int | None
    flag: int | None
    warning: int | None
    event_txt: int | None
    notes: tuple[int, ...]
    classes: tuple[int, ...]
    named: tuple[tuple[int, str], ...]
    """The keys that are names themselves, in tables whose rows have no item ("Heartrate")."""


@cache
def _columns(table: str) -> _Columns:
    keys = {key: place for place, key in enumerate(TABLES[table].keys)}

    def first(names: set[str]) -> int | None:
        return next((place for key, place in keys.items() if key in names), None)

    named = {} if TABLES[table].item else keys
    return _Columns(
        value=first(VALUE_KEYS),
        unit=first(UNIT_KEYS),
        lower=keys.get("Ref_Range_Lower"),
        upper=keys.get("Ref_Range_Upper"),
        flag=keys.get("Flag"),
        warning=keys.get("Warning"),
        event_txt=keys.get("Event_Txt"),
        notes=tuple(place for key, place in keys.items() if key in NOTE_KEYS),
        classes=tuple(place for key, place in keys.items() if key in CLASS_KEYS),
        named=tuple((place, key) for key, place in named.items() if key not in TEXT_KEYS),
    )


def _row_facts(event: Event, position: int) -> list[Fact]:
    columns, facts = _columns(event.table), []
    for item, row in zip(event.items, event.rows, strict=True):
        facts += [
            Fact(key, event.table, position, value=row[place])
            for place, key in columns.named
            if row[place]
        ]
        facts += [
            Fact(row[place], event.table, position) for place in columns.classes if row[place]
        ]
        if item:
            facts.append(_item_fact(item, row, event.table, position))
    return facts


def _item_fact(item: str, row: Sequence[str], table: str, position: int) -> Fact:
    columns = _columns(table)

    def cell(place: int | None) -> str:
        return row[place] if place is not None else ""

    flag = cell(columns.flag)
    if cell(columns.warning) in ("1", "1.0"):
        flag = "abnormal"
    return Fact(
        item,
        table,
        position,
        value=cell(columns.value),
        unit=cell(columns.unit),
        lower=cell(columns.lower),
        upper=cell(columns.upper),
        flag=flag,
        notes=tuple(row[place] for place in columns.notes),
        status=administered(cell(columns.event_txt)),
    )
