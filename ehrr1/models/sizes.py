"""Compute a model's number of parameters and memory requirement before loading it."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from ehrr1.errors import UserError
from ehrr1.prompts.tokenizer import reachable

if TYPE_CHECKING:
    from ehrr1.config.training import ModelSettings

GIB = 2**30

TRAINED_TOKENS = "trained_tokens"
"""The entry of our models' config.json with the maximum tokens of what they were trained on.

Positions say how much a model can read, and not what it has learnt to read.
"""


def model_config(model: "ModelSettings", vocab_size: int | None = None) -> PretrainedConfig:
    """Return the architecture in `model.config`, or the folder's own if it is null (`model=DIR`).

    vocab_size: vocabulary of a trained tokenizer, which overrides the configured one. Raises
    UserError for an unknown model type or an unreadable folder.
    """
    if model.config is None:
        return read_folder(str(model.path))
    values = dict(model.config)
    if vocab_size is not None:
        values["vocab_size"] = vocab_size
    elif "vocab_size" not in values:
        values["vocab_size"] = model.tokenizer.vocab_size
    kind = values.pop("model_type")
    try:
        return AutoConfig.for_model(kind, **values)
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"model.config (model_type={kind}): {reason}") from error


def read_folder(start: Path | str) -> PretrainedConfig:
    """Return the architecture of a Hugging Face folder or, with a network, of a model's name.

    Raises UserError if it cannot be read.
    """
    try:
        return AutoConfig.from_pretrained(start, local_files_only=not reachable(start))
    except (OSError, ValueError) as error:
        raise unreadable(start, error) from error


def unreadable(start: Path | str, error: Exception) -> UserError:
    """Return the error for a model that cannot be read."""
    reason = str(error).strip().splitlines()[0]
    return UserError(
        f"model.path={start}: no model can be read there ({reason}); "
        "give a Hugging Face model folder, or a model's name and a network"
    )


def parameter_count(model: "ModelSettings") -> int:
    """Return the number of parameters of the architecture in `model.config`.

    Tied parameters count once. Nothing is loaded.
    """
    return count_parameters(model_config(model))


def count_parameters(config: PretrainedConfig) -> int:
    """Return the number of parameters of an architecture, built on the meta device.

    Tied parameters count once.
    """
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(config)
    return sum(parameter.numel() for parameter in built.parameters())


def requirements(model: "ModelSettings") -> str:
    """Describe a model in one line: parameters, source of the weights, and memory in GiB.

    Memory is given for holding and for training. Training is counted as mixed precision with AdamW:
    16 bytes per parameter (bf16 weights and gradients, float32 weights and two moments), without
    activations.
    """
    count = parameter_count(model)
    weights = f"weights of {model.path}" if model.path else "no weights, it starts from nothing"
    return (
        f"model={model.name}: {count:,} parameters, {weights}, {2 * count / GIB:.1f} GiB to hold "
        f"in bf16 and {16 * count / GIB:.1f} GiB to train with AdamW, activations not counted"
    )


def check_memory(model: "ModelSettings", accelerator: str) -> None:
    """Raise UserError if one CPU process cannot hold the training of this model.

    The bound is 16 bytes per parameter (float32 weights, gradients and two moments), compared with
    the machine's memory. GPUs are not checked.
    """
    if accelerator == "gpu" or (accelerator == "auto" and torch.cuda.is_available()):
        return
    need, have = 16 * parameter_count(model), memory_bytes()
    if need > have:
        raise UserError(
            f"{requirements(model)}: this machine has {have / GIB:.1f} GiB and no GPU; "
            "train it on a cluster, or choose model=tiny"
        )


def memory_bytes() -> int:
    """Return the memory of this machine in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
