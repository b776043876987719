"""From predictions to scores: per task and macro, each with its bootstrap replicates."""

from collections.abc import Iterator, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ehrr1.evaluation.bootstrap import Resamples
from ehrr1.evaluation.metrics import macro, weighted_auprc, weighted_auroc, weighted_mean
from ehrr1.scoring.sets import set_scores
from ehrr1.tasks.catalog import TASKS

Floats = NDArray[np.float64]
Replicates = dict[str, Floats]
"""Metric name -> [1 + replicates]; the first is the estimate itself."""

MAX_ELEMENTS = 8_000_000
"""Weights held at once (64 MB): larger tasks go through in blocks of replicates."""


def score(predictions: pl.DataFrame, resamples: Resamples, tasks: Sequence[str]) -> Replicates:
    """Score one model's predictions on `tasks`, for the study and all its resamples.

    Names: `<task>/f1|precision|recall` and `decision/f1/macro` (also precision and recall);
    `<task>/auroc|auprc` and `risk/auroc/macro`, `risk/auprc/macro`. A risk task with one class is
    left out, also of the macro mean (see `one_class`). Tasks without predictions are left out, and
    a balanced task has no AUPRC: it depends on the prevalence, which was made up.
    """
    found: Replicates = {}
    for task in tasks:
        rows = predictions.filter(pl.col("task") == task)
        if len(rows) == 0:
            continue
        values = (
            _risk(rows, resamples) if TASKS[task].kind == "risk" else _decision(rows, resamples)
        )
        found |= {f"{task}/{name}": array for name, array in values.items()}
    for kind, names in (("decision", ("f1", "precision", "recall")), ("risk", ("auroc", "auprc"))):
        for name in names:
            arrays = [
                array
                for key, array in found.items()
                if key.endswith(f"/{name}") and TASKS[key.split("/")[0]].kind == kind
            ]
            if arrays:
                found[f"{kind}/{name}/macro"] = macro(arrays)
    return found


def one_class(predictions: pl.DataFrame) -> list[str]:
    """The risk tasks whose targets are all yes or all no: no AUROC can be told for them."""
    targets = predictions.filter(pl.col("task").is_in(_risk_tasks())).group_by("task")
    classes = targets.agg(pl.col("target").n_unique())
    return sorted(classes.filter(pl.col("target") < 2)["task"].to_list())


def parse_failures(predictions: pl.DataFrame) -> dict[str, int]:
    """`parse_failures/<task>`: answers that could not be read, apart from wrong ones."""
    counted = predictions.group_by("task").agg(pl.col("problem").is_not_null().sum())
    return {f"parse_failures/{task}": count for task, count in sorted(counted.iter_rows())}


def _risk_tasks() -> list[str]:
    return [key for key, task in TASKS.items() if task.kind == "risk"]


def _risk(rows: pl.DataFrame, resamples: Resamples) -> Replicates:
    labels = (rows["target"] == "yes").to_numpy()
    if labels.all() or not labels.any():
        return {}
    scores = rows["probability"].to_numpy()
    blocks = [
        (weighted_auroc(scores, labels, weights), weighted_auprc(scores, labels, weights))
        for weights in _weight_blocks(rows, resamples)
    ]
    auroc, auprc = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    return {"auroc": auroc} if rows["balanced"].any() else {"auroc": auroc, "auprc": auprc}


def _decision(rows: pl.DataFrame, resamples: Resamples) -> Replicates:
    pairs = zip(rows["prediction"], rows["target"], strict=True)
    table = np.array([set_scores(said.split("\n"), true.split("\n")) for said, true in pairs])
    blocks = [
        [weighted_mean(column, weights) for column in table.T]
        for weights in _weight_blocks(rows, resamples)
    ]
    columns = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    return dict(zip(("precision", "recall", "f1"), columns, strict=True))


def _weight_blocks(rows: pl.DataFrame, resamples: Resamples) -> Iterator[Floats]:
    """The weights of these samples [.., n], in blocks of replicates."""
    subjects = rows["subject_id"].to_numpy()
    size = max(1, MAX_ELEMENTS // len(rows))
    for start in range(0, len(resamples.counts), size):
        block = Resamples(resamples.patients, resamples.counts[start : start + size])
        yield block.weights(subjects)
