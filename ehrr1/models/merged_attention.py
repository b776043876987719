"""Branches against trunk and themselves, without a mask: on a CPU, for `model.attention=sdpa`.

PyTorch's kernel is slower with a mask than without one. So a tree's branches attend to its whole
trunk in one call and to themselves, some at a time, in others, and these are merged by their
log-sum-exp (as Ring Attention does, Liu et al., arXiv 2310.01889). The gradient is exact: a part's
backward pass, given the merged output and log-sum-exp, computes with the probabilities of the
whole. That is why the kernel is called by its own name here, forward and backward.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Run = tuple[int, Tensor | None]

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class Merged(torch.autograd.Function):
    """query, key, value [1, heads, branch tokens, size] of a tree's branches, the trunk's key and
    value [1, heads, trunk tokens, size] -> [1, heads, branch tokens, size].

    `runs`: lengths of what attends to itself together, and each one's mask (float, added; None:
    causal).
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
    """See `Merged`."""
    found = Merged.apply(*given)
    assert isinstance(found, Tensor)
    return found
