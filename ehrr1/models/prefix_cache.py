"""Cache the keys and values of prompts once for all completions that continue them.

A cache that is repeated for each completion of a group would be read completely for every token of
every completion. Here the completions of a prompt form the queries of one product with its keys,
and all prompts one batch of products.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

KEPT = 0.75
"""Prompts without completions are given up as soon as no larger share of the prompts has any."""


class SharedTrunks:
    """Keys and values of the prompts that rows of a batch continue, in every layer.

    layers: keys and values [prompts, key heads, length, size], padded on the left. owners [rows]:
    the prompt that each row continues, in ascending order.
    """

    def __init__(self, cache: DynamicCache, lengths: Sequence[int], group_size: int):
        """Take the prompts' keys and values from `cache`, where they are padded on the left.

        `lengths` [prompts] are their lengths without padding, and `group_size` is the number of
        consecutive rows that continue each prompt.
        """
        layers: list[Any] = cache.layers
        self.layers: list[tuple[Tensor, Tensor]] = [(one.keys, one.values) for one in layers]
        keys = self.layers[0][0]
        sizes = torch.tensor(lengths, device=keys.device)
        places = torch.arange(keys.shape[2], device=keys.device)
        self.padding = places < keys.shape[2] - sizes[:, None]
        self._take(torch.arange(len(lengths), device=keys.device).repeat_interleave(group_size))

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the rows, given by their positions in ascending order."""
        self._take(self.owners[rows])

    def _take(self, owners: Tensor) -> None:
        counts = owners.bincount(minlength=len(self.padding))
        alive = counts.nonzero().squeeze(1)
        if len(alive) <= KEPT * len(counts):
            self.layers = [(keys[alive], values[alive]) for keys, values in self.layers]
            self.padding = self.padding[alive]
            owners, counts = torch.searchsorted(alive, owners), counts[alive]
        self.owners = owners
        most = int(counts.max())
        number = torch.arange(len(owners), device=owners.device)
        self.places = owners * most + number - (counts.cumsum(0) - counts)[owners]
        self.grid = owners.new_zeros(len(counts) * most)  # a place without a row asks for the first
        self.grid[self.places] = number

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Return the attention of each row to its prompt and to its own tokens.

        query: [rows, heads, 1, size]; key and value of the rows' own tokens: [rows, key heads, own,
        size]; result: [rows, heads, 1, size]. The result is exact.
        """
        rows, heads, _, size = query.shape
        trunk_keys, trunk_values = self.layers[layer]
        query = query.view(rows, key.shape[1], heads // key.shape[1], size)
        seen = self._by_row(self._by_prompt(query) @ trunk_keys.transpose(-1, -2)) * scale
        seen = seen.masked_fill(self.padding[self.owners, None, None], -torch.inf)
        own = query @ key.transpose(-1, -2) * scale
        chances = torch.cat([seen, own], -1).float().softmax(-1).to(value.dtype)
        of_trunk, of_own = chances.split([seen.shape[-1], own.shape[-1]], -1)
        found = self._by_row(self._by_prompt(of_trunk) @ trunk_values) + of_own @ value
        return found.reshape(rows, heads, 1, size)

    def _by_prompt(self, rows: Tensor) -> Tensor:
        """Return rows [rows, key heads, queries, size] as [prompts, key heads, all queries, size].

        The query heads that share a key head, of all rows of a prompt, follow one another.
        """
        every = rows[self.grid].unflatten(0, (len(self.padding), -1))
        return every.transpose(1, 2).flatten(2, 3)

    def _by_row(self, found: Tensor) -> Tensor:
        """Reverse `_by_prompt`."""
        prompts = len(self.padding)
        every = found.unflatten(2, (len(self.grid) // prompts, -1)).transpose(1, 2)
        return every.flatten(0, 1)[self.places]
