"""An event: rows of one table that share stay and event time, as shown in a record."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Event:
    """Rows of one table, one stay and one event time, limited to what was known at the cut.

    `rows` holds the values in the order of the table's keys (`schema.TABLES[table].keys`), "" if a
    value is missing or not yet known. `items` holds the item name of each row ("" if the table has
    none). `time` is None for demographics; `available_time` is when the latest shown row became
    known. `text` is the Markdown of an event that was read as text; such an event has no rows.
    `silent` counts the following events that print nothing; the EHR-R1 release shows an empty line
    for each of them.
    """

    table: str
    time: datetime | None
    available_time: datetime | None
    rows: tuple[tuple[str, ...], ...]
    items: tuple[str, ...]
    text: str | None = None
    silent: int = 0
