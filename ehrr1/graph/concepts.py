"""The concepts of an event: its item names and the classes shown beside them."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import cache
from typing import NamedTuple

from ehrr1.records.events import Event
from ehrr1.records.schema import TABLES

CLASS_KEYS = {"Ccs Type": "ccs", "Atc Type": "atc"}
"""Shown keys that hold a class of the item, and what a concept of that class is called."""


class Concept(NamedTuple):
    """A name and where it stands: a table ("labevents") or its class ("prescriptions/atc")."""

    kind: str
    name: str


class Occurrence(NamedTuple):
    """A concept in an event: `event` is its position in the context, `time` its event time."""

    concept: Concept
    event: int
    time: datetime | None


def event_concepts(event: Event) -> list[Concept]:
    """The distinct concepts of one event, in the order in which they are shown.

    This is `graph.concepts=items`: nothing but the record is needed. Names are kept as they are
    spelled, for a chain must cite them so.
    """
    concepts = dict.fromkeys(Concept(event.table, item) for item in event.items if item)
    for position, suffix in _class_columns(event.table):
        kind = f"{event.table}/{suffix}"
        shown = (row[position] for row in event.rows)
        concepts |= dict.fromkeys(Concept(kind, name) for name in shown if name)
    return list(concepts)


def occurrences(context: Sequence[Event]) -> Iterator[Occurrence]:
    """Every concept of every event of a context, oldest event first."""
    for position, event in enumerate(context):
        for concept in event_concepts(event):
            yield Occurrence(concept, position, event.time)


def heading(concept: Concept) -> str:
    """The heading under which the concept stands in the record."""
    return TABLES[concept.kind.split("/")[0]].heading


@cache
def _class_columns(table: str) -> list[tuple[int, str]]:
    return [
        (position, CLASS_KEYS[key])
        for position, key in enumerate(TABLES[table].keys)
        if key in CLASS_KEYS
    ]
