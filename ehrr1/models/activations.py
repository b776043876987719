"""Measure the activation memory of a model's layers in training, without allocating it.

The model with two and with three layers runs forward and backward on fake tensors, which have
shape, type and device (so that autocast acts as in training) but no content. Every storage that is
allocated and freed is counted. All sizes are proportional to the number of tokens and grow by the
same amount with each layer, so that four numbers determine them for every length and depth. Only
attention is replaced, by a function that keeps what a fused kernel keeps: queries, keys, values,
the output, and one log-sum-exp per query.
"""

import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface, AutoModelForCausalLM, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv

from ehrr1.models.sizes import model_config

if TYPE_CHECKING:
    from ehrr1.config.training import ModelSettings

TOKENS = 2**18
"""Tokens of the shorter measurement, so many that the gradients of weights are negligible."""


class Bytes(NamedTuple):
    """Activation memory in bytes.

    held: kept from forward to backward. peak: maximum at any time in between.
    """

    held: float
    peak: float


class Attention(NamedTuple):
    """Copies of keys and values that an attention makes before its kernel.

    keys: keys per query token (above 1 if branches get copies of their trunk's keys). repeated:
    True if keys are repeated for every query head, as sdpa does.
    """

    keys: float = 1.0
    repeated: bool = False


class LayerWork(NamedTuple):
    """The way in which a model computes.

    dtype: type of the weights. autocast: True for bf16 by autocast. checkpointing: True if layers
    are recomputed for the gradient.
    """

    dtype: torch.dtype
    autocast: bool
    checkpointing: bool
    attention: Attention


def activation_bytes(model: "ModelSettings", work: LayerWork, layers: float | None = None) -> Bytes:
    """Return the activation bytes per token of one row, for all layers or for `layers` of them."""
    depth = model_config(model).num_hidden_layers if layers is None else layers
    two, three = (_bytes_a_token(model, work, number) for number in (2, 3))
    return Bytes(*(a + (depth - 2) * (b - a) for a, b in zip(two, three, strict=True)))


def shell(model: "ModelSettings", layers: int | None = None, **how: Any) -> PreTrainedModel:
    """Return the architecture with its adapters on the meta device, with all layers or `layers`."""
    config = model_config(model)
    if layers is not None:
        config.num_hidden_layers = layers
        config.layer_types = ["full_attention"] * layers
    with torch.device("meta"):
        built: PreTrainedModel = AutoModelForCausalLM.from_config(config, **how)
        if model.lora is not None:
            from ehrr1.models.loading import add_adapters  # needs peft

            add_adapters(built, model.lora)
    return built.train()


def _bytes_a_token(model: "ModelSettings", work: LayerWork, layers: int) -> Bytes:
    built = shell(model, layers, attn_implementation="plan", dtype=work.dtype)
    if work.checkpointing:
        built.gradient_checkpointing_enable()
    with FakeTensorMode():
        _pretend(built)
        one, two = (_run(built, work, tokens) for tokens in (TOKENS, 2 * TOKENS))
    return Bytes(*((b - a) / TOKENS for a, b in zip(one, two, strict=True)))


def _pretend(built: PreTrainedModel) -> None:
    """Move a model from the meta device to the fake CPU of the active FakeTensorMode."""
    for module in built.modules():
        for name, weight in module.named_parameters(recurse=False):
            empty = torch.empty(weight.shape, dtype=weight.dtype)
            setattr(module, name, torch.nn.Parameter(empty, weight.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))


def _run(built: PreTrainedModel, work: LayerWork, tokens: int) -> Bytes:
    places = torch.zeros(1, tokens, dtype=torch.long)
    with Storages() as storages, torch.autocast("cpu", torch.bfloat16, enabled=work.autocast):
        states = built.base_model(
            input_ids=places,
            position_ids=places,
            attention_mask=torch.empty(0, 0, 0, 0),  # prevents Transformers from building a mask
            use_cache=False,
            plan=work.attention,
        ).last_hidden_state
        held = storages.live
        states.backward(torch.empty_like(states))
    for parameter in built.parameters():
        parameter.grad = None
    return Bytes(held, storages.peak)


class Storages(TorchDispatchMode):
    """A dispatch mode that counts the live and the maximum bytes of the storages of operations."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {storage._cdata for storage in _storages((args, kwargs))}
        for storage in _storages(result):
            if storage._cdata not in given | self.known:
                self._count(storage)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        self.known.add(storage._cdata)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._end, storage._cdata, storage.nbytes())

    def _end(self, storage: int, size: int) -> None:
        self.known.discard(storage)
        self.live -= size


def _storages(values: Any) -> list[torch.UntypedStorage]:
    return [value.untyped_storage() for value in tree_leaves(values) if isinstance(value, Tensor)]


class _Kernel(torch.autograd.Function):
    """A function that keeps what fused attention kernels keep, and computes nothing."""

    @staticmethod
    def forward(context: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Save the tensors that a kernel saves and return an empty output."""
        output = torch.empty_like(query)
        sums = torch.empty(query.shape[:-1], dtype=torch.float32, device=query.device)
        context.save_for_backward(query, key, value, output, sums)
        return output

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Any:
        """Return empty gradients of query, key and value."""
        return tuple(torch.empty_like(kept) for kept in context.saved_tensors[:3])


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Any,
    plan: Attention,
    **others: Any,
) -> tuple[Tensor, None]:
    if plan.repeated:
        key, value = (repeat_kv(part, module.num_key_value_groups) for part in (key, value))
    if plan.keys > 1:
        count = round(key.shape[2] * plan.keys)
        places = torch.empty(count, dtype=torch.long, device=key.device)
        key, value = (part.index_select(2, places) for part in (key, value))
    output = _Kernel.apply(query, key, value)
    if plan.repeated:
        output = output.clone(memory_format=torch.contiguous_format)  # as if concatenated
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register("plan", _attention)
