"""Rewards: f(completions, **columns) -> list[float | None], each in [0, 1]; None: does not apply.

The release's defects are mended: a blank line after </think> does no harm, case does not matter,
"not sure, maybe yes" is no answer, and what cannot be read is told apart from what is wrong.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ehrr1.graph.chain import SECTIONS
from ehrr1.scoring.answers import read_answer
from ehrr1.scoring.sets import set_scores

Reward = Callable[..., list[float | None]]
"""Called with the completions' texts and, as columns, what is known of their samples; one value a
completion, None where the reward does not apply."""


def accuracy_reward(
    completions: Sequence[str],
    *,
    kind: Sequence[str],
    target: Sequence[Sequence[str]],
    **columns: Sequence[Any],
) -> list[float | None]:
    """Set F1 of the answer lines for decision tasks, 1 or 0 for the label of risk tasks.

    An answer that cannot be read scores 0.
    """
    return [
        _accuracy(text, one_kind, one_target)
        for text, one_kind, one_target in zip(completions, kind, target, strict=True)
    ]


def _accuracy(text: str, kind: Any, target: Sequence[str]) -> float:
    answer = read_answer(text, kind)
    if answer.problem is not None:
        return 0.0
    if kind == "risk":
        return float(answer.label == target[0])
    return set_scores(answer.items, target).f1


def format_reward(
    completions: Sequence[str],
    *,
    kind: Sequence[str],
    think: Sequence[bool],
    **columns: Sequence[Any],
) -> list[float | None]:
    """1 for a well-formed completion, else 0.

    With thinking: a closed think block that holds the three headings once each and in order.
    Without: no think content. Either way an answer that can be read, no line of it twice.
    """
    return [
        float(_well_formed(text, one_kind, thinks))
        for text, one_kind, thinks in zip(completions, kind, think, strict=True)
    ]


def _well_formed(text: str, kind: Any, think: bool) -> bool:
    answer = read_answer(text, kind)
    if answer.problem is not None:
        return False
    lines = [line.lower() for line in answer.items]
    if len(set(lines)) < len(lines):
        return False
    if not think:
        return not answer.think
    if answer.think is None:
        return False
    headings = [line.strip() for line in answer.think.splitlines()]
    return [line for line in headings if line in SECTIONS] == list(SECTIONS)


REWARDS: dict[str, Reward] = {"accuracy": accuracy_reward, "format": format_reward}


@dataclass(frozen=True)
class Scores:
    """Each reward's values and their weighted mean over the rewards that apply, [completions]."""

    total: list[float]
    parts: dict[str, list[float | None]]
    unreadable: list[bool]


def score(
    completions: Sequence[str], columns: Mapping[str, Sequence[Any]], weights: Mapping[str, float]
) -> Scores:
    """Apply the rewards that `weights` names.

    `columns` has sample_id, kind, target and think, one entry a completion. Raises ValueError
    with the sample where a reward is not finite: one nan would spoil all advantages, silently.
    """
    parts = {name: REWARDS[name](completions, **columns) for name in weights}
    total = []
    for index, sample_id in enumerate(columns["sample_id"]):
        applied = [
            (weights[n], v) for n, values in parts.items() if (v := values[index]) is not None
        ]
        weight = sum(one for one, _ in applied)
        value = sum(one * reward for one, reward in applied) / weight if weight else 0.0
        if not math.isfinite(value):
            raise ValueError(f"the reward of sample {sample_id} is {value}")
        total.append(value)
    unreadable = [
        read_answer(text, kind).problem is not None
        for text, kind in zip(completions, columns["kind"], strict=True)
    ]
    return Scores(total, parts, unreadable)
