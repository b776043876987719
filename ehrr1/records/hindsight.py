"""Correction of columns that MIMIC-IV fills in retrospectively: stay ends, orders, types.

Three columns of the tables differ from what their names suggest.

- `admissions.dischtime` is not the end of the stay: for patients who died it is often 00:00 of the
  day of death, hours before `deathtime`; the discharge itself is recorded in `transfers`, minutes
  later. A stay ends with the latest time that any table records for it (`stay_ends`).
- `prescriptions.starttime` is often backdated. A prescription is known when it was entered
  (`pharmacy.entertime` by `pharmacy_id`, or `poe.ordertime` by `poe_id` if that is earlier), and
  not before its start (`entered`).
- `admissions.admission_type` is the final type. A stay that begins under observation becomes
  "OBSERVATION ADMIT" by the order to admit the patient (`poe_detail`: "Admit category"); before
  that order the type would reveal how the stay ends (`converted`).
"""

from collections import Counter

import polars as pl

from ehrr1.records.reading import Folder, as_id, read_batches
from ehrr1.records.schema import ORDER, TABLES

END = "end_of_stay"
"""Column of `admissions` that `stay_ends` adds."""

CONVERSION = ("Admit category", "Admit to inpatient")
"""Field and value of `poe_detail` that mark an order to admit a patient."""
CONVERTED = "OBSERVATION ADMIT"
"""Admission type of an observation stay that ended with such an order."""

MICROSECONDS = pl.Datetime("us")

DEPENDS_ON = (
    *("subject_id", "hadm_id", "order", "link", "item"),
    *("event_time", "available_time", "late_time"),
)
"""Columns of a row that determine when it is known."""


def stay_ends(
    admissions: pl.DataFrame, transfers: pl.DataFrame | None, icustays: pl.DataFrame | None
) -> pl.DataFrame:
    """Add `end_of_stay`: the latest of discharge, death, discharge transfer and last unit left.

    `transfers` has `hadm_id, eventtype, intime, outtime` and `icustays` has `hadm_id, outtime`;
    either is None if the table is missing. `end_of_stay` is null if neither discharge, death nor a
    discharge transfer is recorded, and if all recorded times precede the admission, since such an
    end is not credible.
    """
    moves = [pl.DataFrame(schema={"hadm_id": pl.Int64, "left": MICROSECONDS, "gone": MICROSECONDS})]
    left = pl.col("outtime").alias("left")
    if transfers is not None:
        discharged = pl.col("eventtype").str.to_lowercase() == "discharge"
        gone = pl.when(discharged).then("intime").alias("gone")
        moves.append(transfers.select("hadm_id", left, gone))
    if icustays is not None:
        nowhere = pl.lit(None, MICROSECONDS).alias("gone")
        moves.append(icustays.select("hadm_id", left, nowhere))
    latest = pl.concat(moves).drop_nulls("hadm_id").group_by("hadm_id").agg(pl.all().max())
    recorded = pl.max_horizontal("dischtime", "deathtime", "gone")
    end = pl.max_horizontal(recorded, "left")
    believed = recorded.is_not_null() & (end >= pl.col("admittime"))
    return (
        admissions.join(latest, on="hadm_id", how="left", maintain_order="left")
        .with_columns(pl.when(believed).then(end).alias(END))
        .drop("left", "gone")
    )


def entered(rows: pl.DataFrame, table: str) -> tuple[pl.DataFrame, pl.Series]:
    """Move `available_time` of the rows of `table` to the time of entry, if that is later.

    `rows` are all rows of some patients as `MimicFolder.rows` yields them. In `pharmacy`, `order`
    is the `pharmacy_id` and the event time is the time of entry; in `poe`, `order` is the sequence
    number of the order, to which `link` of a prescription refers. Returns the rows, and the patient
    of each row for which neither file records the entry (one `subject_id` per row); these rows use
    the delay of the table.
    """
    places, own = _of_table(rows, table)
    for key, source, name in (("order", "pharmacy", "entered"), ("link", "poe", "ordered")):
        _, theirs = _of_table(rows, source)
        number = pl.col("order").cast(own.schema[key], strict=False).alias(key)
        times = (
            theirs.select("subject_id", number, pl.col("event_time").alias(name))
            .join(own, on=["subject_id", key], how="semi")  # few orders are drug orders
            .group_by("subject_id", key)
            .agg(pl.col(name).min())
        )
        own = own.join(times, on=["subject_id", key], how="left", maintain_order="left")
    own = own.with_columns(pl.min_horizontal("entered", "ordered").alias("known"))
    assumed = pl.col("event_time") + TABLES[table].delay
    times = own.select(pl.max_horizontal("event_time", pl.col("known").fill_null(assumed)))
    unknown = own.filter(pl.col("known").is_null())["subject_id"]
    return _replaced(rows, "available_time", places, times.to_series()), unknown


def admit_orders(folder: Folder) -> pl.DataFrame:
    """Read the numbers (`subject_id, order`) of the orders to admit a patient."""
    columns = ["subject_id", "poe_seq", "field_name", "field_value"]
    field, value = CONVERSION
    admit = (pl.col("field_name") == field) & (pl.col("field_value") == value)
    found = [pl.DataFrame(schema={"subject_id": pl.Int64, "order": pl.Int64})]
    paths = folder.find("hosp", "poe_detail")
    for batch in read_batches(paths, columns, Counter()) if paths else ():
        part = batch.filter(admit)
        found.append(part.select(as_id(part["subject_id"]), as_id(part["poe_seq"]).alias("order")))
    return pl.concat(found)


def converted(rows: pl.DataFrame, orders: pl.DataFrame) -> pl.DataFrame:
    """Move `late_time` of converted observation stays back to the order that converted them.

    `orders` (`subject_id, order`) are the numbers of the orders to admit a patient.
    """
    _, poe = _of_table(rows, "poe")
    first = (
        poe.join(orders, on=["subject_id", "order"], how="semi")
        .group_by("subject_id", "hadm_id")
        .agg(pl.col("event_time").min().alias("ordered"))
    )
    places, stays = _of_table(rows, "admissions")
    stays = stays.join(first, on=["subject_id", "hadm_id"], how="left", maintain_order="left")
    decided = pl.min_horizontal(pl.max_horizontal("ordered", "available_time"), "late_time")
    was_converted = (pl.col("item") == CONVERTED) & pl.col("ordered").is_not_null()
    late = stays.select(pl.when(was_converted).then(decided).otherwise("late_time"))
    return _replaced(rows, "late_time", places, late.to_series())


def _of_table(rows: pl.DataFrame, table: str) -> tuple[pl.Series, pl.DataFrame]:
    """Return the positions of a table's rows, and the columns that determine their times."""
    own = pl.col("table") == ORDER.index(table)
    # The lazy filter is ten times as fast as the eager one for a frame of many chunks.
    found = rows.lazy().filter(own).select(DEPENDS_ON).collect()
    return rows.select(own.arg_true()).to_series(), found


def _replaced(
    rows: pl.DataFrame, column: str, places: pl.Series, values: pl.Series
) -> pl.DataFrame:
    return rows.with_columns(rows[column].scatter(places, values)) if len(places) else rows
