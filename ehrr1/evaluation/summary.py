"""From the table of predictions to flat metrics: models, baselines, intervals, differences.

Nothing here needs a model: rescoring reads predictions.parquet and calls `summarise`.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import polars as pl

from ehrr1.evaluation.bootstrap import Resamples, estimate
from ehrr1.evaluation.scores import Replicates, one_class, parse_failures, score

MODELS = ("untrained", "adapt", "reason", "rl")
"""The stages' models in the order of the curriculum."""

BASELINES = ("frequency", "boosting")

COMPARED = (
    *((later, earlier) for earlier, later in pairwise(MODELS)),
    ("adapt", "frequency"),
    ("adapt", "boosting"),
)
"""Pairs whose difference is told: each stage against the one before, adapt against baselines."""


def summarise(
    predictions: pl.DataFrame, tasks: Sequence[str], replicates: int, seed: int
) -> dict[str, float | int]:
    """All metrics of an evaluation, each with `/low` and `/high`, the 95 % interval.

    `<model>/<metric>` for each model, `baseline/<name>/<metric>`, `<metric>` of the last model of
    the curriculum, `<a>-<b>/<macro>` for paired differences (on the samples that both models
    answered), `parse_failures/<task>` by model, `one_class_tasks` (left out of every macro mean).
    """
    resamples = Resamples.draw(predictions["subject_id"], replicates, seed)
    tables = {str(model): rows for (model,), rows in predictions.group_by("model")}
    scores = {model: score(rows, resamples, tasks) for model, rows in sorted(tables.items())}
    metrics: dict[str, float | int] = {}
    for model, found in scores.items():
        prefix = f"baseline/{model}/" if model in BASELINES else f"{model}/"
        metrics |= _flat(found, prefix)
        if model not in BASELINES:
            failures = parse_failures(tables[model])
            metrics |= {f"{prefix}{name}": count for name, count in failures.items()}
    if (last := last_model(predictions)) is not None:
        metrics |= _flat(scores[last], "")
        metrics |= parse_failures(tables[last])
    for first, second in COMPARED:
        if first in tables and second in tables:
            one = on_common(first, second, tables, scores, resamples, tasks)
            two = on_common(second, first, tables, scores, resamples, tasks)
            metrics |= _flat(difference(one, two), f"{first}-{second}/")
    metrics["one_class_tasks"] = len(one_class(predictions))
    return metrics


def last_model(predictions: pl.DataFrame) -> str | None:
    """The last model of the curriculum that has predictions; None where only baselines have."""
    present = set(predictions["model"].unique())
    return next((model for model in reversed(MODELS) if model in present), None)


def on_common(
    model: str,
    other: str,
    tables: dict[str, pl.DataFrame],
    scores: dict[str, Replicates],
    resamples: Resamples,
    tasks: Sequence[str],
) -> Replicates:
    """A model's scores on the samples that another answered too."""
    rows = tables[model].join(tables[other], on="sample_id", how="semi")
    if len(rows) == len(tables[model]):
        return scores[model]
    return score(rows, resamples, tasks)


def difference(one: Replicates, two: Replicates) -> Replicates:
    """The macro scores of one model minus another's, resample by resample, so that it is paired."""
    return {
        name: values - two[name]
        for name, values in one.items()
        if name.endswith("/macro") and name in two
    }


def _flat(found: Replicates, prefix: str) -> dict[str, float | int]:
    """Estimates and intervals; an interval that no replicate tells (one class) is left out."""
    metrics: dict[str, float | int] = {}
    for name, values in found.items():
        value, low, high = estimate(values)
        numbers = {"": value, "/low": low, "/high": high}
        metrics |= {f"{prefix}{name}{end}": n for end, n in numbers.items() if not math.isnan(n)}
    return metrics
