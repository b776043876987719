"""Log-probabilities of the learnt tokens of a forest, without ever holding all logits.

With a vocabulary of 151k the logits, not the weights, fill the memory: hidden states are gathered
first where something is predicted, and turned into logits chunk by chunk.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from ehrr1.models.attention import prepare
from ehrr1.prompts.forest import Forest

CHUNK = 2**25
"""Logits held at a time (128 MiB in float32)."""


class TokenStatistics(NamedTuple):
    """For each of N learnt tokens: its log-probability [N], and the entropy [N] (no gradient)."""

    logprobs: Tensor
    entropy: Tensor


def hidden_states(model: PreTrainedModel, forest: Forest) -> Tensor:
    """The last hidden states at the tokens that predict, [N, hidden]."""
    device = forest.input_ids.device
    output = model.base_model(
        input_ids=forest.input_ids,
        position_ids=forest.position_ids,
        attention_mask=torch.empty(0, 0, 0, 0, device=device),  # so that no mask is made
        use_cache=False,
        forest=prepare(model, forest.shapes, device),
        stem=forest.stem if forest.from_branches else 0,
    )
    return output.last_hidden_state[0][forest.sources]


def token_logprobs(
    model: PreTrainedModel, forest: Forest, temperature: float = 1.0, chunk: int = CHUNK
) -> TokenStatistics:
    """Log-probabilities of `forest.targets` under `model` at `temperature`, with gradient."""
    states = hidden_states(model, forest)
    head = model.get_output_embeddings()
    size = max(1, chunk // head.weight.shape[0])
    if len(states) <= size:
        return TokenStatistics(*_statistics(head, states, forest.targets, temperature))
    parts = [
        # logits are computed again for the gradient, so that one chunk is held at a time
        checkpoint(_statistics, head, part, targets, temperature, use_reentrant=False)
        for part, targets in zip(states.split(size), forest.targets.split(size), strict=True)
    ]
    logprobs, entropy = zip(*parts, strict=True)
    return TokenStatistics(torch.cat(logprobs), torch.cat(entropy))


def _statistics(
    head: torch.nn.Module, states: Tensor, targets: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    logits = head(states)
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    logprobs = torch.log_softmax(logits / temperature, dim=-1)
    with torch.no_grad():
        entropy = -(logprobs.exp() * logprobs).sum(-1)
    return logprobs.gather(-1, targets[:, None]).squeeze(-1), entropy
