"""Export of risk predictions in the schema of MEDS-Evaluation.

meds/<result>/<task>.parquet    subject_id, prediction_time, boolean_value,
                                predicted_boolean_value, predicted_boolean_probability
"""

from pathlib import Path

import polars as pl

from ehrr1.files import replacing

COLUMNS: dict[str, pl.DataType | type[pl.DataType]] = {
    "subject_id": pl.Int64,
    "prediction_time": pl.Datetime("us"),
    "boolean_value": pl.Boolean,
    "predicted_boolean_value": pl.Boolean,
    "predicted_boolean_probability": pl.Float64,
}


def export(predictions: pl.DataFrame, folder: Path) -> None:
    """Write one file per result and risk task; rows without a probability are left out.

    `folder` is replaced as a whole.
    """
    told = predictions.filter(pl.col("probability").is_not_null())
    with replacing(folder) as temporary:
        temporary.mkdir()
        for (result, task), rows in told.group_by("model", "task", maintain_order=True):
            place = temporary / str(result).replace("/", "_").replace(":", "-")
            place.mkdir(exist_ok=True)
            table(rows).write_parquet(place / f"{task}.parquet")


def table(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of one result and task in the schema of MEDS-Evaluation."""
    return rows.select(
        "subject_id",
        "prediction_time",
        boolean_value=pl.col("target") == "yes",
        predicted_boolean_value=pl.col("prediction") == "yes",
        predicted_boolean_probability="probability",
    ).cast(pl.Schema(COLUMNS))
