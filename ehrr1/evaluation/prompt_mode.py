"""Prompt mode of a result; scores are comparable only within one mode."""

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
"""Function that returns the candidate answers of a sample."""


@dataclass(frozen=True, slots=True)
class PromptMode:
    """The mode of a result.

    `answer`: the model answers directly, after thinking, or after a case for each outcome of a
    yes/no question (decision questions are then answered after thinking). `candidates`: whether
    decision questions list answers to choose from. `wording`: the style of the prompts
    (`prompts.wording`). `chains`: whether the model generates its own chain, or answers after a
    given one (`eval.chains`).
    """

    answer: AnswerMode
    candidates: Candidates = "none"
    wording: WordingName = "file"
    chains: Chains = "own"

    @property
    def name(self) -> str:
        """Return the mode as part of a result's name: `direct`, `think-list`, `both-ours`, ..."""
        more = "-list" * (self.candidates == "list")
        more += "" if self.wording == "file" else f"-{self.wording}"
        return self.answer + more + "-given" * (self.chains == "given")

    @property
    def thinks(self) -> bool:
        """Return whether a think block precedes the answer."""
        return self.answer != "direct"

    def words(self, sample: Sample, candidates: Chooser | None) -> str | None:
        """Return the question's wording, or None for the task's default.

        It includes the instruction for both cases, or the list of candidates, if the mode has them.
        """
        own = style_of(self.wording, "eval").own(sample)
        if self.answer == "both":
            own = asking_for_both(sample.task, own)
        if self.candidates == "list" and candidates is not None:
            listed = list(sample.candidates) or candidates(sample)
            own = listing_candidates(sample.task, own, listed) if listed else own
        return own
