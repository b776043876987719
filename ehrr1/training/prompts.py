"""The prompts of reinforcement learning: tokens on disk, and the columns that rewards need."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from datasets import Dataset

from ehrr1.prompts.dataset import write_trees
from ehrr1.prompts.messages import asking_for_both
from ehrr1.prompts.schedule import StepData, Steps
from ehrr1.prompts.trees import PromptBuilder, Question
from ehrr1.reasoning.facts import Citable
from ehrr1.tasks.catalog import ALL_TASKS
from ehrr1.tasks.samples import Prepared, Sample

Thinking = Literal["none", "chain", "both"]
"""What is written before the answer: nothing; a chain of thought; the case for each outcome."""


Asked = Literal["task", "both", "none"]
"""`rl.think`: as the task is released; risk tasks after the case for each outcome; all at once."""


@dataclass(frozen=True, slots=True)
class RLPrompt:
    """A prompt's tokens and the columns of its sample that rewards need."""

    sample_id: str
    subject_id: int
    task: str
    kind: str
    think: Thinking
    target: tuple[str, ...]
    tokens: list[int]


class Prompts(Sequence[RLPrompt]):
    """One prompt per sample, read from disk by index.

    Samples that leave no room for a record are left out. `think` says what is written before an
    answer (`rl.think`).
    """

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
        """Return the question on a sample."""
        think = self.thinking(sample)
        own = self.wording.own(sample)
        if think == "both":
            own = asking_for_both(sample.task, own)
        return [Question(sample.sample_id, sample.task, think != "none", instruction=own)]

    def thinking(self, sample: Sample) -> Thinking:
        """Return what is written before the answer.

        Decision tasks think and risk tasks answer at once, as released, unless `rl.think` says
        otherwise.
        """
        if ALL_TASKS[sample.task].kind == "decision":
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
            ALL_TASKS[sample.task].kind,
            self.thinking(sample),
            sample.target,
            tree["trunk"] + tree["prompts"][branch],
        )

    @cached_property
    def asked(self) -> list[Sample]:
        """Return the sample of each prompt, without its tokens."""
        return [self.samples[name] for names in self.trees["sample_ids"] for name in names]

    @property
    def tasks(self) -> list[str]:
        """Return the task of each prompt."""
        return [sample.task for sample in self.asked]

    def citable(self, prompt: RLPrompt) -> Citable:
        """Return what a chain may cite (`reasoning.claims.faithfulness`)."""
        sample = self.samples[prompt.sample_id]
        return Citable(self.prepared.context(sample), sample.prediction_time)


class PromptBatch:
    """The prompts of one rollout.

    (No list, as DeepSpeed's strategy would look into it for tensors to convert.)
    """

    def __init__(self, prompts: list[RLPrompt]):
        self.prompts = prompts


class PromptData(StepData):
    """The prompts of each rollout, in planned order, and the held-out prompts, all in one batch.

    `plan` holds the indices of each rollout's `prompts`.
    """

    def __init__(self, prompts: Prompts, held_out: Prompts, plan: Sequence[Sequence[int]]):
        every = [list(range(len(held_out)))]
        super().__init__(
            Steps(plan, lambda indices: PromptBatch([prompts[index] for index in indices])),
            Steps(every, lambda indices: PromptBatch([held_out[index] for index in indices])),
        )
        self.prompts, self.held_out = prompts, held_out

    @property
    def plan(self) -> Sequence[Sequence[int]]:
        """Return the indices of each rollout's prompts."""
        return self.training.plan

    def sort(self, rewards: Mapping[int, float]) -> None:
        """Bring each task's prompts in order of falling reward; `rewards` are by index."""
        self.training.plan = easy_first(self.plan, self.prompts.tasks, rewards)

    def citable(self, prompt: RLPrompt) -> Citable:
        """Return what a chain may cite (`reasoning.claims.faithfulness`)."""
        owner = self.prompts if prompt.sample_id in self.prompts.samples else self.held_out
        return owner.citable(prompt)


def easy_first(
    plan: Sequence[Sequence[int]], tasks: Sequence[str], rewards: Mapping[int, float]
) -> list[list[int]]:
    """Return `plan` with each task's prompts in order of falling reward, in the task's places."""
    order = [index for step in plan for index in step]
    turns = {
        task: iter(sorted((i for i in order if tasks[i] == task), key=lambda i: -rewards[i]))
        for task in sorted({tasks[index] for index in order})
    }
    return [[next(turns[tasks[index]]) for index in step] for step in plan]
