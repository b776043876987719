"""Columns as ids, times and text, with marks on the cells that cannot be read."""

import polars as pl

from ehrr1.errors import UserError
from ehrr1.records.reading import as_id, as_text, as_time
from ehrr1.records.schema import MIMIC_TABLES, TABLES

IDS = frozenset({"subject_id", "hadm_id", "stay_id"})
TIMES = frozenset(
    (
        *("admittime", "dischtime", "deathtime", "intime", "outtime", "transfertime", "charttime"),
        *("storetime", "starttime", "endtime", "ordertime", "entertime", "chartdate", "storedate"),
        "dod",
        *(
            at.column
            for table in map(TABLES.__getitem__, MIMIC_TABLES)
            for at in (*table.event_time, *table.known_at, *table.not_before, *table.late_known_at)
        ),
    )
)
"""Columns of times: those by which the schema tells when rows happened, and others."""


def typed(frame: pl.DataFrame, path: str) -> pl.DataFrame:
    """Convert ids to integers, times to datetimes, and everything else to text.

    A row with a malformed id or time is marked in `bad_id` or `bad_time`: an unreadable time of
    death or of storing must not pass for a missing one. Raises UserError if all values of a column
    are malformed, since the file then has another layout.
    """
    columns: list[pl.Series] = []
    no = pl.Series([False]).new_from_index(0, frame.height)
    bad = {"bad_id": no, "bad_time": no}
    for column in frame.get_columns():
        name = column.name
        if name not in IDS and name not in TIMES:
            columns.append(as_text(column))
            continue
        if name in IDS:
            kind, found = "bad_id", as_id(column)
        else:
            kind, found = "bad_time", as_time(column, up=name == "storetime")
        if name in IDS and name != "subject_id":
            found = found.set(found < 0, None)  # the store uses -1 for "none"
        wrong = _unreadable(column, found)
        if wrong.any():
            bad[kind] = bad[kind] | wrong
            if found.null_count() == frame.height:
                raise UserError(f"{path}: the column {name} holds no {_EXPECTED[kind]}")
        columns.append(found)
    return pl.DataFrame([*columns, *(marks.alias(kind) for kind, marks in bad.items())])


_EXPECTED = {
    "bad_id": "whole numbers: are the columns under the right headings?",
    "bad_time": "times such as 2150-07-23 14:00:00: are the columns under the right headings?",
}


def _unreadable(column: pl.Series, found: pl.Series) -> pl.Series:
    """Return a mask of the non-blank cells that could not be parsed.

    `found` holds the parsed values of `column`, null if parsing failed.
    """
    if found.null_count() == column.null_count():
        return pl.Series([False])
    there = column.fill_nan(None) if column.dtype.is_float() else column
    wrong = found.is_null() & there.is_not_null()
    if column.dtype == pl.String:
        wrong &= column.str.strip_chars().fill_null("") != ""
    return wrong
