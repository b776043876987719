"""Tokenised trees on disk, and the order in which training reads them."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from datasets import Dataset, Features, List, Value
from datasets.arrow_writer import ArrowWriter
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data import Dataset as MapDataset

from ehrr1.files import replacing
from ehrr1.progress import track
from ehrr1.prompts.forest import Forest, collate, pack
from ehrr1.prompts.trees import Branch, Question, Tree, TreeMaker
from ehrr1.tasks.samples import Prepared, Sample, preamble_length

PART, MAX_WORKERS = 64, 8
"""Contexts tokenised at a time by one of at most so many processes."""

FEATURES = Features(
    {
        "trunk": List(Value("int32")),
        "prompts": List(List(Value("int32"))),
        "completions": List(List(Value("int32"))),
        "weights": List(Value("float32")),
        "sample_ids": List(Value("string")),
        "length": Value("int32"),
        "cut_events": Value("int32"),
        "cut_tokens": Value("int32"),
    }
)


def rank(seed: int, name: str) -> int:
    """A number that orders names at random, the same in every process."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest())


class Asked(Protocol):
    """A sample or a prompt."""

    @property
    def sample_id(self) -> str: ...
    @property
    def task(self) -> str: ...


AskedItem = TypeVar("AskedItem", bound=Asked)


def evenly(items: Iterable[AskedItem], count: int, seed: int) -> list[AskedItem]:
    """At most `count` of `items`, drawn at random, tasks mixed as evenly as there are items."""
    tasks: dict[str, list[AskedItem]] = defaultdict(list)
    for item in sorted(items, key=lambda item: rank(seed, item.sample_id)):
        tasks[item.task].append(item)
    rounds = [
        (number, rank(seed, f"{number}/{task}"), item)
        for task, group in tasks.items()
        for number, item in enumerate(group)
    ]
    rounds.sort(key=lambda entry: entry[:2])
    return [item for _, _, item in rounds[:count]]


def plan_evenly(
    tasks: Sequence[str], per_step: int, steps: int | None, seed: int
) -> list[list[int]]:
    """Which prompts each step reads: every task equally often, a task's prompts in turn.

    `tasks` [prompts] is the task of each; `steps` None makes as many steps as give each prompt one
    turn on average.
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


def write_trees(
    path: Path,
    prepared: Prepared,
    samples: Sequence[Sample],
    ask: Callable[[Sample], Sequence[Question]],
    maker: TreeMaker,
    max_branches: int = 16,
) -> Dataset:
    """Tokenise `samples` into one Arrow file, memory-mapped; what is there already is used.

    Samples that share a context become one tree of at most `max_branches` branches. A question
    whose answer leaves no room for a record is left out.
    """
    if not path.exists():
        contexts: dict[str, list[Sample]] = defaultdict(list)
        for sample in samples:
            contexts[sample.context_id].append(sample)
        groups = list(contexts.values())
        parts = [groups[first : first + PART] for first in range(0, len(groups), PART)]
        work = DataLoader(
            _Tokenised(parts, lambda group: _trees(prepared, group, ask, maker, max_branches)),
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=min(os.cpu_count() or 1, MAX_WORKERS) if len(parts) > MAX_WORKERS else 0,
            worker_init_fn=_one_thread,
        )
        rows = iter(work)  # processes start here, before the progress bar's thread does
        with replacing(path) as temporary:
            writer = ArrowWriter(path=str(temporary), features=FEATURES)
            for part in track(rows, "tokenising records", total=len(parts)):
                for row in part:
                    writer.write(row)
            writer.finalize()
            writer.close()
    return Dataset.from_file(str(path))


class _Tokenised(MapDataset[Any]):
    """The rows of each part, made where they are asked for."""

    def __init__(
        self,
        parts: Sequence[Sequence[Sequence[Sample]]],
        trees: Callable[[Sequence[Sample]], Iterator[Tree]],
    ):
        self.parts, self.trees = parts, trees

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: int) -> list[dict[str, object]]:
        return [_row(tree) for group in self.parts[index] for tree in self.trees(group)]


def _as_it_is(part: Any) -> Any:
    return part


def _one_thread(worker: int) -> None:
    """The tokenizer's own threads do not live on in a forked process."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _trees(
    prepared: Prepared,
    group: Sequence[Sample],
    ask: Callable[[Sample], Sequence[Question]],
    maker: TreeMaker,
    max_branches: int,
) -> Iterator[Tree]:
    questions = [question for sample in group for question in ask(sample) if maker.fits(question)]
    events = prepared.context(group[0]) if questions else []
    for first in range(0, len(questions), max_branches):
        some = questions[first : first + max_branches]
        yield maker.tree(events, preamble_length(events), some)


def _row(tree: Tree) -> dict[str, object]:
    return {
        "trunk": tree.trunk,
        "prompts": [branch.prompt for branch in tree.branches],
        "completions": [branch.completion for branch in tree.branches],
        "weights": [branch.weight for branch in tree.branches],
        "sample_ids": [branch.sample_id for branch in tree.branches],
        "length": len(tree),
        "cut_events": tree.cut_events,
        "cut_tokens": tree.cut_tokens,
    }


def read_tree(dataset: Dataset, index: int) -> Tree:
    row = dataset[index]
    columns = (row["sample_ids"], row["prompts"], row["completions"], row["weights"])
    branches = [Branch(*values) for values in zip(*columns, strict=True)]
    return Tree(row["trunk"], branches, row["cut_events"], row["cut_tokens"])


def plan_steps(
    lengths: Sequence[int],
    trees_per_step: int,
    epochs: float,
    max_steps: int | None,
    seed: int,
    short_first: bool = False,
) -> list[list[int]]:
    """Which trees each optimizer step reads: shuffled by `seed`, each epoch anew.

    `short_first` orders the first epoch by length (in ten classes, shuffled within): records that
    a small model can overlook come before those in which it would be lost.
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


def rows(trees: Sequence[Tree], max_tokens: int, record_weight: float = 0.0) -> list[Forest]:
    """One optimizer step's trees as rows of at most `max_tokens`, for a single process."""
    [own] = pack([len(tree) for tree in trees], max_tokens)
    return [collate([trees[index] for index in row], record_weight) for row in own]


class Steps(IterableDataset[Any]):
    """What `read` makes of each step's indices, from step `start` on."""

    def __init__(self, plan: Sequence[Sequence[int]], read: Callable[[Sequence[int]], Any]):
        self.plan, self.read, self.start = plan, read, 0

    def __iter__(self) -> Iterator[Any]:
        return map(self.read, self.plan[self.start :])


class StepData(LightningDataModule):
    """The steps of one training run, read in planned order, and batches to evaluate on.

    `training.start` is set to the number of steps done when a run resumes.
    """

    def __init__(self, training: Steps, evaluation: Steps | None = None):
        super().__init__()
        self.training, self.evaluation = training, evaluation

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.training, batch_size=None)

    def val_dataloader(self) -> DataLoader[Any]:
        assert self.evaluation is not None
        return DataLoader(self.evaluation, batch_size=None)

    def transfer_batch_to_device(
        self, batch: list[Any], device: torch.device, dataloader_idx: int
    ) -> list[Any]:
        """Forests move; prompts stay, as the rollout moves their tokens."""
        return [item.to(device) if isinstance(item, Forest) else item for item in batch]


def forest_steps(
    dataset: Dataset,
    plan: Sequence[Sequence[int]],
    max_batch_tokens: int,
    record_weight: float = 0.0,
) -> Steps:
    """Steps of tokenised trees: each yields the forests of one optimizer step."""

    def read(indices: Sequence[int]) -> list[Forest]:
        trees = [read_tree(dataset, index) for index in indices]
        return rows(trees, max_batch_tokens, record_weight)

    return Steps(plan, read)
