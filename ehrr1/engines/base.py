"""What engines take and return, and the check that one has the trainer's weights."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ehrr1.progress import track
from ehrr1.prompts.trees import Tree


@dataclass(frozen=True, slots=True)
class Completion:
    """Sampled token ids (the end-of-turn token included), the log-probability of each under the
    sampling temperature and before top-p and top-k, and whether the length ran out."""

    tokens: list[int]
    logprobs: list[float]
    truncated: bool


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a token is drawn; `temperature` 0 takes the likeliest (its log-probability is then the
    plain one). `top_p` 1 and `top_k` 0 keep all tokens."""

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0


class Writer(Protocol):
    """Who writes completions."""

    def stream(
        self,
        prompts: Sequence[list[int]],
        sampling: Sampling,
        *,
        group_size: int = 1,
        seeds: Sequence[int] | None = None,
    ) -> Iterator[tuple[int, list[Completion]]]:
        """The number of a prompt and its `group_size` completions, as they are done.

        The draws for a prompt depend on its seed (0 .. 2**31) only; without `seeds` it is the
        prompt's number.
        """

    def generate(
        self,
        prompts: Sequence[list[int]],
        sampling: Sampling,
        *,
        group_size: int = 1,
        seeds: Sequence[int] | None = None,
        description: str | None = None,
    ) -> list[list[Completion]]:
        """What `stream` yields, in the order of the prompts. `description` names a progress bar;
        None shows none."""
        groups = self.stream(prompts, sampling, group_size=group_size, seeds=seeds)
        found = dict(track(groups, description, len(prompts)) if description else groups)
        return [found[number] for number in range(len(prompts))]

    def close(self) -> None:
        """Leave nothing running."""


class Answerer(Writer, Protocol):
    """A writer that also tells what it would say next: what evaluation asks."""

    def answers(
        self, trees: Sequence[Tree], ids: Sequence[int]
    ) -> Iterator[tuple[int, NDArray[np.float64]]]:
        """The number of a tree and what comes next behind each branch's prompt, as it is known:
        natural log-probabilities of the tokens `ids` among the whole vocabulary, at temperature 1,
        [branches, ids]; -inf for a token that the engine does not tell. Nothing is generated.
        """


def questions(trees: Sequence[Tree]) -> list[list[int]]:
    """A prompt for each branch, for engines that take a prompt at a time; a tree's follow each
    other, so that what they share is remembered."""
    return [tree.trunk + branch.prompt for tree in trees for branch in tree.branches]


def by_tree(
    trees: Sequence[Tree],
    width: int,
    told: Iterable[tuple[int, Sequence[float] | NDArray[np.float64] | None]],
) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """`Answerer.answers` out of what is told of each of `questions`, by its number, in any order;
    None is told of one that was refused."""
    owners = [(n, b) for n, tree in enumerate(trees) for b in range(len(tree.branches))]
    found = [np.full((len(tree.branches), width), -np.inf) for tree in trees]
    left = [len(tree.branches) for tree in trees]
    for place, values in told:
        number, branch = owners[place]
        if values is not None:
            found[number][branch] = values
        left[number] -= 1
        if not left[number]:
            yield number, found[number]


class Rollout(Writer, Protocol):
    """A writer with the trainer's weights: the model that trains, an engine beside it, or a server
    that takes them."""

    def sync(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Take the weights of now: names as in an exported folder, whole tensors, one at a time.

        Every process calls it with as many tensors.
        """

    def logprobs(self, tokens: list[int]) -> list[float]:
        """The log-probability of each token but the first, at temperature 1."""


class EngineError(RuntimeError):
    """The engine that generates ended by itself, or could not start."""


class OutOfSyncError(RuntimeError):
    """Trainer and engine do not compute the same model."""


SYNC_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.25}
"""How far apart the log-probabilities of random tokens may be on average, in nats, by the engine's
dtype, where the trainer's weights are float32.

In float32 only the order of sums differs: 1e-5 for SmolLM2-135M, 1e-6 for smaller models, while
one step of AdamW at a rate of 2e-6 that has not arrived shows as 3e-3. In bfloat16 weights and
activations are rounded to 8 bits: 0.07 to 0.08 for SmolLM2-135M (single tokens 0.4). A single step
cannot be seen there; weights that never arrive can, as they drift apart.
"""


def check_sync(engine: Sequence[float], trainer: Sequence[float], tolerance: float) -> float:
    """The mean absolute difference of two lists of log-probabilities of the same tokens, in nats.

    Raises OutOfSyncError where it is above `tolerance`, or not a number.
    """
    gaps = [abs(one - other) for one, other in zip(engine, trainer, strict=True)]
    mean = sum(gaps) / len(gaps)
    if not mean <= tolerance:
        raise OutOfSyncError(
            f"after a sync the engine's log-probabilities differ from the trainer's by {mean:.3g} "
            f"nats on average (at most {max(gaps):.3g}, over {len(gaps)} tokens), more than "
            f"{tolerance:g}: the weights have not arrived, or the engine computes another model"
        )
    return mean
