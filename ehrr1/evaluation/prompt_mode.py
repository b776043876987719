"""How a question is put to a model: what a score cannot be compared without."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from ehrr1.config.names import WordingName
from ehrr1.config.types import AnswerMode
from ehrr1.prompts.messages import asking_for_both, listing_candidates
from ehrr1.prompts.wording import style_of
from ehrr1.tasks.samples import Sample

Candidates = Literal["none", "list"]
Chains = Literal["own", "given"]
Chooser = Callable[[Sample], Sequence[str]]
"""The answers that a sample's question is listed with."""


@dataclass(frozen=True, slots=True)
class PromptMode:
    """The mode of a result.

    `answer`: at once, after thinking, or after a case for each outcome (yes/no questions;
    decisions then are thought about). `candidates`: whether decision questions come with a list of
    answers to choose from. `wording`: the style of the prompts (`prompts.wording`). `chains`:
    whether the model thinks itself, or answers behind a chain that is given (`eval.chains`).
    """

    answer: AnswerMode
    candidates: Candidates = "none"
    wording: WordingName = "file"
    chains: Chains = "own"

    @property
    def name(self) -> str:
        """`direct`, `think-list`, `both-ours`: part of the name of a result."""
        more = "-list" * (self.candidates == "list")
        more += "" if self.wording == "file" else f"-{self.wording}"
        return self.answer + more + "-given" * (self.chains == "given")

    @property
    def thinks(self) -> bool:
        return self.answer != "direct"

    def words(self, sample: Sample, candidates: Chooser | None) -> str | None:
        """What is asked instead of the task's own question; None: just that."""
        own = style_of(self.wording, "eval").own(sample)
        if self.answer == "both":
            own = asking_for_both(sample.task, own)
        if self.candidates == "list" and candidates is not None:
            listed = list(sample.candidates) or candidates(sample)
            own = listing_candidates(sample.task, own, listed) if listed else own
        return own
