"""How a question is put to a model: what a score cannot be compared without."""

from dataclasses import dataclass
from typing import Literal

Answer = Literal["direct", "think", "both"]
Candidates = Literal["none", "list"]
Wording = Literal["file", "ours"]


@dataclass(frozen=True, slots=True)
class Asked:
    """The mode of a result.

    `answer`: at once, after thinking, or after a case for each outcome (yes/no questions;
    decisions then are thought about). `candidates`: whether decision questions come with a list of
    answers to choose from. `wording`: a sample's own words where it has some, or ours.
    """

    answer: Answer
    candidates: Candidates = "none"
    wording: Wording = "file"

    @property
    def name(self) -> str:
        """`direct`, `think-list`, `both-ours`: part of the name of a result."""
        more = "-list" * (self.candidates == "list") + "-ours" * (self.wording == "ours")
        return self.answer + more

    @property
    def thinks(self) -> bool:
        return self.answer != "direct"
