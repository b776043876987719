"""Floating-point operations of training and generation, counted from a model's own shape.

A matrix product of a token costs two operations a weight; the gradient costs that again for the
input and again for the weights that learn; layers that are computed again for the gradient cost one
more forward pass. Embeddings are looked up, not multiplied: they cost nothing.
"""

from ehrr1.models.logprobs import CHUNK
from ehrr1.models.memory import Anatomy, TreeShape


def pairs(shape: TreeShape) -> float:
    """Pairs of tokens that see each other: the trunk causally, branches their trunk and selves."""
    own = sum(branch * (branch + 1) / 2 for branch in shape.branches)
    seen = sum(branch * shape.trunk for branch in shape.branches)
    return shape.trunk * (shape.trunk + 1) / 2 + seen + own


def forward(body: Anatomy, shape: TreeShape) -> float:
    """One pass over a tree, with logits where something is learnt."""
    attention = 4 * body.attention * body.depth * pairs(shape)
    return 2 * body.layers * shape.tokens + attention + 2 * body.head * shape.learnt


def training(body: Anatomy, shape: TreeShape, checkpointing: bool) -> float:
    """Forward and backward of one tree.

    Logits that do not fit into one chunk are computed again too (`models/logprobs.py`).
    """
    passes = 3 if checkpointing else 2  # forward, gradient of the input, and the forward again
    weights = 2 * (passes * body.layers + body.layers_learnt) * shape.tokens
    attention = (passes + 1) * 4 * body.attention * body.depth * pairs(shape)
    chunked = shape.learnt * body.vocabulary > CHUNK
    head = 2 * body.head * shape.learnt * (2 + chunked + body.head_learns)
    return weights + attention + head
