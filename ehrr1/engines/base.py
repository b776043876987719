"""The interface of all engines, and what they take and return."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ehrr1.progress import track
from ehrr1.prompts.trees import Tree


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled completion.

    `tokens` includes the end-of-turn token. `logprobs` are natural log-probabilities at the
    sampling temperature, before top-p and top-k; empty where a server does not return them.
    `truncated`: the completion reached `max_new_tokens`.
    """

    tokens: list[int]
    logprobs: list[float]
    truncated: bool


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """The parameters of token sampling.

    `temperature` 0 is greedy decoding; log-probabilities are then those at temperature 1. `top_p` 1
    and `top_k` 0 keep all tokens.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0


class Engine(ABC):
    """A language model that generates completions and scores tokens."""

    @abstractmethod
    def stream(
        self,
        prompts: Sequence[list[int]],
        sampling: SamplingParams,
        *,
        group_size: int = 1,
        seeds: Sequence[int] | None = None,
    ) -> Iterator[tuple[int, list[Completion]]]:
        """Yield the index of a prompt and its `group_size` completions, as they are finished.

        The draws for a prompt depend only on its seed (0 .. 2**31); without `seeds` the seed is the
        index. A group is empty where a server refuses the prompt.
        """

    @abstractmethod
    def answers(
        self, trees: Sequence[Tree], ids: Sequence[int]
    ) -> Iterator[tuple[int, NDArray[np.float64]]]:
        """Yield the index of a tree and the next-token log-probabilities behind each branch.

        The arrays have shape [branches, ids]: natural log-probabilities of the tokens `ids` over
        the whole vocabulary at temperature 1; -inf for a token that the engine does not return.
        Nothing is generated.
        """

    @abstractmethod
    def logprobs(self, tokens: list[int]) -> list[float]:
        """Return the log-probability of each token but the first, at temperature 1."""

    @abstractmethod
    def close(self) -> None:
        """Stop the processes that the engine has started."""

    def generate(
        self,
        prompts: Sequence[list[int]],
        sampling: SamplingParams,
        *,
        group_size: int = 1,
        seeds: Sequence[int] | None = None,
        description: str | None = None,
    ) -> list[list[Completion]]:
        """Return what `stream` yields, in the order of the prompts.

        `description` names a progress bar; None shows none.
        """
        groups = self.stream(prompts, sampling, group_size=group_size, seeds=seeds)
        found = dict(track(groups, description, len(prompts)) if description else groups)
        return [found[number] for number in range(len(prompts))]


class TrainableEngine(Engine):
    """An engine that takes the trainer's weights."""

    @abstractmethod
    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Load the trainer's current weights.

        `weights` yields whole tensors one at a time, named as in an exported folder. Every training
        process must call this with the same number of tensors, as a divided tensor is gathered by
        all of them. An engine that sleeps wakes.
        """

    def sleep(self) -> None:
        """Free the memory of the trainer's device until the next `load_weights`.

        An engine that has no memory of its own there does nothing.
        """


class EngineError(RuntimeError):
    """The engine's process ended unexpectedly, or could not start."""


def branch_prompts(trees: Sequence[Tree]) -> list[list[int]]:
    """Return one prompt for each branch, for engines that take one prompt at a time.

    The prompts of a tree follow each other, so that an engine's prefix cache serves them.
    """
    return [tree.trunk + branch.prompt for tree in trees for branch in tree.branches]


def by_tree(
    trees: Sequence[Tree],
    width: int,
    results: Iterable[tuple[int, Sequence[float] | NDArray[np.float64] | None]],
) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Collect results for `branch_prompts` into arrays [branches, width], as `Engine.answers` does.

    `results` yields the index of a prompt and its `width` values, in any order; None for a prompt
    that was refused, which becomes a row of -inf.
    """
    owners = [(n, b) for n, tree in enumerate(trees) for b in range(len(tree.branches))]
    found = [np.full((len(tree.branches), width), -np.inf) for tree in trees]
    left = [len(tree.branches) for tree in trees]
    for place, values in results:
        number, branch = owners[place]
        if values is not None:
            found[number][branch] = values
        left[number] -= 1
        if not left[number]:
            yield number, found[number]
