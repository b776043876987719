"""Extract the concepts of an event.

An event has three sources of concepts: the names of its items, the classes shown beside them (CCS,
ATC), and the concepts that its free text asserts about the patient. An item can have states
("high", "given", see `graph.states`); an item in a state is a concept of its own.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from functools import cache, lru_cache
from typing import NamedTuple

from ehrr1.graph.states import REMEMBERED, Stated, context_states, row_states
from ehrr1.graph.text.mentions import EVIDENCE, Mention
from ehrr1.records.events import Event
from ehrr1.records.schema import TABLES

CLASS_KEYS = {"Ccs Type": "ccs", "Atc Type": "atc"}
"""Shown keys that hold a class of the item, with the suffix for concepts of that class."""

TEXT_KEYS = frozenset({"Text", "Chiefcomplaint", "Admission_Info"})
"""Shown keys that hold free text: notes, reports, chief complaints, admission information."""

TEXT = "text"
"""The suffix of the kind of a free-text concept, as in "discharge/text"."""

ROUTINE, TOGETHER = "routine", "together"
"""The kinds of concepts that no record shows: a care unit, another item of the answer."""

TRANSFERS = "transfers"
"""The table whose items are care units."""

Reader = Callable[[str], Sequence[Mention]]
"""A function that returns the mentions in a text (see `graph.text.mention_cache`)."""


ANYWHERE = "any"
"""The kind of a name that is one concept in all tables (`graph.counting=release`)."""


class Concept(NamedTuple):
    """A name, its kind, and its state.

    The kind is a table ("labevents"), a class of a table ("prescriptions/atc"), or the free text of
    a table ("discharge/text"; the name is then the preferred name of the mentioned concept). The
    state is one of `graph.states`, or "" for the item in any state.
    """

    kind: str
    name: str
    state: str = ""

    @property
    def is_text(self) -> bool:
        """Return whether the concept comes from free text."""
        return self.kind.endswith(f"/{TEXT}")

    @property
    def is_shown(self) -> bool:
        """Return whether a record can show the concept (see `graph.reasons`)."""
        return self.kind not in (ROUTINE, TOGETHER)


class Occurrence(NamedTuple):
    """An occurrence of a concept in an event.

    event: position of the event in the context; time: event time; value: the value in the item's
    row as shown, "" if there is none that can be cited. For mentions in free text, `concept_id` is
    the id in the dictionary and `written` the words of the text.
    """

    concept: Concept
    event: int
    time: datetime | None
    concept_id: str | None = None
    written: str | None = None
    value: str = ""


def event_concepts(event: Event) -> list[Concept]:
    """Return the distinct names and classes of one event in the order in which they are shown.

    These are the concepts of `concepts=items` without states; they need no dictionary. Names keep
    their spelling, because chains must cite them verbatim.
    """
    concepts = dict.fromkeys(Concept(event.table, item) for item in event.items if item)
    return list(concepts | dict.fromkeys(_classes(event)))


@lru_cache(maxsize=REMEMBERED)
def _classes(event: Event) -> tuple[Concept, ...]:
    """Return the distinct classes that an event shows beside its items."""
    found: dict[Concept, None] = {}
    for position, key in _columns(event.table, frozenset(CLASS_KEYS)):
        kind = f"{event.table}/{CLASS_KEYS[key]}"
        found |= dict.fromkeys(Concept(kind, row[position]) for row in event.rows if row[position])
    return tuple(found)


def event_texts(event: Event) -> list[str]:
    """Return the free texts that an event shows."""
    columns = _columns(event.table, TEXT_KEYS)
    return [row[position] for row in event.rows for position, _ in columns if row[position]]


def occurrences(
    context: Sequence[Event],
    read: Reader | None = None,
    states: bool = True,
    places: Sequence[int] | None = None,
) -> Iterator[Occurrence]:
    """Yield every concept of every event of a context, oldest event first.

    `places` are the positions of the events, if they are part of a longer context.

    With `states`, an item yields a concept without a state and one for each of its states, and an
    item of `emar` only those with a state; otherwise items have no states. With `read`, free text
    is included: affirmed, uncertain and chronic mentions that refer to the patient at present.
    Mentions that are negated, hypothetical or historical, or that refer to the family, are skipped.
    """
    derived: dict[int, list[Stated]] = {}
    if states:
        for position, stated in context_states(context):
            derived.setdefault(position, []).append(stated)
    for number, event in enumerate(context):
        position = number if places is None else places[number]
        if states:
            yield from _stated(event, position, derived.get(number, ()))
        else:
            for concept in event_concepts(event):
                yield Occurrence(concept, position, event.time)
        if read is not None:
            yield from _mentioned(event, position, read)


def _stated(event: Event, position: int, derived: Sequence[Stated]) -> Iterator[Occurrence]:
    """Yield the items of an event in their states, then its classes, each once.

    Of several rows with the same item and state, the last value is taken.
    """
    values = _with_classes(event, derived) if derived else _row_values(event)
    for concept, value in values:
        yield Occurrence(concept, position, event.time, None, None, value)


@lru_cache(maxsize=REMEMBERED)
def _row_values(event: Event) -> tuple[tuple[Concept, str], ...]:
    """Return the items of an event in the states of their rows, and its classes."""
    return tuple(_with_classes(event, ()))


def _with_classes(event: Event, derived: Sequence[Stated]) -> Iterable[tuple[Concept, str]]:
    found = dict(_row_concepts(event))
    _add_values(found, event.table, derived)
    for concept in _classes(event):
        found.setdefault(concept, "")
    return found.items()


@lru_cache(maxsize=REMEMBERED)
def _row_concepts(event: Event) -> tuple[tuple[Concept, str], ...]:
    """Return the items of an event in the states of their rows, each with its last value."""
    found: dict[Concept, str] = {}
    _add_values(found, event.table, row_states(event))
    return tuple(found.items())


def _add_values(found: dict[Concept, str], table: str, some: Iterable[Stated]) -> None:
    for name, state, value in some:
        concept = Concept(table, name, state)
        found[concept] = value or found.get(concept, "")


def _mentioned(event: Event, position: int, read: Reader) -> Iterator[Occurrence]:
    found: dict[Concept, Occurrence] = {}
    for text in event_texts(event):
        for mention in read(text):
            if mention.status in EVIDENCE:
                concept = Concept(f"{event.table}/{TEXT}", mention.name)
                written = " ".join(text[mention.start : mention.end].split())
                one = Occurrence(concept, position, event.time, mention.concept_id, written)
                found.setdefault(concept, one)
    yield from found.values()


def heading(concept: Concept) -> str:
    """Return the heading under which the concept appears in the record."""
    return TABLES[concept.kind.split("/")[0]].heading


@cache
def _columns(table: str, keys: frozenset[str]) -> list[tuple[int, str]]:
    """Return the position and name of each shown key of a table that is in `keys`."""
    return [(place, key) for place, key in enumerate(TABLES[table].keys) if key in keys]
