"""Questions on health records as tasks of Inspect: `ehr_risk` and `ehr_decision`.

README.md beside this file has the commands.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import ehr_scores  # Inspect imports this file from its folder
from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessageSystem, ChatMessageUser, GenerateConfig, ModelOutput
from inspect_ai.scorer import Metric, SampleScore, Score, Scorer, Target, Value, metric, scorer
from inspect_ai.solver import TaskState, generate

TOP = 20
"""Number of log-probabilities per token, the most that OpenAI's API returns; `--top-logprobs N`
replaces it.
"""

BLANKS = str.maketrans("\u0120\u2581", "  ")
"""The characters that tokenizers write for a blank, which Inspect's local provider leaves."""


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
    """Return the area under the ROC curve, by task, as a metric."""

    def compute(scores: list[SampleScore]) -> Value:
        return by_task(scores, lambda some: ehr_scores.auroc(pairs(some)), "auroc/")

    return compute


@metric
def brier() -> Metric:
    """Return the Brier score, by task, as a metric."""

    def compute(scores: list[SampleScore]) -> Value:
        return by_task(scores, lambda some: ehr_scores.brier(pairs(some)), "brier/")

    return compute


@metric
def mean() -> Metric:
    """Return the mean of the samples' scores, by task, as a metric."""

    def compute(scores: list[SampleScore]) -> Value:
        return by_task(
            scores, lambda some: ehr_scores.mean(score.score.as_float() for score in some)
        )

    return compute


def by_task(
    scores: Sequence[SampleScore],
    compute: Callable[[Sequence[SampleScore]], float],
    prefix: str = "",
) -> Value:
    """Return the score of each task, and `macro`, the mean of those that are not NaN."""
    groups: dict[str, list[SampleScore]] = {}
    for score in scores:
        groups.setdefault((score.sample_metadata or {})["task"], []).append(score)
    values = {f"{prefix}{task}": compute(some) for task, some in sorted(groups.items())}
    return {f"{prefix}macro": ehr_scores.mean(values.values())} | values


def pairs(scores: Sequence[SampleScore]) -> list[tuple[bool, float]]:
    """Return the label and the probability of yes of each sample, NaN where it is unknown."""
    values = [score.score.metadata or {} for score in scores]
    return [
        (value["label"], math.nan if value["probability"] is None else value["probability"])
        for value in values
    ]


@scorer(metrics=[auroc(), brier()])
def risk_probability() -> Scorer:
    """Return the scorer of yes/no questions.

    A score's metadata have the label and the probability of yes, None if it is unknown.
    """

    async def score(state: TaskState, target: Target) -> Score:
        value = ehr_scores.probability_of_yes(first_token(state.output))
        probability = None if math.isnan(value) else value
        metadata = {"probability": probability, "label": target.text == "yes"}
        return Score(value=probability or 0.0, answer=state.output.completion, metadata=metadata)

    return score


def first_token(output: ModelOutput) -> dict[str, float]:
    """Return the log-probabilities of the likeliest first tokens, by their text."""
    logprobs = output.choices[0].logprobs if output.choices else None
    if logprobs is None or not logprobs.content:
        return {}
    likeliest = logprobs.content[0].top_logprobs or []
    return {token.token.translate(BLANKS): token.logprob for token in likeliest}


@scorer(metrics={name: [mean()] for name in ("precision", "recall", "f1")})
def item_sets() -> Scorer:
    """Return the scorer of sets of items."""

    async def score(state: TaskState, target: Target) -> Score:
        text = state.output.completion
        return Score(value=ehr_scores.set_scores(text, list(target)), answer=text)

    return score
