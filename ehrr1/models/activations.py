"""What a model's layers keep and need while they learn, measured on the real code without memory.

Two and three layers of the model run forward and backward on fake tensors: they have shape, type
and device (so that autocast acts as it will) but no content, and every storage that comes and goes
is counted. All of it grows in proportion to the tokens, and with each layer by the same amount, so
that four numbers tell it for every length and depth. Attention alone is replaced: by a function
that keeps what a fused kernel keeps (queries, keys, values, its output, a log-sum-exp a query).
"""

import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface, AutoModelForCausalLM, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv

from ehrr1.config.training import ModelSettings
from ehrr1.models.loading import add_adapters
from ehrr1.models.sizes import model_config

TOKENS = 2**18
"""Tokens of the shorter measurement: so many that gradients of weights are nothing beside them."""


class Bytes(NamedTuple):
    """Bytes: `held` from forward to backward, and `peak`, the most at any time between."""

    held: float
    peak: float


class Attention(NamedTuple):
    """What an attention does with keys before its kernel: `keys` for every query token (above 1
    where branches get copies of their trunk's), `repeated` for every query head, as sdpa does."""

    keys: float = 1.0
    repeated: bool = False


class LayerWork(NamedTuple):
    """How a model computes: the type of its weights, bf16 by autocast or not, layers computed again
    for the gradient or not, and the attention."""

    dtype: torch.dtype
    autocast: bool
    checkpointing: bool
    attention: Attention


def activation_bytes(model: ModelSettings, work: LayerWork, layers: float | None = None) -> Bytes:
    """Bytes a token of one row with all layers, or with `layers` of them."""
    depth = model_config(model).num_hidden_layers if layers is None else layers
    two, three = (_bytes_a_token(model, work, number) for number in (2, 3))
    return Bytes(*(a + (depth - 2) * (b - a) for a, b in zip(two, three, strict=True)))


def shell(model: ModelSettings, layers: int | None = None, **how: Any) -> PreTrainedModel:
    """The architecture with its adapters on the meta device, with all layers or so many."""
    config = model_config(model)
    if layers is not None:
        config.num_hidden_layers = layers
        config.layer_types = ["full_attention"] * layers
    with torch.device("meta"):
        built: PreTrainedModel = AutoModelForCausalLM.from_config(config, **how)
        if model.lora is not None:
            add_adapters(built, model.lora)
    return built.train()


def _bytes_a_token(model: ModelSettings, work: LayerWork, layers: int) -> Bytes:
    built = shell(model, layers, attn_implementation="plan", dtype=work.dtype)
    if work.checkpointing:
        built.gradient_checkpointing_enable()
    with FakeTensorMode():
        _pretend(built)
        one, two = (_run(built, work, tokens) for tokens in (TOKENS, 2 * TOKENS))
    return Bytes(*((b - a) / TOKENS for a, b in zip(one, two, strict=True)))


def _pretend(built: PreTrainedModel) -> None:
    """Move a model from the meta device to a CPU that the active mode pretends to have."""
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
            attention_mask=torch.empty(0, 0, 0, 0),  # so that no mask is made
            use_cache=False,
            plan=work.attention,
        ).last_hidden_state
        held = storages.live
        states.backward(torch.empty_like(states))
    for parameter in built.parameters():
        parameter.grad = None
    return Bytes(held, storages.peak)


class Storages(TorchDispatchMode):
    """Counts the bytes of storages that operations make, from their making to their end."""

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
    """Keeps what fused attention kernels keep, and computes nothing."""

    @staticmethod
    def forward(context: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = torch.empty_like(query)
        sums = torch.empty(query.shape[:-1], dtype=torch.float32, device=query.device)
        context.save_for_backward(query, key, value, output, sums)
        return output

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Any:
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
        output = output.clone(memory_format=torch.contiguous_format)  # its parts are put together
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register("plan", _attention)
