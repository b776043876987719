"""Build the inference engine, tokenizer and prompt builder for a model under evaluation."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ehrr1.config.schema import Config
from ehrr1.config.writers import (
    AnthropicEngineConfig,
    ServerEngineConfig,
    TransformersEngineConfig,
    VllmSettings,
)
from ehrr1.engines.base import Engine
from ehrr1.engines.endpoint import check_url
from ehrr1.engines.factory import open_engine
from ehrr1.errors import UserError
from ehrr1.evaluation.targets import Target
from ehrr1.models.loading import folder_of, load_model, read_config
from ehrr1.prompts.chat_format import load_chat_tokenizer
from ehrr1.prompts.trees import PromptBuilder
from ehrr1.prompts.wording import Wording, style_of
from ehrr1.runs import data_is_open
from ehrr1.terminal import plain_console

console = plain_console(stderr=True)

LONGEST = 2**20
"""Assumed number of positions of a model whose server does not state it."""

Builders = dict[tuple[str, int], PromptBuilder]
"""Prompt builders by tokenizer and token limit.

Models with the same tokenizer and limit share a builder, and with it the cached tokens of events.
"""


@contextmanager
def opened(
    cfg: Config, target: Target, inputs: Mapping[str, Path], log: Path, builders: Builders
) -> Iterator[tuple[Engine, PromptBuilder]]:
    """Yield the inference engine and the prompt builder of `target`; close the engine afterwards.

    A model without weights (the untrained one) always runs in Transformers, unless `engine=server`.
    `log` is the file of the engine's log. Raises UserError as `reader` does.
    """
    prompt_builder = reader(cfg, target, inputs, builders)
    where, tokenizer, settings = device(cfg), prompt_builder.tokenizer, cfg.engine
    dtype = torch.bfloat16 if where.type == "cuda" else torch.float32
    if target.source is None and not isinstance(settings, ServerEngineConfig):
        evaluation = cfg.eval
        settings = TransformersEngineConfig(
            name="transformers",
            batch_size=evaluation.batch_size,
            batch_tokens=evaluation.batch_tokens,
        )
    assert not isinstance(settings, AnthropicEngineConfig)

    def load() -> PreTrainedModel:
        model = load_model(cfg.model, target.source, tokenizer, seed=cfg.seed, dtype=dtype)
        return model.eval().to(where)

    weights = None
    if isinstance(settings, VllmSettings) and target.source is not None:
        weights = folder_of(target.source)
    engine = open_engine(
        settings,
        tokenizer,
        group="engine",
        load=load,
        source=weights,
        max_length=prompt_builder.max_tokens + cfg.eval.max_new_tokens.think,
        device=where,
        dtype=dtype,
        exchange=log.parent / "exchange",
        log=log,
    )
    try:
        yield engine, prompt_builder
    finally:
        engine.close()


def reader(
    cfg: Config, target: Target, inputs: Mapping[str, Path], builders: Builders
) -> PromptBuilder:
    """Return the prompt builder of `target`, with its tokenizer and token limit.

    Raises UserError if the records are closed and the server is not on this machine, unless
    `engine.compliant_endpoint` is true, and as `prompt_limit` does.
    """
    if cfg.engine.name == "server":
        from ehrr1.engines.server import served  # imported here because the SDK is slow to import

        is_open = data_is_open(inputs["prepare"])
        compliant = cfg.engine.compliant_endpoint
        check_url("engine", "server", cfg.engine.url, open_data=is_open, compliant=compliant)
        found = served(cfg.engine)
        tokenizer = load_chat_tokenizer(cfg.engine.tokenizer or found.root)
        positions = found.max_length or LONGEST
    else:
        # the untrained model has the vocabulary of the models that were trained from it
        tokenizer = load_chat_tokenizer(target.source or inputs["adapt"] / "hf")
        positions = read_config(cfg.model, target.source, len(tokenizer)).max_position_embeddings
    style = style_of(cfg.wording, "eval")
    return builder_of(tokenizer, prompt_limit(cfg, target, positions), style, builders)


def prompt_limit(cfg: Config, target: Target, positions: int) -> int:
    """Return the maximum number of tokens of record and question.

    It is `eval.max_prompt_tokens`, or the number of the model's `positions` that the answer leaves,
    if that is lower; a message says so. Raises UserError if the answer leaves none.
    """
    thinks = any(asked is not None and asked.thinks for asked in (target.risk, target.decision))
    written = cfg.eval.max_new_tokens.of("think" if thinks else "direct")
    room = positions - written
    if room < 1:
        raise UserError(
            f"eval.max_new_tokens={cfg.eval.max_new_tokens.plain()}: {target.model} has "
            f"{positions} positions, which leaves no room for a record; lower it"
        )
    if room < cfg.eval.max_prompt_tokens:
        console.print(
            f"{target.name}: {room:,} tokens of prompt instead of {cfg.eval.max_prompt_tokens:,} "
            f"(eval.max_prompt_tokens), as the model has {positions:,} positions"
        )
    return min(room, cfg.eval.max_prompt_tokens)


def builder_of(
    tokenizer: PreTrainedTokenizerBase, limit: int, style: Wording, builders: Builders
) -> PromptBuilder:
    """Return the prompt builder from `builders`, or add a new one."""
    content = tokenizer.backend_tokenizer.to_str() + str(tokenizer.chat_template)
    return builders.setdefault((content, limit), PromptBuilder(tokenizer, limit, style))


def device(cfg: Config) -> torch.device:
    """Return this process's GPU, or the CPU if there is no GPU or `trainer.accelerator` is "cpu".

    Processes of a node take its GPUs in turn, as many each as `engine.tensor_parallel`: the first
    of them is returned. Their turn is the local rank if srun or torchrun has started them, and
    `eval.shard` if they were started by hand. Raises UserError if there are too few.
    """
    if not torch.cuda.is_available() or cfg.trainer.accelerator == "cpu":
        return torch.device("cpu")
    gpus = torch.cuda.device_count()
    each = cfg.engine.tensor_parallel if isinstance(cfg.engine, VllmSettings) else 1
    if each > gpus:
        raise UserError(
            f"engine.tensor_parallel={each}: this process sees {gpus} GPUs; lower it to {gpus}"
        )
    turn = int(os.environ.get("LOCAL_RANK") or cfg.eval.shard or 0)
    return torch.device("cuda", turn % (gpus // each) * each)
