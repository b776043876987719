"""The order of training data: the trees of each step, and the rows of each process.

A plan depends only on lengths, settings and seed. Therefore every process computes the whole plan
and reads its own rows, and a run that resumes at step k reads what the uninterrupted run would have
read.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader, IterableDataset

from ehrr1.prompts.dataset import read_tree
from ehrr1.prompts.forest import Forest, collate, pack


class Step:
    """One optimizer step: the rows of this process, and the counts of all processes together.

    Every process has the same number of rows. `weight` is the sum of the weights of all learnt
    tokens, by which the loss is divided; `tokens` counts real tokens, each trunk once. It is not a
    dataclass, because Lightning would convert the tensors of a dataclass to bf16.
    """

    def __init__(self, forests: list[Forest], weight: float, tokens: int, samples: int):
        self.forests, self.weight, self.tokens, self.samples = forests, weight, tokens, samples

    def to(self, device: torch.device) -> "Step":
        """Return the step with its forests on `device`."""
        forests = [forest.to(device) for forest in self.forests]
        return Step(forests, self.weight, self.tokens, self.samples)


def plan_evenly(
    tasks: Sequence[str], per_step: int, steps: int | None, seed: int
) -> list[list[int]]:
    """Return the prompts of each step: every task equally often, a task's prompts in turn.

    `tasks` [prompts] is the task of each prompt. With `steps` None there are as many steps as give
    each prompt one turn on average. Returns `steps` lists of `per_step` indices.
    """
    generator = np.random.default_rng(seed)
    turns = {
        task: generator.permutation([i for i, one in enumerate(tasks) if one == task]).tolist()
        for task in sorted(set(tasks))
    }
    names = sorted(turns)
    steps = -(-len(tasks) // per_step) if steps is None else steps
    order: list[int] = []
    while len(order) < steps * per_step:
        for number in generator.permutation(len(names)).tolist():
            turn = turns[names[number]]
            order.append(turn[0])
            turn.append(turn.pop(0))
    return [order[first : first + per_step] for first in range(0, steps * per_step, per_step)]


def plan_steps(
    lengths: Sequence[int],
    trees_per_step: int,
    epochs: float,
    max_steps: int | None,
    seed: int,
    short_first: bool = False,
) -> list[list[int]]:
    """Return the trees of each optimizer step, shuffled by `seed` anew in each epoch.

    `short_first` orders the first epoch by length (in ten classes, shuffled within each): short
    records are easier for a small model to learn from. Returns lists of up to `trees_per_step`
    indices.
    """
    generator = np.random.default_rng(seed)
    steps: list[list[int]] = []
    total = int(np.ceil(epochs * len(lengths) / trees_per_step))
    total = min(total, max_steps) if max_steps is not None else total
    classes = np.argsort(np.argsort(lengths, kind="stable"), kind="stable") * 10 // len(lengths)
    while len(steps) < total:
        order = generator.permutation(len(lengths))
        if short_first and not steps:
            order = order[np.argsort(classes[order], kind="stable")]
        steps += [
            order[first : first + trees_per_step].tolist()
            for first in range(0, len(order), trees_per_step)
        ]
    return steps[:total]


class Steps(IterableDataset[Any]):
    """The results of `read` for each step's indices, from step `start` on.

    `waited` is the total time in seconds spent on reading, during which training waits. The length
    is that of the whole plan: without one Lightning would read a batch before training starts, and
    the order of rollouts may depend on the model that training starts from (`rl.order`).
    """

    def __init__(self, plan: Sequence[Sequence[int]], read: Callable[[Sequence[int]], Any]):
        self.plan, self.read, self.start, self.waited = plan, read, 0, 0.0

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[Any]:
        for indices in self.plan[self.start :]:
            begin = time.perf_counter()
            step = self.read(indices)
            self.waited += time.perf_counter() - begin
            yield step


def forest_steps(
    dataset: Dataset,
    plan: Sequence[Sequence[int]],
    max_tokens: int,
    record_weight: float = 0.0,
    rank: int = 0,
    ranks: int = 1,
) -> Steps:
    """Return steps of tokenised trees in rows of at most `max_tokens`, those of process `rank`."""
    columns = ("length", "learnt_weight", "trunk_length", "branches")
    lengths, learnt, trunks, branches = (np.asarray(dataset[name]) for name in columns)
    weights = learnt + record_weight * np.maximum(trunks - 1, 0)

    def read(indices: Sequence[int]) -> Step:
        chosen = np.asarray(indices)
        own = pack(lengths[chosen].tolist(), max_tokens, ranks)[rank]
        return Step(
            [collate([read_tree(dataset, indices[i]) for i in row], record_weight) for row in own],
            weight=float(weights[chosen].sum()),
            tokens=int(lengths[chosen].sum()),
            samples=int(branches[chosen].sum()),
        )

    return Steps(plan, read)


class StepData(LightningDataModule):
    """The steps of one training run, in planned order, and those for evaluation.

    `training.start` is set to the number of completed steps when a run resumes.
    """

    def __init__(self, training: Steps, evaluation: Steps | None = None):
        super().__init__()
        self.training, self.evaluation = training, evaluation

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the loader of the training steps, one step per batch."""
        return DataLoader(self.training, batch_size=None)

    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        """Move steps to the device; prompts stay, since the rollout moves their tokens."""
        return batch.to(device) if isinstance(batch, Step) else batch
