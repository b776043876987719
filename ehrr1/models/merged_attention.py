"""Attention over a forest without masks and without copies, for `model.attention=sdpa` on CPU.

PyTorch's kernel is slower with a mask than without one. A tree's branches therefore attend to the
whole trunk in one call and to themselves, some at a time, in other calls; the results are merged by
their log-sum-exp (as in Ring Attention, Liu et al., arXiv 2310.01889). The gradient is exact: given
the merged output and log-sum-exp, the backward pass of each call uses the probabilities of the
whole. For this the kernel must be called by its own name, forward and backward.

Keys and values are not repeated for the query heads that share them, as the kernel takes fewer key
heads. The output is laid out as the next projection takes it, so that it is kept once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ehrr1.prompts.forest import Shape

BUNCH = 256
"""Maximum number of branch tokens in one masked call of `sdpa`, unless one branch is longer.

A larger value computes more pairs of branches that do not attend to each other; a smaller value
makes more calls.
"""


@dataclass(frozen=True, slots=True)
class Call:
    """Queries that attend to keys, all to all, or causally, or as the mask says.

    queries, keys: places in the row. mask: additive float tensor [queries, keys]. first: whether no
    call before it has the same queries.
    """

    queries: slice
    keys: slice
    first: bool
    causal: bool = False
    mask: Tensor | None = None


def calls(shapes: Sequence[Shape]) -> tuple[Call, ...]:
    """Return the calls of all trees on a CPU."""
    found: list[Call] = []
    start, own = 0, sum(shape.trunk for shape in shapes)
    for shape in shapes:
        trunk = slice(start, start + shape.trunk)
        if shape.trunk:
            branches = slice(own, own + sum(shape.branches))
            found.append(Call(trunk, trunk, first=True, causal=True))
            found.append(Call(branches, trunk, first=True))
        for some in bunched(shape.branches):
            place = slice(own, own + sum(some))
            mask = None
            if len(some) > 1:
                mask = torch.zeros(sum(some), sum(some)).masked_fill(~own_mask(some), -torch.inf)
            found.append(Call(place, place, not shape.trunk, causal=mask is None, mask=mask))
            own = place.stop
        start = trunk.stop
    return tuple(found)


def bunched(branches: Sequence[int]) -> list[list[int]]:
    """Group branch lengths into runs of at most `BUNCH` tokens.

    A longer branch forms its own run.
    """
    runs: list[list[int]] = []
    for length in branches:
        if not runs or sum(runs[-1]) + length > BUNCH:
            runs.append([])
        runs[-1].append(length)
    return runs


def own_mask(branches: Sequence[int]) -> Tensor:
    """Return the mask of branches among themselves, bool [tokens, tokens].

    It is causal within each branch.
    """
    return torch.block_diag(*(torch.ones(n, n).tril() for n in branches)).bool()


_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class Merged(torch.autograd.Function):
    """Attention of all calls.

    query: [1, heads, L or branch tokens, size]; key and value: [1, key heads, L, size]; result:
    shape of query.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        calls: Sequence[Call],
        scale: float | None,
    ) -> Tensor:
        """Compute the calls and merge their results by their log-sum-exp."""
        output = _token_by_token(query)
        sums = torch.empty(0)
        for call, asked in _asked(calls, key.shape[2] - query.shape[2]):
            found, total = _forward(
                query[:, :, asked], key[:, :, call.keys], value[:, :, call.keys],
                0.0, call.causal, attn_mask=_typed(call.mask, query), scale=scale,
            )  # fmt: skip
            if not sums.numel():
                sums = total.new_empty(query.shape[:3])
            if call.first:
                output[:, :, asked], sums[:, :, asked] = found, total
                continue
            merged = torch.logaddexp(sums[:, :, asked], total)
            weight = (total - merged).exp()[..., None]
            before = output[:, :, asked].to(weight.dtype)
            output[:, :, asked] = torch.lerp(before, found.to(weight.dtype), weight)
            sums[:, :, asked] = merged
        ctx.save_for_backward(query, key, value, output, sums)
        ctx.calls, ctx.scale = calls, scale
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Return the gradients of query, key and value."""
        query, key, value, output, sums = ctx.saved_tensors
        of_query, of_key, of_value = (_token_by_token(one).zero_() for one in (query, key, value))
        for call, asked in _asked(ctx.calls, key.shape[2] - query.shape[2]):
            parts = _backward(
                gradients[0][:, :, asked], query[:, :, asked],
                key[:, :, call.keys], value[:, :, call.keys],
                output[:, :, asked], sums[:, :, asked],
                0.0, call.causal, attn_mask=_typed(call.mask, query), scale=ctx.scale,
            )  # fmt: skip
            of_query[:, :, asked] += parts[0]
            of_key[:, :, call.keys] += parts[1]
            of_value[:, :, call.keys] += parts[2]
        return of_query, of_key, of_value, None, None


def _asked(calls: Sequence[Call], trunks: int) -> Iterator[tuple[Call, slice]]:
    """Yield the calls with the places of their queries, if those of so many tokens are left out.

    The last layer may have queries of branches only (`models/prune_last_layer.py`).
    """
    for call in calls:
        if call.queries.start >= trunks:
            yield call, slice(call.queries.start - trunks, call.queries.stop - trunks)


def _token_by_token(like: Tensor) -> Tensor:
    """Return an empty tensor [1, heads, tokens, size] whose memory holds token after token."""
    batch, heads, tokens, size = like.shape
    return like.new_empty(batch, tokens, heads, size).transpose(1, 2)


def _typed(mask: Tensor | None, like: Tensor) -> Tensor | None:
    return None if mask is None else mask.to(like.dtype)


def merged(*given: Any) -> Tensor:
    """Compute the attention of `Merged`, with the same arguments."""
    found = Merged.apply(*given)
    assert isinstance(found, Tensor)
    return found
