"""Load models: random or pretrained, complete or partitioned, with or without adapters."""

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import init_empty_weights
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.initialization import no_init_weights
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from ehrr1 import parallel
from ehrr1.config.training import Lora, ModelSettings
from ehrr1.errors import UserError
from ehrr1.files import read_json
from ehrr1.models.attention import choose
from ehrr1.models.gguf import start_of
from ehrr1.models.prune_last_layer import shorten_last_layer
from ehrr1.models.sizes import model_config, read_folder, unreadable
from ehrr1.models.tiny_init import pass_on
from ehrr1.prompts.tokenizer import reachable

UNUSED = r"rotary_emb\.inv_freq"
"""Weights in folders of earlier versions of Transformers, which are computed now."""

TOLD = 3
"""The number of wrong weights that an error names."""

Sharding = Callable[[], AbstractContextManager[Any]]
"""DeepSpeed's context in which each layer is partitioned among the processes when it is built."""


def load_model(
    model: ModelSettings,
    source: Path | str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    sharding: Sharding | None = None,
    computes: torch.dtype | None = None,
) -> PreTrainedModel:
    """Return a causal language model in training mode.

    source: an earlier stage's `hf/` folder. Without it the weights come from `model.path`, a folder
    or a name on the hub; if that is null they are random, drawn from `seed`, with the vocabulary
    size of `tokenizer`. With `sharding`, no process ever holds the complete model (except a random
    one, which is small). dtype: type of the weights. computes: type in which layers compute if it
    differs from `dtype`, as under autocast. Raises UserError if weights cannot be read, or if the
    tokenizer has more tokens than the model has embeddings.
    """
    start = start_of(model, source)
    attention = choose(model.attention, computes or dtype)
    if start is None:
        built = _random(model, tokenizer, seed, dtype, attention)
    elif sharding is None:
        built = read_whole(start, dtype, attention)
    else:
        built = _read_divided(start, attention, dtype, sharding)
    if tokenizer is not None:
        check_vocabulary(start, built.config, tokenizer)
    shorten_last_layer(built)
    return built.train()


def check_vocabulary(
    start: Path | str | None, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Raise UserError if the tokenizer has more tokens than the model has embeddings."""
    if len(tokenizer) > config.vocab_size:
        raise UserError(
            f"model.path={start}: its {config.vocab_size} embeddings are fewer than the "
            f"{len(tokenizer)} tokens of the tokenizer; use the model's own tokenizer"
        )


def read_config(
    model: ModelSettings, source: Path | str | None = None, vocabulary: int | None = None
) -> PretrainedConfig:
    """Return the architecture of the model that `load_model` would load."""
    start = start_of(model, source)
    if start is None:
        return model_config(model, vocabulary)
    return read_folder(start)


def add_adapters(model: PreTrainedModel, lora: Lora) -> Any:
    """Freeze the weights and add low-rank adapters in place; returns the peft model around it.

    The adapters (LoRA, Hu et al., arXiv 2106.09685) are added to the modules in `lora.targets`.
    Raises UserError if these do not exist.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=[str(target) for target in lora.targets],
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # identical adapters in every process
        try:
            adapted = get_peft_model(model, config)
        except ValueError as error:
            raise UserError(f"model.lora.targets={lora.targets}: {error}") from error
    # checkpointed layers propagate a gradient only if their input requires one
    model.enable_input_require_grads()
    return adapted


def fuse_kernels(model: PreTrainedModel) -> None:
    """Use Liger's GPU kernels for norms, rotary embeddings and gates, if they are installed.

    The loss is not replaced; `models/logprobs.py` computes it.
    """
    if find_spec("liger_kernel") is not None:
        from liger_kernel.transformers import _apply_liger_kernel_to_instance

        _apply_liger_kernel_to_instance(
            model=model, cross_entropy=False, fused_linear_cross_entropy=False
        )


def _random(
    model: ModelSettings,
    tokenizer: PreTrainedTokenizerBase | None,
    seed: int,
    dtype: torch.dtype,
    attention: str,
) -> PreTrainedModel:
    vocabulary = len(tokenizer) if tokenizer is not None else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = AutoModelForCausalLM.from_config(
            model_config(model, vocabulary),
            attn_implementation=attention,
            dtype=dtype,
        )
        if model.start is not None:
            pass_on(built, model.start)
    return built


def read_whole(start: Path | str, dtype: torch.dtype, attention: str = "sdpa") -> PreTrainedModel:
    """Load the complete model from a folder or the hub into this process.

    Raises UserError if it cannot be read, or if it lacks weights or has others than the
    architecture: Transformers would draw the missing ones at random. Of a folder of adapters these
    are its adapters; the model that they adapt is loaded, and checked, first.
    """
    offline = not reachable(start)
    adapters = Path(start) / "adapter_config.json"
    if adapters.is_file():
        built = read_whole(read_json(adapters)["base_model_name_or_path"], dtype, attention)
        with _told_of(start):
            found = built.load_adapter(
                str(start),
                dtype=dtype,
                ignore_mismatched_sizes=True,  # they are named below
                adapter_kwargs={"local_files_only": True},
            )
        refuse_other_weights(
            start, found.missing_keys, found.unexpected_keys, found.mismatched_keys
        )
        return built
    with _told_of(start):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            start,
            attn_implementation=attention,
            dtype=dtype,
            local_files_only=offline,
            adapter_kwargs={"local_files_only": offline},
            ignore_mismatched_sizes=True,  # they are named below
            output_loading_info=True,
        )
    built, info = loaded
    refuse_other_weights(
        start, info["missing_keys"], info["unexpected_keys"], info["mismatched_keys"]
    )
    return cast(PreTrainedModel, built)


@contextmanager
def _told_of(start: Path | str) -> Iterator[None]:
    """Raise UserError, which names `start`, for a model that cannot be read.

    Transformers' own table of wrong weights is left out.
    """
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        raise unreadable(start, error) from error
    finally:
        transformers_logging.set_verbosity(verbosity)


def refuse_other_weights(
    start: Path | str,
    missing: Collection[str] = (),
    surplus: Collection[str] = (),
    other: Collection[tuple[str, Any, Any]] = (),
) -> None:
    """Raise UserError if a model's weights are not exactly those of its architecture.

    `other` has the names of weights of another shape, theirs, and that of the architecture.
    """
    shapes = [f"{name} {list(there)} instead of {list(due)}" for name, there, due in other]
    told = [
        f"{what} {len(names)} ({', '.join(sorted(names)[:TOLD])}{', ...' * (len(names) > TOLD)})"
        for what, names in (("lacks", missing), ("has in surplus", surplus), ("has", shapes))
        if names
    ]
    if told:
        raise UserError(
            f"model.path={start}: of the weights of its architecture (config.json) it "
            f"{' and '.join(told)}; restore its files, or export it again"
        )


def _read_divided(
    start: Path | str, attention: str, dtype: torch.dtype, sharding: Sharding
) -> PreTrainedModel:
    """Load a model that is partitioned by ZeRO-3, parameter by parameter.

    Process 0 reads each parameter from its safetensors file and the others receive their parts, so
    that no process holds more than one complete parameter.
    """
    folder = parallel.from_first(lambda: folder_of(start))

    def build() -> PreTrainedModel:
        config = AutoConfig.from_pretrained(folder)
        return AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=dtype)

    with sharding(), no_init_weights():
        built = build()
    built.tie_weights()  # no_init_weights skips it
    # weights on the meta device, and buffers as computed without partitioning
    with init_empty_weights(include_buffers=False), no_init_weights():
        take_buffers(built, build())
    fill(built, folder)
    return built


def take_buffers(model: PreTrainedModel, other: PreTrainedModel) -> None:
    """Copy the computed, unsaved buffers of `other` into the model, in their own types.

    DeepSpeed's context creates every floating-point tensor in the type of the weights, including
    those from which a model computes its buffers. In bf16, rotary frequencies are 0.6% off, which
    amounts to whole turns in a long record.
    """
    saved = model.state_dict().keys()
    for name, buffer in model.named_buffers():
        if name not in saved:
            buffer.data = other.get_buffer(name).to(buffer.device)


def folder_of(start: Path | str) -> Path:
    """Return the folder of a model, downloaded by the hub's client if it is a name.

    Raises UserError if it cannot be read.
    """
    if Path(start).is_dir():
        return Path(start)
    try:
        return Path(snapshot_download(str(start), local_files_only=not reachable(start)))
    except (OSError, ValueError) as error:
        raise unreadable(start, error) from error


def fill(model: PreTrainedModel, folder: Path) -> None:
    """Copy the saved weights and buffers of a folder into a model partitioned by ZeRO-3.

    Raises UserError if the safetensors files lack one of them, or have others.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(
            f"model.path={folder}: it has no safetensors files, and zero3 reads no others: save "
            "the model as such"
        )
    due = {name: _shape(value) for name, value in model.state_dict(keep_vars=True).items()}
    there: dict[str, list[int]] = {}
    for file in files:
        with _told_of(folder), safe_open(file, framework="pt") as tensors:
            there |= {name: list(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    own = {name for name, _ in [*model.named_parameters(), *model.named_buffers()]} & due.keys()
    ignored = re.compile("|".join([*(model._keys_to_ignore_on_load_unexpected or ()), UNUSED]))
    refuse_other_weights(
        folder,
        own - there.keys(),
        [name for name in there.keys() - due.keys() if not ignored.search(name)],
        [(name, there[name], due[name]) for name in own & there.keys() if there[name] != due[name]],
    )
    _copy(model, files, own)


def _shape(value: torch.Tensor) -> list[int]:
    """Return the shape of a weight, also of one that ZeRO-3 has divided."""
    return list(value.ds_shape if hasattr(value, "ds_shape") else value.shape)


def _copy(model: PreTrainedModel, files: Sequence[Path], own: Collection[str]) -> None:
    """Copy the tensors called `own` from safetensors files into a model, one at a time."""
    import deepspeed

    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for name in sorted(set(own) & set(tensors.keys())):
                if name in buffers:  # not partitioned: every process reads it
                    buffers[name].copy_(tensors.get_tensor(name))
                    continue
                with deepspeed.zero.GatheredParameters([parameters[name]], modifier_rank=0):
                    if parallel.rank() == 0:
                        parameters[name].data.copy_(tensors.get_tensor(name))


def end_at_turn(config: Any, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """Set the end of a chat turn as the end of generation, in `config` and in the result.

    Also sets the model's architecture in `config`; without it vLLM treats the model as an embedding
    model.
    """
    config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type]]
    config.eos_token_id = tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    return GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
