"""The page of one record: the answer beside its base rate, the chain, curves, and the timeline."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from itertools import groupby

from ehrr1.inference.pages.curves import curves
from ehrr1.inference.query import Answer
from ehrr1.prompts.messages import CASES
from ehrr1.reasoning.chain import BAR, SECTIONS, Citation
from ehrr1.reasoning.facts import Citable
from ehrr1.records.events import Event
from ehrr1.records.schema import TABLES
from ehrr1.tasks.context import preamble_length
from ehrr1.web_page import filled

NOT_FOR_CARE = (
    "Research only. Not for clinical use: no decision about a patient may rest on this page."
)
CLOSED = "This page holds patient data that are not open: keep it where the data may be kept."

UNREAD = ' <small class="unread">did not fit the model</small>'


@dataclass(frozen=True, slots=True)
class RecordPage:
    """The content of a page.

    asked: the question in words. time: what the record was known at; None: at its last event.
    rates: how often each item is an answer to the task's question in training samples ("yes" of a
    yes/no question); None where nothing is known of the question. model: the path or name of it.
    """

    asked: str
    time: datetime | None
    record: Sequence[Event]
    answer: Answer
    rates: Mapping[str, float] | None
    model: str
    is_open: bool


def record_page(shown: RecordPage) -> str:
    """Return the page as HTML; texts of the record and of the model are escaped."""
    return filled(
        "ehrr1.inference.pages",
        shown.asked,
        warning="" if shown.is_open else f'<p class="warn">{CLOSED}</p>',
        not_for_care=NOT_FOR_CARE,
        about=escape(_about(shown)),
        answer="\n".join(_answer(shown)),
        chain="\n".join(_chain(shown)),
        curves="\n".join(curves(shown.record, shown.time)) or "<p>No value was measured twice.</p>",
        timeline="\n".join(_timeline(shown.record, _unread(shown))),
    )


def _about(shown: RecordPage) -> str:
    known = f"what was known at {shown.time:%Y-%m-%d %H:%M}" if shown.time else "the whole record"
    cut = shown.answer.cut_events
    lost = f", of which the oldest {cut:,} did not fit the model" if cut else ""
    return f"{len(shown.record):,} events: {known}{lost}. Model: {shown.model}."


def _answer(shown: RecordPage) -> Iterator[str]:
    answer, rates = shown.answer, shown.rates
    if answer.problem:
        yield f'<p class="warn">Problem: {escape(answer.problem)}</p>'
    if answer.probability is not None:
        yield f"<p><strong>{escape(answer.text)}</strong></p>"
        yield _bar("probability of yes", answer.probability, "told")
        if rates is not None:
            yield _bar("yes among training samples of the task", rates.get("yes", 0.0), "base")
        return
    share = "" if rates is None else "<th scope=col>in training samples of the task</th>"
    yield f"<table><thead><tr><th scope=col>answer</th>{share}</tr></thead><tbody>"
    for item in answer.items:
        share = "" if rates is None else f"<td>{rates.get(item, 0.0):.1%}</td>"
        yield f"<tr><td>{escape(item)}</td>{share}</tr>"
    yield "</tbody></table>"


def _bar(name: str, share: float, kind: str) -> str:
    return (
        f'<p class="bar {kind}"><span>{name}</span><b>{share:.1%}</b>'
        f'<i style="width: {100 * share:.1f}%"></i></p>'
    )


def _chain(shown: RecordPage) -> Iterator[str]:
    """Yield the lines of the chain; a citation links to its event, or is marked as not found."""
    chain = shown.answer.chain
    if chain is None:
        yield "<p>The model answered at once, without a chain (answer=think asks for one).</p>"
        return
    times = [event.time for event in shown.record if event.time is not None]
    facts = Citable(shown.record, shown.time or max(times, default=datetime.min))
    places = [at for at, event in enumerate(shown.record) if event.rows]
    citing = False
    for line in filter(None, map(str.strip, chain.splitlines())):
        cells = line.rsplit(BAR, 2)
        if line.startswith("#"):
            citing = line in (SECTIONS[0], *CASES)
            yield f"<h3>{escape(line.lstrip('# '))}</h3>"
        elif len(cells) < 3 or not citing:
            yield f"<p>{escape(line)}</p>"
        elif found := facts.find(Citation(*cells)):
            event = places[found[0].event]
            yield f'<p class="cited"><a href="#event-{event}">{escape(line)}</a></p>'
        else:
            yield f'<p class="missing">{escape(line)} <small>not in the record</small></p>'


def _unread(shown: RecordPage) -> range:
    """Return the positions of the events that the model was not shown.

    A prompt that is too long loses its oldest events, but keeps the preamble.
    """
    first = preamble_length(shown.record)
    return range(first, first + shown.answer.cut_events)


def _timeline(record: Sequence[Event], unread: range) -> Iterator[str]:
    numbered = enumerate(record)
    for day, events in groupby(numbered, key=lambda pair: pair[1].time and pair[1].time.date()):
        yield f"<h3>{day or 'without a time'}</h3>"
        for at, event in events:
            known = TABLES.get(event.table)
            title = known.heading if known else (event.text or "").partition("\n")[0].lstrip("# ")
            time = f"<time>{event.time:%H:%M}</time> " if event.time else ""
            names = ", ".join(dict.fromkeys(filter(None, event.items)))
            mark = UNREAD if at in unread else ""
            yield f'<details id="event-{at}"><summary>{time}{escape(title)}'
            yield f"<small>{escape(names)}</small>{mark}</summary>"
            yield _rows(event, tuple(known.keys) if known else ())
            yield "</details>"


def _rows(event: Event, keys: Sequence[str]) -> str:
    if event.text is not None:
        return f"<pre tabindex=0>{escape(event.text)}</pre>"
    used = [at for at in range(len(keys)) if any(row[at] for row in event.rows)]
    head = "".join(f"<th scope=col>{escape(keys[at])}</th>" for at in used)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(row[at])}</td>" for at in used) + "</tr>"
        for row in event.rows
    )
    return (
        f'<div class="rows" tabindex=0 role=region aria-label="rows of this event"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )
