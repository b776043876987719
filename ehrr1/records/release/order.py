"""Order of a patient's rows in the release's list of events (`data.protocol=paper`).

The release sorts a patient's rows by time and forms an event from consecutive rows of one table.
The following rules were inferred from a folder that its own code wrote (`docs/paper.md`):

- Rows of one time are ordered by module, then by stay, then by table. The release takes the tables
  in the order of its directory listing, which cannot be reproduced; `TIES` is the order in that
  folder. Rows of one table and time keep the order of their file.
- Rows for which it finds no time (`hcpcsevents`; cultures without a `charttime`) follow the
  patient's first row and are repeated at the end, twice in both places: in reverse order, then in
  order. In the list, cultures have no time either (`NO_TIME`), and `hcpcsevents` have the time of
  their date.
- Coded discharge diagnoses and DRG codes follow the last row of their stay.
"""

import polars as pl

from ehrr1.records.schema import ORDER, TABLES
from ehrr1.records.store_schema import NO_TIME

TIES = (
    *("admissions", "transfers", "services", "procedures_icd", "omr", "microbiologyevents"),
    *("labevents", "emar", "poe", "pharmacy", "prescriptions", "hcpcsevents"),
    *("edstays", "triage", "medrecon", "pyxis", "vitalsign", "diagnosis"),
    *("icustays", "datetimeevents", "procedureevents", "chartevents", "inputevents"),
    *("outputevents", "ingredientevents", "radiology", "discharge", "diagnoses_icd", "drgcodes"),
)
"""Order of the tables among rows of one time, module and stay."""

CODED = tuple(ORDER.index(name) for name in ("diagnoses_icd", "drgcodes"))
"""Tables without any time, whose rows stand at the end of their stay."""
WITHOUT_TIME = ORDER.index("hcpcsevents")
CULTURES = ORDER.index("microbiologyevents")

RANKS = {ORDER.index(name): rank for rank, name in enumerate(TIES)}
MODULES = {
    number: ("hosp", "ed", "icu", "note").index(TABLES[ORDER[number]].module) for number in RANKS
}

WITHIN = ("module", "stay_id", "rank")
"""Sort keys of rows of one place or time, before the order of the file."""


def listed(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of some patients with `order`, their position in the release's list.

    `rows` stand, table by table, in the order of their files. They have the columns of the store
    and, if the input provides it, `dated`: whether the row's time is a date that replaces a missing
    time.
    """
    columns = [name for name in rows.columns if name != "dated"]
    dated = pl.col("dated") if "dated" in rows.columns else pl.lit(False)
    culture = (pl.col("table") == CULTURES) & dated
    no_time = pl.lit(NO_TIME).cast(pl.Datetime("us"))
    rows = rows.with_columns(
        pl.col("table").replace_strict(MODULES, return_dtype=pl.UInt8).alias("module"),
        pl.col("table").replace_strict(RANKS, return_dtype=pl.UInt8).alias("rank"),
        pl.col("table").is_in(CODED).alias("coded"),
        (culture | (pl.col("table") == WITHOUT_TIME)).alias("loose"),
        pl.when(culture).then(no_time).otherwise("event_time").alias("event_time"),
    )
    timed = rows.filter(~pl.col("coded") & ~pl.col("loose"))
    # Even numbers are the places of rows with a time; odd numbers lie between them.
    place = (2 * pl.int_range(pl.len(), dtype=pl.Int64)).over("subject_id").alias("place")
    timed = timed.sort("subject_id", "event_time", *WITHIN, maintain_order=True)
    timed = timed.with_columns(place)
    placed = pl.concat([timed, *_loose(rows.filter("loose"), timed)])
    placed = pl.concat([placed, _behind_their_stay(rows.filter("coded"), placed)])
    placed = placed.sort("subject_id", "place", "coded", *WITHIN, maintain_order=True)
    order = pl.int_range(pl.len(), dtype=pl.Int64).over("subject_id").alias("order")
    return placed.with_columns(order).select(columns)


def _loose(rows: pl.DataFrame, timed: pl.DataFrame) -> list[pl.DataFrame]:
    """Return the rows without a time, placed behind the patient's first row and at the end."""
    ends = timed.group_by("subject_id").agg((pl.col("place").max() + 1).alias("end"))
    rows = rows.join(ends, on="subject_id", how="left", maintain_order="left")
    rows = pl.concat([rows.reverse(), rows])
    front = rows.with_columns(pl.lit(1, pl.Int64).alias("place"))
    back = rows.with_columns(pl.col("end").fill_null(1).alias("place"))
    return [front.drop("end"), back.drop("end")]


def _behind_their_stay(rows: pl.DataFrame, placed: pl.DataFrame) -> pl.DataFrame:
    """Give rows of codes the place of their stay's last row; rows of an unknown stay come last."""
    stays = placed.group_by("subject_id", "hadm_id").agg(pl.col("place").max())
    rows = rows.join(stays, on=["subject_id", "hadm_id"], how="left", maintain_order="left")
    return rows.with_columns(pl.col("place").fill_null(2**62))
