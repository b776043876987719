"""Events as Markdown, in EHR-R1's format.

    ## Heading [2180-07-23 14:00:00]
    - Key: value                          (one row: a line a key)

    ## Heading [2180-07-23 15:00:00]
    | Key | Key |                         (several rows: a table)
    | ------ | ------ |
    | value | value |

Missing values are left empty. Events of a record are joined by an empty line.
"""

from collections.abc import Sequence

from ehrr1.records.events import Event
from ehrr1.records.schema import TABLES, TEXTS

_HEADINGS = {name: table.heading for name, table in TABLES.items()}
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
    """One event, without a trailing line break."""
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
