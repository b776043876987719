"""Records of your own as a MEDS dataset, from one table of events.

    python examples/to_meds.py events.csv MEDS_FOLDER

events.csv has the columns `subject_id,time,name,value`. Rows named `birth` (at the time of birth)
and `sex` are the patient's; every other row is an event that was known at its time: use the time at
which a result was reported, not the one at which the sample was taken.
"""

import json
import sys
from pathlib import Path

import polars as pl


def to_meds(events: Path, folder: Path) -> None:
    """Write data/, which patients' records are read from, and metadata/."""
    name = pl.col("name")
    code = pl.when(name == "birth").then(pl.lit("MEDS_BIRTH")).otherwise(name)
    number = pl.col("value").cast(pl.Float32, strict=False)
    table = pl.read_csv(events, infer_schema=False).select(
        pl.col("subject_id").cast(pl.Int64),
        pl.col("time").str.to_datetime("%Y-%m-%d %H:%M:%S"),
        pl.when(name == "sex").then("GENDER//" + pl.col("value")).otherwise(code).alias("code"),
        number.alias("numeric_value"),
        pl.when(number.is_null()).then("value").alias("text_value"),
    )
    (folder / "data").mkdir(parents=True, exist_ok=True)
    (folder / "metadata").mkdir(exist_ok=True)
    table.sort("subject_id", "time").write_parquet(folder / "data" / "0.parquet")
    codes = table.select("code").unique().sort("code")  # a description is shown in its place
    described = codes.with_columns(pl.lit(None, pl.String).alias("description"))
    described.write_parquet(folder / "metadata" / "codes.parquet")
    about = {"dataset_name": folder.name, "meds_version": "0.4.1"}
    (folder / "metadata" / "dataset.json").write_text(json.dumps(about))


if __name__ == "__main__":
    to_meds(Path(sys.argv[1]), Path(sys.argv[2]))
