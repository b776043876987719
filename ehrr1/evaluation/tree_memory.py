"""Trees of tokens that several results ask."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from ehrr1.prompts.trees import Tree

MOST_TOKENS = 2**26
"""Maximum number of tokens in memory; those of trunks have 4 bytes each."""


@dataclass
class TreeMemory:
    """Trees by what they ask, built once for all results that ask the same.

    At most `most` tokens are kept; trees beyond that are built each time.
    """

    most: int = MOST_TOKENS
    _known: dict[Hashable, tuple[NDArray[np.int32], Tree]] = field(default_factory=dict, repr=False)
    _tokens: int = 0

    def tree(self, key: Hashable, build: Callable[[], Tree]) -> Tree:
        """Return the tree of `key`, built by `build` if it is not in memory."""
        if known := self._known.get(key):
            trunk, rest = known
            return replace(rest, trunk=trunk.tolist())
        tree = build()
        if self._tokens + len(tree) <= self.most:
            self._tokens += len(tree)
            self._known[key] = np.array(tree.trunk, np.int32), replace(tree, trunk=[])
        return tree
