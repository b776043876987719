"""Count the floating-point operations of training and generation from a model's shape.

For each token, a matrix product costs two operations per weight. Its gradient costs the same again
for the input and again for the weights that learn. Layers that are recomputed for the gradient cost
one more forward pass. Embeddings are looked up, not multiplied, and cost nothing.
"""

from ehrr1.models.logprobs import CHUNK
from ehrr1.models.memory import Anatomy, TreeShape


def pairs(shape: TreeShape) -> float:
    """Return the number of token pairs that attend to each other.

    The trunk is causal; a branch attends to its trunk and, causally, to itself.
    """
    own = sum(branch * (branch + 1) / 2 for branch in shape.branches)
    seen = sum(branch * shape.trunk for branch in shape.branches)
    return shape.trunk * (shape.trunk + 1) / 2 + seen + own


def forward(body: Anatomy, shape: TreeShape) -> float:
    """Return the operations of one forward pass over a tree, with logits of the learnt tokens."""
    attention = 4 * body.attention * body.depth * pairs(shape)
    return 2 * body.layers * shape.tokens + attention + 2 * body.head * shape.learnt


def training(body: Anatomy, shape: TreeShape, checkpointing: bool) -> float:
    """Return the operations of the forward and backward pass of one tree.

    Logits that do not fit into one chunk are recomputed too (`models/logprobs.py`).
    """
    passes = 3 if checkpointing else 2  # forward, gradient of the input, and recomputation
    weights = 2 * (passes * body.layers + body.layers_learnt) * shape.tokens
    attention = (passes + 1) * 4 * body.attention * body.depth * pairs(shape)
    chunked = shape.learnt * body.vocabulary > CHUNK
    head = 2 * body.head * shape.learnt * (2 + chunked + body.head_learns)
    return weights + attention + head
