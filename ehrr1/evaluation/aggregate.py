"""From the table of predictions to flat metrics: results, baselines, intervals, differences.

Nothing here needs a model: rescoring reads predictions.parquet and calls `summarise`.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ehrr1.evaluation.bootstrap import Resamples, estimate
from ehrr1.evaluation.calibration import Calibrator, fit_calibrator
from ehrr1.evaluation.predictions import SUBGROUPS
from ehrr1.evaluation.scores import Replicates, counts, one_class, score
from ehrr1.evaluation.subgroups import LEAST_PATIENTS

CURRICULUM = ("untrained", "base", "adapt", "reason", "rl")
"""Models in the order of the curriculum, as they were trained to be asked."""

STARTS = ("untrained", "base")

BASELINES = (
    *("frequency", "list_frequency", "list_only"),
    *("copy", "copy_cut", "knn", "knn_cut", "linear", "linear_cut"),
    *("logistic", "logistic_cut", "boosting", "boosting_cut"),
)

SURE = 0.9998
"""Probabilities beyond it, on either side, are as good as certain (TRIAGE, arXiv 2606.09030)."""

Metrics = dict[str, float | int]
Floats = NDArray[np.float64]


def summarise(
    predictions: pl.DataFrame,
    tasks: Sequence[str],
    split: str,
    replicates: int,
    seed: int,
    compared: Sequence[tuple[str, str]] | None = None,
) -> Metrics:
    """All metrics of an evaluation, each with `/low` and `/high`, the 95 % interval.

    `<result>/<metric>` for each result, `baseline/<name>/<metric>`, `<metric>` of the main result
    (`last_result`), `<a>-<b>/<macro>` for paired differences on the samples that both answered,
    `one_class_tasks` (left out of every macro mean). Only rows of `split` are scored; those of
    the validation split fit the calibrators. `compared`: the pairs whose differences are computed,
    then also those of each task, `<a>-<b>/<task>/<metric>`; None: `pairs`, means over tasks only.
    """
    scored = predictions.filter(pl.col("split") == split)
    resamples = Resamples.draw(scored["subject_id"], replicates, seed)
    tables = {name: scored.filter(pl.col("model") == name) for name in names(scored)}
    maps = calibrators(predictions, split)
    scores = {name: score(rows, resamples, tasks, maps.get(name)) for name, rows in tables.items()}
    metrics: Metrics = {}
    for name, rows in tables.items():
        found = flat(scores[name]) | _alone(rows, maps.get(name))
        found |= subgroup_scores(rows, resamples, tasks)
        metrics |= {prefix_of(name) + key: value for key, value in found.items()}
        if name == last_result(scored):
            metrics |= found
    for first, second in pairs(list(tables)) if compared is None else compared:
        one = on_common(first, second, tables, scores, resamples, tasks)
        two = on_common(second, first, tables, scores, resamples, tasks)
        gaps = flat(difference(one, two, by_task=compared is not None), -1.0)
        metrics |= {f"{first}-{second}/{name}": value for name, value in gaps.items()}
    metrics["one_class_tasks"] = len(one_class(scored))
    return metrics


def calibrators(predictions: pl.DataFrame, split: str) -> dict[str, Calibrator]:
    """Return the calibrator of each result, fitted on the validation split.

    There is none if validation itself is scored, or if a result has no probabilities for it.
    """
    validation = predictions.filter(pl.col("split") == "validation")
    if split == "validation" or validation.is_empty():
        return {}
    tables = validation.partition_by("model", as_dict=True, maintain_order=True)
    fitted = {str(name): fit_calibrator(rows) for (name,), rows in tables.items()}
    return {name: calibrator for name, calibrator in fitted.items() if calibrator is not None}


def names(predictions: pl.DataFrame) -> list[str]:
    """Return the results that have predictions, in their order, baselines last."""
    found = predictions["model"].unique(maintain_order=True).to_list()
    return sorted(found, key=lambda name: name in BASELINES)


def prefix_of(name: str) -> str:
    """Return the prefix of a result's metrics."""
    return f"baseline/{name}/" if name in BASELINES else f"{name}/"


def last_result(predictions: pl.DataFrame) -> str | None:
    """Return the main result, or None where only baselines have answered.

    It is the last stage of the curriculum as it was trained, or without one the last model.
    """
    asked = [name for name in names(predictions) if name not in BASELINES]
    stages = [name for name in CURRICULUM if name in asked]
    return stages[-1] if stages else asked[-1] if asked else None


def pairs(found: Sequence[str]) -> list[tuple[str, str]]:
    """Return the pairs of results whose differences are computed, the later one first.

    They are each stage and those before it (its start only for the first), modes of one model, and
    the first trained and the main model against each baseline.
    """
    asked = [name for name in found if name not in BASELINES]
    stages = [name for name in CURRICULUM if name in asked]
    told = [(b, a) for a, b in combinations(stages, 2) if a not in STARTS or b == stages[1]]
    told += [(b, a) for a, b in combinations(asked, 2) if _model(a) == _model(b)]
    trained = [name for name in stages or asked if name not in STARTS] or asked
    compared = dict.fromkeys([*trained[:1], *trained[-1:]])
    told += [(name, b) for name in compared for b in BASELINES if b in found]
    return list(dict.fromkeys(told))


def on_common(
    name: str,
    other: str,
    tables: Mapping[str, pl.DataFrame],
    scores: Mapping[str, Replicates],
    resamples: Resamples,
    tasks: Sequence[str],
) -> Replicates:
    """Return a result's scores on the samples that another answered too."""
    rows = tables[name].join(tables[other], on="sample_id", how="semi")
    if len(rows) == len(tables[name]):
        return scores[name]
    return score(rows, resamples, tasks)


def difference(one: Replicates, two: Replicates, by_task: bool = False) -> Replicates:
    """Subtract the macro scores of two results resample by resample: the difference is paired.

    `by_task`: those of each task, too.
    """
    return {
        name: values - two[name]
        for name, values in one.items()
        if name in two and (by_task or name.endswith("/macro"))
    }


def subgroup_scores(rows: pl.DataFrame, resamples: Resamples, tasks: Sequence[str]) -> Metrics:
    """Return AUROC and F1 by subgroup: `subgroup/<column>/<value>/<metric>/macro`, `.../patients`.

    Groups of fewer than `LEAST_PATIENTS` have their number only.
    """
    found: Metrics = {}
    for column in SUBGROUPS:
        groups = rows.drop_nulls(column).partition_by(column, as_dict=True)
        for (value,), group in sorted(groups.items()):
            head = f"subgroup/{column}/{value.replace('/', ' or ')}"
            found[f"{head}/patients"] = patients = group["subject_id"].n_unique()
            if patients < LEAST_PATIENTS:
                continue
            scores = score(group, resamples, tasks, main_only=True)
            macros = {name: array for name, array in scores.items() if name.endswith("/macro")}
            found |= {f"{head}/{k.split('/', 1)[1]}": v for k, v in flat(macros).items()}
    return found


def flat(found: Replicates, least: float = 0.0) -> Metrics:
    """Estimates and intervals; an interval that no replicate tells (one class) is left out.

    A resample has fewer distinct patients, and so a larger calibration error, than the study: the
    replicates of `ece` are moved back to the estimate, but not below `least` (of a difference: -1).
    """
    metrics: Metrics = {}
    for name, values in found.items():
        value, low, high = estimate(recentred(values, least) if "/ece" in name else values)
        numbers = {"": value, "/low": low, "/high": high}
        metrics |= {f"{name}{end}": n for end, n in numbers.items() if not math.isnan(n)}
    return metrics


def recentred(values: Floats, least: float) -> Floats:
    """Replicates moved so that their mean is the estimate (row 0), and not below `least`."""
    moved = np.clip(values - (np.nanmean(values[1:]) - values[0]), least, None)
    moved[0] = values[0]
    return moved


def _alone(rows: pl.DataFrame, calibrator: Calibrator | None) -> Metrics:
    """Return what has no interval: counts, the calibration, the share of certain probabilities."""
    found: Metrics = dict(counts(rows))
    if calibrator is not None:
        found |= calibrator.numbers
        found |= {f"calibration/{name}": loss for name, loss in calibrator.log_losses.items()}
    told = rows["probability"].drop_nulls()
    if len(told):
        sure = (told > SURE) | (told < 1 - SURE)
        found["saturated"] = int(sure.sum()) / len(told)
    return found


def _model(name: str) -> str:
    return name.partition(":")[0]
