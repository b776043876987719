"""Compute log-probabilities of the learnt tokens of a forest without holding all logits.

With a vocabulary of 151k tokens, logits take more memory than weights. Hidden states are therefore
first gathered at the tokens that predict, and converted to logits chunk by chunk.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, nll_loss
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from ehrr1.models.attention import prepare
from ehrr1.prompts.forest import Forest

CHUNK = 2**25
"""Maximum number of logits held at a time (128 MiB in float32)."""


class TokenStatistics(NamedTuple):
    """Statistics of N learnt tokens.

    logprobs [N]: their log-probabilities, with gradient. entropy [N]: entropy in nats of the
    distribution at each token, without gradient; [0] if it was not requested.
    """

    logprobs: Tensor
    entropy: Tensor


def hidden_states(model: PreTrainedModel, forest: Forest) -> Tensor:
    """Return the last hidden states at the tokens that predict, [N, hidden]."""
    device = forest.input_ids.device
    output = model.base_model(
        input_ids=forest.input_ids,
        position_ids=forest.position_ids,
        attention_mask=torch.empty(0, 0, 0, 0, device=device),  # no mask is built then
        use_cache=False,
        forest=prepare(model, forest.shapes, device),
        stem=forest.stem if forest.from_branches else 0,
    )
    states: Tensor = output.last_hidden_state[0]
    # of the branches only, where nothing is predicted from trunks (models/prune_last_layer.py)
    return states[forest.sources - (forest.input_ids.shape[1] - len(states))]


def token_logprobs(
    model: PreTrainedModel,
    forest: Forest,
    temperature: float = 1.0,
    chunk: int = CHUNK,
    entropy: bool = False,
) -> TokenStatistics:
    """Return log-probabilities of `forest.targets` under `model` at `temperature`, with gradient.

    With `entropy`, one more pass over all logits computes the entropy. `chunk` is the maximum
    number of logits held at a time.
    """
    states = hidden_states(model, forest)
    return state_logprobs(model, states, forest.targets, temperature, chunk, entropy)


def state_logprobs(
    model: PreTrainedModel,
    states: Tensor,
    targets: Tensor,
    temperature: float = 1.0,
    chunk: int = CHUNK,
    entropy: bool = False,
) -> TokenStatistics:
    """Return log-probabilities of `targets` [N] behind hidden `states` [N, hidden].

    The other arguments are those of `token_logprobs`.
    """
    head = model.get_output_embeddings()
    size = max(1, chunk // model.config.vocab_size)  # a head partitioned by ZeRO-3 has no shape
    given = temperature, entropy
    if len(states) <= size:
        return _statistics(head, states, targets, *given)
    parts = [
        # logits are recomputed for the gradient, so that only one chunk is held at a time
        checkpoint(_statistics, head, *part, *given, use_reentrant=False)
        for part in zip(states.split(size), targets.split(size), strict=True)
    ]
    return TokenStatistics(*map(torch.cat, zip(*parts, strict=True)))


def _statistics(
    head: torch.nn.Module, states: Tensor, targets: Tensor, temperature: float, entropy: bool
) -> TokenStatistics:
    logits = head(states)
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    if temperature != 1.0:
        logits = logits / temperature
    every = log_softmax(logits, dim=-1)
    logprobs = -nll_loss(every, targets, reduction="none")
    if not entropy:
        return TokenStatistics(logprobs, logprobs.new_empty(0))
    with torch.no_grad():
        return TokenStatistics(logprobs, -(every.exp() * every).sum(-1))
