"""Splits by patient: all records of a patient, whatever the module, stand in one split."""

import numpy as np
import polars as pl

SPLITS = ("train", "validation", "test")


def split_patients(
    subjects: pl.Series, *, validation: float, test: float, seed: int
) -> pl.DataFrame:
    """Columns `subject_id, split`, sorted by patient; shares are exact to one patient.

    The draw depends on the set of patients and the seed, not on their order.
    """
    ids = subjects.unique().sort()
    n_validation, n_test = round(validation * len(ids)), round(test * len(ids))
    place = np.empty(len(ids), dtype=np.int64)
    place[np.random.default_rng(seed).permutation(len(ids))] = np.arange(len(ids))
    frame = pl.DataFrame({"subject_id": ids, "place": place})
    split = (
        pl.when(pl.col("place") < n_test)
        .then(pl.lit("test"))
        .when(pl.col("place") < n_test + n_validation)
        .then(pl.lit("validation"))
        .otherwise(pl.lit("train"))
    )
    return frame.select("subject_id", split.alias("split"))
