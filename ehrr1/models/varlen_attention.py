"""Attention over a forest by flash-attn's kernel for sequences of several lengths, on GPU.

A branch is a sequence of queries whose keys are [trunk; branch], causal from the bottom right.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ehrr1.prompts.forest import Shape


@dataclass(frozen=True, slots=True)
class Sequences:
    """Queries and keys as sequences of several lengths.

    queries, keys: start of each sequence, [sequences + 1], int32. longest_query, longest_key: the
    longest sequences. places: index of each key in the row, [number of keys].
    """

    queries: Tensor
    keys: Tensor
    longest_query: int
    longest_key: int
    places: Tensor


@dataclass(frozen=True, slots=True)
class BothSequences:
    """Sequences for queries of all tokens and for queries of branches only."""

    whole: Sequences
    branches: Sequences


def sequences(shapes: Sequence[Shape], device: torch.device) -> BothSequences:
    """Return the sequences of a forest for flash-attn's kernel."""
    queries = [shape.trunk for shape in shapes]
    start = sum(queries)
    trunks = torch.arange(start).split(queries)
    keys = list(trunks)
    for shape, trunk in zip(shapes, trunks, strict=True):
        for length in shape.branches:
            queries.append(length)
            keys.append(torch.cat([trunk, torch.arange(start, start + length)]))
            start += length
    first = len(shapes)
    return BothSequences(
        _sequences(queries, keys, device), _sequences(queries[first:], keys[first:], device)
    )


def _sequences(queries: list[int], keys: list[Tensor], device: torch.device) -> Sequences:
    def begins(lengths: list[int]) -> Tensor:
        return torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)

    key_lengths = [len(one) for one in keys]
    return Sequences(
        begins(queries),
        begins(key_lengths),
        max(queries),
        max(key_lengths),
        torch.cat(keys).to(device),
    )


def varlen(
    query: Tensor, key: Tensor, value: Tensor, both: BothSequences, scale: float | None
) -> Tensor:
    """Compute attention by flash-attn's kernel for variable lengths; shapes as in `sdpa`."""
    from flash_attn import flash_attn_varlen_func

    one = both.whole if query.shape[2] == key.shape[2] else both.branches
    found = flash_attn_varlen_func(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1)[one.places],
        value[0].transpose(0, 1)[one.places],
        one.queries,
        one.keys,
        one.longest_query,
        one.longest_key,
        softmax_scale=scale,
        causal=True,
    )
    return found.transpose(0, 1)[None]
