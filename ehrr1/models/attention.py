"""Attention over a forest: four ways to compute the same, registered with Transformers.

A trunk's token attends causally to its trunk; a branch's token to its trunk and, causally, to its
own branch (`prompts/forest.py`). Which way is `model.attention`:

    sdpa     in two parts, on CPU and GPU: each trunk causal, without a mask; then its branches
             against trunk and themselves (on a CPU by `models/merged_attention.py`)
    flex     PyTorch's FlexAttention with a block mask, on GPU
    varlen   flash-attn's kernel for sequences of several lengths, on GPU: a branch is a sequence of
             queries whose keys are [trunk; branch], causal from the bottom right. Merging trunk and
             branch by their log-sum-exp would be wrong: flash-attn's gradient ignores it
    dense    one mask over all tokens: the reference for the others, and slow

Generation continues prompts that it keeps once (`models/prefix_cache.py`). Calls without a forest
are plain scaled dot-product attention.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ehrr1.models.merged_attention import Run, merged
from ehrr1.models.prefix_cache import SharedTrunks
from ehrr1.prompts.forest import Shape

BUNCH = 256
"""Branch tokens that one masked call of `sdpa` computes together, unless one branch is longer: more
would compute more pairs of branches that do not see each other, fewer would call more often."""


def choose(attention: str, computes: torch.dtype) -> str:
    """The name under which Transformers knows `model.attention`; `auto` is the fastest here of
    those that compute in the type `computes`: flash-attn's kernels have 16 bits only."""
    if attention == "auto":
        half = computes in (torch.bfloat16, torch.float16)
        if not torch.cuda.is_available():
            attention = "sdpa"
        else:
            attention = "varlen" if half and find_spec("flash_attn") else "flex"
    return f"forest_{attention}"


def prepare(model: PreTrainedModel, shapes: Sequence[Shape], device: torch.device) -> Any:
    """What the model's attention must know of a forest, made once for all layers."""
    return PREPARE[model.config._attn_implementation](shapes, device)


@dataclass(frozen=True, slots=True)
class Places:
    """Of each token its tree [L], its branch in the tree (0: the trunk) [L], and its place [L]."""

    tree: Tensor
    branch: Tensor
    place: Tensor


def places(shapes: Sequence[Shape], device: torch.device) -> Places:
    parts = [(number, 0, shape.trunk) for number, shape in enumerate(shapes)]
    parts += [
        (number, branch, length)
        for number, shape in enumerate(shapes)
        for branch, length in enumerate(shape.branches, 1)
    ]
    tree, branch, lengths = (
        torch.tensor(column, device=device) for column in zip(*parts, strict=True)
    )
    return Places(
        tree.repeat_interleave(lengths),
        branch.repeat_interleave(lengths),
        torch.arange(int(lengths.sum()), device=device),
    )


def sees(where: Places, query: Tensor, key: Tensor) -> Tensor:
    """Whether the token at place `query` sees that at place `key`: the definition of a forest."""
    same_branch = where.branch[key] == where.branch[query]
    trunk_or_own = (where.branch[key] == 0) | same_branch
    return (where.tree[query] == where.tree[key]) & trunk_or_own & (key <= query)


# dense ------------------------------------------------------------------------------------------


def dense_mask(shapes: Sequence[Shape], device: torch.device) -> Tensor:
    """bool [1, 1, L, L]: whom each token sees."""
    where = places(shapes, device)
    return sees(where, where.place[:, None], where.place[None, :])[None, None]


def dense(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float | None) -> Tensor:
    mask = mask[:, :, -query.shape[2] :]
    return scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=scale, enable_gqa=True
    )


# sdpa, in two parts -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Bunch:
    """Branches of one tree that are computed together: how many tokens they have, and whom they see
    of themselves, bool [length, length]."""

    length: int
    own: Tensor

    def mask(self, trunk: int) -> Tensor:
        """Whom they see of [trunk; bunch], bool [length, trunk + length]."""
        return torch.cat([self.own.new_ones(self.length, trunk), self.own], 1)

    def run(self) -> Run:
        """The same of themselves, as `Merged` wants it."""
        if self.own.equal(torch.ones_like(self.own).tril()):
            return self.length, None
        return self.length, torch.zeros(self.own.shape).masked_fill(~self.own, -torch.inf)


@dataclass(frozen=True, slots=True)
class AttentionParts:
    """Of one tree: the trunk's length, its bunches, and on a CPU what `Merged` wants of them."""

    trunk: int
    bunches: list[Bunch]
    runs: list[Run]

    @property
    def length(self) -> int:
        return sum(bunch.length for bunch in self.bunches)


def two_parts(shapes: Sequence[Shape], device: torch.device) -> list[AttentionParts]:
    found = []
    for shape in shapes:
        bunches = [Bunch(sum(some), own_mask(some).to(device)) for some in bunched(shape.branches)]
        runs = [bunch.run() for bunch in bunches] if device.type == "cpu" else []
        found.append(AttentionParts(shape.trunk, bunches, runs))
    return found


def bunched(branches: Sequence[int]) -> list[list[int]]:
    """Branch lengths in runs of at most `BUNCH` tokens; a longer branch is a run of its own."""
    runs: list[list[int]] = []
    for length in branches:
        if not runs or sum(runs[-1]) + length > BUNCH:
            runs.append([])
        runs[-1].append(length)
    return runs


def own_mask(branches: Sequence[int]) -> Tensor:
    return torch.block_diag(*(torch.ones(n, n).tril() for n in branches)).bool()


def sdpa(
    query: Tensor, key: Tensor, value: Tensor, trees: Sequence[AttentionParts], scale: float | None
) -> Tensor:
    groups = query.shape[1] // key.shape[1]
    sizes = [*(tree.trunk for tree in trees), *(tree.length for tree in trees)]
    keys = repeat_kv(key, groups).split(sizes, 2)
    values = repeat_kv(value, groups).split(sizes, 2)
    # of the last layer only the branches may be asked (models/prune_last_layer.py)
    whole = query.shape[2] == key.shape[2]
    queries = query.split(sizes if whole else sizes[len(trees) :], 2)
    found = [
        scaled_dot_product_attention(*one, is_causal=True, scale=scale)
        for one in zip(queries[: len(trees)], keys, values, strict=False)
        if whole and one[0].shape[2]
    ]
    for number, tree in enumerate(trees):
        own = number + len(trees)
        asked = queries[own if whole else number]
        branches, trunk = (keys[own], values[own]), (keys[number], values[number])
        found.append(branches_of(tree, asked, branches, trunk, scale))
    return torch.cat(found, 2)


def branches_of(
    tree: AttentionParts,
    query: Tensor,
    branches: tuple[Tensor, Tensor],
    trunk: tuple[Tensor, Tensor],
    scale: float | None,
) -> Tensor:
    """A tree's branches against its trunk and themselves; keys and values of either."""
    if tree.runs and tree.trunk:
        return merged(query, *branches, *trunk, tree.runs, scale)
    lengths = [bunch.length for bunch in tree.bunches]
    parts = zip(*(one.split(lengths, 2) for one in (query, *branches)), strict=True)
    found = [
        scaled_dot_product_attention(
            asked,
            torch.cat([trunk[0], key], 2),
            torch.cat([trunk[1], value], 2),
            attn_mask=bunch.mask(tree.trunk),
            scale=scale,
        )
        for bunch, (asked, key, value) in zip(tree.bunches, parts, strict=True)
    ]
    return torch.cat(found, 2)


# flex -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BlockMasks:
    """For queries of all tokens, and for those of branches only."""

    whole: Any
    branches: Any


def block_masks(shapes: Sequence[Shape], device: torch.device) -> BlockMasks:
    where = places(shapes, device)
    length, stem = len(where.place), sum(shape.trunk for shape in shapes)

    def mask(first: int) -> Any:
        return create_block_mask(
            lambda batch, head, query, key: sees(where, query + first, key),
            None, None, length - first, length, device=str(device),
            _compile=device.type == "cuda",  # else the mask of all pairs would be made first
        )  # fmt: skip

    return BlockMasks(mask(0), mask(stem) if stem else None)


def flex(
    query: Tensor, key: Tensor, value: Tensor, masks: BlockMasks, scale: float | None
) -> Tensor:
    mask = masks.whole if query.shape[2] == key.shape[2] else masks.branches
    found = _flex(query.device)(query, key, value, block_mask=mask, scale=scale, enable_gqa=True)
    assert isinstance(found, Tensor)
    return found


_compiled: Callable[..., Any] | None = None


def _flex(device: torch.device) -> Callable[..., Any]:
    """Compiled on a GPU, where the block mask saves work; on CPU as it stands, for tests."""
    global _compiled
    if device.type != "cuda":
        return flex_attention
    if _compiled is None:
        _compiled = torch.compile(flex_attention, dynamic=True)
    return _compiled


# varlen -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sequences:
    """Queries and keys as sequences of several lengths: where each begins [sequences + 1, int32],
    the longest, and the place of each key [keys]."""

    queries: Tensor
    keys: Tensor
    longest_query: int
    longest_key: int
    places: Tensor


@dataclass(frozen=True, slots=True)
class BothSequences:
    """For queries of all tokens, and for those of branches only."""

    whole: Sequences
    branches: Sequences


def sequences(shapes: Sequence[Shape], device: torch.device) -> BothSequences:
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


# ------------------------------------------------------------------------------------------------

COMPUTE: dict[str, Callable[..., Tensor]] = {
    "forest_sdpa": sdpa,
    "forest_flex": flex,
    "forest_varlen": varlen,
    "forest_dense": dense,
}
PREPARE: dict[str, Callable[[Sequence[Shape], torch.device], Any]] = {
    "forest_sdpa": two_parts,
    "forest_flex": block_masks,
    "forest_varlen": sequences,
    "forest_dense": dense_mask,
}


def of_one_type(*given: Tensor) -> Iterator[Tensor]:
    """Query, key and value [..] in the type in which to compute: they come in several.

    Under autocast a projection gives bf16, and a norm behind it (of Qwen3's query and key) or
    rotary positions float32 again. PyTorch's own attention is cast with all else, kernels that are
    called by name (`merged_attention.py`), flex and flash-attn are not.
    """
    device, dtype = given[-1].device.type, given[-1].dtype
    if dtype == torch.float32 and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    return (one.to(dtype) for one in given)


def _registered(compute: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, None]]:
    def forward(
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        forest: Any = None,
        **others: Any,
    ) -> tuple[Tensor, None]:
        """query [1, heads, L, size], key and value [1, key heads, L, size], `forest` what `prepare`
        made -> [1, L, heads, size]; in generation [rows, heads, 1, size] and `SharedTrunks`.
        Without a forest Transformers' own call."""
        if forest is None:
            return sdpa_attention_forward(
                module, query, key, value, attention_mask, dropout, scaling, **others
            )
        if isinstance(forest, SharedTrunks):
            assert scaling is not None
            found = forest.attend(module.layer_idx, query, key, value, scaling)
        else:
            found = compute(*of_one_type(query, key, value), forest, scaling)
        return found.transpose(1, 2).contiguous(), None

    return forward


for _name, _compute in COMPUTE.items():
    AttentionInterface.register(_name, _registered(_compute))
    AttentionMaskInterface.register(_name, sdpa_mask)
