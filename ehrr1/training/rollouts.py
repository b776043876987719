"""Turn prompts into scored groups: each process generates and scores a share, and all know all."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ehrr1 import parallel
from ehrr1.config.learning import PROPER
from ehrr1.config.training import RL
from ehrr1.engines.base import Completion, SamplingParams, TrainableEngine
from ehrr1.prompts.chat_format import chat_format
from ehrr1.prompts.dataset import rank as random_number
from ehrr1.prompts.markers import Markers
from ehrr1.reasoning.facts import Citable
from ehrr1.scoring.risk import answer_tokens
from ehrr1.training.groups import Group
from ehrr1.training.probabilities import yes_probabilities
from ehrr1.training.prompts import RLPrompt
from ehrr1.training.reward_runner import score

Item = TypeVar("Item")
Result = TypeVar("Result")


class Clock:
    """The seconds of each phase of a step."""

    def __init__(self, now: Callable[[], float] = time.perf_counter):
        self.now, self.last = now, now()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """Add the seconds since the last lap to `timing/<name>`."""
        now = self.now()
        name = f"timing/{name}"
        self.laps[name] = self.laps.get(name, 0.0) + now - self.last
        self.last = now


def shared(items: Sequence[Item], work: Callable[[list[Item]], list[Result]]) -> list[Result]:
    """Run `work` on this process's share of `items`; return all results in order, everywhere.

    Shares have equal lengths (the last item is repeated): under ZeRO-3 generation is collective.
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
    """Generates and scores completions by the section `rl`.

    `citable` returns what a prompt's chain may cite; only `faithfulness` calls it.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    rollout: TrainableEngine
    settings: RL
    seed: int
    citable: Callable[[RLPrompt], Citable]

    def __post_init__(self) -> None:
        self.weights = self.settings.rewards
        self.markers = Markers(self.tokenizer, chat_format(self.tokenizer))

    def collect(self, prompts: Sequence[RLPrompt], draw: str, clock: Clock) -> list[Group]:
        """Return a scored group of completions for each prompt.

        Random draws depend on `draw`, the run's seed and a prompt's place among `prompts` only.
        """
        chosen = self.settings
        sampling = SamplingParams(
            chosen.max_completion_tokens, chosen.temperature, chosen.top_p, chosen.top_k
        )
        seeds = [random_number(self.seed, f"{draw}/{n}") >> 33 for n in range(len(prompts))]
        return self._groups(prompts, seeds, sampling, chosen.group_size, clock)

    def greedy(self, prompts: Sequence[RLPrompt], description: str) -> list[Group]:
        """Return the greedy completion of each prompt, scored, as a group of one."""
        sampling = SamplingParams(self.settings.max_completion_tokens, temperature=0.0)
        seeds = [0] * len(prompts)
        return self._groups(prompts, seeds, sampling, 1, Clock(), description)

    def _groups(
        self,
        prompts: Sequence[RLPrompt],
        seeds: Sequence[int],
        sampling: SamplingParams,
        group_size: int,
        clock: Clock,
        description: str | None = None,
    ) -> list[Group]:
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
        scored = shared(work, self._score)
        clock.lap("score")
        return scored

    def _score(
        self,
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
        columns = self._columns([prompt for prompt, _, _ in some], owners, completions)
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
        prompts: Sequence[RLPrompt],
        owners: Sequence[RLPrompt],
        completions: Sequence[Completion],
    ) -> dict[str, list[Any]]:
        """Return the columns of the rewards, one entry per completion.

        Prompts are decoded, and citable facts read, once per prompt.
        """
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
            facts = {id(p): self.citable(p) for p in prompts if p.think == "chain"}
            columns["citable"] = [facts.get(id(prompt)) for prompt in owners]
        return columns

    def _yes_probabilities(
        self, pairs: Sequence[tuple[RLPrompt, list[Completion]]]
    ) -> list[list[float | None]]:
        if PROPER.isdisjoint(self.weights):
            return [[None] * len(group) for _, group in pairs]
        words = answer_tokens(self.tokenizer)
        return yes_probabilities(self.model, pairs, words, self.settings.max_batch_tokens)
