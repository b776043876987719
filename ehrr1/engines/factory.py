"""Build the engine that a configuration names.

Reinforcement learning, evaluation, inference and chains all use this function.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ehrr1.config.writers import (
    ServerSettings,
    TransformersSettings,
    VllmRolloutConfig,
    VllmServerConfig,
    VllmSettings,
)
from ehrr1.engines.base import Engine
from ehrr1.engines.transformers import TransformersEngine
from ehrr1.engines.vllm import VLLMEngine

Settings = TransformersSettings | VllmSettings | ServerSettings | VllmServerConfig


def open_engine(
    settings: Settings,
    tokenizer: PreTrainedTokenizerBase,
    *,
    group: str,
    load: Callable[[], PreTrainedModel],
    source: Path | None,
    max_length: int,
    device: torch.device,
    dtype: torch.dtype,
    exchange: Path,
    log: Path,
    sleeps: bool = False,
) -> Engine:
    """Return a running engine; close it after use.

    `group` is the group of settings that chose the engine (`rollout`, `engine`, `chains`), which
    errors name. Transformers generates with the model that `load` returns, on its device. vLLM
    reads the weights in the folder `source`; its child process runs in `dtype` on `device` and
    prints to `log`, and `sleeps` lets a trainer there put it to sleep. New weights are passed
    in memory or through the folder `exchange`. `max_length` bounds prompt and completion
    together, in tokens. Raises UserError if the engine is not installed or does not support the
    model, or the server does not answer.
    """
    if isinstance(settings, TransformersSettings):
        return TransformersEngine(load(), tokenizer, settings.batch_size, settings.batch_tokens)
    if isinstance(settings, ServerSettings):
        from ehrr1.engines.server import ServerEngine  # the SDK is slow to import

        return ServerEngine(settings, tokenizer, group)
    end_id = tokenizer.eos_token_id
    assert isinstance(end_id, int)
    if isinstance(settings, VllmServerConfig):
        from ehrr1.engines.vllm_server import VLLMServerEngine

        return VLLMServerEngine(
            settings, end_id, max_length=max_length, device=device, exchange=exchange
        )
    assert source is not None
    return VLLMEngine(
        source,
        end_id,
        settings,
        max_length=max_length,
        dtype=dtype,
        device=device,
        exchange=exchange,
        log=log,
        sleeps=sleeps,
        group=group,
        sync=settings.sync if isinstance(settings, VllmRolloutConfig) else "files",
    )
