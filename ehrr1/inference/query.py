"""Queries on records passed in memory or as files, and the answers to them."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from ehrr1.engines.streaming import Watch
from ehrr1.prompts.messages import OPENED, THINK_CLOSE
from ehrr1.prompts.trees import PromptBuilder, Question, Tree
from ehrr1.records.events import Event
from ehrr1.scoring.answers import split_think
from ehrr1.tasks.catalog import ALL_TASKS, YES_NO, telling_time
from ehrr1.tasks.one_record import read_text, text_events
from ehrr1.tasks.samples import Prepared, Sample

Record = str | Path | Sequence[Event]
"""The text of a record, the file that holds it, or its events, oldest first."""

YES_NO_WORDS = frozenset(
    [
        *("will", "would", "is", "are", "was", "were", "does", "do", "did", "has", "have", "had"),
        *("can", "could", "should", "may", "might", "must"),
    ]
)
"""A question that begins with one of them is answered by yes or no."""

WHETHER = re.compile(
    r"(?:^|[.,:;!?])\s*(?:please\s+)?"
    r"(?:predict|tell(?:\s+me)?|say|state|decide|judge|assess|determine|estimate)\s+whether\b"
)
"""A clause that asks for yes or no without a question mark, as the release's questions do."""

NOTHING_FITS = "no event of the record fits beside the question"


def asks_yes_or_no(question: str) -> bool:
    """Return whether a question asks for yes or no.

    It does if it ends in "yes or no", begins with a verb such as will, is, does or has, or asks to
    predict (tell, say, ...) whether something is so.
    """
    words = question.lower().split()
    text = " ".join(words)
    asked = text.rstrip(" .?!").endswith("yes or no") or WHETHER.search(text) is not None
    return asked or (bool(words) and words[0].strip("'\"(") in YES_NO_WORDS)


def says_yes_or_no(question: str) -> bool:
    """Return whether a yes/no question says so in its words."""
    text = " ".join(question.lower().split())
    return "yes or no" in text or WHETHER.search(text) is not None


@dataclass(frozen=True, slots=True)
class Answer:
    """A model's answer to a query.

    `items` are the lines of the answer; of a yes/no question, the more probable word. `probability`
    is that of yes among yes and no, None for other questions. `chain` is the text before the
    answer, or the whole completion if no answer can be parsed. `problem` says why there is no
    answer, or what is wrong with it. A record that was too long lost its `cut_events` oldest events
    and `cut_tokens` tokens of its history of earlier stays.
    """

    items: tuple[str, ...]
    probability: float | None = None
    chain: str | None = None
    problem: str | None = None
    cut_events: int = 0
    cut_tokens: int = 0

    @property
    def text(self) -> str:
        """The lines of the answer as one text."""
        return "\n".join(self.items)

    def __str__(self) -> str:
        return self.text if self.chain is None else f"{thought_of(self.chain)}{self.text}"


@dataclass(frozen=True, slots=True)
class Query:
    """One question on one record, in words or a task's; equal `context_id` means equal record."""

    id: str
    context_id: str
    record: Callable[[], list[Event]]
    question: str | None = None
    task: str | None = None
    yes_no: bool | None = None
    """None: as the task says, else as the words say (`asks_yes_or_no`)."""
    time: datetime | None = None
    """The current time as stated in the question; None: it states none."""

    @property
    def has_label(self) -> bool:
        """True if the answer is yes or no."""
        if self.yes_no is not None:
            return self.yes_no
        if self.question is None:
            return ALL_TASKS[self.task or ""].kind == "risk"
        return asks_yes_or_no(self.question)

    @property
    def words(self) -> str | None:
        """The question as it is asked; None: in the task's own words.

        "Predict whether ..." is asked unchanged: the release's models were trained on such words.
        """
        words = self.question
        if words is not None and self.has_label and not says_yes_or_no(words):
            words = f"{words.strip()} {YES_NO}"
        if self.time is None:
            return words
        return telling_time(words or ALL_TASKS[self.task or ""].instruction, self.time)

    @property
    def sample(self) -> Sample:
        """The query as a sample, for the code that evaluates."""
        time = datetime.min  # the record says what was known
        place = ("", time, self.context_id, ())
        return Sample(self.id, 0, None, None, self.task or "", *place, instruction=self.words)


class GivenRecords(Prepared):
    """Records passed by the caller, by their `context_id`."""

    def __init__(self, records: Mapping[str, Callable[[], list[Event]]]):
        super().__init__(Path())
        self.records = records

    def context(self, sample: Sample) -> list[Event]:
        """Return the events of the sample's record."""
        return self.records[sample.context_id]()


@dataclass
class CountingBuilder(PromptBuilder):
    """A prompt builder that records what it cut from the record of each question."""

    cut: dict[str, tuple[int, int, bool]] = field(default_factory=dict)
    """By sample: events and tokens that were cut, and whether no event was left."""

    def tree(
        self,
        events: Sequence[Event],
        preamble: int,
        questions: Sequence[Question],
        head: list[int] | None = None,
    ) -> Tree:
        """See `PromptBuilder`."""
        tree = super().tree(events, preamble, questions, head)
        nothing = tree.cut_events == len(events)
        for question in questions:
            self.cut[question.sample_id] = (tree.cut_events, tree.cut_tokens, nothing)
        return tree


class AnswerStream:
    """A callback that passes generated text on.

    Of a yes/no question (`closes`) only the chain is passed on: its answer is the more probable
    word, which `finish` adds, and not the sampled one.
    """

    def __init__(self, watch: Watch, closes: bool):
        self.watch, self.closes, self.text = watch, closes, ""

    def __call__(self, piece: str) -> None:
        """Pass on a piece of generated text."""
        told = len(self.text)
        self.text += piece
        end = self.text.find(THINK_CLOSE)
        if self.closes and end >= 0:
            piece = self.text[told : end + len(THINK_CLOSE)]
        if piece:
            self.watch(piece)

    def finish(self, answer: Answer) -> None:
        """Pass on what is missing of the answer."""
        if not self.text:
            self.watch(str(answer))
        elif self.closes:
            close = "" if THINK_CLOSE in self.text else f"\n{THINK_CLOSE}"
            self.watch(f"{close}\n\n{answer.text}")


def thought_of(chain: str) -> str:
    """Return a chain as a closed think block."""
    return f"{OPENED}{chain}\n{THINK_CLOSE}\n\n"


def events(record: Record) -> list[Event]:
    """Return the events of a record in any form; raise UserError if it is empty or unreadable."""
    if isinstance(record, Path):
        record = read_text(record)
    return text_events(record) if isinstance(record, str) else list(record)


def read_row(row: Mapping[str, Any], prompt_builder: CountingBuilder) -> Answer:
    """Return a row of predictions as an answer."""
    events_cut, tokens_cut, nothing = prompt_builder.cut.pop(row["sample_id"])
    chain = split_think(row["completion"] or "")[0]
    if chain is None and row["problem"]:
        chain = row["completion"] or None
    items = tuple(item for item in row["prediction"].split("\n") if item)
    problem = row["problem"] or (NOTHING_FITS if nothing else None)
    return Answer(items, row["probability"], chain, problem, events_cut, tokens_cut)
