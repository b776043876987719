"""Events as Markdown, in EHR-R1's format.

    ## Heading [2180-07-23 14:00:00]
    - Key: value                          (one row: a line a key)

    ## Heading [2180-07-23 15:00:00]
    | Key | Key |                         (several rows: a table)
    | ------ | ------ |
    | value | value |

Missing values are left empty. Events of a record are joined by an empty line.

What was written into a cell stays in it, escaped as Markdown has it: `\\|` in a table, `\\## ` and
`\\- Key:` at the beginning of a further line of a value (a note's), which is no heading and no key.
"""

import re
from collections.abc import Sequence
from datetime import datetime
from functools import cache
from itertools import chain

from ehrr1.records.events import Event
from ehrr1.records.schema import TABLES
from ehrr1.records.table_spec import TEXTS

_HEADINGS = {name: table.heading for name, table in TABLES.items()}
_TABLES = {heading: name for name, heading in _HEADINGS.items()}
_HEADING = re.compile(r"## (.+) \[(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d|None)\]")
_KEYS = {name: tuple(table.keys) for name, table in TABLES.items()}
_LINES = {name: tuple(f"- {key}: " for key in keys) for name, keys in _KEYS.items()}
_TABLE_HEADS = {
    name: f"| {' | '.join(keys)} |\n|{' ------ |' * len(keys)}" for name, keys in _KEYS.items()
}
NOT_RELEASED = ("Org_Name",)
"""Keys that the EHR-R1 release does not print; they are the last of their tables."""
LISTED = "Exam_Name"
"""A key that it prints as a Python list."""
_LOOKED_UP = {
    name: {"class", *(lookup.name for lookup in table.lookups)} for name, table in TABLES.items()
}
_RELEASED_MISSING = {
    name: {
        key: "None" if not columns or columns[0] in _LOOKED_UP[name] else "nan"
        for key, columns in table.keys.items()
        if key not in NOT_RELEASED
    }
    for name, table in TABLES.items()
}
_RELEASED_HEADS = {
    name: f"| {' | '.join(keys)} |\n|{' ------ |' * len(keys)}"
    for name, keys in _RELEASED_MISSING.items()
}
_NO_CELL = re.compile(r"[|\n\r]")
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
        lines += [(key + value_lines(value, _KEYS[name])).rstrip() for key, value in cells]
        return "\n".join(lines)
    lines.append(_TABLE_HEADS[name])
    if name in _WITH_TEXT or _NO_CELL.search("".join(chain.from_iterable(rows))):
        rows = tuple(tuple(map(table_cell, row)) for row in rows)
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines)


def released_markdown(event: Event) -> str:
    """One event as the EHR-R1 release prints it, without the line breaks behind it.

    Cells stand as they are, examinations as a list, a missing one as `nan`, or as `None` where the
    release would have looked it up; an event that prints nothing leaves an empty line.
    """
    if event.text is not None:
        return event.text
    missing = _RELEASED_MISSING[event.table]
    rows = [
        [
            str([cell]) if cell and key == LISTED else cell or nothing
            for cell, (key, nothing) in zip(row, missing.items(), strict=False)
        ]
        for row in event.rows
    ]
    if len(rows) == 1:
        lines = [f"- {key}: {cell}" for key, cell in zip(missing, rows[0], strict=True)]
    else:
        lines = [_RELEASED_HEADS[event.table], *(f"| {' | '.join(row)} |" for row in rows)]
    heading = f"## {_HEADINGS[event.table]} [{event.time}]"
    return heading + "\n" + "\n".join(lines) + "\n\n" * event.silent


def table_cell(text: str) -> str:
    """A cell of a table: one line, in which a bar is no border."""
    return " ".join(text.split()).replace("|", "\\|")


def value_lines(value: str, keys: tuple[str, ...]) -> str:
    """A value behind its key: no further line of it passes for a heading or for one of `keys`."""
    if "\n" not in value and "\r" not in value:
        return value
    return _openings(keys).sub(r"\\", value)


@cache
def _openings(keys: tuple[str, ...]) -> re.Pattern[str]:
    """Where a line begins that must be escaped, also one that begins with the escape itself."""
    own = "|".join(map(re.escape, keys))
    return re.compile(rf"(?<=[\n\r])(?=\\*(?:## |- (?:{own}):))")


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
