"""Risk predictions in MEDS-Evaluation's schema."""

from datetime import datetime
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from ehrr1.evaluation.meds_export import export
from tests.test_report_page import RISK, predictions

FIELDS = {
    "subject_id": pa.int64(),
    "prediction_time": pa.timestamp("us"),
    "boolean_value": pa.bool_(),
    "predicted_boolean_value": pa.bool_(),
    "predicted_boolean_probability": pa.float64(),
}
"""What meds_evaluation.schema.PredictionSchema names; it takes 32-bit floats, and casts ours."""


def test_a_file_a_result_and_risk_task_and_nothing_else(tmp_path: Path) -> None:
    table = predictions({"rl": 1.0, "rl:both-list": 1.0, "boosting": 1.0}, patients=12)
    folder = tmp_path / "meds"
    (folder / "old").mkdir(parents=True)
    export(table, folder)
    places = {str(path.relative_to(folder)) for path in folder.rglob("*.parquet")}
    results = ("rl", "rl-both-list", "boosting")
    assert places == {f"{name}/{task}.parquet" for name in results for task in RISK}
    assert [path.name for path in tmp_path.iterdir()] == ["meds"] and not (folder / "old").exists()
    for place in places:
        schema = pq.read_schema(folder / place)
        assert dict(zip(schema.names, schema.types, strict=True)) == FIELDS


def test_values_are_those_of_the_predictions(tmp_path: Path) -> None:
    table = predictions({"rl": 1.0}, patients=12).filter(pl.col("task") == RISK[0])
    untold = pl.col("sample_id").str.ends_with("/5")
    probability = pl.when(untold).then(None).otherwise("probability")
    table = table.with_columns(probability=probability)
    export(table, tmp_path / "meds")
    there = pl.read_parquet(tmp_path / "meds" / "rl" / f"{RISK[0]}.parquet")
    told = table.filter(~untold)
    assert len(there) == len(told) == 35 and there.null_count().sum_horizontal().item() == 0
    assert there["predicted_boolean_probability"].equals(
        told["probability"].alias("predicted_boolean_probability")
    )
    assert there["boolean_value"].to_list() == [target == "yes" for target in told["target"]]
    guessed = there["predicted_boolean_value"] == (there["predicted_boolean_probability"] >= 0.5)
    assert guessed.all()
    assert isinstance(there["prediction_time"][0], datetime)
