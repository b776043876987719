"""A reward of your own: a list of answers that is longer than the right one earns less.

A reward is called with the completions of a step and with columns that have one entry for each; it
names those that it reads (ehrr1/training/rewards.py lists them). None: it does not apply.
"""

from collections.abc import Sequence
from typing import Any

from ehrr1.scoring.answers import read_answer


def brief(
    completions: Sequence[str],
    *,
    kind: Sequence[str],
    target: Sequence[Sequence[str]],
    **columns: Any,
) -> list[float | None]:
    """Return 1 for at most as many items as are right, and their share of a longer list."""
    return [
        _brief(text, len(right)) if one == "decision" else None
        for text, one, right in zip(completions, kind, target, strict=True)
    ]


def _brief(text: str, right: int) -> float:
    answer = read_answer(text, "decision")
    if answer.problem is not None or not answer.items:
        return 0.0
    return min(1.0, right / len(answer.items))
