"""Attention over a forest in two parts, registered with Transformers as "forest".

Trunk tokens attend causally to their trunk; branch tokens to their trunk and their own branch,
which the forest's mask says. It equals one attention under the dense mask (`dense_mask`), but the
trunk needs no mask and skips the half above the diagonal. Other calls (generation with a cache)
are plain scaled dot-product attention.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

FOREST = "forest"


def forest_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """query [rows, heads, length, size], mask [rows, 1, branches' length, length] ->
    [rows, length, heads, size]. A mask of another shape is one of Transformers' own."""
    length = query.shape[2]
    if attention_mask is None or not is_forest(attention_mask, length, key.shape[2]):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **others
        )
    key = repeat_kv(key, module.num_key_value_groups)
    value = repeat_kv(value, module.num_key_value_groups)
    trunk = length - attention_mask.shape[2]
    stem = scaled_dot_product_attention(
        query[:, :, :trunk],
        key[:, :, :trunk],
        value[:, :, :trunk],
        is_causal=True,
        dropout_p=dropout,
        scale=scaling,
    )
    leaves = scaled_dot_product_attention(
        query[:, :, trunk:],
        key,
        value,
        attn_mask=attention_mask,
        dropout_p=dropout,
        scale=scaling,
    )
    return torch.cat([stem, leaves], dim=2).transpose(1, 2).contiguous(), None


def is_forest(mask: Tensor, length: int, keys: int) -> bool:
    """Whether a mask covers the branches only: fewer queries than there are, and no cache."""
    return mask.shape[3] == keys == length and mask.shape[2] < length


AttentionInterface.register(FOREST, forest_attention)
AttentionMaskInterface.register(FOREST, sdpa_mask)
