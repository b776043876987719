"""An event: rows of one table that share stay and event time, as a reader of the record sees it."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Event:
    """Rows of one table, one stay and one event time, limited to what was known at the cut.

    `rows` holds the values in the order of the table's keys (`schema.TABLES[table].keys`), "" where
    a value is missing or not yet known. `items` holds each row's item name ("" where the table has
    none). `time` is None for demographics; `available_time` is when the latest shown row became
    known. `text` is the Markdown of an event that came as text: it has no rows then. `silent`:
    events behind it that print nothing, of which the EHR-R1 release shows an empty line.
    """

    table: str
    time: datetime | None
    available_time: datetime | None
    rows: tuple[tuple[str, ...], ...]
    items: tuple[str, ...]
    text: str | None = None
    silent: int = 0
