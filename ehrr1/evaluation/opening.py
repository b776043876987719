"""Opening a model to be asked: its tokenizer, its engine, and how much of a record it can read."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from ehrr1 import parallel
from ehrr1.config.schema import Config
from ehrr1.config.writers import VllmEngine
from ehrr1.engines.base import Answerer
from ehrr1.engines.server import OpenAIServer, served
from ehrr1.engines.transformers import TransformersRollout
from ehrr1.engines.vllm import VLLMRollout
from ehrr1.errors import UserError
from ehrr1.evaluation.targets import Target
from ehrr1.models.loading import folder_of, load_model, read_config
from ehrr1.prompts.chat_format import load_chat_tokenizer
from ehrr1.prompts.trees import PromptBuilder
from ehrr1.prompts.wording import Wording, style_of

console = Console(stderr=True)

LONGEST = 2**20
"""Positions of a model whose server does not tell them."""

Makers = dict[tuple[str, int], PromptBuilder]
"""By tokenizer and limit: what one model's tokenizer made of an event, the next need not make."""


@contextmanager
def opened(
    cfg: Config, result: Target, inputs: Mapping[str, Path], log: Path, makers: Makers
) -> Iterator[tuple[Answerer, PromptBuilder]]:
    """The engine that answers for `result`, and what makes its prompts; closed at the end."""
    prompt_builder = reader(cfg, result, inputs, makers)
    if cfg.engine.name == "server":
        engine: Answerer = OpenAIServer(cfg.engine, prompt_builder.tokenizer)
    else:
        engine = local_engine(cfg, result, prompt_builder, log)
    try:
        yield engine, prompt_builder
    finally:
        engine.close()


def reader(
    cfg: Config, result: Target, inputs: Mapping[str, Path], makers: Makers
) -> PromptBuilder:
    """What makes the prompts of `result`: its tokenizer, and as much of a record as fits."""
    if cfg.engine.name == "server":
        found = served(cfg.engine)
        tokenizer = load_chat_tokenizer(cfg.engine.tokenizer or found.root)
        positions = found.max_length or LONGEST
    else:
        # the untrained model has the vocabulary of what was trained from it
        tokenizer = load_chat_tokenizer(result.source or inputs["adapt"] / "hf")
        positions = read_config(cfg.model, result.source, len(tokenizer)).max_position_embeddings
    style = style_of(cfg.wording, "eval")
    return maker_of(tokenizer, prompt_limit(cfg, result, positions), style, makers)


def local_engine(cfg: Config, result: Target, prompt_builder: PromptBuilder, log: Path) -> Answerer:
    """Transformers in this process, or vLLM beside it; vLLM needs weights that lie in a folder."""
    where, settings, tokenizer = device(cfg), cfg.eval, prompt_builder.tokenizer
    dtype = torch.bfloat16 if where.type == "cuda" else torch.float32
    if cfg.engine.name == "transformers" or result.source is None:
        model = load_model(cfg.model, result.source, tokenizer, seed=cfg.seed, dtype=dtype)
        return TransformersRollout(
            model.eval().to(where), tokenizer, settings.batch_size, settings.batch_tokens
        )
    engine = cfg.engine
    assert isinstance(engine, VllmEngine)
    return VLLMRollout(
        folder_of(result.source),
        tokenizer.eos_token_id,
        max_length=prompt_builder.max_tokens + settings.max_new_tokens.think,
        dtype=dtype,
        gpu=where.type == "cuda",
        exchange=log.parent / "exchange",
        log=log,
        batch_size=settings.batch_size,
        gpu_memory_utilization=engine.gpu_memory_utilization,
        kv_cache_gib=engine.kv_cache_gib,
        tensor_parallel=engine.tensor_parallel,
        sleeps=False,
    )


def prompt_limit(cfg: Config, result: Target, positions: int) -> int:
    """Tokens of record and question: `eval.max_prompt_tokens`, or what the model has room for."""
    thinks = any(asked is not None and asked.thinks for asked in (result.risk, result.decision))
    written = cfg.eval.max_new_tokens.of("think" if thinks else "direct")
    room = positions - written
    if room < 1:
        raise UserError(
            f"eval.max_new_tokens={cfg.eval.max_new_tokens.plain()}: {result.model} has "
            f"{positions} positions, which leaves no room for a record; lower it"
        )
    if room < cfg.eval.max_prompt_tokens:
        console.print(
            f"{result.name}: {room:,} tokens of prompt instead of {cfg.eval.max_prompt_tokens:,} "
            f"(eval.max_prompt_tokens), as the model has {positions:,} positions"
        )
    return min(room, cfg.eval.max_prompt_tokens)


def maker_of(
    tokenizer: PreTrainedTokenizerBase, limit: int, style: Wording, makers: Makers
) -> PromptBuilder:
    content = tokenizer.backend_tokenizer.to_str() + str(tokenizer.chat_template)
    return makers.setdefault((content, limit), PromptBuilder(tokenizer, limit, style))


def device(cfg: Config) -> torch.device:
    """The GPU of this process where there is one and the trainer may use it."""
    if not torch.cuda.is_available() or cfg.trainer.accelerator == "cpu":
        return torch.device("cpu")
    return torch.device("cuda", parallel.local_rank() % torch.cuda.device_count())
