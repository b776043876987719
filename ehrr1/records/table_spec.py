"""What one table of MIMIC-IV is: the words in which `schema` describes it."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

Context = Literal["always", "yes", "earlier", "no"]
Classes = Literal["ccs_diagnoses", "ccs_procedures", "atc"]


@dataclass(frozen=True, slots=True)
class At:
    """A time: `column` of the row itself, or of its admission (`hadm_id`) or ED stay (`stay_id`).

    `end_of_day` turns a date into the end of that day: what is dated is known when the day is over.
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
    """Keep the dictionary's rows whose column (first) has this value (second)."""
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """One table of MIMIC-IV. Times are naive, as in the files (shifted per patient)."""

    name: str
    module: str
    heading: str
    keys: dict[str, tuple[str, ...]]
    """Key as shown -> its columns, the first with a value counts; in the order shown."""
    event_time: tuple[At, ...]
    """The first that is there is the event's time."""
    known_at: tuple[At, ...] = ()
    """The first that is there says when the row became known; empty: at its event time."""
    not_before: tuple[At, ...] = ()
    """Known no sooner than these: what is dated by a day is not known before the day is over."""
    entered: bool = False
    """Known when it was entered, which other tables say (`records.hindsight.entered`)."""
    delay: timedelta = timedelta(0)
    """Assumed between event and knowledge where nothing says when it became known (counted)."""
    context: Context = "yes"
    """"yes": in a window; "earlier": only of earlier stays; "no": never; "always": first of all."""
    item: tuple[str, ...] = ()
    """The columns that name a row, the first with a value counts."""
    classes: Classes | None = None
    """The map that gives a row's class (CCS or ATC) as the column `class`."""
    lookups: tuple[Lookup, ...] = ()
    late: tuple[str, ...] = ()
    """Keys that are known at `late_known_at`: totals over an interval that is still running."""
    late_known_at: tuple[At, ...] = ()
    late_items: frozenset[str] = frozenset()
    """The items whose rows have late keys; empty: all."""
    until_then: str = ""
    """What a late key, and the item if there are `late_items`, say until then."""
    hadm: bool = True
    stay: bool = False
    order_by: str | None = None
    """The number column that orders rows of one event as in the hospital; then the item's name."""
    unique: str | None = None
    """The column that must not repeat."""
    inpatient: bool = False
    """Written for admitted patients only: that a row is there says that there is an admission."""
    extra: tuple[str, ...] = ()
    """Further columns that the labels need; never shown."""

    @property
    def late_positions(self) -> tuple[int, ...]:
        """Where the late keys stand among the keys."""
        return tuple(position for position, key in enumerate(self.keys) if key in self.late)


NUMBERS = frozenset(
    (
        *("temperature", "heartrate", "resprate", "o2sat", "sbp", "dbp", "valuenum"),
        *("pain", "acuity", "ref_range_lower", "ref_range_upper", "amount", "rate", "value"),
    )
)
"""Columns that hold numbers: "60.0" and 60 are shown alike; text in them is kept as it is."""

TEXTS = frozenset({"text"})
"""Columns of free text: line breaks are kept."""
