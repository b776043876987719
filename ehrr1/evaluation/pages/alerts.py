"""Warnings that a reader needs before trusting the numbers of an evaluation."""

from collections.abc import Mapping, Sequence

import polars as pl

from ehrr1.evaluation.aggregate import BASELINES, SURE, names, prefix_of
from ehrr1.evaluation.scores import EMPTY, one_class
from ehrr1.tasks.catalog import ALL_TASKS

FEW_PATIENTS = 50
"""Below it intervals from the bootstrap are too narrow."""

SATURATED = 0.5
UNREAD = 0.01

MISCALIBRATED = 0.1
"""Calibration error from which probabilities must not be read as risks."""

RISK_TASKS = [key for key, task in ALL_TASKS.items() if task.kind == "risk"]


def warnings(scored: pl.DataFrame, metrics: Mapping[str, float | int]) -> list[str]:
    """Sentences, the gravest first; none where all is well."""
    found = [
        *_saturated(scored, metrics),
        *_miscalibrated(scored, metrics),
        *_unread(scored),
        *_fewer(scored),
        *_few(scored),
    ]
    if silent := one_class(scored):
        found.append(
            "Left out of every mean, as all answers are the same there: " + ", ".join(silent) + "."
        )
    if balanced := scored.filter("balanced")["task"].unique().sort().to_list():
        found.append(
            "Drawn for balance, not as often as in life, and so without AUPRC and calibration: "
            + ", ".join(balanced)
            + "."
        )
    return found


def _saturated(scored: pl.DataFrame, metrics: Mapping[str, float | int]) -> list[str]:
    found = []
    asked = [name for name in names(scored) if name not in BASELINES]
    for name in asked:
        share = metrics.get(f"{prefix_of(name)}saturated", 0)
        if share <= SATURATED:
            continue
        model, _, mode = name.partition(":")
        remedy = next((other for other in asked if other.startswith(f"{model}:both")), None)
        why = (
            "after a chain its answer is certain, right or wrong (TRIAGE, arXiv 2606.09030). "
            if mode.startswith("think")
            else "it is certain of nearly every answer, right or wrong. "
        )
        told = f"Look at {remedy} beside it." if remedy else "Ask it with answer=both."
        if mode.startswith("both"):
            told = "Its ranking and calibration say little."
        found.append(
            f"The probabilities of {name} are saturated: {share:.0%} are above {SURE} or below "
            f"{1 - SURE:.4f}; {why}{told}"
        )
    return found


def _miscalibrated(scored: pl.DataFrame, metrics: Mapping[str, float | int]) -> list[str]:
    told = []
    for name in names(scored):
        error = metrics.get(f"{prefix_of(name)}risk/ece/macro", 0)
        mended = metrics.get(f"{prefix_of(name)}risk/ece_calibrated/macro")
        if error >= MISCALIBRATED:
            after = f" ({mended:.3f} after recalibration)" if mended is not None else ""
            told.append(f"{name} {error:.3f}{after}")
    if not told:
        return []
    return [
        f"Do not read these probabilities as risks, only as ranks: the calibration error (ECE) of "
        f"{', '.join(told)} is large."
    ]


def _unread(scored: pl.DataFrame) -> list[str]:
    """Answers that could not be read, are empty, or have no probability, by result."""
    found = []
    for name in names(scored):
        rows = scored.filter(pl.col("model") == name)
        problems = rows["problem"].drop_nulls()
        unread, empty = problems.filter(problems != EMPTY), (problems == EMPTY).sum()
        if len(unread) > UNREAD * len(rows):
            commonest = unread.value_counts().sort("count", "problem", descending=True)["problem"]
            found.append(
                f"{name}: {len(unread):,} of {len(rows):,} answers ({len(unread) / len(rows):.0%}) "
                f"could not be read and score 0, most often: {commonest[0]}."
            )
        if empty > UNREAD * len(rows):
            found.append(f"{name}: {empty:,} of {len(rows):,} answers are empty and score 0.")
        asked = rows.filter(pl.col("task").is_in(RISK_TASKS))
        if untold := asked["probability"].null_count():
            found.append(
                f"{name}: {untold:,} of {len(asked):,} answers to yes/no questions have no "
                "probability and are not scored."
            )
    return found


def _fewer(scored: pl.DataFrame) -> list[str]:
    """Results that answered a part of what the others answered, of the tasks that they share."""
    sizes = scored.group_by("model", "task").agg(n=pl.col("sample_id").n_unique())
    sizes = sizes.with_columns(most=pl.col("n").max().over("task"))
    sums = sizes.group_by("model").agg(pl.col("n").sum(), pl.col("most").sum())
    short = {row["model"]: row for row in sums.iter_rows(named=True) if row["n"] < row["most"]}
    return [
        f"{name} answered {short[name]['n']:,} of the {short[name]['most']:,} samples of its "
        "tasks: its scores are of these alone; differences are of samples that both answered."
        for name in names(scored)
        if name in short
    ]


def _few(scored: pl.DataFrame) -> list[str]:
    patients = scored["subject_id"].n_unique()
    if patients < FEW_PATIENTS:
        return [
            f"There are {patients} patients: with fewer than {FEW_PATIENTS} the intervals are "
            "too narrow, and small differences cannot be seen."
        ]
    by_task = scored.group_by("task").agg(patients=pl.col("subject_id").n_unique())
    few = by_task.filter(pl.col("patients") < FEW_PATIENTS)["task"].sort().to_list()
    return [
        f"Fewer than {FEW_PATIENTS} patients, and so intervals that are too narrow: "
        + _listed(few)
        + "."
    ] * bool(few)


def _listed(items: Sequence[str], most: int = 8) -> str:
    more = len(items) - most
    return ", ".join(items[:most]) + (f" and {more} more tasks" if more > 0 else "")
