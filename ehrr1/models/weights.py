"""Gather the complete weights of a model in training, for a generation engine."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from ehrr1.models.prune_last_layer import decoder_layers


def divided(parameters: Sequence[nn.Parameter]) -> AbstractContextManager[Any]:
    """Return a context in which parameters partitioned by ZeRO-3 are complete.

    Other parameters are always complete.
    """
    if not any(hasattr(parameter, "ds_numel") for parameter in parameters):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(list(parameters))


@torch.no_grad()
def whole_weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Yield the names, as in an exported folder, and values of all weights, with adapters merged.

    Under ZeRO-3, one decoder layer at a time is gathered, in every process; all processes must
    iterate to the end. A tensor belongs to the model and is valid until the next one is requested.
    """
    layers = list(decoder_layers(model))
    inner = {id(module) for layer in layers for module in layer.modules()}
    outer = [(n, m) for n, m in model.named_modules() if id(m) not in inner]
    groups = [[one] for one in outer]
    places = {id(module): name for name, module in model.named_modules()}
    groups += [[(places[id(m)], m) for m in layer.modules()] for layer in layers]
    seen: set[int] = set()  # a tied head is the same parameter as the embeddings
    for group in groups:
        own = {p: None for _, module in group for p in module.parameters(recurse=_adapted(module))}
        with divided(list(own)):
            for name, module in group:
                yield from _values(name, module, seen)


def _adapted(module: nn.Module) -> bool:
    return isinstance(module, LoraLayer)


def _values(name: str, module: nn.Module, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    """Yield the names and weights of one module itself.

    An adapted layer yields the merged weight of its parts.
    """
    if ".lora_" in name or name.endswith(".base_layer"):
        return  # included in the merged weight of its layer
    if isinstance(module, LoraLayer):
        layer: Any = module
        base = layer.get_base_layer()
        delta = layer.get_delta_weight("default").to(base.weight.dtype)
        yield f"{name}.weight", base.weight + delta
        if base.bias is not None:
            yield f"{name}.bias", base.bias
        return
    for part, parameter in module.named_parameters(recurse=False):
        if id(parameter) not in seen:
            seen.add(id(parameter))
            yield f"{name}.{part}", parameter.detach()


def without_adapters(model: PreTrainedModel, off: bool) -> None:
    """Switch all adapters off (`off`), which leaves the base weights, or on again."""
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.enable_adapters(not off)
