"""Parse reasoning chains: three sections, cited items, derived answers.

    ## Extraction
    Glucose | Labotary Test Events | 06:10
    ## Reasoning
    Glucose | -> | Insulin | Dextrose 50%
    ## Final Results
    Dextrose 50%
    Insulin

Cells are separated by bars, as in the tables of the record. A name then has the same tokens in the
record, in the chain and in the answer, so that a small model can copy it. A citation may include
the item's value as the record shows it: `Glucose: 140 | Labotary Test Events | 06:10`. A citation
of free text uses the words of the text: `worsening dyspnea | Discharge | 2150-03-01 12:00`.

A chain on a yes/no question argues for each outcome in turn and does not decide between them:

    ## Case for yes
    Lactate | Labotary Test Events | 06:10
    ## Case for no
    Urine Output | Output Events | 07:00

Lines of these cases that do not have two bars are prose.
"""

import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from ehrr1.graph.concepts import event_concepts, event_texts
from ehrr1.graph.states import VALUE_KEYS
from ehrr1.prompts.messages import CASES
from ehrr1.records.events import Event
from ehrr1.records.schema import TABLES
from ehrr1.scoring.answers import answer_lines, has_both_cases

RESULTS = "Final Results"
SECTIONS = ("## Extraction", "## Reasoning", f"## {RESULTS}")

BAR = " | "
ARROW = "->"


class Citation(NamedTuple):
    """A cited item, with or without its value, and the heading and time of its event.

    All are as written in the chain.
    """

    name: str
    heading: str
    time: str


@dataclass(frozen=True, slots=True)
class Chain:
    """The parts of a chain.

    unread: number of extraction lines that are not citations.
    """

    citations: tuple[Citation, ...]
    unread: int
    results: tuple[str, ...]


class FreeText(NamedTuple):
    """A free text of the context, the heading of its event, and the accepted forms of its time."""

    heading: str
    times: frozenset[str]
    text: str


@dataclass(frozen=True, slots=True)
class Citable:
    """The citations that a context supports; it is false if there are none.

    items: (heading, time as written) -> for each such event, its names with and without values.
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
    """Parse a chain; returns None unless it has each section exactly once and in order."""
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
    """Return a chain up to the last line that names its final results, which reveal the answer.

    A chain that does not name them is returned unchanged.
    """
    last = text.rfind(RESULTS)
    return text[: text.rfind("\n", 0, last) + 1].rstrip() if last >= 0 else text


def parse_cases(text: str) -> Chain | None:
    """Parse a chain on a yes/no question.

    Returns None unless it argues for yes and then for no, and cites something for each.
    """
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
    """Return a time in the form that the template uses.

    This is hour and minute for a time within a day before the prediction, otherwise date, hour and
    minute, and "None" for a missing time.
    """
    if time is None:
        return "None"
    within_a_day = timedelta() <= prediction_time - time < timedelta(days=1)
    return time.strftime("%H:%M" if within_a_day else "%Y-%m-%d %H:%M")


def citable(context: Sequence[Event], prediction_time: datetime) -> Citable:
    """Return every citation that the context supports, with each accepted form of its time.

    Names are included with and without each of their values in the event, so that a parser need not
    decide whether the colon in "Stool: culture" begins a value. From a free text, whole words can
    be cited in any case. Events that exist only as text have no items and support no citations.
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
    """Return `Name: value` for each row that shows an item and its value."""
    keys = TABLES[event.table].keys
    position = next((place for place, key in enumerate(keys) if key in VALUE_KEYS), None)
    if position is None:
        return set()
    rows = zip(event.items, event.rows, strict=True)
    return {f"{item}: {row[position]}" for item, row in rows if item and row[position]}


def _stands_in(citation: Citation, text: FreeText) -> bool:
    if citation.heading != text.heading or citation.time not in text.times:
        return False
    words = re.escape(citation.name).replace(r"\ ", r"\s+")  # texts are wrapped between any words
    return re.search(rf"(?<!\w){words}(?!\w)", text.text, re.IGNORECASE) is not None


def faithfulness(chain: Chain, allowed: Citable) -> float:
    """Return the share of extraction lines that the context supports.

    A line is supported if it cites an item of the context (and its value, if given) at its event
    and time. Lines that are not citations count as unsupported; a chain without lines has 0.
    """
    lines = len(chain.citations) + chain.unread
    return sum(citation in allowed for citation in chain.citations) / max(lines, 1)
