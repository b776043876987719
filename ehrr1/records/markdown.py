r"""Formatting of events as Markdown, in the format of EHR-R1.

    ## Heading [2180-07-23 14:00:00]
    - Key: value                          (one row: one line per key)

    ## Heading [2180-07-23 15:00:00]
    | Key | Key |                         (several rows: a table)
    | ------ | ------ |
    | value | value |

Missing values are left empty. Events of a record are joined by an empty line.

The content of a cell cannot be mistaken for structure because it is escaped as in Markdown: `\|` in
a table, and `\## ` or `\- Key:` at the beginning of a continuation line of a value (of a note),
which is neither a heading nor a key.
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
"""Keys that the EHR-R1 release does not print; they are the last keys of their tables."""
LISTED = "Exam_Name"
"""Key that the EHR-R1 release prints as a Python list."""
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
    """Return one event as Markdown, without a trailing line break.

    An event that was read as text is returned unchanged.
    """
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
    """Return one event as the EHR-R1 release prints it, without the line breaks behind it.

    Cells are not escaped, and examinations are printed as a list. A missing value is printed as
    `nan`, or as `None` if the release looks the value up in a dictionary. Each event that prints
    nothing leaves an empty line.
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
    """Return the text of a table cell: on one line, with vertical bars escaped."""
    return " ".join(text.split()).replace("|", "\\|")


def value_lines(value: str, keys: tuple[str, ...]) -> str:
    """Return a value with those lines escaped that look like a heading or like one of `keys`."""
    if "\n" not in value and "\r" not in value:
        return value
    return _openings(keys).sub(r"\\", value)


@cache
def _openings(keys: tuple[str, ...]) -> re.Pattern[str]:
    """Return the pattern of line starts to escape, including lines that begin with the escape."""
    own = "|".join(map(re.escape, keys))
    return re.compile(rf"(?<=[\n\r])(?=\\*(?:## |- (?:{own}):))")


def record_markdown(events: Sequence[Event]) -> str:
    """Return all events as Markdown, joined by an empty line."""
    return "\n\n".join(map(event_markdown, events))


def events_of(record: str) -> list[Event]:
    """Split a record that was read as text into events, so that its oldest events can be dropped.

    `record_markdown` of the result reproduces the text exactly. `table` is the table of the
    heading, or "" if the heading is unknown; `time` is None if the event has no valid time.
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
