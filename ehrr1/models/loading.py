"""Models: from nothing, from a folder, by name; and out again as a Hugging Face folder."""

from pathlib import Path

import torch
from omegaconf import DictConfig
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ehrr1.errors import UserError
from ehrr1.files import replacing
from ehrr1.models.attention import choose
from ehrr1.models.last_layer import shorten_last_layer
from ehrr1.models.sizes import model_config
from ehrr1.models.start import pass_on
from ehrr1.prompts.tokenizer import reachable


def load_model(
    model: DictConfig,
    source: Path | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    seed: int = 0,
) -> PreTrainedModel:
    """A causal language model in float32 and training mode.

    `source` is an earlier stage's `hf/` folder; without it the weights come from `model.path`, a
    folder or a name on the hub, and where that is null they are random, drawn from `seed`, with
    the vocabulary of `tokenizer`. Raises UserError for weights that cannot be read.
    """
    start = source or model.path
    if start is None:
        vocabulary = len(tokenizer) if tokenizer is not None else None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            built = AutoModelForCausalLM.from_config(
                model_config(model, vocabulary),
                attn_implementation=choose(model.attention),
                dtype=torch.float32,
            )
            if "start" in model:
                pass_on(built, model.start)
    else:
        built = _read(start, choose(model.attention))
    if tokenizer is not None and len(tokenizer) > built.config.vocab_size:
        raise UserError(
            f"model.path={start}: its {built.config.vocab_size} embeddings are fewer than the "
            f"{len(tokenizer)} tokens of the tokenizer; use the model's own tokenizer"
        )
    shorten_last_layer(built)
    return built.train()


def _read(start: Path | str, attention: str) -> PreTrainedModel:
    offline = not reachable(start)
    try:
        return AutoModelForCausalLM.from_pretrained(
            start,
            attn_implementation=attention,
            dtype=torch.float32,
            local_files_only=offline,
            adapter_kwargs={"local_files_only": offline},
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"model.path={start}: no model can be read there ({reason}); "
            "give a Hugging Face model folder, or a model's name and a network"
        ) from error


def export(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write weights, tokenizer and generation settings as a Hugging Face folder, atomically.

    Generation ends at the end of a chat turn.
    """
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.config.eos_token_id = tokenizer.eos_token_id
    model.config.pad_token_id = tokenizer.pad_token_id
    with replacing(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
