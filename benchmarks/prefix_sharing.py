"""The log-probabilities of completions that share a prompt, in three ways, and an update with them.

- `forest`: ehrr1's, the prompt is computed once (`model.attention` as built)
- `alone`: each completion behind a copy of its prompt (PyTorch's attention, causal, no padding)
- `grouped`: prefix_grouper 0.0.1.post1, the prompt is computed once under PyTorch's attention

Each yields the log-probabilities [n] of the learnt tokens, with gradient, tree by tree and branch
by branch; `alone` a branch at a time, so that only one is held. The head is the same for all
(`state_logprobs`). Needs torch and transformers, `grouped` also prefix_grouper.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from ehrr1.models.logprobs import state_logprobs, token_logprobs
from ehrr1.prompts.forest import collate
from ehrr1.prompts.trees import Tree
from ehrr1.training.losses import (
    PolicySettings,
    Tokens,
    completion_weights,
    policy_loss,
    supervised_loss,
)

Way = Callable[[PreTrainedModel, Sequence[Tree]], Iterator[Tensor]]
Loss = Callable[[Tensor, slice], Tensor]
"""(log-probabilities of some learnt tokens, which of all they are) -> their part of the loss."""

GRPO = PolicySettings(
    loss="grpo",
    level="token",
    epsilon=0.2,
    epsilon_high=0.2,
    beta=0.0,
    kl="k3",
    correction="none",
    correction_cap=2.0,
)
CLIP = 1.0


def forest(model: PreTrainedModel, trees: Sequence[Tree]) -> Iterator[Tensor]:
    """All trees as one row."""
    yield token_logprobs(model, collate(trees).to(model.device)).logprobs


def alone(model: PreTrainedModel, trees: Sequence[Tree]) -> Iterator[Tensor]:
    """Each branch behind its trunk as a row of its own; the model has the attention `sdpa`."""
    for tree in trees:
        for branch in tree.branches:
            ids = tree.trunk + branch.prompt + branch.completion
            row = torch.tensor([ids], device=model.device)
            states = model.base_model(input_ids=row, use_cache=False).last_hidden_state[0]
            learnt = len(branch.completion)
            yield state_logprobs(model, states[-learnt - 1 : -1], row[0, -learnt:]).logprobs


def grouped(model: PreTrainedModel, trees: Sequence[Tree]) -> Iterator[Tensor]:
    """Each tree as a group of PrefixGrouper; the model has the attention `prefix_grouper`.

    Its branches have one question and are equally long, so that nothing is padded.
    """
    from prefix_grouper import PrefixGrouper

    for tree in trees:
        prompt = tree.trunk + tree.branches[0].prompt
        answers = [branch.completion for branch in tree.branches]
        [length] = {len(answer) for answer in answers}
        positions = [
            *range(len(prompt)),
            *[*range(len(prompt), len(prompt) + length)] * len(answers),
        ]
        row = torch.tensor([[*prompt, *chain(*answers)]], device=model.device)
        grouper = PrefixGrouper([[len(prompt), *map(len, answers)]], device=model.device)
        states = model.base_model(
            input_ids=row,
            position_ids=torch.tensor([positions], device=model.device),
            attention_mask=torch.empty(0, 0, 0, 0, device=model.device),  # no mask is built then
            use_cache=False,
            prefix_grouper=grouper,
        ).last_hidden_state
        _, _, behind, _ = grouper.split_output(states, include_prefix_last=1)
        targets = torch.tensor(answers, device=model.device).flatten()
        yield state_logprobs(model, behind[:, :-1].flatten(0, 1), targets).logprobs


def _grouped_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    prefix_grouper: Any,
    scaling: float,
    **others: Any,
) -> tuple[Tensor, None]:
    def attend(query: Tensor, key: Tensor, value: Tensor, padding: Tensor) -> Tensor:
        """Its mask is of padding, of which there is none; to be causal is left to this function."""
        prompt = query.shape[2] == key.shape[2]
        mask = None if prompt else _lower_right(query.shape[2], key.shape[2], query.device)
        found = scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=prompt, scale=scaling, enable_gqa=True
        )
        return found.transpose(1, 2)

    return prefix_grouper.forward(attend, query, key, value), None


@cache
def _lower_right(queries: int, keys: int, device: torch.device) -> Any:
    """The mask of completions: on a GPU for kernels that are causal by themselves."""
    if device.type == "cuda":
        return causal_lower_right(queries, keys)
    seen = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    return torch.zeros(queries, keys).masked_fill(~seen, -torch.inf)


AttentionInterface.register("prefix_grouper", _grouped_attention)


def supervised(trees: Sequence[Tree], device: torch.device) -> Loss:
    """The mean negative log-likelihood of all completions' tokens."""
    total = sum(len(branch.completion) for tree in trees for branch in tree.branches)
    weights = torch.ones(total, device=device)
    return lambda logprobs, part: supervised_loss(logprobs, weights[part], total)


def policy(trees: Sequence[Tree], device: torch.device) -> Loss:
    """GRPO's loss of the first update after a rollout; advantages are drawn."""
    lengths = [len(branch.completion) for tree in trees for branch in tree.branches]
    counted = torch.ones(len(lengths), dtype=torch.bool)
    each = completion_weights(GRPO.loss, torch.tensor(lengths), counted, max(lengths))
    drawn = torch.randn(len(lengths), generator=torch.Generator().manual_seed(0))
    repeats = torch.tensor(lengths)
    columns = (each.float(), drawn, torch.arange(len(lengths)))
    weights, advantages, owners = (one.repeat_interleave(repeats).to(device) for one in columns)

    def loss(logprobs: Tensor, part: slice) -> Tensor:
        given = advantages[part], owners[part], weights[part]
        return policy_loss(Tokens(logprobs, logprobs.detach(), *given), GRPO).loss

    return loss


def update(
    model: PreTrainedModel, optimizer: torch.optim.Optimizer, parts: Iterable[Tensor], loss: Loss
) -> tuple[Tensor, float]:
    """Take one optimizer step; return the log-probabilities and the gradient's norm before it."""
    found: list[Tensor] = []
    place = 0
    for logprobs in parts:
        part = slice(place, place + len(logprobs))
        loss(logprobs, part).backward()
        found.append(logprobs.detach())
        place = part.stop
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP).item()
    optimizer.step()
    optimizer.zero_grad()
    return torch.cat(found), norm
