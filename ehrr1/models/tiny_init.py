"""Initialise small models that are trained from scratch on few records.

With random weights, a mean over hundreds of tokens is noise that hides a single drug or diagnosis
until long training has organised the embeddings. Attention is therefore initialised to copy its
inputs, and embeddings are initialised by the co-occurrence of tokens in records: tokens that occur
in the same records are similar, and tokens that occur everywhere carry no information. All weights
are then trained as usual.

Decompositions use double precision: nearly degenerate directions depend on the rounding errors of
the processor's kernels, and so would the trained model.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from sklearn.utils.extmath import randomized_svd
from torch import Tensor, nn
from transformers import PreTrainedModel

from ehrr1.config.training import Start
from ehrr1.models.prune_last_layer import decoder_layers

SEEN_OFTEN = 20
"""Minimum number of records with a token for the token to count in the scale of informativeness."""


def pass_on(model: PreTrainedModel, start: Start) -> None:
    """Initialise attention to add to each token `value_gain` times the mean of what it attends to.

    Value projections are orthogonal, and the output projections invert them. `query_gains` scale
    each layer's query norm: with a gain below 1, attention starts close to a uniform mean of the
    record; with a large gain, it finds single tokens, such as the question, earlier. Draws from
    torch's global generator.
    """
    for layer, gain in zip(decoder_layers(model), start.query_gains, strict=True):
        attention = layer.self_attn
        attention.q_norm.weight.data.mul_(gain)
        values = attention.v_proj.weight
        values.data.copy_(nn.init.orthogonal_(torch.empty(values.shape, dtype=torch.float64)))
        groups, size = attention.num_key_value_groups, attention.head_dim
        heads = values.data.view(-1, size, values.shape[1]).repeat_interleave(groups, 0)
        back = heads.reshape(-1, values.shape[1]).T * (start.value_gain / groups)
        attention.o_proj.weight.data.copy_(back)


def embed_by_cooccurrence(
    model: PreTrainedModel, records: Sequence[set[int]], share: float, seed: int
) -> None:
    """Set `share` of the variance of embeddings and head by the co-occurrence of tokens in records.

    The vectors are a truncated SVD of positive pointwise mutual information (Levy & Goldberg,
    2014). A token with little information about others (a table's header) gets a vector that is
    common to all such tokens, so that they add no noise to a mean over a record.
    """
    tables: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    embeddings, head = (table.weight.data for table in tables)
    size, width = embeddings.shape
    directions, told = token_vectors(records, size, width, seed)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(width, width, generator=generator)
    turn = torch.linalg.qr(drawn.double()).Q.float()
    common = torch.nn.functional.normalize(torch.randn(width, generator=generator), dim=0)
    length = embeddings.std() * width**0.5
    vectors = torch.from_numpy(directions) @ turn
    says = torch.from_numpy(told)[:, None]
    if head.data_ptr() != embeddings.data_ptr():
        _mix(head, vectors * length, share)
    _mix(embeddings, (says * vectors + (1 - says**2).sqrt() * common) * length, share)


def _mix(weights: Tensor, vectors: Tensor, share: float) -> None:
    weights.mul_((1 - share) ** 0.5).add_(vectors, alpha=share**0.5)


def token_vectors(
    records: Sequence[set[int]], size: int, width: int, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return a direction for each token [size, width] and its information [size], 0 to 1.

    records: the token ids in each record; size: vocabulary size.
    """
    tokens = np.concatenate([np.fromiter(record, dtype=np.int64) for record in records])
    owners = np.repeat(np.arange(len(records)), [len(record) for record in records])
    ones = np.ones(len(tokens))
    table = sparse.csr_matrix((ones, (owners, tokens)), shape=(len(records), size))
    together = (table.T @ table).toarray()
    counts = together.diagonal().copy()
    smooth = counts + 5.0  # reduces the weight of rare pairs
    with np.errstate(divide="ignore"):
        information = np.log(together * len(records) / np.outer(smooth, smooth))
    np.maximum(information, 0, out=information)
    np.fill_diagonal(information, 0)
    rank = min(width, size - 1)
    left, values, _ = randomized_svd(information, rank, random_state=seed)
    vectors = np.zeros((size, width), dtype=np.float32)
    vectors[:, :rank] = left * np.sqrt(values)
    norms = np.linalg.norm(vectors, axis=1)
    often = norms[counts >= SEEN_OFTEN]
    scale = max(np.quantile(often, 0.8), 1e-6) if len(often) else 1.0
    told = np.where(counts >= 5, np.minimum(norms / scale, 1), 0).astype(np.float32)
    return vectors / (norms[:, None] + 1e-6), told
