"""The table of predictions: one row an answer; scoring reads nothing else."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from ehrr1.evaluation.prompt_mode import PromptMode
from ehrr1.tasks.samples import Sample

SUBGROUPS = ("sex", "age_band", "race", "insurance", "care_unit")
"""Columns that divide samples; null where the tables do not tell."""

COLUMNS: dict[str, pl.DataType | type[pl.DataType]] = {
    "model": pl.String,  # the result's name: rl, rl:both-list, a baseline's name
    "split": pl.String,
    "mode": pl.String,  # what was done: direct, think or both
    "candidates": pl.String,  # none or list
    "wording": pl.String,  # file or ours
    "draw": pl.Int32,  # 0 .. draws - 1
    "sample_id": pl.String,
    "subject_id": pl.Int64,
    "task": pl.String,
    "prediction_time": pl.Datetime("us"),
    "probability": pl.Float64,  # of yes; null for decision tasks and where none can be told
    "logprob_yes": pl.Float64,  # of all spellings together; null where nobody tells it
    "logprob_no": pl.Float64,
    "prediction": pl.String,  # answer lines; yes or no at 0.5 for risk tasks
    "target": pl.String,
    "completion": pl.String,  # all that was written; null where nothing was
    "balanced": pl.Boolean,  # not at natural prevalence: no AUPRC is told
    "problem": pl.String,  # why the answer could not be read; null where it could
    **dict.fromkeys(SUBGROUPS, pl.String),
}

SCHEMA = pl.Schema(COLUMNS)

DIRECT = PromptMode("direct")


@dataclass(frozen=True, slots=True)
class WrittenAnswer:
    """What a model wrote, and what could be read in it."""

    items: Sequence[str]
    completion: str | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class YesProbability:
    """The probability of yes among yes and no, and the log-probabilities of both, where known."""

    probability: float
    logprob_yes: float | None = None
    logprob_no: float | None = None


def prediction_row(
    sample: Sample,
    mode: PromptMode,
    written: WrittenAnswer,
    told: YesProbability | None = None,
    draw: int = 0,
) -> dict[str, Any]:
    """One row without its model and subgroups; items are joined by line breaks."""
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
    """A risk prediction: the probability of yes, and the answer that it means at 0.5."""
    items = ["yes" if told.probability >= 0.5 else "no"]
    return prediction_row(sample, mode, WrittenAnswer(items, completion, problem), told)


def frame(model: str, rows: Iterable[dict[str, Any]]) -> pl.DataFrame:
    """The rows of one model as a table of `SCHEMA`."""
    return pl.DataFrame([{"model": model, **row} for row in rows], schema=SCHEMA)
