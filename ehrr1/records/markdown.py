"""Events as Markdown, in EHR-R1's format.

    ## Heading [2180-07-23 14:00:00]
    - Key: value                          (one row: a line a key)

    ## Heading [2180-07-23 15:00:00]
    | Key | Key |                         (several rows: a table)
    | ------ | ------ |
    | value | value |

Missing values are left empty. Events of a record are joined by an empty line.
"""

import re
from collections.abc import Sequence
from datetime import datetime

from ehrr1.records.events import Event
from ehrr1.records.schema import TABLES
from ehrr1.records.table import TEXTS

_HEADINGS = {name: table.heading for name, table in TABLES.items()}
_TABLES = {heading: name for name, heading in _HEADINGS.items()}
_HEADING = re.compile(r"## (.+) \[(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d|None)\]")
_KEYS = {name: tuple(table.keys) for name, table in TABLES.items()}
_LINES = {name: tuple(f"- {key}: " for key in keys) for name, keys in _KEYS.items()}
_TABLE_HEADS = {
    name: f"| {' | '.join(keys)} |\n|{' ------ |' * len(keys)}" for name, keys in _KEYS.items()
}
_WITH_TEXT = frozenset(
    name
    for name, table in TABLES.items()
    if any(TEXTS.intersection(columns) for columns in table.keys.values())
)


def event_markdown(event: Event) -> str:
    """One event, without a trailing line break; as it came, where it came as text."""
    if event.text is not None:
        return event.text
    name, rows = event.table, event.rows
    lines = [f"## {_HEADINGS[name]} [{event.time}]"]
    if not _KEYS[name]:
        return lines[0]
    if len(rows) == 1:
        cells = zip(_LINES[name], rows[0], strict=True)
        lines += [(key + value).rstrip() for key, value in cells]
        return "\n".join(lines)
    lines.append(_TABLE_HEADS[name])
    if name in _WITH_TEXT:
        # A cell of a table is one line.
        rows = tuple(
            tuple(" ".join(cell.replace("|", "/").split()) for cell in row) for row in rows
        )
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines)


def record_markdown(events: Sequence[Event]) -> str:
    """All events, joined by an empty line."""
    return "\n\n".join(map(event_markdown, events))


def events_of(record: str) -> list[Event]:
    """A record that came as text, event by event, so that a long one can lose its oldest events.

    `record_markdown` gives exactly the text again. The table is that of the heading, "" where the
    heading is none of ours; an event without a readable time has none.
    """
    return [_event_of(part) for part in re.split(r"\n\n(?=## )", record)]


def _event_of(text: str) -> Event:
    heading = _HEADING.match(text)
    table = _TABLES.get(heading[1], "") if heading else ""
    time = None
    if heading and heading[2] != "None":
        try:
            time = datetime.fromisoformat(heading[2])
        except ValueError:  # digits, but no time
            time = None
    return Event(table, time, None, (), (), text)
