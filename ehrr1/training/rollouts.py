"""From prompts to scored groups: every process generates and scores its share and knows all."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ehrr1 import parallel
from ehrr1.config.training import RL
from ehrr1.engines.base import Completion, SamplingParams, TrainableEngine
from ehrr1.prompts.chat_format import chat_format
from ehrr1.prompts.dataset import rank as random_number
from ehrr1.prompts.markers import Markers
from ehrr1.scoring.risk import answer_tokens
from ehrr1.training.groups import Group
from ehrr1.training.probabilities import yes_probabilities
from ehrr1.training.prompts import Prompts, RLPrompt
from ehrr1.training.reward_runner import score

PROPER = frozenset({"brier", "log"})
"""Rewards that must know the probability of yes."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class Clock:
    """Seconds of each phase of a step."""

    def __init__(self, now: Callable[[], float] = time.perf_counter):
        self.now, self.last = now, now()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = self.now()
        name = f"timing/{name}"
        self.laps[name] = self.laps.get(name, 0.0) + now - self.last
        self.last = now


def shared(items: Sequence[Item], work: Callable[[list[Item]], list[Result]]) -> list[Result]:
    """`work` on this process's share of `items`; all results, in their order, in every process.

    Shares are equally long (the last item fills up), as a divided model's generation waits for all.
    """
    ranks, items = parallel.size(), list(items)
    if not items:
        return []
    missing = -len(items) % ranks
    mine = (items + items[-1:] * missing)[parallel.rank() :: ranks]
    parts = parallel.gather(work(mine))
    return [parts[number % ranks][number // ranks] for number in range(len(items))]


@dataclass
class Collector:
    """Who generates, who scores, and by which settings (the section `rl`)."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    rollout: TrainableEngine
    settings: RL
    seed: int

    def __post_init__(self) -> None:
        self.weights = self.settings.rewards
        self.markers = Markers(self.tokenizer, chat_format(self.tokenizer))

    def collect(
        self, asked: Prompts, indices: Sequence[int], draw: str, clock: Clock
    ) -> list[Group]:
        """A group of completions for each of the prompts at `indices` of `asked`.

        The draws depend on `draw`, the run's seed and a prompt's place among `indices` only.
        """
        chosen = self.settings
        sampling = SamplingParams(
            chosen.max_completion_tokens, chosen.temperature, chosen.top_p, chosen.top_k
        )
        seeds = [random_number(self.seed, f"{draw}/{n}") >> 33 for n in range(len(indices))]
        return self._groups(asked, indices, seeds, sampling, chosen.group_size, clock)

    def greedy(self, asked: Prompts, indices: Sequence[int], description: str) -> list[Group]:
        """The likeliest completion of each prompt, as a group of one."""
        sampling = SamplingParams(self.settings.max_completion_tokens, temperature=0.0)
        seeds = [0] * len(indices)
        return self._groups(asked, indices, seeds, sampling, 1, Clock(), description)

    def _groups(
        self,
        asked: Prompts,
        indices: Sequence[int],
        seeds: Sequence[int],
        sampling: SamplingParams,
        group_size: int,
        clock: Clock,
        description: str | None = None,
    ) -> list[Group]:
        prompts = [asked[index] for index in indices]

        def generate(some: list[tuple[RLPrompt, int]]) -> list[list[Completion]]:
            return self.rollout.generate(
                [prompt.tokens for prompt, _ in some],
                sampling,
                group_size=group_size,
                seeds=[seed for _, seed in some],
                description=description if parallel.rank() == 0 else None,
            )

        groups = shared(list(zip(prompts, seeds, strict=True)), generate)
        clock.lap("generate")
        pairs = list(zip(prompts, groups, strict=True))
        chances = self._yes_probabilities(pairs)
        work = list(zip(prompts, groups, chances, strict=True))
        scored = shared(work, lambda some: self._score(asked, some))
        clock.lap("score")
        return scored

    def _score(
        self,
        asked: Prompts,
        some: Sequence[tuple[RLPrompt, list[Completion], list[float | None]]],
    ) -> list[Group]:
        completions = [completion for _, group, _ in some for completion in group]
        owners = [prompt for prompt, group, _ in some for _ in group]
        written = self.markers.decode([completion.tokens for completion in completions])
        # a template that opens the think block itself leaves it to the model to close it
        opened = self.markers.chat.opened
        texts = [
            text if prompt.think == "none" else opened + text
            for prompt, text in zip(owners, written, strict=True)
        ]
        columns = self._columns(asked, [prompt for prompt, _, _ in some], owners, completions)
        columns["yes_probability"] = [chance for _, _, chances in some for chance in chances]
        found = score(texts, columns, self.weights, self.settings.reward_timeout_seconds)
        size = len(completions) // len(some)
        parts = [slice(first, first + size) for first in range(0, len(completions), size)]
        return [
            Group(
                prompt,
                group,
                texts[part],
                found.total[part],
                {name: values[part] for name, values in found.parts.items()},
                found.problems[part],
            )
            for (prompt, group, _), part in zip(some, parts, strict=True)
        ]

    def _columns(
        self,
        asked: Prompts,
        prompts: Sequence[RLPrompt],
        owners: Sequence[RLPrompt],
        completions: Sequence[Completion],
    ) -> dict[str, list[Any]]:
        """What the rewards may know, an entry a completion. Texts and citations once a prompt."""
        texts = self.tokenizer.batch_decode([prompt.tokens for prompt in prompts])
        text = {id(p): t for p, t in zip(prompts, texts, strict=True)}
        columns: dict[str, list[Any]] = {
            "sample_id": [prompt.sample_id for prompt in owners],
            "task": [prompt.task for prompt in owners],
            "kind": [prompt.kind for prompt in owners],
            "think": [prompt.think for prompt in owners],
            "must_close": [
                self.settings.require_closed_think and prompt.think != "none" for prompt in owners
            ],
            "target": [prompt.target for prompt in owners],
            "prompt": [text[id(prompt)] for prompt in owners],
            "tokens": [len(completion.tokens) for completion in completions],
            "max_tokens": [self.settings.max_completion_tokens] * len(owners),
            "truncated": [completion.truncated for completion in completions],
        }
        if "faithfulness" in self.weights:
            facts = {id(p): asked.citable(p) for p in prompts if p.think == "chain"}
            columns["citable"] = [facts.get(id(prompt)) for prompt in owners]
        return columns

    def _yes_probabilities(
        self, pairs: Sequence[tuple[RLPrompt, list[Completion]]]
    ) -> list[list[float | None]]:
        if PROPER.isdisjoint(self.weights):
            return [[None] * len(group) for _, group in pairs]
        words = answer_tokens(self.tokenizer)
        return yes_probabilities(self.model, pairs, words, self.settings.max_batch_tokens)
