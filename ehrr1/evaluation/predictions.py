"""The table of predictions, with one row per answer; scores are computed from it alone."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from ehrr1.damage import damaged, reading
from ehrr1.evaluation.prompt_mode import PromptMode
from ehrr1.records.reading import READ_ERRORS
from ehrr1.tasks.catalog import ALL_TASKS
from ehrr1.tasks.samples import Sample

SUBGROUPS = ("sex", "age_band", "race", "insurance", "care_unit")
"""Columns that define subgroups of samples; null where the tables do not have the value."""

COLUMNS: dict[str, pl.DataType | type[pl.DataType]] = {
    "model": pl.String,  # name of the result: rl, rl:both-list, or a baseline's name
    "split": pl.String,
    "mode": pl.String,  # direct, think or both
    "candidates": pl.String,  # none or list
    "wording": pl.String,  # file, ours or release
    "draw": pl.Int32,  # 0 .. draws - 1
    "sample_id": pl.String,
    "subject_id": pl.Int64,
    "task": pl.String,
    "prediction_time": pl.Datetime("us"),
    "probability": pl.Float64,  # of yes; null for decision tasks and where it is unknown
    "logprob_yes": pl.Float64,  # natural logarithm, over all spellings; null where it is unknown
    "logprob_no": pl.Float64,
    "prediction": pl.String,  # answer lines; yes or no at 0.5 for risk tasks
    "target": pl.String,
    "completion": pl.String,  # the generated text; null if nothing was generated
    "balanced": pl.Boolean,  # sampled to balance the labels: only AUROC is reported
    "problem": pl.String,  # why the answer could not be read, or null
    **dict.fromkeys(SUBGROUPS, pl.String),
}

SCHEMA = pl.Schema(COLUMNS)

DIRECT = PromptMode("direct")


@dataclass(frozen=True, slots=True)
class WrittenAnswer:
    """A generated answer: its items, the text it was read from, and why it could not be read."""

    items: Sequence[str]
    completion: str | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class YesProbability:
    """P(yes) / (P(yes) + P(no)), and the natural log-probabilities of both, or None if unknown."""

    probability: float
    logprob_yes: float | None = None
    logprob_no: float | None = None


def read_predictions(path: Path, remedy: str | None = None) -> pl.DataFrame:
    """Read a table of predictions.

    Raises DamagedError if it cannot be read, or holds what no evaluation writes: an answer twice, a
    probability outside [0, 1], a target that is no answer. An earlier version wrote fewer columns,
    to which the rules for these columns apply.
    """
    with reading(path, *READ_ERRORS, remedy=remedy):
        table = pl.read_parquet(path, glob=False)
    there = table.columns
    if {"model", "sample_id"} <= set(there):
        answer = [name for name in ("model", "sample_id", "draw") if name in there]
        if table.select(answer).is_duplicated().any():
            raise damaged(path, "has an answer twice", remedy)
    risk = pl.col("task").is_in([task for task, own in ALL_TASKS.items() if own.kind == "risk"])
    unasked, no_answer = pl.col("target").is_null(), ~pl.col("target").is_in(["yes", "no"])
    for names, wrong, what in (
        ({"probability"}, ~pl.col("probability").is_between(0, 1), "probabilities outside [0, 1]"),
        ({"target"}, unasked, "targets that are no answers"),
        ({"target", "task"}, risk & no_answer, "targets that are no answers"),
    ):
        if names <= set(there) and (count := table.filter(wrong).height):
            raise damaged(path, f"has {count} {what}", remedy)
    return table


def prediction_row(
    sample: Sample,
    mode: PromptMode,
    written: WrittenAnswer,
    told: YesProbability | None = None,
    draw: int = 0,
) -> dict[str, Any]:
    """Return one row without the columns of model and subgroups.

    Items of prediction and target are joined by line breaks.
    """
    return {
        "split": sample.split,
        "mode": mode.answer,
        "candidates": mode.candidates,
        "wording": mode.wording,
        "draw": draw,
        "sample_id": sample.sample_id,
        "subject_id": sample.subject_id,
        "task": sample.task,
        "prediction_time": sample.prediction_time,
        "probability": None if told is None else told.probability,
        "logprob_yes": None if told is None else told.logprob_yes,
        "logprob_no": None if told is None else told.logprob_no,
        "prediction": "\n".join(written.items),
        "target": "\n".join(sample.target),
        "completion": written.completion,
        "balanced": sample.balanced,
        "problem": written.problem,
    }


def risk_row(
    sample: Sample,
    told: YesProbability,
    mode: PromptMode = DIRECT,
    completion: str | None = None,
    problem: str | None = None,
) -> dict[str, Any]:
    """Return the row of a risk prediction; the answer is "yes" from a probability of 0.5."""
    items = ["yes" if told.probability >= 0.5 else "no"]
    return prediction_row(sample, mode, WrittenAnswer(items, completion, problem), told)


def frame(model: str, rows: Iterable[dict[str, Any]]) -> pl.DataFrame:
    """Return the rows of one model as a table with schema `SCHEMA`."""
    return pl.DataFrame([{"model": model, **row} for row in rows], schema=SCHEMA)
