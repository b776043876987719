"""The table of predictions: one row a model and sample; scoring reads nothing else."""

from collections.abc import Iterable, Sequence
from typing import Any

import polars as pl

from ehrr1.tasks.samples import Sample

SCHEMA = pl.Schema(
    {
        "model": pl.String,  # untrained, adapt, reason, rl, or a baseline's name
        "split": pl.String,
        "mode": pl.String,  # direct or think
        "sample_id": pl.String,
        "subject_id": pl.Int64,
        "task": pl.String,
        "probability": pl.Float64,  # of yes; null for decision tasks
        "prediction": pl.String,  # answer lines; yes or no at 0.5 for risk tasks
        "target": pl.String,
        "balanced": pl.Boolean,  # not at natural prevalence: no AUPRC is told
        "problem": pl.String,  # why the answer could not be read; null where it could
    }
)


def prediction_row(
    sample: Sample,
    *,
    mode: str,
    items: Sequence[str],
    probability: float | None = None,
    problem: str | None = None,
) -> dict[str, Any]:
    """One row without its model; items are joined by line breaks."""
    return {
        "split": sample.split,
        "mode": mode,
        "sample_id": sample.sample_id,
        "subject_id": sample.subject_id,
        "task": sample.task,
        "probability": probability,
        "prediction": "\n".join(items),
        "target": "\n".join(sample.target),
        "balanced": sample.balanced,
        "problem": problem,
    }


def risk_row(sample: Sample, probability: float) -> dict[str, Any]:
    """A risk prediction: the probability of yes, and the answer that it means at 0.5."""
    items = ["yes" if probability >= 0.5 else "no"]
    return prediction_row(sample, mode="direct", items=items, probability=probability)


def frame(model: str, rows: Iterable[dict[str, Any]]) -> pl.DataFrame:
    """The rows of one model as a table of `SCHEMA`."""
    return pl.DataFrame([{"model": model, **row} for row in rows], schema=SCHEMA)
