"""Forests: trees packed side by side into one row of tokens, with the tokens to learn.

Trunk tokens are computed once for all branches. A branch token attends to its trunk and its own
branch, and no tree attends to another; positions restart after the trunk, so that each branch has
the log-probabilities that it would have alone behind the trunk. There is no padding: a row is as
long as its trees together.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from ehrr1.prompts.trees import Branch, Tree

TreeNumbers = list[int]
"""The trees of one row, as indices into a step's list of trees."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The length of a tree's trunk and of each of its branches, in tokens."""

    trunk: int
    branches: tuple[int, ...]


@dataclass(frozen=True)
class Forest:
    """Trees as one row of L tokens: all trunks first, then all branches, tree by tree.

    `input_ids`, `position_ids`: [1, L]; `shapes` gives the layout of the trees. For each of N
    learnt tokens: `sources` [N] the position of the token that predicts it, `targets` [N] its id,
    `weights` [N], `owners` [N] the number of its branch in the row (-1: a token of the record).
    `from_branches`: no learnt token is predicted by a trunk token. `tokens` counts real tokens,
    each trunk once. `sample_ids` and `tasks` are those of the branches. A row without trees is one
    dummy token, for processes that have fewer trees than others.
    """

    input_ids: Tensor
    position_ids: Tensor
    shapes: tuple[Shape, ...]
    sources: Tensor
    targets: Tensor
    weights: Tensor
    owners: Tensor
    from_branches: bool
    tokens: int
    sample_ids: list[str]
    tasks: list[str]

    @property
    def stem(self) -> int:
        """Return the number of tokens of all trunks, after which the branches begin."""
        return sum(shape.trunk for shape in self.shapes)

    def to(self, device: torch.device) -> "Forest":
        """Return the forest with its tensors on `device`."""
        return replace(
            self,
            input_ids=self.input_ids.to(device),
            position_ids=self.position_ids.to(device),
            sources=self.sources.to(device),
            targets=self.targets.to(device),
            weights=self.weights.to(device),
            owners=self.owners.to(device),
        )


NOTHING = Tree([0], [Branch("", [0], [0], weight=0.0)])
"""Tree of a row without trees, with which its process takes part in collective operations."""


def collate(trees: Sequence[Tree], record_weight: float = 0.0) -> Forest:
    """Pack trees into one row, in their order.

    With `record_weight` above 0, each record's tokens are learnt too, once per tree, with that
    weight. The first token of a tree is never learnt, since nothing predicts it.
    """
    real = bool(trees)
    trees = trees or [NOTHING]
    stem = sum(len(tree.trunk) for tree in trees)
    starts = [0, *accumulate(len(tree.trunk) for tree in trees)]
    ids = [token for tree in trees for token in tree.trunk]
    positions = [place for tree in trees for place in range(len(tree.trunk))]
    learnt = _Learnt()
    owner = 0
    for tree, start in zip(trees, starts, strict=False):
        end = start + len(tree.trunk)
        if record_weight > 0:
            learnt.add(range(start, end - 1), tree.trunk[1:], record_weight, -1)
        for branch in tree.branches:
            own, asked = len(ids), len(branch.prompt)
            ids += branch.prompt + branch.completion
            positions += range(len(tree.trunk), len(tree.trunk) + len(branch))
            # without a question, a branch's first token is predicted by the trunk
            places = [end - 1, *range(own, own + len(branch) - 1)][asked:]
            first = int(asked == 0 and not tree.trunk)
            learnt.add(places[first:], branch.completion[first:], branch.weight, owner)
            owner += 1
    return Forest(
        input_ids=torch.tensor([ids]),
        position_ids=torch.tensor([positions]),
        shapes=tuple(Shape(len(t.trunk), tuple(map(len, t.branches))) for t in trees),
        sources=torch.tensor(learnt.sources, dtype=torch.long),
        targets=torch.tensor(learnt.targets, dtype=torch.long),
        weights=torch.tensor(learnt.weights, dtype=torch.float32),
        owners=torch.tensor(learnt.owners, dtype=torch.long),
        from_branches=min(learnt.sources, default=stem) >= stem,
        tokens=sum(map(len, trees)) if real else 0,
        sample_ids=[branch.sample_id for tree in trees for branch in tree.branches] if real else [],
        tasks=[branch.task for tree in trees for branch in tree.branches],
    )


class _Learnt:
    """Columns of learnt tokens while a row is assembled."""

    def __init__(self) -> None:
        self.sources: list[int] = []
        self.targets: list[int] = []
        self.weights: list[float] = []
        self.owners: list[int] = []

    def add(
        self, sources: Sequence[int], targets: Sequence[int], weight: float, owner: int
    ) -> None:
        """Append learnt tokens of one branch or record."""
        self.sources += sources
        self.targets += targets
        self.weights += [weight] * len(targets)
        self.owners += [owner] * len(targets)


def pack(lengths: Sequence[int], max_tokens: int, ranks: int = 1) -> list[list[TreeNumbers]]:
    """Pack trees of `lengths` into rows of at most `max_tokens`, divided among `ranks` processes.

    Every process gets the same number of rows, some of them empty if there are too few trees,
    because collective operations wait for all processes. Rows have about equal lengths (each tree,
    longest first, is put into the shortest row). If one tree is longer than `max_tokens`, its
    length is the limit for all rows. Returns the rows of each process.
    """
    max_tokens = max([max_tokens, *lengths])
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    count = ranks * max(1, -(-sum(lengths) // (max_tokens * ranks)))
    while (rows := _filled(lengths, order, max_tokens, count)) is None:
        count += ranks
    rows.sort(key=lambda row: -sum(lengths[index] for index in row))
    # dealt in alternating directions, so that no process always gets the longer row
    deals = [rows[first : first + ranks] for first in range(0, count, ranks)]
    deals = [deal[::-1] if number % 2 else deal for number, deal in enumerate(deals)]
    return [[deal[rank] for deal in deals] for rank in range(ranks)]


def _filled(
    lengths: Sequence[int], order: Sequence[int], max_tokens: int, count: int
) -> list[TreeNumbers] | None:
    """Return `count` rows, or None if a tree does not fit."""
    rows: list[TreeNumbers] = [[] for _ in range(count)]
    used = [0] * count
    for index in order:
        row = used.index(min(used))
        if used[row] + lengths[index] > max_tokens:
            return None
        rows[row].append(index)
        used[row] += lengths[index]
    return rows
