"""The columns of the store and the numbers that represent null in them."""

import polars as pl

STORE_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    **dict.fromkeys(("subject_id", "hadm_id", "stay_id"), pl.Int64),
    "table": pl.UInt8,
    **dict.fromkeys(("event_time", "available_time", "late_time"), pl.Datetime("us")),
    **dict.fromkeys(("item", "class"), pl.String),
    "order": pl.Int64,
    "values": pl.String,
}
"""Columns of a row of the store.

They are the ids of patient and stays, the number of the table in `schema.ORDER`, the times
(`late_time`: when the late columns are known, null if none are late), the names of item and class,
the position among the rows of an event, and the shown values joined by `SEPARATOR`.
"""

NO_ID = -1
NO_CODE = -1
"""Values that represent null in the other integer columns of the store."""

NO_TIME = -62_135_596_800_000_000
"""Year 1 in microseconds since 1970, which represents null in the store's times."""

NEVER = 253_370_764_800_000_000
"""Year 9999 in microseconds since 1970: the late time of a total whose interval has no end."""
