"""Keys and values of prompts, kept once for all completions that continue them.

A cache repeated for each completion of a group would be read whole for every token of each. Here
the completions of a prompt are the queries of one product with its keys.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache


class SharedTrunks:
    """Of each of P prompts its keys and values in every layer; `counts` [P] says how many rows of
    the batch continue each, in order."""

    def __init__(self, cache: DynamicCache, lengths: Sequence[int], group_size: int):
        """`cache` holds the prompts, padded on the left; `lengths` [P] are their own."""
        self.counts = [group_size] * len(lengths)
        layers: list[Any] = cache.layers
        self.layers = [
            [
                (layer.keys[row, :, -length:].clone(), layer.values[row, :, -length:].clone())
                for row, length in enumerate(lengths)
            ]
            for layer in layers
        ]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """query [rows, heads, 1, size], the rows' own key and value [rows, key heads, own, size] ->
        [rows, heads, 1, size]: each against its prompt and its own tokens. Exact."""
        rows, heads, _, size = query.shape
        shared, own = key.shape[1], key.shape[2]
        query = query.view(rows, shared, heads // shared, size)
        scores = query @ key.transpose(-1, -2) * scale
        parts = (one.split(self.counts) for one in (query, scores, value))
        found = []
        for (trunk_key, trunk_value), asked, mine, values in zip(
            self.layers[layer], *parts, strict=True
        ):
            # heads that share a key, of all completions, are that key's queries
            flat, mine = (one.transpose(0, 1).flatten(1, 2) for one in (asked, mine))
            seen = flat @ trunk_key.transpose(-1, -2) * scale
            chances = torch.cat([seen, mine], -1).float().softmax(-1).to(value.dtype)
            of_trunk, of_own = chances.split([seen.shape[-1], own], -1)
            shape = shared, len(asked), heads // shared
            answer = (of_trunk @ trunk_value).view(*shape, size).transpose(0, 1)
            found.append(answer + of_own.view(*shape, own).transpose(0, 1) @ values)
        return torch.cat(found).reshape(rows, heads, 1, size)
