"""Compute log-probabilities of the learnt tokens of a forest without holding all logits.

With a vocabulary of 151k tokens, logits take more memory than weights. Hidden states are therefore
first gathered at the tokens that predict, and converted to logits chunk by chunk.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, nll_loss
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
    head: Any = model.get_output_embeddings()
    if "forward" not in vars(head):
        head.forward = MethodType(_forward, head)
    rows = max(1, chunk // model.config.vocab_size)  # a head partitioned by ZeRO-3 has no shape
    found = head(states, targets, Asked(rows, temperature, entropy))
    return TokenStatistics(found[0], found[1].detach() if entropy else found.new_empty(0))


class Asked(NamedTuple):
    """A request to the head: statistics of `rows` tokens at a time, at a `temperature`."""

    rows: int
    temperature: float
    entropy: bool


def _forward(
    head: torch.nn.Module, states: Tensor, targets: Tensor | None = None, asked: Asked | None = None
) -> Tensor:
    """Compute logits or, with `targets`, statistics [1 or 2, N] of all tokens in one call.

    ZeRO-3 gathers the weights of a module when it is called, in both passes. A call a chunk would
    gather the head again and again.
    """
    logits = partial(type(head).forward, head)
    if targets is None or asked is None:
        whole: Tensor = logits(states)
        return whole
    if len(states) <= asked.rows:
        return _statistics(logits, states, targets, asked)
    learnt = [weights for weights in head.parameters() if weights.requires_grad]
    chunked: Tensor = _Chunked.apply(partial(_statistics, logits), asked, states, targets, *learnt)
    return chunked


def _statistics(
    head: Callable[[Tensor], Tensor], states: Tensor, targets: Tensor, asked: Asked
) -> Tensor:
    """Return log-probabilities and, if asked for, entropies of tokens, [1 or 2, N]."""
    logits = head(states)
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    if asked.temperature != 1.0:
        logits = logits / asked.temperature
    every = log_softmax(logits, dim=-1)
    logprobs = -nll_loss(every, targets, reduction="none")
    if not asked.entropy:
        return logprobs[None]
    with torch.no_grad():
        entropy = -(every.exp() * every).sum(-1)
    return torch.stack([logprobs, entropy])


class _Chunked(torch.autograd.Function):
    """Statistics of tokens, some at a time.

    The logits of a chunk are computed again for its gradient, so that only one chunk is held. The
    gradients of the head's weights are summed in float32 and rounded once: a sum of bfloat16 over
    the chunks of a row would be 0.7 % off.
    """

    @staticmethod
    def forward(
        ctx: Any, compute: Callable[..., Tensor], asked: Asked, states: Tensor, targets: Tensor,
        *learnt: Tensor,
    ) -> Tensor:  # fmt: skip
        """Return the statistics, [1 or 2, N]."""
        ctx.compute, ctx.asked, ctx.learnt = compute, asked, learnt
        ctx.autocast = _autocast(states.device.type)
        ctx.save_for_backward(states, targets)
        chunks = zip(states.split(asked.rows), targets.split(asked.rows), strict=True)
        with ctx.autocast:
            return torch.cat([compute(*chunk, asked) for chunk in chunks], 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of `forward`'s arguments."""
        asked = ctx.asked._replace(entropy=False)
        columns = [one.split(asked.rows) for one in (*ctx.saved_tensors, gradients[0][0])]
        sums: list[Tensor] = []
        found = []
        for states, targets, gradient in zip(*columns, strict=True):
            states = states.detach().requires_grad_()
            with torch.enable_grad(), ctx.autocast:
                logprobs = ctx.compute(states, targets, asked)[0]
            own, *weights = torch.autograd.grad(logprobs, [states, *ctx.learnt], gradient)
            found.append(own)
            if not sums:
                sums = [one.to(torch.promote_types(one.dtype, torch.float32)) for one in weights]
            else:
                for total, one in zip(sums, weights, strict=True):
                    total.add_(one)
        rounded = (total.to(one.dtype) for total, one in zip(sums, ctx.learnt, strict=True))
        return None, None, torch.cat(found), None, *rounded


def _autocast(device: str) -> AbstractContextManager[Any]:
    """Return the current autocast for the backward pass, which runs without it.

    Nothing is cached: a weight that is cast without a gradient must not serve others.
    """
    if not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, torch.get_autocast_dtype(device), cache_enabled=False)
