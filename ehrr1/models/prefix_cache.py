"""Cache the keys and values of prompts once for all completions that continue them.

A cache that is repeated for each completion of a group would be read completely for every token of
every completion. Here the completions of a prompt form the queries of one product with its keys.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache


class SharedTrunks:
    """Keys and values of P prompts in every layer.

    counts [P]: number of consecutive rows of the batch that continue each prompt.
    """

    def __init__(self, cache: DynamicCache, lengths: Sequence[int], group_size: int):
        """Copy the prompts' keys and values out of `cache`.

        `cache` holds the prompts, padded on the left; `lengths` [P] are their lengths without
        padding.
        """
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
        """Return the attention of each row to its prompt and to its own tokens.

        query: [rows, heads, 1, size]; key and value of the rows' own tokens: [rows, key heads, own,
        size]; result: [rows, heads, 1, size]. The result is exact.
        """
        rows, heads, _, size = query.shape
        shared, own = key.shape[1], key.shape[2]
        query = query.view(rows, shared, heads // shared, size)
        scores = query @ key.transpose(-1, -2) * scale
        parts = (one.split(self.counts) for one in (query, scores, value))
        found = []
        for (trunk_key, trunk_value), asked, mine, values in zip(
            self.layers[layer], *parts, strict=True
        ):
            # query heads that share a key head, over all completions, become the queries of that
            # key head
            flat, mine = (one.transpose(0, 1).flatten(1, 2) for one in (asked, mine))
            seen = flat @ trunk_key.transpose(-1, -2) * scale
            chances = torch.cat([seen, mine], -1).float().softmax(-1).to(value.dtype)
            of_trunk, of_own = chances.split([seen.shape[-1], own], -1)
            shape = shared, len(asked), heads // shared
            answer = (of_trunk @ trunk_value).view(*shape, size).transpose(0, 1)
            found.append(answer + of_own.view(*shape, own).transpose(0, 1) @ values)
        return torch.cat(found).reshape(rows, heads, 1, size)
