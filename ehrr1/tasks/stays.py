"""Hospital stays of a patient in turn: which one is in progress at a time."""

import polars as pl

from ehrr1.records.hindsight import END

FOUND = ("subject_id", "after", "by", "over", "in_progress")


def stays_in_turn(admissions: pl.DataFrame) -> pl.DataFrame:
    """The stays of each patient without overlap, by time: nested ones are part of the outer one.

    Columns: `subject_id, in_progress` (the `hadm_id`), `after` (in progress from then on, not with
    it), `by` (in progress from then on, and at it), `over` (until then, and at it; null: nobody
    knows). A stay that begins in another one is in progress when that is over; one without an end
    lasts until the next begins.
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
