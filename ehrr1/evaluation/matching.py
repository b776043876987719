"""Scores of decision answers by the release's matching rules (`eval.matching=release`)."""

import polars as pl

from ehrr1.scoring.release import release_scores
from ehrr1.tasks.catalog import ALL_TASKS

MATCHED = "matched"
"""Additional column of the predictions: [precision, recall, F1] of a decision answer.

Where it is null or missing, scores are computed by our own rules.
"""


def with_matches(predictions: pl.DataFrame, matching: str) -> pl.DataFrame:
    """Return the predictions, with the column `MATCHED` if `matching` is "release".

    Risk tasks and free-text tasks have null there.
    """
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
