"""Which answers a report shows with their records."""

from dataclasses import dataclass

import polars as pl

from ehrr1.evaluation.summary import BASELINES


@dataclass(frozen=True, slots=True)
class Case:
    """One answer with what it was given to."""

    sample_id: str
    task: str
    result: str
    context: str
    completion: str | None
    prediction: str
    target: str
    probability: float | None


def choose_cases(predictions: pl.DataFrame, number: int) -> pl.DataFrame:
    """At most `number` answers of models: one of each task in turn, right and wrong ones by turns.

    The order of samples is a hash of their names: it is the same every time, and knows no score.
    """
    models = predictions.filter(~pl.col("model").is_in(BASELINES) & (pl.col("draw") == 0))
    right = pl.col("prediction") == pl.col("target")
    return (
        models.with_columns(right=right, order=(pl.col("sample_id") + pl.col("model")).hash(0))
        .sort("order", "sample_id", "model")
        .with_columns(nth=pl.int_range(pl.len()).over("task", "right"))
        .sort("nth", "right", "order", "sample_id", "model")
        .head(number)
        .drop("right", "order", "nth")
    )
