"""Group relative policy optimisation (Shao et al., DeepSeekMath, arXiv 2402.03300).

Kept: a group of completions a prompt, rewards normalised in the group, the clipped surrogate, the
optional divergence (k3) from the weights that training began with. One update a rollout, so that
the sampling policy is the policy itself. Not kept: a critic, and completions cut by the length
limit, which leave numerator and denominator. A step samples prompts, generates groups, scores
them, turns rewards into advantages, and updates; each prompt is computed once for its group.
"""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ehrr1.models.logprobs import token_logprobs
from ehrr1.prompts.forest import Forest
from ehrr1.prompts.steps import rows
from ehrr1.prompts.trees import Branch, Tree
from ehrr1.rollout.transformers import Completion, TransformersRollout
from ehrr1.training.losses import group_advantages, grpo_loss
from ehrr1.training.module import ForestModule
from ehrr1.training.rewards import Scores, score


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt's tokens and what the rewards must know of its sample."""

    sample_id: str
    subject_id: int
    task: str
    kind: str
    think: bool
    target: tuple[str, ...]
    tokens: list[int]


@dataclass(frozen=True, slots=True)
class Scored:
    """A completion with the advantage of its reward in its group."""

    completion: Completion
    advantage: float


class GRPOModule(ForestModule):
    """`settings` is the section `rl`; `updates` the number of steps of the whole run."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: DictConfig,
        updates: int,
        batch_size: int,
        seed: int,
    ):
        super().__init__(lambda sharding: model, settings, updates)
        self.model = model
        self.tokenizer, self.seed = tokenizer, seed
        # a tuple hides the reference from state_dict: it is the earlier stage's, not ours to save
        self.reference = (copy.deepcopy(model).eval(),) if settings.beta > 0 else ()
        self.rollout = TransformersRollout(model, tokenizer, batch_size)

    def training_step(self, prompts: Sequence[Prompt], index: int) -> None:
        clock = Clock()
        groups = self.generate(prompts)
        clock.lap("generate")
        scores = self.score(prompts, groups)
        rewards = torch.tensor(scores.total).view(len(prompts), -1)
        advantages = group_advantages(rewards)
        clock.lap("score")
        forests, scored = self.forests(prompts, groups, advantages)
        sums = {name: 0.0 for name in ("learnt", "entropy", "clipped", "kl", "ratio")}
        updated = self.update(forests, lambda forest: self.loss(forest, scored, sums))
        clock.lap("update")
        learnt = max(sums.pop("learnt"), 1.0)
        means = {name: value / learnt for name, value in sums.items()}
        watched = group_metrics(groups, rewards, scores)
        self.watched = updated | means | watched | clock.metrics() | {"samples": len(prompts)}

    def generate(self, prompts: Sequence[Prompt]) -> list[list[Completion]]:
        """The groups of this step; the draws depend on seed and step only, so a resume repeats."""
        settings = self.settings
        return self.rollout.generate(
            [prompt.tokens for prompt in prompts],
            group_size=settings.group_size,
            max_new_tokens=settings.max_completion_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
            seed=self.seed * 1_000_003 + self.global_step,
        )

    def greedy(self, prompts: Sequence[Prompt], description: str) -> Scores:
        """The scores of each prompt's likeliest completion."""
        groups = self.rollout.generate(
            [prompt.tokens for prompt in prompts],
            max_new_tokens=self.settings.max_completion_tokens,
            temperature=0,
            description=description,
        )
        return self.score(prompts, groups)

    def score(self, prompts: Sequence[Prompt], groups: Sequence[list[Completion]]) -> Scores:
        pairs = [
            (prompt, completion)
            for prompt, group in zip(prompts, groups, strict=True)
            for completion in group
        ]
        texts = self.tokenizer.batch_decode(
            [completion.tokens for _, completion in pairs], skip_special_tokens=True
        )
        columns: dict[str, list[Any]] = {
            "sample_id": [prompt.sample_id for prompt, _ in pairs],
            "task": [prompt.task for prompt, _ in pairs],
            "kind": [prompt.kind for prompt, _ in pairs],
            "think": [prompt.think for prompt, _ in pairs],
            "target": [prompt.target for prompt, _ in pairs],
            "truncated": [completion.truncated for _, completion in pairs],
        }
        return score(texts, columns, self.settings.rewards)

    def forests(
        self,
        prompts: Sequence[Prompt],
        groups: Sequence[list[Completion]],
        advantages: Tensor,
    ) -> tuple[list[Forest], dict[str, Scored]]:
        """A tree a prompt, a branch a completion, and the completions by the branches' names.

        Branch weights are 1 / (its tokens * completions counted), so that the loss is the mean
        over completions of their mean over tokens. Truncated completions are not counted. Those
        without advantage are, but have no gradient and are not computed.
        """
        counted = sum(not completion.truncated for group in groups for completion in group)
        trees = []
        scored: dict[str, Scored] = {}
        for prompt, group, row in zip(prompts, groups, advantages.tolist(), strict=True):
            branches = []
            for number, (completion, advantage) in enumerate(zip(group, row, strict=True)):
                if completion.truncated or (advantage == 0 and self.settings.beta == 0):
                    continue
                name = f"{prompt.sample_id}#{number}"
                scored[name] = Scored(completion, advantage)
                weight = 1 / (len(completion.tokens) * counted)
                # the last token of the prompt predicts: see models/last_layer.py
                branches.append(Branch(name, prompt.tokens[-1:], completion.tokens, weight))
            if branches:
                trees.append(Tree(prompt.tokens[:-1], branches))
        return (rows(trees, self.settings.max_batch_tokens) if trees else []), scored

    def loss(self, forest: Forest, scored: dict[str, Scored], sums: dict[str, float]) -> Tensor:
        """The loss of one batch; adds what is watched to `sums`, over learnt tokens."""
        now = token_logprobs(self.model, forest, self.settings.temperature, entropy=True)
        parts = [scored[name] for name in forest.sample_ids]
        sampled = [chance for part in parts for chance in part.completion.logprobs]
        old = torch.tensor(sampled, device=self.device)
        advantages = torch.tensor([part.advantage for part in parts], device=self.device)
        reference = None
        for model in self.reference:
            with torch.no_grad():
                reference = token_logprobs(
                    model.to(self.device), forest, self.settings.temperature
                ).logprobs
        result = grpo_loss(
            now.logprobs,
            old,
            advantages[forest.owners],
            forest.weights,
            epsilon=self.settings.epsilon,
            beta=self.settings.beta,
            reference=reference,
        )
        sums["learnt"] += len(old)
        sums["entropy"] += now.entropy.sum().item()
        sums["clipped"] += result.clipped.item()
        sums["kl"] += result.kl.item()
        sums["ratio"] += (now.logprobs.detach() - old).exp().sum().item()
        return result.loss


def group_metrics(
    groups: Sequence[list[Completion]], rewards: Tensor, scores: Scores
) -> dict[str, float]:
    """What people watch of a rollout: rewards, lengths, what was cut or could not be read."""
    completions = [completion for group in groups for completion in group]
    lengths = [len(completion.tokens) for completion in completions]
    count = len(completions)
    metrics = {
        "reward": rewards.mean().item(),
        "reward/std": rewards.std(dim=1).mean().item(),
        "groups_without_signal": (rewards.std(dim=1) <= 1e-6).float().mean().item(),
        "length": sum(lengths) / count,
        "length/max": max(lengths),
        "truncated": sum(completion.truncated for completion in completions) / count,
        "parse_failures": sum(scores.unreadable) / count,
        "tokens": sum(lengths),
    }
    for name, values in scores.parts.items():
        metrics[f"reward/{name}"] = mean(values)
    return metrics


def mean(values: Sequence[float | None]) -> float:
    """The mean of those values that apply; 0 where none does."""
    applied = [value for value in values if value is not None]
    return sum(applied) / max(len(applied), 1)


class Clock:
    """Seconds of each phase of a step."""

    def __init__(self, now: Callable[[], float] = time.perf_counter):
        self.now, self.begin = now, now()
        self.last = self.begin
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = self.now()
        self.laps[f"timing/{name}"] = now - self.last
        self.last = now

    def metrics(self) -> dict[str, float]:
        return self.laps | {"seconds": self.last - self.begin}
