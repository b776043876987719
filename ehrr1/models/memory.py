"""Estimate the GPU memory of training by part and moment, before anything is loaded.

Weights, gradients and optimizer states follow from the number of parameters, the precision and what
the strategy partitions. Activations are measured on the model's code (`models/activations.py`).
DeepSpeed's own buffers are those of version 0.19.8 with its default settings. All sizes are in
bytes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from ehrr1.models.activations import Attention, Bytes, LayerWork, activation_bytes, shell
from ehrr1.models.logprobs import CHUNK
from ehrr1.models.merged_attention import bunched
from ehrr1.models.prune_last_layer import KNOWN, decoder_layers

if TYPE_CHECKING:
    from ehrr1.config.training import ModelSettings, TrainerSettings

STAGES = {"single": 0, "ddp": 0, "zero1": 1, "zero2": 2, "zero3": 3}
"""ZeRO stage of each strategy.

It partitions among the GPUs the optimizer states (from 1), also gradients (from 2), also weights
(from 3).
"""

BUCKET = 500_000_000
"""Elements of gradients that DeepSpeed reduces together (`reduce_bucket_size`)."""

LIVE = 1_000_000_000
"""Elements of weights that ZeRO-3 keeps gathered at a time (`stage3_max_live_parameters`)."""

SUB_GROUP = 1_000_000_000
"""Elements of a GPU's share that a ZeRO-3 step processes at a time (`sub_group_size`)."""

COPIES = 3
"""Float32 copies of a chunk of logits that `models/logprobs.py` holds at once.

These are the log-probabilities and, in the backward pass, the gradients of these and of the logits.
The stage rl, which monitors the entropy, holds one more: the logits, their log-probabilities, the
probabilities and the product of both. With several chunks, the log-probabilities of the previous
chunk are still held.
"""

SUMMANDS = 3
"""Peak copies of a gradient during accumulation: accumulator, new contribution, new sum."""


@dataclass(frozen=True, slots=True)
class Anatomy:
    """Numbers of parameters and widths of a model.

    base, adapters: parameters without and of adapters. learnt: trainable parameters. cast:
    trainable weights of which autocast keeps a bf16 copy. layers, layers_learnt: all and trainable
    parameters of the decoder layers. head: parameters of the output embeddings. largest: parameters
    of the largest trainable tensor. depth: number of layers.
    """

    base: int
    adapters: int
    learnt: int
    cast: int
    layers: int
    layers_learnt: int
    head: int
    head_learns: bool
    tied: bool
    largest: int
    hidden: int
    vocabulary: int
    depth: int
    attention: int
    """Width of the queries: heads x head dimension."""
    cache: int
    """Width of the keys and values of one layer together."""
    known: bool
    """Whether the last layer omits a record's tokens (`models/prune_last_layer.py`)."""


def anatomy(model: "ModelSettings") -> Anatomy:
    """Return the parameter counts and widths of a model, built on the meta device."""
    built = shell(model)
    config = built.config
    named = list(built.named_parameters())
    base = sum(p.numel() for name, p in named if "lora_" not in name)
    total = sum(p.numel() for _, p in named)
    learnt = [p for _, p in named if p.requires_grad]
    linear = {
        id(module.weight) for module in built.modules() if isinstance(module, torch.nn.Linear)
    }
    head = built.get_output_embeddings().weight
    in_layers = list(decoder_layers(built).parameters())
    size = decoder_layers(built)[0].self_attn.head_dim
    return Anatomy(
        base=base,
        adapters=total - base,
        learnt=sum(p.numel() for p in learnt),
        cast=sum(p.numel() for p in learnt if id(p) in linear),
        layers=sum(p.numel() for p in in_layers),
        layers_learnt=sum(p.numel() for p in in_layers if p.requires_grad),
        head=head.numel(),
        head_learns=head.requires_grad,
        tied=config.tie_word_embeddings,
        largest=max(p.numel() for p in learnt),
        hidden=config.hidden_size,
        vocabulary=config.vocab_size,
        depth=config.num_hidden_layers,
        attention=config.num_attention_heads * size,
        cache=2 * config.num_key_value_heads * size,
        known=config.model_type in KNOWN,
    )


class TreeShape(NamedTuple):
    """The shape of a tree.

    trunk: tokens of the trunk. branches: tokens of each branch. learnt: number of learnt tokens.
    """

    trunk: int
    branches: tuple[int, ...]
    learnt: int

    @property
    def tokens(self) -> int:
        """Return the number of tokens; the trunk counts once."""
        return self.trunk + sum(self.branches)

    def keys(self, attention: str) -> int:
        """Return the number of keys that the kernels of `model.attention` read.

        Some kernels copy a trunk's keys for its branches. `auto` counts as varlen, which is
        selected on a GPU with flash-attn.
        """
        if attention in ("auto", "varlen"):
            return self.trunk + sum(self.trunk + branch for branch in self.branches)
        if attention == "sdpa":
            return self.tokens + sum(self.trunk + sum(some) for some in bunched(self.branches))
        return self.tokens


@dataclass(frozen=True, slots=True)
class Load:
    """The work of a GPU at a time.

    trees: trees of one shape. generated: completions generated in parallel, each with up to
    `generated_tokens` tokens including its prompt. engine: bytes of a generation engine, which
    sleeps but for `engine_reserved` of its own while the model learns. entropy: whether the entropy
    is monitored. reference: whether there is a second copy of the weights. muon: whether Muon
    optimizes the layers' matrices. reserved: bytes that are not available.
    """

    trees: int
    shape: TreeShape
    generated: int = 0
    generated_tokens: int = 0
    engine: float = 0.0
    engine_reserved: float = 0.0
    entropy: bool = False
    reference: bool = False
    muon: bool = False
    reserved: float = 0.0


class Memory(NamedTuple):
    """Bytes of a GPU by moment and part, and the bytes of its share that are in CPU memory.

    Moments: `layers`, the backward pass of a layer; `logits`, the computation of the loss;
    `embeddings`, the end of the backward pass, where tied embeddings get their gradient; `step`,
    the optimizer step; `rollout`, the generation of completions.
    """

    moments: dict[str, dict[str, float]]
    cpu: float

    @property
    def total(self) -> float:
        """Return the bytes of the moment with the largest sum."""
        return max(sum(parts.values()) for parts in self.moments.values())

    @property
    def parts(self) -> dict[str, float]:
        """Return the maximum of each part over all moments; these need not coincide."""
        most: dict[str, float] = {}
        for parts in self.moments.values():
            for name, size in parts.items():
                most[name] = max(most.get(name, 0.0), size)
        return most


def precision_bytes(trainer: "TrainerSettings") -> int:
    """Return the bytes of a weight.

    DeepSpeed's bf16-mixed has bf16 weights, Lightning's uses autocast with float32 weights.
    """
    return 2 if STAGES[trainer.strategy] and trainer.precision == "bf16-mixed" else 4


def work(trainer: "TrainerSettings", attention: str, shape: TreeShape) -> LayerWork:
    """Return the way in which the layers compute; `attention` is `model.attention`."""
    low = precision_bytes(trainer) == 2
    return LayerWork(
        dtype=torch.bfloat16 if low else torch.float32,
        autocast=not low and trainer.precision == "bf16-mixed",
        checkpointing=trainer.activation_checkpointing,
        attention=Attention(shape.keys(attention) / shape.tokens, repeated=attention == "sdpa"),
    )


def activations(
    model: "ModelSettings", trainer: "TrainerSettings", body: Anatomy, shape: TreeShape
) -> Bytes:
    """Return the activation bytes per token of a row.

    Without checkpointing, if nothing is learnt on a record's tokens, the last layer keeps little
    for them and is counted for the other tokens only.
    """
    layers = float(body.depth)
    if body.known and shape.learnt <= sum(shape.branches) and not trainer.activation_checkpointing:
        layers -= shape.trunk / shape.tokens
    return activation_bytes(model, work(trainer, model.attention, shape), layers)


def memory(body: Anatomy, trainer: "TrainerSettings", gpus: int, kept: Bytes, load: Load) -> Memory:
    """Return the memory of one of `gpus` GPUs; `kept` is the result of `activations`.

    Gradients are counted at every moment, since a step has several rows and the gradients of
    earlier rows are kept. A step with one row needs slightly less.
    """
    fixed, cpu = states(body, trainer, gpus, load)
    fixed |= {"buffers": buffers(body, trainer), "reserved": load.reserved}
    if load.engine:
        fixed["engine_reserved"] = load.engine_reserved
    tokens, low = load.trees * load.shape.tokens, precision_bytes(trainer)
    moments = {
        "layers": fixed | {"activations": kept.peak * tokens},
        "logits": fixed
        | {
            "activations": kept.held * tokens,
            "logits": logits(body, load.trees * load.shape.learnt, low, COPIES + load.entropy),
        },
        "step": fixed | {"step": step(body, trainer, gpus)},
    }
    if body.tied and body.head_learns:
        # the head's gradient is kept until that of the embeddings, which share its weights
        moments["layers"]["head"] = low * body.head
        moments["embeddings"] = fixed | {"head": SUMMANDS * low * body.head}
    if load.generated:
        cache = load.generated * cache_bytes(body, trainer, load.generated_tokens)
        moments["rollout"] = fixed | {"rollout_cache": cache}
    if load.engine:
        moments["rollout"] = fixed | {"rollout_engine": load.engine}
    return Memory(moments, cpu)


def cache_bytes(body: Anatomy, trainer: "TrainerSettings", tokens: int) -> float:
    """Return the bytes of the keys and values of `tokens` tokens."""
    return float(body.cache * body.depth * tokens * generation_bytes(trainer))


def generation_bytes(trainer: "TrainerSettings") -> int:
    """Return the bytes of a number in which completions are generated."""
    return 2 if trainer.precision == "bf16-mixed" else 4


def states(
    body: Anatomy, trainer: "TrainerSettings", gpus: int, load: Load
) -> tuple[dict[str, float], float]:
    """Return the bytes of weights, gradients and optimizer states on a GPU, and those on the CPU.

    DeepSpeed sums the gradients of rows in float32, except with ZeRO-1, and keeps a float32 master
    copy of bf16 weights. ZeRO-1 and 2 copy float32 weights too.
    """
    stage, low = STAGES[trainer.strategy], precision_bytes(trainer)
    parameters = (body.base + body.adapters) * (2 if load.reference else 1)
    moments = 8 * body.learnt - (4 * body.layers_learnt if load.muon else 0)
    copied = stage and (low == 2 or stage < 3 or trainer.offload)
    master = 4 * body.learnt if copied else 0
    weights = low * parameters / (gpus if stage == 3 else 1)
    if not stage and trainer.precision == "bf16-mixed":
        weights += 2 * body.cast
    gradients = low * body.learnt if stage < 2 else 4 * body.learnt / gpus
    optimizer = (master + moments) / (gpus if stage else 1)
    if not trainer.offload:
        return {"weights": weights, "gradients": gradients, "optimizer": optimizer}, 0.0
    # the CPU also holds float32 gradients for its step, and those that are summed
    cpu = optimizer + (4 + (4 if stage > 1 else low)) * body.learnt / gpus
    on_gpu = gradients if stage == 1 else 0.0
    return {"weights": weights, "gradients": on_gpu, "optimizer": 0.0}, cpu


def buffers(body: Anatomy, trainer: "TrainerSettings") -> float:
    """Return the bytes of the strategy's buffers: gradients in transfer and gathered weights."""
    stage, low = STAGES[trainer.strategy], precision_bytes(trainer)
    if trainer.strategy == "ddp":
        return 4.0 * body.learnt  # gradients are copied to buckets, not views of them
    if stage in (1, 2):
        return 2.0 * low * BUCKET  # one is filled while the other is reduced (`overlap_comm`)
    if stage == 3:
        everything = body.base + body.adapters
        gathered = min(everything, max(LIVE, body.largest))
        # a copy of the bucket is reduced while the largest gradient is kept
        copied = max(min(BUCKET, body.learnt), body.largest)
        return float(low * (gathered + BUCKET + copied))
    return 0.0


def logits(body: Anatomy, learnt: int, low: int, held: int) -> float:
    """Return the bytes of the loss computation.

    This is the larger of one chunk of logits in `held` copies and the gradient of the head, plus
    the hidden states of the learnt tokens with their gradient. With several chunks the head's
    gradient is a float32 sum, beside the contribution of a chunk in the weights' type.
    """
    rows = min(learnt, max(1, CHUNK // body.vocabulary))
    left = learnt - rows
    copies = 4 * body.vocabulary * (held * rows + min(left, rows))
    gradient = body.head * body.head_learns * (4 + low if left else low)
    return float(max(copies, gradient) + 2 * low * learnt * body.hidden)


def step(body: Anatomy, trainer: "TrainerSettings", gpus: int) -> float:
    """Return the extra bytes of an optimizer step.

    DeepSpeed flattens its gradients and, with ZeRO-1, converts them to float32. PyTorch's fused
    AdamW works in place.
    """
    stage, low = STAGES[trainer.strategy], precision_bytes(trainer)
    if not stage or trainer.offload:
        return 0.0
    share = body.learnt / gpus
    if stage == 3:
        share = min(share, SUB_GROUP)
    return share * (low + 4 if stage == 1 and low == 2 else 4)


def most_trees(need: Callable[[int], float], room: float) -> int:
    """Return the largest number of trees whose `need`, which must be increasing, fits in `room`.

    The result is 0 if not even one fits.
    """
    if need(1) > room:
        return 0
    low, high = 1, 2
    while need(high) <= room:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if need(middle) <= room else (low, middle)
    return low
