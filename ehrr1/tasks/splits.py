"""Splits by patient: all records of a patient are in one split, whatever their module."""

from collections.abc import Mapping

import numpy as np
import polars as pl

SPLITS = ("train", "validation", "test")


def split_patients(
    subjects: pl.Series,
    *,
    validation: float,
    test: float,
    seed: int,
    named: Mapping[str, pl.Series] | None = None,
) -> pl.DataFrame:
    """Return the columns `subject_id, split`, sorted by patient; shares are exact to one patient.

    `named` maps a split to its patients, which replace its share. The shares of the other splits
    refer to all patients, and are drawn from those that no split names. The draw depends on the set
    of patients and the seed, not on their order.
    """
    named = named or {}
    ids = subjects.unique().sort()
    taken = pl.concat([ids.head(0), *named.values()])
    rest = ids.filter(~ids.is_in(taken.implode()))
    n_validation, n_test = (
        0 if split in named else round(share * len(ids))
        for split, share in (("validation", validation), ("test", test))
    )
    place = np.empty(len(rest), dtype=np.int64)
    place[np.random.default_rng(seed).permutation(len(rest))] = np.arange(len(rest))
    frame = pl.DataFrame({"subject_id": rest, "place": place})
    split = (
        pl.when(pl.col("place") < n_test)
        .then(pl.lit("test"))
        .when(pl.col("place") < n_test + n_validation)
        .then(pl.lit("validation"))
        .otherwise(pl.lit("train"))
    )
    drawn = frame.select("subject_id", split.alias("split"))
    given = [
        pl.DataFrame({"subject_id": ids.filter(ids.is_in(patients.implode()))}).with_columns(
            pl.lit(name).alias("split")
        )
        for name, patients in named.items()
    ]
    return pl.concat([drawn, *given]).sort("subject_id")
