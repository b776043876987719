"""Parse the answer in a completion, distinguishing unreadable answers from wrong ones."""

import re
from dataclasses import dataclass
from typing import Literal

from ehrr1.prompts.messages import CASES, THINK_CLOSE, THINK_OPEN, mended

Kind = Literal["decision", "risk"]
Label = Literal["yes", "no"]

_BULLET = re.compile(r"^[-*•]\s+")


@dataclass(frozen=True, slots=True)
class ParsedAnswer:
    """The parsed content of a completion.

    think: text of the think block; None if there is none, "" if it is empty. items: answer lines in
    order, without bullets; repeated lines are kept (the format reward checks for them; `set_scores`
    ignores them). label: set for risk tasks only. problem: None if the answer can be read, else the
    reason; `items` and `label` are then empty, so that an unreadable answer scores 0 but is counted
    separately.
    """

    think: str | None
    items: tuple[str, ...]
    label: Label | None
    problem: str | None


def read_answer(completion: str, kind: Kind) -> ParsedAnswer:
    """Split a completion into its think block and its answer.

    The answer to a decision task is every non-blank line after the think block. The answer to a
    risk task is exactly one word, yes or no, in any case, with or without punctuation after it.
    Blank lines around it are allowed; anything else ("not sure, maybe yes") is a problem, not a
    "no".
    """
    think, rest, problem = split_think(completion)
    if problem is not None:
        return ParsedAnswer(think, (), None, problem)
    items = answer_lines(rest)
    if not items:
        return ParsedAnswer(think, (), None, "empty answer")
    if kind == "decision":
        return ParsedAnswer(think, items, None, None)
    label = read_label(items)
    return ParsedAnswer(
        think, items if label else (), label, None if label else "neither yes nor no"
    )


def split_think(completion: str) -> tuple[str | None, str, str | None]:
    """Return (think block or None, text after it, problem or None).

    A block without its opening tag is accepted, since some chat templates put `<think>` in the
    prompt.
    """
    opened, closed = completion.count(THINK_OPEN), completion.count(THINK_CLOSE)
    if opened == 0 and closed == 0:
        return None, completion, None
    if closed == 0:
        return completion.split(THINK_OPEN, 1)[1].strip(), "", "think block is not closed"
    if opened > 1 or closed > 1:
        return None, "", "more than one think block"
    before, rest = completion.split(THINK_CLOSE)
    if opened == 0:
        return before.strip(), rest, None
    if THINK_OPEN not in before:
        return None, "", "think tags in the wrong order"
    lead, think = before.split(THINK_OPEN)
    if lead.strip():
        return think.strip(), "", "text before the think block"
    return think.strip(), rest, None


def answer_lines(text: str) -> tuple[str, ...]:
    """Return the non-blank lines of an answer, without surrounding blanks and list bullets.

    Markers that were broken up (`prompts.markers`) are restored to their form in the record.
    """
    lines = (_BULLET.sub("", line.strip()).strip() for line in mended(text).splitlines())
    return tuple(line for line in lines if line)


def read_label(items: tuple[str, ...]) -> Label | None:
    """Return the label that a single answer line states, or None."""
    if len(items) != 1:
        return None
    word = items[0].strip("\"'*`").rstrip(".,;:! ").lower()
    if word == "yes":
        return "yes"
    return "no" if word == "no" else None


def has_both_cases(think: str) -> bool:
    """Return whether a think block argues for each outcome.

    It must have both headings of CASES, once each and in order, each followed by text.
    """
    lines = [line.strip() for line in think.splitlines()]
    if [line for line in lines if line in CASES] != list(CASES):
        return False
    first, second = map(lines.index, CASES)
    return any(lines[first + 1 : second]) and any(lines[second + 1 :])
