"""Prompts and answers as text: what our own prompts say, and what the model is to write.

Thinking is switched by the last word of the prompt, as Qwen3 does. Without thinking the empty think
block is part of the prompt, so that an answer is an answer and nothing else.
"""

import re
from collections.abc import Sequence

from ehrr1.tasks.catalog import ALL_TASKS, ONE_ITEM

SYSTEM = (
    "You are a clinical assistant. You read a patient's hospital record, a list of events in the "
    "order of time, and answer one question about what comes next. List items by name, one a line."
)

THINK, NO_THINK = "/think", "/no_think"
OPENED, CLOSED = "<think>\n", "\n</think>\n\n"
EMPTY_THOUGHT = OPENED + CLOSED
"""Closes thinking in the prompt of a direct answer."""

THINK_TAGS = THINK_OPEN, THINK_CLOSE = "<think>", "</think>"

_BEHIND = r"(?<=<){0}(?=\|[^\s<>|]+\|>|/?[A-Za-z_]+>)|(?<=\[){0}(?=/?INST\])"
_WHOLE, _BROKEN = (re.compile(_BEHIND.format(between)) for between in ("", " "))

CASES = ("## Case for yes", "## Case for no")
"""What is argued before the answer to a risk question, so that a chain that has made up its mind
does not push the answer's probability to 0 or 1 (TRIAGE, arXiv 2606.09030)."""

BOTH_CASES = (
    f"Think first: write under '{CASES[0]}' what in the record speaks for yes, then under "
    f"'{CASES[1]}' what speaks for no. Then answer."
)


def asking_for_both(task: str, own: str | None) -> str:
    """A yes/no question in the task's or the sample's `own` words, asking for both cases."""
    return f"{own or ALL_TASKS[task].instruction} {BOTH_CASES}"


def listing_candidates(task: str, own: str | None, candidates: Sequence[str]) -> str:
    """A question in the task's or the sample's `own` words with answers to choose from, for models
    that were not trained on the task."""
    question = own or ALL_TASKS[task].instruction
    choose = "Choose one of the" if task in ONE_ITEM else "Choose from the"
    listed = "\n".join(candidates)
    return f"{question} {choose} candidates below and give names only, one a line.\n{listed}\n"


def answer_text(target: Sequence[str]) -> str:
    """The answer: one item a line, alphabetical, each once: one order is easier to learn."""
    return "\n".join(sorted(set(target)))


def broken(text: str) -> str:
    """A text in which nothing can pass for a model's marker: `< |im_end|>`, `< /think>`."""
    return _WHOLE.sub(" ", text)


def mended(text: str) -> str:
    """What `broken` was made of."""
    return _BROKEN.sub("", text)


def completion(answer: str, chain: str | None) -> str:
    """What the model writes: the answer alone, or the chain in think tags and then the answer."""
    if chain is None:
        return answer
    return f"{OPENED}{chain}{CLOSED}{answer}"
