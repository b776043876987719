"""Attention over a forest: four equivalent implementations, registered with Transformers.

A token of a trunk attends causally to its trunk. A token of a branch attends to its trunk and,
causally, to its own branch (`prompts/forest.py`). `model.attention` selects the implementation:

    sdpa     in two parts, on CPU and GPU: each trunk causal, without a mask; then its branches
             attend to trunk and themselves (on a CPU in calls that `models/merged_attention.py`
             merges)
    flex     PyTorch's FlexAttention with a block mask, on GPU
    varlen   flash-attn's kernel, on GPU (`models/varlen_attention.py`). Merging trunk and
             branch by their log-sum-exp would be wrong, since flash-attn's gradient ignores it
    dense    one mask over all tokens: the reference for the others, and slow

Generation continues prompts whose keys and values are cached once (`models/prefix_cache.py`). Calls
without a forest use plain scaled dot-product attention.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ehrr1.errors import UserError
from ehrr1.models.merged_attention import Call, bunched, calls, merged, own_mask
from ehrr1.models.prefix_cache import SharedTrunks
from ehrr1.models.varlen_attention import sequences, varlen
from ehrr1.prompts.forest import Shape


def choose(attention: str, computes: torch.dtype) -> str:
    """Return the name under which `model.attention` is registered with Transformers.

    `auto` is the fastest implementation available here for the type `computes`: flash-attn's
    kernels support 16-bit types only.
    """
    if attention == "auto":
        half = computes in (torch.bfloat16, torch.float16)
        if not torch.cuda.is_available():
            attention = "sdpa"
        else:
            attention = "varlen" if half and find_spec("flash_attn") else "flex"
    return f"forest_{attention}"


def check_reach(config: PreTrainedConfig, tokens: int) -> None:
    """Raise UserError if a layer of the model does not attend to all of a text of `tokens`.

    Forests and shared prompts know attention to everything before a token. A layer with a shorter
    sliding window, with a bound on its scores or of a kind without attention would be computed
    wrongly, and nothing would say so.
    """
    values = config.to_dict()
    kinds = set(values.get("layer_types") or ())
    others = kinds - {"full_attention", "sliding_attention"}
    if values.get("attn_logit_softcapping") is not None:
        others.add("attn_logit_softcapping")
    window = None if kinds == {"full_attention"} else values.get("sliding_window")
    if others or (window is not None and window < tokens):
        what = ", ".join(sorted(others)) or f"sliding_window={window}"
        raise UserError(
            f"model: {config.model_type} has layers with {what}, which a record of {tokens} tokens "
            "shared by several questions cannot have; choose a model that attends to everything "
            "(Qwen2, Qwen3, Llama), or shorter texts"
        )


def prepare(model: PreTrainedModel, shapes: Sequence[Shape], device: torch.device) -> Any:
    """Return the attention's data structure for a forest, built once for all layers.

    Raises UserError if the model's layers do not attend to the whole of each text.
    """
    longest = max((one.trunk + max(one.branches, default=0) for one in shapes), default=0)
    check_reach(model.config, longest)
    return PREPARE[model.config._attn_implementation](shapes, device)


@dataclass(frozen=True, slots=True)
class Places:
    """The position of each of L tokens in a forest.

    tree [L]: index of the tree; branch [L]: number of the branch in the tree, 0 for the trunk;
    place [L]: index of the token in the row.
    """

    tree: Tensor
    branch: Tensor
    place: Tensor


def places(shapes: Sequence[Shape], device: torch.device) -> Places:
    """Return the positions of all tokens of a forest."""
    parts = [(number, 0, shape.trunk) for number, shape in enumerate(shapes)]
    parts += [
        (number, branch, length)
        for number, shape in enumerate(shapes)
        for branch, length in enumerate(shape.branches, 1)
    ]
    tree, branch, lengths = (
        torch.tensor(column, device=device) for column in zip(*parts, strict=True)
    )
    size = sum(length for _, _, length in parts)  # known here: a GPU would be waited for
    return Places(
        tree.repeat_interleave(lengths, output_size=size),
        branch.repeat_interleave(lengths, output_size=size),
        torch.arange(size, device=device),
    )


def sees(where: Places, query: Tensor, key: Tensor) -> Tensor:
    """Return whether the tokens at `query` attend to those at `key`, the definition of a forest.

    query and key are indices of tokens, broadcast to the shape of the result.
    """
    same_branch = where.branch[key] == where.branch[query]
    trunk_or_own = (where.branch[key] == 0) | same_branch
    return (where.tree[query] == where.tree[key]) & trunk_or_own & (key <= query)


# dense ------------------------------------------------------------------------------------------


def dense_mask(shapes: Sequence[Shape], device: torch.device) -> Tensor:
    """Return the attention mask of a forest, bool [1, 1, L, L]."""
    where = places(shapes, device)
    return sees(where, where.place[:, None], where.place[None, :])[None, None]


def dense(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float | None) -> Tensor:
    """Compute attention with one mask over all tokens.

    query: [1, heads, L or branch tokens, size]; key and value: [1, key heads, L, size]; result:
    shape of query.
    """
    mask = mask[:, :, -query.shape[2] :]
    return scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=scale, enable_gqa=True
    )


# sdpa, in two parts -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Bunch:
    """Branches of one tree that are computed together.

    length: their number of tokens. own: bool [length, length], their mask among themselves.
    """

    length: int
    own: Tensor

    def mask(self, trunk: int) -> Tensor:
        """Return the mask over [trunk; bunch], bool [length, trunk + length]."""
        return torch.cat([self.own.new_ones(self.length, trunk), self.own], 1)


@dataclass(frozen=True, slots=True)
class AttentionParts:
    """The parts of one tree: length of the trunk, and bunches."""

    trunk: int
    bunches: list[Bunch]

    @property
    def length(self) -> int:
        """Return the number of tokens of all branches."""
        return sum(bunch.length for bunch in self.bunches)


def prepare_sdpa(
    shapes: Sequence[Shape], device: torch.device
) -> list[AttentionParts] | tuple[Call, ...]:
    """Return the parts of each tree, or on a CPU the calls of all trees, for `sdpa`."""
    return calls(shapes) if device.type == "cpu" else two_parts(shapes, device)


def two_parts(shapes: Sequence[Shape], device: torch.device) -> list[AttentionParts]:
    """Return the parts of each tree."""
    return [
        AttentionParts(
            shape.trunk,
            [Bunch(sum(some), own_mask(some).to(device)) for some in bunched(shape.branches)],
        )
        for shape in shapes
    ]


def sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    trees: list[AttentionParts] | tuple[Call, ...],
    scale: float | None,
) -> Tensor:
    """Compute attention tree by tree: causal in each trunk, then branches to trunk and themselves.

    query: [1, heads, L or branch tokens, size]; key and value: [1, key heads, L, size]; result:
    shape of query.
    """
    if isinstance(trees, tuple):
        return merged(query, key, value, trees, scale)
    groups = query.shape[1] // key.shape[1]
    sizes = [*(tree.trunk for tree in trees), *(tree.length for tree in trees)]
    keys = repeat_kv(key, groups).split(sizes, 2)
    values = repeat_kv(value, groups).split(sizes, 2)
    # the last layer may have queries of branches only (models/prune_last_layer.py)
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
    """Return the attention of a tree's branches to its trunk and themselves.

    `branches` and `trunk` are pairs of keys and values, [1, heads, tokens, size].
    """
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
    """FlexAttention's masks for queries of all tokens and for queries of branches only."""

    whole: Any
    branches: Any


def block_masks(shapes: Sequence[Shape], device: torch.device) -> BlockMasks:
    """Return FlexAttention's block masks of a forest."""
    where = places(shapes, device)
    length, stem = len(where.place), sum(shape.trunk for shape in shapes)

    def mask(first: int) -> Any:
        return create_block_mask(
            lambda batch, head, query, key: sees(where, query + first, key),
            None, None, length - first, length, device=str(device),
            _compile=device.type == "cuda",  # otherwise a mask of all pairs is built first
        )  # fmt: skip

    return BlockMasks(mask(0), mask(stem) if stem else None)


def flex(
    query: Tensor, key: Tensor, value: Tensor, masks: BlockMasks, scale: float | None
) -> Tensor:
    """Compute attention by FlexAttention with a block mask; shapes as in `sdpa`."""
    mask = masks.whole if query.shape[2] == key.shape[2] else masks.branches
    found = _flex(query.device)(query, key, value, block_mask=mask, scale=scale, enable_gqa=True)
    assert isinstance(found, Tensor)
    return found


_compiled: Callable[..., Any] | None = None


def _flex(device: torch.device) -> Callable[..., Any]:
    """Return FlexAttention, compiled on a GPU, where the block mask saves work.

    On a CPU, which only tests use, it is not compiled.
    """
    global _compiled
    if device.type != "cuda":
        return flex_attention
    if _compiled is None:
        _compiled = torch.compile(flex_attention, dynamic=True)
    return _compiled


# ------------------------------------------------------------------------------------------------

COMPUTE: dict[str, Callable[..., Tensor]] = {
    "forest_sdpa": sdpa,
    "forest_flex": flex,
    "forest_varlen": varlen,
    "forest_dense": dense,
}
PREPARE: dict[str, Callable[[Sequence[Shape], torch.device], Any]] = {
    "forest_sdpa": prepare_sdpa,
    "forest_flex": block_masks,
    "forest_varlen": sequences,
    "forest_dense": dense_mask,
}


def of_one_type(*given: Tensor) -> Iterator[Tensor]:
    """Cast query, key and value to the type in which attention computes.

    Under autocast a projection gives bf16, but a subsequent norm (of Qwen3's queries and keys) or
    rotary embedding gives float32 again. Autocast casts the inputs of PyTorch's own attention, but
    not those of kernels called by name (`merged_attention.py`), flex and flash-attn.
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
        """Compute attention over the forest, or Transformers' own attention without one.

        query: [1, heads, L, size]; key and value: [1, key heads, L, size]; forest: the result of
        `prepare`; output: [1, L, heads, size]. In generation, `forest` is `SharedTrunks` and query
        is [rows, heads, 1, size].
        """
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
