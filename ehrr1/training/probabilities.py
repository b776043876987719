"""The policy's probability of yes where a completion states its answer, for proper rewards."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from ehrr1 import parallel
from ehrr1.engines.base import Completion
from ehrr1.models.logprobs import hidden_states
from ehrr1.prompts.forest import collate, pack
from ehrr1.prompts.trees import Branch, Tree
from ehrr1.scoring.risk import AnswerTokens, probability_of_yes
from ehrr1.training.prompts import RLPrompt

UNREAD = 0
"""Stands behind an answer's prompt and marks the place that is read: any token does."""


def yes_probabilities(
    model: PreTrainedModel,
    pairs: Sequence[tuple[RLPrompt, list[Completion]]],
    words: AnswerTokens,
    max_tokens: int,
) -> list[list[float | None]]:
    """Return the probability of yes for each prompt's completions, at temperature 1.

    It is None for decision tasks, and for a completion that has neither word.
    The answer is the last of a completion's tokens that begins a yes or a no. A prompt is computed
    once for its group, in rows of at most `max_tokens` that the processes share.
    """
    found: list[list[float | None]] = [[None] * len(group) for _, group in pairs]
    trees: list[Tree] = []
    places: list[list[tuple[int, int]]] = []
    for number, (prompt, group) in enumerate(pairs):
        stated = {own: _before_answer(one.tokens, words) for own, one in enumerate(group)}
        answered = {own: before for own, before in stated.items() if before is not None}
        if prompt.kind == "risk" and answered:
            last = prompt.tokens[-1:]
            branches = [Branch("read", last + before, [UNREAD]) for before in answered.values()]
            trees.append(Tree(prompt.tokens[:-1], branches))
            places.append([(number, own) for own in answered])
    for index, chances in _read(model, trees, words, max_tokens).items():
        for (number, own), chance in zip(places[index], chances, strict=True):
            found[number][own] = chance
    return found


def _before_answer(tokens: Sequence[int], words: AnswerTokens) -> list[int] | None:
    stated = [place for place, token in enumerate(tokens) if token in words.yes + words.no]
    return list(tokens[: stated[-1]]) if stated else None


@torch.no_grad()
def _read(
    model: PreTrainedModel, trees: Sequence[Tree], words: AnswerTokens, max_tokens: int
) -> dict[int, list[float]]:
    """Return the probability of yes after each branch's prompt, by the tree's number."""
    own: dict[int, list[float]] = {}
    rows = pack([len(tree) for tree in trees], max_tokens, parallel.size())[parallel.rank()]
    for row in rows:  # an empty one takes part in what the group does
        forest = collate([trees[index] for index in row]).to(model.device)
        logits = model.get_output_embeddings()(hidden_states(model, forest)).float()
        chances = iter(probability_of_yes(logits.cpu().numpy(), words).tolist())
        own |= {index: [next(chances) for _ in trees[index].branches] for index in row}
    return {index: chances for part in parallel.gather(own) for index, chances in part.items()}
