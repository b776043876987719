"""Hospital stays of a patient without overlaps, to find the stay in progress at a time."""

import polars as pl

from ehrr1.records.hindsight import END

FOUND = ("subject_id", "after", "by", "over", "in_progress")


def stays_in_turn(admissions: pl.DataFrame) -> pl.DataFrame:
    """Return each patient's stays without overlap, by time; nested ones belong to the outer one.

    Columns: `subject_id, in_progress` (the `hadm_id`), `after` (in progress after this time), `by`
    (in progress from this time on, inclusive), `over` (in progress until this time, inclusive;
    null: unknown). A stay that begins within another one is in progress when that one is over; a
    stay without an end lasts until the next begins.
    """
    began = (
        admissions.filter(pl.col("admittime").is_not_null())
        .sort("subject_id", "admittime", "hadm_id")
        .with_columns(
            pl.coalesce(END, pl.col("admittime").shift(-1).over("subject_id")).alias("over")
        )
        .with_columns(pl.col("over").cum_max().shift().over("subject_id").alias("covered"))
    )
    begin, covered = pl.col("admittime"), pl.col("covered")
    alone = covered.is_null() | (begin > covered)
    return (
        began.filter(covered.is_null() | pl.col("over").is_null() | (pl.col("over") > covered))
        .with_columns(
            pl.max_horizontal(begin, covered).alias("after"),
            pl.when(alone).then(begin).otherwise(covered + pl.duration(microseconds=1)).alias("by"),
            pl.col("hadm_id").alias("in_progress"),
        )
        .select(FOUND)
    )
