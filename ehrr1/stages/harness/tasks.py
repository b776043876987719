"""Questions on health records as tasks of Inspect.

    inspect eval DIR/tasks.py --model hf/local -M model_path=MODEL
    inspect eval DIR/tasks.py@ehr_risk -T task=Inpatient_Mortality --model openai/NAME

The probability of a risk answer is read from the log-probabilities of its first token: the model's
provider must return them.
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import (
    ChatMessageSystem,
    ChatMessageUser,
    GenerateConfig,
    ModelOutput,
)
from inspect_ai.scorer import (
    Metric,
    SampleScore,
    Score,
    Scorer,
    Target,
    grouped,
    mean,
    metric,
    scorer,
)
from inspect_ai.solver import TaskState, generate

sys.path.insert(0, str(Path(__file__).parent))
import ehr_scores

TOP = 20
"""Most log-probabilities a token that providers return."""


@task
def ehr_risk(task: str | None = None) -> Task:
    """Return all yes/no questions, or those of one task."""
    return Task(
        dataset=dataset("risk", task),
        solver=generate(),
        scorer=risk_probability(),
        config=GenerateConfig(max_tokens=1, logprobs=True, top_logprobs=TOP),
    )


@task
def ehr_decision(task: str | None = None, max_tokens: int = 128) -> Task:
    """Return all questions that are answered by a set of items, or those of one task."""
    return Task(
        dataset=dataset("decision", task),
        solver=generate(),
        scorer=item_sets(),
        config=GenerateConfig(max_tokens=max_tokens),
    )


def dataset(kind: str, task: str | None) -> MemoryDataset:
    """Return the questions of a kind; a sample's metadata are the row without its messages."""
    return MemoryDataset([sample_of(row) for row in ehr_scores.read_rows(kind, task)])


def sample_of(row: dict[str, Any]) -> Sample:
    """Return a row of the data as a sample."""
    system, user = (message["content"] for message in row["messages"])
    return Sample(
        id=row["sample_id"],
        input=[ChatMessageSystem(content=system), ChatMessageUser(content=user)],
        target=row["target"],
        metadata={name: value for name, value in row.items() if name != "messages"},
    )


@metric
def auroc() -> Metric:
    """Return the area under the ROC curve as a metric."""

    def compute(scores: list[SampleScore]) -> float:
        return ehr_scores.auroc(pairs(scores))

    return compute


@metric
def brier() -> Metric:
    """Return the Brier score as a metric."""

    def compute(scores: list[SampleScore]) -> float:
        return ehr_scores.brier(pairs(scores))

    return compute


def pairs(scores: Sequence[SampleScore]) -> list[tuple[bool, float]]:
    """Return the label and the probability of yes of each sample."""
    told = [score.score.metadata or {} for score in scores]
    return [
        (one["label"], math.nan if one["probability"] is None else one["probability"])
        for one in told
    ]


@scorer(metrics=[grouped(auroc(), "task"), grouped(brier(), "task")])
def risk_probability() -> Scorer:
    """Return the scorer of yes/no questions: the probability of yes, or None if it is unknown."""

    async def score(state: TaskState, target: Target) -> Score:
        value = ehr_scores.probability_of_yes(first_token(state.output))
        probability = None if math.isnan(value) else value
        told = {"probability": probability, "label": target.text == "yes"}
        value = 0.0 if probability is None else probability
        return Score(value=value, answer=state.output.completion, metadata=told)

    return score


def first_token(output: ModelOutput) -> dict[str, float]:
    """Return the log-probabilities of the first generated token's alternatives."""
    told = output.choices[0].logprobs if output.choices else None
    if told is None or not told.content:
        return {}
    return {one.token: one.logprob for one in told.content[0].top_logprobs or []}


@scorer(metrics={name: [grouped(mean(), "task")] for name in ("precision", "recall", "f1")})
def item_sets() -> Scorer:
    """Return the scorer of sets of items."""

    async def score(state: TaskState, target: Target) -> Score:
        text = state.output.completion
        return Score(value=ehr_scores.set_scores(text, list(target)), answer=text)

    return score
