"""Types with which `schema` describes one table of MIMIC-IV."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

Context = Literal["always", "yes", "earlier", "no"]
Classes = Literal["ccs_diagnoses", "ccs_procedures", "atc"]


@dataclass(frozen=True, slots=True)
class At:
    """A time: `column` of the row itself, or of its admission (`hadm_id`) or ED stay (`stay_id`).

    `end_of_day` moves a date to the end of that day, since dated facts are known when the day is
    over. `plus` is added to the time.
    """

    column: str
    of: Literal["admissions", "edstays"] | None = None
    end_of_day: bool = False
    plus: timedelta = timedelta(0)


@dataclass(frozen=True, slots=True)
class Lookup:
    """A dictionary file: its `value` column, joined on equal columns `on`, is added as `name`."""

    module: str
    file: str
    on: dict[str, str]
    """Column of the row -> column of the dictionary."""
    value: str
    name: str
    only: tuple[str, str] | None = None
    """Restriction to the dictionary's rows whose column (first) has this value (second)."""
    optional: bool = False
    """Whether the file may be missing; names are then null."""


@dataclass(frozen=True, slots=True)
class Table:
    """One table of MIMIC-IV; times are naive, as in the files (shifted per patient)."""

    name: str
    module: str
    heading: str
    keys: dict[str, tuple[str, ...]]
    """Key as shown -> its columns, of which the first non-null one is shown; in the order shown."""
    event_time: tuple[At, ...]
    """Candidates for the event's time; the first non-null one is used."""
    known_at: tuple[At, ...] = ()
    """Candidates for when the row became known; the first non-null one is used.

    If empty, the row is known at its event time.
    """
    not_before: tuple[At, ...] = ()
    """Times before which the row is not known: dated facts are known when the day is over."""
    entered: bool = False
    """Whether the row is known from its entry in other tables (`records.hindsight.entered`)."""
    delay: timedelta = timedelta(0)
    """Assumed delay until an event is known if no time of knowledge is recorded (counted)."""
    context: Context = "yes"
    """When rows are shown.

    "yes": in a window; "earlier": only those of earlier stays; "no": never; "always": before all
    others.
    """
    item: tuple[str, ...] = ()
    """Columns that name a row; the first non-null one is used."""
    classes: Classes | None = None
    """Map that provides a row's class (CCS or ATC) as the column `class`."""
    lookups: tuple[Lookup, ...] = ()
    late: tuple[str, ...] = ()
    """Keys that become known at `late_known_at`, such as totals over an interval."""
    late_known_at: tuple[At, ...] = ()
    late_items: frozenset[str] = frozenset()
    """Items whose rows have late keys; if empty, all."""
    until_then: str = ""
    """Text shown for a late key, and for the item if there are `late_items`, until it is known."""
    hadm: bool = True
    stay: bool = False
    order_by: str | None = None
    """Numeric column that orders the rows of one event, before the item's name."""
    unique: str | None = None
    """Column whose values must not repeat."""
    inpatient: bool = False
    """Whether rows exist for admitted patients only, so that a row reveals an admission."""
    extra: tuple[str, ...] = ()
    """Further columns that the labels need; never shown."""

    @property
    def late_positions(self) -> tuple[int, ...]:
        """Return the positions of the late keys among the keys."""
        return tuple(position for position, key in enumerate(self.keys) if key in self.late)


NUMBERS = frozenset(
    (
        *("temperature", "heartrate", "resprate", "o2sat", "sbp", "dbp", "valuenum"),
        *("pain", "acuity", "ref_range_lower", "ref_range_upper", "amount", "rate", "value"),
    )
)
"""Columns of numbers: "60.0" and 60 are shown alike; text in them is kept unchanged."""

TEXTS = frozenset({"text"})
"""Columns of free text, in which line breaks are kept."""
