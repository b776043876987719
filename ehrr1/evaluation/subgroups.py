"""Demographic and care-unit columns of samples, for scores of subgroups."""

from typing import Any

import polars as pl

from ehrr1.evaluation.predictions import SCHEMA, SUBGROUPS
from ehrr1.tasks.samples import Prepared

AGE_BANDS = ((45, "18-44"), (65, "45-64"), (80, "65-79"))
"""The first age in years above a band, and the band; later ages are 80+."""

RACES = ("WHITE", "BLACK", "HISPANIC", "ASIAN")
"""Prefixes of MIMIC's values of `race`; all other values are OTHER."""

LEAST_PATIENTS = 10
"""Minimum number of patients of a subgroup; smaller ones are counted but not scored."""


SOURCES = {
    "sex": ("patients", "subject_id", "gender"),
    "anchor_age": ("patients", "subject_id", "anchor_age"),
    "anchor_year": ("patients", "subject_id", "anchor_year"),
    "race": ("admissions", "hadm_id", "race"),
    "insurance": ("admissions", "hadm_id", "insurance"),
    "care_unit": ("icustays", "stay_id", "first_careunit"),
}
"""Table, key and column of each value that is looked up."""


def with_subgroups(predictions: pl.DataFrame, prepared: Prepared) -> pl.DataFrame:
    """Return the predictions with the columns of `SUBGROUPS` filled from the prepared tables.

    They are null where a table lacks the value, as with a benchmark's own records.
    """
    parents, found = prepared.parents, _stays(prepared, predictions)
    for name, (table, key, column) in SOURCES.items():
        told = pl.lit(None, pl.String).alias(name)
        if table in parents and column in parents[table].columns:
            theirs = parents[table].select(key, pl.col(column).cast(pl.String).alias(name))
            found = found.join(theirs.unique(key), on=key, how="left")
        else:
            found = found.with_columns(told)
    age = (
        pl.col("anchor_age").cast(pl.Int64, strict=False)
        + pl.col("prediction_time").dt.year()
        - pl.col("anchor_year").cast(pl.Int64, strict=False)
    )
    found = found.with_columns(age_band=age_band(age), race=race_group(pl.col("race")))
    groups = found.select("sample_id", *SUBGROUPS)
    kept = predictions.drop(SUBGROUPS)
    return kept.join(groups, on="sample_id", how="left", maintain_order="left").cast(SCHEMA)


def age_band(age: pl.Expr) -> pl.Expr:
    """Return an expression for the band of an age in years; null if the age is null."""
    band: Any = pl.when(age.is_null()).then(None)
    for first, name in AGE_BANDS:
        band = band.when(age < first).then(pl.lit(name))
    return band.otherwise(pl.lit("80+"))


def race_group(race: pl.Expr) -> pl.Expr:
    """Return an expression that groups MIMIC's values of `race` by their prefixes (`RACES`)."""
    group: Any = pl.when(race.is_null()).then(None)
    for name in RACES:
        group = group.when(race.str.to_uppercase().str.starts_with(name)).then(pl.lit(name))
    return group.otherwise(pl.lit("OTHER"))


def _stays(prepared: Prepared, predictions: pl.DataFrame) -> pl.DataFrame:
    """Return the predicted samples with the ids of their patient, admission and stay."""
    wanted = predictions.select(pl.col("sample_id").unique())
    columns = ["sample_id", "subject_id", "hadm_id", "stay_id", "prediction_time"]
    return prepared.scan().select(columns).join(wanted.lazy(), on="sample_id", how="semi").collect()
