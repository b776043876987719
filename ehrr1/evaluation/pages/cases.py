"""Cases to look at: a few answers with all that led to them."""

from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import polars as pl

from ehrr1.evaluation.aggregate import BASELINES
from ehrr1.scoring.sets import set_scores
from ehrr1.tasks.catalog import ALL_TASKS

MOST_CHARACTERS = 40_000
"""Of a record in a page; a longer one loses its oldest part, as it does before a model."""


@dataclass(frozen=True, slots=True)
class Case:
    """One answer. `context` is the record as Markdown; `prediction` and `target` are lines."""

    sample_id: str
    task: str
    result: str
    question: str
    context: str
    completion: str | None
    prediction: str
    target: str
    probability: float | None


def choose_cases(predictions: pl.DataFrame, number: int) -> pl.DataFrame:
    """Return at most `number` rows: the worst, the best and the most ordinary answers.

    The three kinds are chosen in turn from each task, among the answers of the last model that has
    any (of a baseline if no model has). The choice depends only on the predictions.
    """
    first = predictions.filter(pl.col("draw") == 0)
    models = first.filter(~pl.col("model").is_in(BASELINES))
    rows = (models if len(models) else first).with_row_index("place")
    last = pl.col("model") == pl.col("model").last().over("task")
    rows = rows.with_columns(goodness=pl.Series(map(goodness, rows.iter_rows(named=True))))
    by_task = rows.filter(last).sort("task", "goodness", "sample_id").partition_by("task")
    ranked = [_worst_best_ordinary(group, turn) for turn, group in enumerate(_mixed(by_task))]
    places = [place for one in zip_longest(*ranked) for place in one if place is not None]
    chosen = pl.DataFrame({"place": places[:number]}, schema={"place": rows.schema["place"]})
    return chosen.join(rows, on="place", how="left", maintain_order="left").select(
        predictions.columns
    )


def goodness(row: dict[str, Any]) -> float:
    """Return how right an answer is.

    This is the probability given to the truth, or the F1 of the items (of the words, where a text
    was asked for).
    """
    if row["probability"] is not None:
        return float(row["probability"] if row["target"] == "yes" else 1 - row["probability"])
    if ALL_TASKS[row["task"]].target == "text":
        return set_scores(row["prediction"].split(), row["target"].split()).f1
    return set_scores(row["prediction"].split("\n"), row["target"].split("\n")).f1


def _mixed(by_task: list[pl.DataFrame]) -> list[pl.DataFrame]:
    """Risk and decision tasks in turn."""
    kinds: dict[str, list[pl.DataFrame]] = {"risk": [], "decision": []}
    for group in by_task:
        kinds[ALL_TASKS[group["task"][0]].kind].append(group)
    pairs = zip_longest(kinds["risk"], kinds["decision"])
    return [group for pair in pairs for group in pair if group is not None]


def _worst_best_ordinary(group: pl.DataFrame, turn: int) -> list[int]:
    """Return the positions of the three kinds in rows sorted from worst to best.

    Each task begins with another kind, so that a few tasks show all of them.
    """
    places = group["place"].to_list()
    three = list(dict.fromkeys([places[0], places[-1], places[len(places) // 2]]))
    start = turn // 2 % len(three)
    return three[start:] + three[:start]


def shown(case: Case) -> dict[str, Any]:
    """Return a case as the page shows it."""
    cut = max(0, len(case.context) - MOST_CHARACTERS)
    note = f"(the oldest {cut:,} characters are left out of this page)\n\n" * (cut > 0)
    row = {
        "probability": case.probability,
        "task": case.task,
        "prediction": case.prediction,
        "target": case.target,
    }
    return {
        "sample": case.sample_id,
        "task": case.task,
        "result": case.result,
        "question": case.question,
        "context": note + case.context[cut:],
        "completion": case.completion,
        "said": case.prediction.split("\n"),
        "truth": case.target.split("\n"),
        "text": ALL_TASKS[case.task].target == "text",
        "probability": None if case.probability is None else round(case.probability, 4),
        "goodness": round(goodness(row), 4),
    }
