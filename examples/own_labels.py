"""Labels of your own from MIMIC-IV's tables, as a MEDS label file.

    python examples/own_labels.py MIMIC_FOLDER labels.parquet

Will a potassium of at least 5.0 mEq/L be stored in the second to fourth day of a hospital stay? The
question is asked 24 hours after admission, of every patient who is still there: the time must not
depend on the answer.
"""

import sys
from pathlib import Path

import polars as pl

DAY = pl.duration(days=1)
ASKED = pl.col("prediction_time")


def table(root: str, name: str, *columns: str) -> pl.LazyFrame:
    """Return columns of a table of MIMIC-IV; those with a time are parsed."""
    frame = pl.scan_csv(Path(root, f"{name}.csv.gz"), infer_schema=False).select(columns)
    return frame.with_columns(pl.col("^.*time$").str.to_datetime("%Y-%m-%d %H:%M:%S"))


def labels(root: str) -> pl.DataFrame:
    """Return `subject_id, prediction_time, boolean_value`, one row for each hospital stay."""
    names = table(root, "hosp/d_labitems", "itemid", "label").filter(pl.col("label") == "Potassium")
    results = table(root, "hosp/labevents", "hadm_id", "itemid", "storetime", "valuenum")
    high = results.join(names, on="itemid").filter(pl.col("valuenum").cast(pl.Float64) >= 5.0)
    stays = table(root, "hosp/admissions", "subject_id", "hadm_id", "admittime", "dischtime")
    asked = stays.with_columns((pl.col("admittime") + DAY).alias("prediction_time"))
    asked = asked.filter(pl.col("dischtime") > ASKED)
    later = (pl.col("storetime") > ASKED) & (pl.col("storetime") <= ASKED + 3 * DAY)
    found = asked.join(high, on="hadm_id", how="left").group_by("subject_id", "prediction_time")
    answers = found.agg(later.any().fill_null(False).alias("boolean_value")).collect()
    return answers.with_columns(pl.col("subject_id").cast(pl.Int64)).sort("subject_id")


if __name__ == "__main__":
    labels(sys.argv[1]).write_parquet(sys.argv[2])
