"""The prompts of reinforcement learning: tokens on disk, and what the rewards must know of each."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from datasets import Dataset

from ehrr1.prompts.dataset import write_trees
from ehrr1.prompts.messages import asking_for_both
from ehrr1.prompts.trees import PromptBuilder, Question
from ehrr1.reasoning.chain import Citable, citable
from ehrr1.tasks.catalog import TASKS
from ehrr1.tasks.samples import Prepared, Sample

Thinking = Literal["none", "chain", "both"]
"""What is written before the answer: nothing; a chain of thought; the case for each outcome."""


Asked = Literal["task", "both", "none"]
"""`rl.think`: as the task is released; risk tasks after the case for each outcome; all at once."""


@dataclass(frozen=True, slots=True)
class RLPrompt:
    """A prompt's tokens and what the rewards must know of its sample."""

    sample_id: str
    subject_id: int
    task: str
    kind: str
    think: Thinking
    target: tuple[str, ...]
    tokens: list[int]


class Prompts(Sequence[RLPrompt]):
    """One prompt a sample, read where it is asked for; samples too long for any record are left
    out. `think` says what is written before an answer (`rl.think`)."""

    def __init__(
        self,
        path: Path,
        prepared: Prepared,
        samples: Sequence[Sample],
        prompt_builder: PromptBuilder,
        think: Asked = "task",
    ):
        self.prepared, self.think, self.wording = prepared, think, prompt_builder.wording
        self.samples = {sample.sample_id: sample for sample in samples}
        self.trees: Dataset = write_trees(path, prepared, samples, self.ask, prompt_builder)
        self.places = [
            (row, branch)
            for row, count in enumerate(self.trees["branches"])
            for branch in range(count)
        ]

    def ask(self, sample: Sample) -> list[Question]:
        think = self.thinking(sample)
        own = self.wording.own(sample)
        if think == "both":
            own = asking_for_both(sample.task, own)
        return [Question(sample.sample_id, sample.task, think != "none", instruction=own)]

    def thinking(self, sample: Sample) -> Thinking:
        """Decision tasks think and risk tasks answer at once, as released, but for `rl.think`."""
        if TASKS[sample.task].kind == "decision":
            return "none" if self.think == "none" else "chain"
        return "both" if self.think == "both" else "none"

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> RLPrompt:  # type: ignore[override]  # no slices
        row, branch = self.places[index]
        tree = self.trees[row]
        sample = self.samples[tree["sample_ids"][branch]]
        return RLPrompt(
            sample.sample_id,
            sample.subject_id,
            sample.task,
            TASKS[sample.task].kind,
            self.thinking(sample),
            sample.target,
            tree["trunk"] + tree["prompts"][branch],
        )

    @cached_property
    def asked(self) -> list[Sample]:
        """The sample of each prompt, without its tokens."""
        return [self.samples[name] for names in self.trees["sample_ids"] for name in names]

    @property
    def tasks(self) -> list[str]:
        return [sample.task for sample in self.asked]

    def citable(self, prompt: RLPrompt) -> Citable:
        """What a chain may cite: see `graph.chains.chain.faithfulness`."""
        sample = self.samples[prompt.sample_id]
        return citable(self.prepared.context(sample), sample.prediction_time)
