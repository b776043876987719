"""Count the floating-point operations of training and generation from a model's shape.

For each token, a matrix product costs two operations per weight. Its gradient costs the same again
for the input and again for the weights that learn. Layers that are recomputed for the gradient cost
one more forward pass. Embeddings are looked up, not multiplied, and cost nothing.
"""

import torch

from ehrr1.models.logprobs import CHUNK
from ehrr1.models.memory import Anatomy, TreeShape

PEAK_TFLOPS = {"A100": 312, "H100": 989, "H200": 989, "GH200": 989, "B200": 2250, "L40S": 362}
"""Dense bf16 peaks by NVIDIA's data sheets: a part of the device's name, and TFLOP/s."""


def peak_flops() -> float:
    """Return the peak of this process's device in FLOP/s; 0 if it is not known."""
    if not torch.cuda.is_available():
        return 0.0
    name = torch.cuda.get_device_name()
    return max((1e12 * peak for part, peak in PEAK_TFLOPS.items() if part in name), default=0.0)


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


def last_layer(body: Anatomy, shape: TreeShape, checkpointing: bool) -> float:
    """Return the operations of `training` that are omitted if only branches are learnt.

    Of the last layer a trunk gets keys and values only (`models/prune_last_layer.py`).
    """
    weights = body.layers / body.depth - body.hidden * body.cache
    seen = shape.trunk * (shape.trunk + 1) / 2
    passes = 4 if checkpointing else 3
    return passes * (2 * weights * shape.trunk + 4 * body.attention * seen)
