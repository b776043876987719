"""`eval.matching=release`: scores of decisions as the release computes them, beside each row."""

import polars as pl

from ehrr1.scoring.release import release_scores
from ehrr1.tasks.catalog import ALL_TASKS

MATCHED = "matched"
"""A column beside those of `predictions.SCHEMA`: precision, recall and F1 of a decision; null, and
in tables without it, where they are ours."""


def with_matches(predictions: pl.DataFrame, matching: str) -> pl.DataFrame:
    """The predictions with `MATCHED`, where `matching` is the release's."""
    if matching != "release":
        return predictions
    columns = ("task", "completion", "prediction", "target")
    found = [
        list(release_scores(task, said if completion is None else completion, target))
        if ALL_TASKS[task].kind == "decision" and ALL_TASKS[task].target != "text"
        else None
        for task, completion, said, target in predictions.select(columns).iter_rows()
    ]
    return predictions.with_columns(pl.Series(MATCHED, found, dtype=pl.List(pl.Float64)))
