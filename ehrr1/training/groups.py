"""Groups of completions: their scores, files, metrics, and layout as forests."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor

from ehrr1.config.training import RL
from ehrr1.engines.base import Completion
from ehrr1.files import replacing
from ehrr1.prompts.forest import Forest, collate, pack
from ehrr1.prompts.trees import Branch, Tree
from ehrr1.training.losses import FLAT, completion_weights
from ehrr1.training.prompts import RLPrompt


@dataclass
class Group:
    """G completions of a prompt with their texts, rewards and advantages.

    `texts`, `rewards`, `problems` [G] and each of `parts` [G]; `attempt` counts the rounds in which
    groups without signal were replaced; `kept` is False for one that was. `advantages` [G].
    """

    prompt: RLPrompt
    completions: list[Completion]
    texts: list[str]
    rewards: list[float]
    parts: dict[str, list[float | None]]
    problems: list[str | None]
    attempt: int = 0
    kept: bool = True
    advantages: list[float] = field(default_factory=list)

    @property
    def flat(self) -> bool:
        """Return whether all completions have the same reward.

        Not whether all are right: F1 has values between 0 and 1.
        """
        return float(torch.tensor(self.rewards).std()) <= FLAT


@dataclass(frozen=True)
class Microbatch:
    """A packed row of completions and the columns [N] of its N learnt tokens that the loss needs.

    `sampled` by the engine that generated; `old` by the trainer before the first update, and
    `reference`, where they are needed; `advantages` of the token's completion.
    """

    forest: Forest
    advantages: Tensor
    sampled: Tensor
    old: Tensor | None = None
    reference: Tensor | None = None

    def to(self, device: torch.device) -> "Microbatch":
        """Return the row with all tensors on `device`."""
        return replace(
            self,
            forest=self.forest.to(device),
            advantages=self.advantages.to(device),
            sampled=self.sampled.to(device),
        )


def lay_out(
    groups: Sequence[Group],
    settings: RL,
    rank: int = 0,
    ranks: int = 1,
) -> list[Microbatch]:
    """Lay out the groups of one optimizer step as this process's rows.

    A prompt is a tree and a completion a branch. `settings` is the section `rl`. A group that does
    not fit into `max_batch_tokens` is divided: its prompt is then computed more than once.
    Completions with an advantage of 0 count, but are computed only if there is a divergence from a
    reference: otherwise they have no gradient.
    """
    completions = [completion for group in groups for completion in group.completions]
    counted = [not (settings.mask_truncated and one.truncated) for one in completions]
    lengths = torch.tensor([len(one.tokens) for one in completions])
    most = settings.max_completion_tokens
    weights = completion_weights(settings.loss, lengths, torch.tensor(counted), most).tolist()
    learnt: dict[str, tuple[Completion, float]] = {}
    trees: list[Tree] = []
    for group in groups:
        branches = []
        for completion, advantage in zip(group.completions, group.advantages, strict=True):
            weight = weights.pop(0)
            if weight == 0 or (advantage == 0 and settings.beta == 0):
                continue
            name = f"{group.prompt.sample_id}#{len(learnt)}"
            learnt[name] = completion, advantage
            # the last token of the prompt predicts: see models/prune_last_layer.py
            branches.append(Branch(name, group.prompt.tokens[-1:], completion.tokens, weight))
        if branches:
            trees += divided(Tree(group.prompt.tokens[:-1], branches), settings.max_batch_tokens)
    own = pack([len(tree) for tree in trees], settings.max_batch_tokens, ranks)[rank]
    return [_row(collate([trees[index] for index in row]), learnt) for row in own]


def _row(forest: Forest, learnt: Mapping[str, tuple[Completion, float]]) -> Microbatch:
    if not forest.sample_ids:  # a row of nothing, which takes part
        nothing = torch.zeros(len(forest.targets))
        return Microbatch(forest, nothing, nothing)
    parts = [learnt[name] for name in forest.sample_ids]
    advantages = torch.tensor([advantage for _, advantage in parts])
    sampled = torch.tensor([chance for completion, _ in parts for chance in completion.logprobs])
    return Microbatch(forest, advantages[forest.owners], sampled)


def divided(tree: Tree, max_tokens: int) -> list[Tree]:
    """Divide `tree` into trees of at most `max_tokens` that share its trunk.

    A branch that does not fit is a tree by itself.
    """
    parts: list[list[Branch]] = []
    room = 0
    for branch in sorted(tree.branches, key=len, reverse=True):
        if not parts or len(branch) > room:
            parts.append([])
            room = max_tokens - len(tree.trunk)
        parts[-1].append(branch)
        room -= len(branch)
    return [Tree(tree.trunk, part) for part in parts]


def write_completions(folder: Path, step: int, groups: Sequence[Group]) -> None:
    """Write `folder`/step=<step>.parquet: a row per completion, those of replaced groups too."""
    rows = [
        {
            "step": step,
            "sample_id": group.prompt.sample_id,
            "task": group.prompt.task,
            "prompt_id": place,
            "completion": text,
            **{f"reward/{name}": values[number] for name, values in group.parts.items()},
            "reward": group.rewards[number],
            "advantage": group.advantages[number] if group.kept else 0.0,
            "tokens": len(group.completions[number].tokens),
            "truncated": group.completions[number].truncated,
            "problem": group.problems[number],
            "attempt": group.attempt,
            "kept": group.kept,
        }
        for place, group in enumerate(groups)
        for number, text in enumerate(group.texts)
    ]
    schema: dict[str, Any] = {f"reward/{name}": pl.Float64 for name in groups[0].parts}
    schema["problem"] = pl.String
    with replacing(folder / f"step={step:08d}.parquet") as temporary:
        pl.DataFrame(rows, schema_overrides=schema, infer_schema_length=None).write_parquet(
            temporary
        )


def group_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """Return the metrics of a rollout, by TRL's names where it has one.

    Rewards over all groups that are learnt from; lengths in tokens.
    """
    kept = [group for group in groups if group.kept]
    rewards = torch.tensor([group.rewards for group in kept])
    completions = [completion for group in kept for completion in group.completions]
    lengths = [len(completion.tokens) for completion in completions]
    ended = [len(one.tokens) for one in completions if not one.truncated]
    count = len(completions)
    metrics = {
        "reward": rewards.mean().item(),
        "reward_std": rewards.std(dim=1).mean().item(),
        "frac_reward_zero_std": sum(group.flat for group in kept) / len(kept),
        "replaced_groups": len(groups) - len(kept),
        "completions/mean_length": sum(lengths) / count,
        "completions/min_length": min(lengths),
        "completions/max_length": max(lengths),
        "completions/mean_terminated_length": sum(ended) / max(len(ended), 1),
        "completions/clipped_ratio": 1 - len(ended) / count,
    }
    problems = Counter(problem for group in kept for problem in group.problems if problem)
    metrics["parse_failures"] = sum(problems.values()) / count
    metrics |= {f"parse_failures/{name}": n / count for name, n in sorted(problems.items())}
    for name in kept[0].parts:
        metrics |= _spread(f"rewards/{name}", [v for group in kept for v in group.parts[name]])
    for task in sorted({group.prompt.task for group in kept}):
        own = [reward for g in kept if g.prompt.task == task for reward in g.rewards]
        metrics |= _spread(f"rewards/task/{task}", own)
    return metrics


def _spread(name: str, values: Sequence[float | None]) -> dict[str, float]:
    """Return mean and standard deviation of the values that are not None; nothing if all are."""
    applied = torch.tensor([value for value in values if value is not None])
    if not len(applied):
        return {}
    return {f"{name}/mean": applied.mean().item(), f"{name}/std": applied.std(correction=0).item()}


def mean(values: Sequence[float | None]) -> float:
    """Return the mean of the values that are not None; 0 if all are."""
    applied = [value for value in values if value is not None]
    return sum(applied) / max(len(applied), 1)
