"""What a reasoning chain looks like: three sections, cited items, derived answers.

    ## Extraction
    Glucose | Labotary Test Events | 06:10
    ## Reasoning
    Glucose | -> | Insulin | Dextrose 50%
    ## Final Results
    Dextrose 50%
    Insulin

Cells between bars, as in the record's own tables: a name then has the same tokens in the record, in
the chain and in the answer, and a small model can copy it. A citation may add the item's value, as
the record shows it: `Glucose: 140 | Labotary Test Events | 06:10`. From free text it takes the
words that stand there: `worsening dyspnea | Discharge | 2150-03-01 12:00`.

A chain on a yes/no question argues for each outcome in turn, and does not decide:

    ## Case for yes
    Lactate | Labotary Test Events | 06:10
    ## Case for no
    Urine Output | Output Events | 07:00

Lines without two bars are prose there.
"""

import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from ehrr1.graph.concepts import event_concepts, event_texts
from ehrr1.prompts.messages import CASES
from ehrr1.records.events import Event
from ehrr1.records.schema import TABLES
from ehrr1.scoring.answers import answer_lines, has_both_cases

RESULTS = "Final Results"
SECTIONS = ("## Extraction", "## Reasoning", f"## {RESULTS}")

BAR = " | "
ARROW = "->"

VALUE_KEYS = {"Valuenum", "Value", "Result_Value", "Amount", "Dose_Val_Rx"}
"""Shown keys that hold what was measured, given or ordered; a table has at most one of them."""


class Citation(NamedTuple):
    """An item, with its value or without, and the heading and the time of its event, as written."""

    name: str
    heading: str
    time: str


@dataclass(frozen=True, slots=True)
class Chain:
    """The parts of a chain. `unread` counts extraction lines that are no citation."""

    citations: tuple[Citation, ...]
    unread: int
    results: tuple[str, ...]


class FreeText(NamedTuple):
    """A text that a context shows, the heading of its event, and the ways to write its time."""

    heading: str
    times: frozenset[str]
    text: str


@dataclass(frozen=True, slots=True)
class Citable:
    """What a chain may cite of a context. Empty (and false) where nothing can be cited.

    `items`: heading and time, as written -> the names, with and without values, of those events.
    """

    items: Mapping[tuple[str, str], Sequence[Set[str]]]
    texts: Sequence[FreeText]

    def __contains__(self, citation: Citation) -> bool:
        events = self.items.get((citation.heading, citation.time), ())
        if any(citation.name in names for names in events):
            return True
        return any(_stands_in(citation, text) for text in self.texts)

    def __bool__(self) -> bool:
        return bool(self.items or self.texts)


def parse_chain(text: str) -> Chain | None:
    """Read a chain; None unless each section stands in it exactly once and in order."""
    lines = [line.strip() for line in text.splitlines()]
    if [line for line in lines if line in SECTIONS] != list(SECTIONS):
        return None
    first, second, third = (lines.index(section) for section in SECTIONS)
    extraction = answer_lines("\n".join(lines[first + 1 : second]))
    citations = _citations(extraction)
    return Chain(
        citations=citations,
        unread=len(extraction) - len(citations),
        results=answer_lines("\n".join(lines[third + 1 :])),
    )


def without_results(text: str) -> str:
    """A chain up to the line that last names its final results, which tell the answer; all of a
    chain that names none."""
    last = text.rfind(RESULTS)
    return text[: text.rfind("\n", 0, last) + 1].rstrip() if last >= 0 else text


def parse_cases(text: str) -> Chain | None:
    """Read a chain on a yes/no question; None unless it argues for yes and then for no, and cites
    something for each."""
    if not has_both_cases(text):
        return None
    lines = [line.strip() for line in text.splitlines()]
    first, second = map(lines.index, CASES)
    cases = [
        _citations(answer_lines("\n".join(part))) for part in (lines[first:second], lines[second:])
    ]
    return Chain(cases[0] + cases[1], 0, ()) if all(cases) else None


def _citations(lines: Sequence[str]) -> tuple[Citation, ...]:
    cells = [line.rsplit(BAR, 2) for line in lines]
    return tuple(Citation(*parts) for parts in cells if len(parts) == 3)


def written_time(time: datetime | None, prediction_time: datetime) -> str:
    """How the template writes a time: the hour where it is unmistakable, else date and hour."""
    if time is None:
        return "None"
    within_a_day = timedelta() <= prediction_time - time < timedelta(days=1)
    return time.strftime("%H:%M" if within_a_day else "%Y-%m-%d %H:%M")


def citable(context: Sequence[Event], prediction_time: datetime) -> Citable:
    """Every citation that the context supports, in each accepted way to write its time.

    A name stands there with and without each of its values in that event, so that nobody must
    guess whether the colon in "Stool: culture" begins a value. Of a free text whole words in any
    case can be cited. Events that came as text have no items: they support nothing.
    """
    items: dict[tuple[str, str], list[Set[str]]] = {}
    texts = []
    for event in context:
        if not event.rows:
            continue
        times = {written_time(event.time, prediction_time)}
        if event.time is not None:
            times |= {str(event.time), event.time.strftime("%Y-%m-%d %H:%M")}
        place = TABLES[event.table].heading
        names = {concept.name for concept in event_concepts(event)} | _with_values(event)
        for time in times:
            items.setdefault((place, time), []).append(names)
        texts += [FreeText(place, frozenset(times), text) for text in event_texts(event)]
    return Citable(items, texts)


def _with_values(event: Event) -> set[str]:
    """`Name: value` of each row that shows an item and its value."""
    keys = TABLES[event.table].keys
    position = next((place for place, key in enumerate(keys) if key in VALUE_KEYS), None)
    if position is None:
        return set()
    rows = zip(event.items, event.rows, strict=True)
    return {f"{item}: {row[position]}" for item, row in rows if item and row[position]}


def _stands_in(citation: Citation, text: FreeText) -> bool:
    if citation.heading != text.heading or citation.time not in text.times:
        return False
    words = re.escape(citation.name).replace(r"\ ", r"\s+")  # a text breaks lines anywhere
    return re.search(rf"(?<!\w){words}(?!\w)", text.text, re.IGNORECASE) is not None


def faithfulness(chain: Chain, allowed: Citable) -> float:
    """The share of extraction lines that cite an item of the context (and, where they name one, its
    value) at its event and time.

    Lines that cannot be read as a citation count as unfaithful; a chain without any line is 0.
    """
    lines = len(chain.citations) + chain.unread
    return sum(citation in allowed for citation in chain.citations) / max(lines, 1)
