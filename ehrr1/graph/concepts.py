"""The concepts of an event: its item names, the classes shown beside them, and what its free text
says of the patient."""

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from functools import cache
from typing import NamedTuple

from ehrr1.graph.text.mentions import EVIDENCE, Mention
from ehrr1.records.events import Event
from ehrr1.records.schema import TABLES

CLASS_KEYS = {"Ccs Type": "ccs", "Atc Type": "atc"}
"""Shown keys that hold a class of the item, and what a concept of that class is called."""

TEXT_KEYS = frozenset({"Text", "Chiefcomplaint", "Admission_Info"})
"""Shown keys that hold free text: notes, reports, chief complaints, what an admission says."""

TEXT = "text"
"""What a concept of free text is called: "discharge/text"."""

Reader = Callable[[str], Sequence[Mention]]
"""What a text mentions (`graph.text.mention_cache`)."""


ANYWHERE = "any"
"""The kind of a name that is one concept wherever it stands (`graph.counting=release`)."""


class Concept(NamedTuple):
    """A name and where it stands: a table ("labevents"), its class ("prescriptions/atc") or its
    free text ("discharge/text": the preferred name of what is mentioned)."""

    kind: str
    name: str

    @property
    def is_text(self) -> bool:
        return self.kind.endswith(f"/{TEXT}")


class Occurrence(NamedTuple):
    """A concept in an event: `event` is its position in the context, `time` its event time.

    `concept_id` and `written` (the words of the text) say what a mention in free text is.
    """

    concept: Concept
    event: int
    time: datetime | None
    concept_id: str | None = None
    written: str | None = None


def event_concepts(event: Event) -> list[Concept]:
    """The distinct names and classes of one event, in the order in which they are shown.

    This is `concepts=items`: nothing but the record is needed. Names are kept as they are
    spelled, for a chain must cite them so.
    """
    concepts = dict.fromkeys(Concept(event.table, item) for item in event.items if item)
    for position, key in _columns(event.table, frozenset(CLASS_KEYS)):
        kind = f"{event.table}/{CLASS_KEYS[key]}"
        shown = (row[position] for row in event.rows)
        concepts |= dict.fromkeys(Concept(kind, name) for name in shown if name)
    return list(concepts)


def event_texts(event: Event) -> list[str]:
    """The free texts that an event shows."""
    columns = _columns(event.table, TEXT_KEYS)
    return [row[position] for row in event.rows for position, _ in columns if row[position]]


def occurrences(context: Sequence[Event], read: Reader | None = None) -> Iterator[Occurrence]:
    """Every concept of every event of a context, oldest event first.

    With `read`, free text counts too: what it says of the patient, with or without doubt. What it
    denies, or says of the family, the past or the future, is no concept of the record.
    """
    for position, event in enumerate(context):
        for concept in event_concepts(event):
            yield Occurrence(concept, position, event.time)
        if read is not None:
            yield from _mentioned(event, position, read)


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
    """The heading under which the concept stands in the record."""
    return TABLES[concept.kind.split("/")[0]].heading


@cache
def _columns(table: str, keys: frozenset[str]) -> list[tuple[int, str]]:
    """Position and name of those of a table's shown keys that are among `keys`."""
    return [(place, key) for place, key in enumerate(TABLES[table].keys) if key in keys]
