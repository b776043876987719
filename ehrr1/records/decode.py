"""Decoding of the store's rows into tables for the exports, by ranges of patients."""

from collections.abc import Iterator

import numpy as np
import polars as pl

from ehrr1.records.store import Store
from ehrr1.records.store_schema import NO_ID, NO_TIME, STORE_SCHEMA

ROWS_AT_ONCE = 250_000
"""Approximate number of rows held at a time; a patient with more rows is held whole."""


def store_frames(store: Store, rows_at_once: int = ROWS_AT_ONCE) -> Iterator[pl.DataFrame]:
    """Yield all rows in the order of the store, in frames that hold whole patients.

    Columns are those of `mimic.STORE_SCHEMA`; missing ids, `late_time` and names are null. `order`
    is the position of the row among the patient's rows: it keeps simultaneous rows in their order
    when the store is built from them again.
    """
    for number in range(len(store.shards)):
        shard = store.shard(number)
        rows = pl.scan_ipc(shard.folder / "rows.arrow", glob=False)
        names = pl.Series("name", shard.names[:-1], dtype=pl.String)
        for first, last in _ranges([p.last for p in shard.patients.values()], rows_at_once):
            yield decoded(rows.slice(first, last - first).collect(), names)


def _ranges(ends: list[int], rows_at_once: int) -> Iterator[tuple[int, int]]:
    """Yield ranges `[first, last)` of about `rows_at_once` rows that contain whole patients."""
    places = np.unique(ends)
    first = 0
    while first < (places[-1] if len(places) else 0):
        fitting = int(np.searchsorted(places, first + rows_at_once, "right")) - 1
        last = int(places[max(fitting, int(np.searchsorted(places, first, "right")))])
        yield first, last
        first = last


def decoded(rows: pl.DataFrame, names: pl.Series) -> pl.DataFrame:
    """Return stored rows with names in place of codes and null in place of sentinel numbers."""

    def named(column: str) -> pl.Series:
        codes = rows[column]
        return names.gather(codes.set(codes < 0, None)).alias(column)

    no_time = pl.lit(NO_TIME).cast(pl.Datetime("us"))
    return rows.with_columns(
        pl.col("hadm_id", "stay_id").replace(NO_ID, None),
        pl.when(pl.col("late_time") != no_time).then("late_time").alias("late_time"),
        named("item"),
        named("class"),
        pl.int_range(pl.len()).over("subject_id").cast(pl.Int64).alias("order"),
    ).select(*STORE_SCHEMA)
