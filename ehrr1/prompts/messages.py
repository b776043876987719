"""Prompts and answers as text, in this project's own wording.

Thinking is switched by the last word of the prompt, as in Qwen3. Without thinking the empty think
block is part of the prompt, so that the output is the answer only.
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
"""Text that closes thinking in the prompt of a direct answer."""

THINK_TAGS = THINK_OPEN, THINK_CLOSE = "<think>", "</think>"

_BEHIND = r"(?<=<){0}(?=\|[^\s<>|]+\|>|/?[A-Za-z_]+>)|(?<=\[){0}(?=/?INST\])"
_WHOLE, _BROKEN = (re.compile(_BEHIND.format(between)) for between in ("", " "))

CASES = ("## Case for yes", "## Case for no")
"""Headings of the arguments before the answer to a risk question.

They keep a chain that has already decided from pushing the answer's probability to 0 or 1 (TRIAGE,
arXiv 2606.09030).
"""

BOTH_CASES = (
    f"Think first: write under '{CASES[0]}' what in the record speaks for yes, then under "
    f"'{CASES[1]}' what speaks for no. Then answer."
)


def asking_for_both(task: str, own: str | None) -> str:
    """Return a yes/no question, the task's or the sample's `own`, that asks for both cases."""
    return f"{own or ALL_TASKS[task].instruction} {BOTH_CASES}"


def listing_candidates(task: str, own: str | None, candidates: Sequence[str]) -> str:
    """Return a question, the task's or the sample's `own`, with answers to choose from.

    It is meant for models that were not trained on the task.
    """
    question = own or ALL_TASKS[task].instruction
    choose = "Choose one of the" if task in ONE_ITEM else "Choose from the"
    listed = "\n".join(candidates)
    return f"{question} {choose} candidates below and give names only, one a line.\n{listed}\n"


def answer_text(target: Sequence[str]) -> str:
    """Return the answer: distinct items, one per line, in alphabetical order.

    A fixed order is easier to learn.
    """
    return "\n".join(sorted(set(target)))


def broken(text: str) -> str:
    """Return a text in which nothing can pass for a model's marker: `< |im_end|>`, `< /think>`."""
    return _WHOLE.sub(" ", text)


def mended(text: str) -> str:
    """Return the text from which `broken` made `text`."""
    return _BROKEN.sub("", text)


def completion(answer: str, chain: str | None) -> str:
    """Return the output to learn: the answer alone, or the chain in think tags and the answer."""
    if chain is None:
        return answer
    return f"{OPENED}{chain}{CLOSED}{answer}"
