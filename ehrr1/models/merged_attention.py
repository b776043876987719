"""Attention of branches to trunk and themselves without a mask, for `model.attention=sdpa` on CPU.

PyTorch's kernel is slower with a mask than without one. A tree's branches therefore attend to the
whole trunk in one call and to themselves, some at a time, in other calls; the results are merged by
their log-sum-exp (as in Ring Attention, Liu et al., arXiv 2310.01889). The gradient is exact: given
the merged output and log-sum-exp, the backward pass of each part uses the probabilities of the
whole. For this the kernel must be called by its own name, forward and backward.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Run = tuple[int, Tensor | None]
"""The length of branches that attend to themselves together, and their mask.

The mask is an additive float tensor [length, length], or None if it is causal.
"""

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class Merged(torch.autograd.Function):
    """Attention of a tree's branches to its trunk and to themselves.

    query, key, value of the branches: [1, heads, branch tokens, size]; key and value of the trunk:
    [1, heads, trunk tokens, size]; result: [1, heads, branch tokens, size]. runs: branches that
    attend to themselves together.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        trunk_key: Tensor,
        trunk_value: Tensor,
        runs: Sequence[Run],
        scale: float | None,
    ) -> Tensor:
        """Compute both parts and merge them by their log-sum-exp."""
        found, chance = _forward(query, trunk_key, trunk_value, 0.0, False, scale=scale)
        lengths = [length for length, _ in runs]
        parts = zip(*(one.split(lengths, 2) for one in (query, key, value)), strict=True)
        own = [
            _forward(*part, 0.0, mask is None, attn_mask=_typed(mask, query), scale=scale)
            for part, (_, mask) in zip(parts, runs, strict=True)
        ]
        own_found = torch.cat([one for one, _ in own], 2)
        own_chance = torch.cat([one for _, one in own], -1)
        merged = torch.logaddexp(chance, own_chance)
        # weights of the two parts, [1, heads, branch tokens, 1]
        weight, own_weight = ((one - merged).exp()[..., None] for one in (chance, own_chance))
        output = (weight * found + own_weight * own_found).to(query.dtype)
        ctx.save_for_backward(query, key, value, trunk_key, trunk_value, output, merged)
        ctx.runs, ctx.scale = runs, scale
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Return the gradients of query, key, value, trunk key and trunk value."""
        query, key, value, trunk_key, trunk_value, output, merged = ctx.saved_tensors
        [gradient] = gradients
        gradient = gradient.contiguous()
        of_query, of_trunk_key, of_trunk_value = _backward(
            gradient, query, trunk_key, trunk_value, output, merged, 0.0, False, scale=ctx.scale
        )
        lengths = [length for length, _ in ctx.runs]
        parts = zip(
            *(one.split(lengths, 2) for one in (gradient, query, key, value, output)),
            merged.split(lengths, -1),
            strict=True,
        )
        own = [
            _backward(*part, 0.0, mask is None, attn_mask=_typed(mask, query), scale=ctx.scale)
            for part, (_, mask) in zip(parts, ctx.runs, strict=True)
        ]
        own_query, of_key, of_value = (torch.cat(some, 2) for some in zip(*own, strict=True))
        return (of_query + own_query, of_key, of_value, of_trunk_key, of_trunk_value, None, None)


def _typed(mask: Tensor | None, like: Tensor) -> Tensor | None:
    return None if mask is None else mask.to(like.dtype)


def merged(*given: Any) -> Tensor:
    """Compute the attention of `Merged`, with the same arguments."""
    found = Merged.apply(*given)
    assert isinstance(found, Tensor)
    return found
