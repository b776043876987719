"""Turn a checkpoint of a training run into a Hugging Face folder."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig, PreTrainedTokenizerBase

from ehrr1.config.training import Lora
from ehrr1.errors import UserError
from ehrr1.files import read_json, replacing, write_json
from ehrr1.models.loading import add_adapters, end_at_turn, read_whole, refuse_other_weights
from ehrr1.training.checkpoints import best_checkpoints, checkpoints, reading_checkpoint
from ehrr1.training.model_card import CARD, DATA_CARD, with_result

SHARD_BYTES = 4 * 2**30
"""The size of one file of exported weights at most, one tensor aside."""


def write_base(
    folder: Path,
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    dtype: torch.dtype,
    cards: Mapping[str, str],
    adapters: dict[str, Any] | None = None,
) -> None:
    """Write to `folder`/base all files of the later hf/ but the weights.

    Any checkpoint can then be turned into hf/, also after a crash. `cards` are texts by the names
    of their files. `adapters` notes the `source` of the weights that they adapt and their settings
    `lora`.
    """
    with replacing(folder / "base") as base:
        config.dtype = dtype
        generation = end_at_turn(config, tokenizer)
        config.save_pretrained(base)
        generation.save_pretrained(base)
        tokenizer.save_pretrained(base)
        for name, text in cards.items():
            (base / name).write_text(text, encoding="utf-8")
        if adapters is not None:
            write_json(base / "adapters.json", adapters)


def consolidate(folder: Path, which: str | int = "last") -> int:
    """Make `folder`/hf from a checkpoint of a training run; return its steps done.

    `which` is the last, the best by `trainer.monitor`, or the steps done. Works from the files
    alone, one tensor at a time. Adapters are merged into the weights that they stand on. Raises
    UserError where there is no such checkpoint.
    """
    checkpoint, step = _find(folder, which)
    config = AutoConfig.from_pretrained(folder / "base")
    with replacing(folder / "hf", durable=True) as hf:
        hf.mkdir()
        for file in (folder / "base").iterdir():
            if file.name != "adapters.json":
                (hf / file.name).write_bytes(file.read_bytes())
        if (folder / "base" / "adapters.json").exists():
            _merge(read_json(folder / "base" / "adapters.json"), checkpoint, config.dtype, hf)
        else:
            tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
            weights = learnt_weights(checkpoint)
            write_weights(((n, w.to(config.dtype)) for n, w in weights if n not in tied), hf)
        _complete_card(hf, folder, step)
    return step


def _complete_card(hf: Path, folder: Path, step: int) -> None:
    """Add results to the card of a model; its adapters alone have copies of both cards.

    Runs that were begun by an earlier version have none.
    """
    if not (hf / DATA_CARD).exists():
        return
    text = with_result((hf / CARD).read_text(encoding="utf-8"), folder, step)
    (hf / CARD).write_text(text, encoding="utf-8")
    if (hf / "adapter").is_dir():
        for name in (CARD, DATA_CARD):
            (hf / "adapter" / name).write_bytes((hf / name).read_bytes())


def _find(folder: Path, which: str | int) -> tuple[Path, int]:
    """Return a checkpoint of a training run and its steps done; raise UserError if none is."""
    there = checkpoints(folder / "checkpoints")
    best = best_checkpoints(folder / "checkpoints")
    if not there or not (folder / "base").is_dir():
        raise UserError(
            f"run={folder}: no checkpoint of a training run is there; give the folder of a run of "
            "stage=adapt or stage=reason that has saved once"
        )
    names = {"last": max(there), "best": next(iter(best), None)}
    step = names.get(str(which), which)
    if step in there:
        return there[int(step)], int(step)
    steps = [f"{s} ({_monitored(folder)} {best[s]:.4g})" if s in best else str(s) for s in there]
    remedy = (
        "none was kept as one of the best: train with trainer.save_top_k=1 and eval_every"
        if which == "best"
        else "choose one of them, last or best"
    )
    raise UserError(
        f"checkpoint={which}: run={folder} has those of steps {', '.join(steps)}; {remedy}"
    )


def _monitored(folder: Path) -> str:
    """Return the metric that the best checkpoints of a run were ranked by."""
    listed = read_json(folder / "checkpoints" / "best.json")
    return next(name for name in listed[0] if name != "step")


def learnt_weights(checkpoint: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield name (as in the model) and float32 values of each trained weight, one at a time."""
    prefix = "model."
    if checkpoint.is_dir():
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):  # it prints and has bars
            state = get_fp32_state_dict_from_zero_checkpoint(
                str(checkpoint), "checkpoint", exclude_frozen_parameters=True, lazy_mode=True
            )
    else:
        with reading_checkpoint(checkpoint):
            state = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
            state = state["state_dict"]
    for name in sorted(state):
        yield name.removeprefix(prefix), state[name].contiguous()


def write_weights(weights: Iterable[tuple[str, Tensor]], folder: Path) -> None:
    """Write safetensors files of at most `SHARD_BYTES`, and the index of which holds what."""
    places: dict[str, str] = {}
    shard: dict[str, Tensor] = {}
    held = total = 0

    def flush() -> None:
        name = f"model-{len(set(places.values())) + 1:05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        places.update(dict.fromkeys(shard, name))
        shard.clear()

    for name, value in weights:
        size = value.numel() * value.element_size()
        if shard and held + size > SHARD_BYTES:
            flush()
            held = 0
        shard[name] = value.clone()
        held, total = held + size, total + size
    flush()
    if len(set(places.values())) == 1:
        (folder / "model-00001.safetensors").rename(folder / "model.safetensors")
        return
    index = {"metadata": {"total_size": total}, "weight_map": places}
    text = json.dumps(index, indent=1)
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def _merge(adapters: dict[str, Any], checkpoint: Path, dtype: torch.dtype, hf: Path) -> None:
    """Write the weights with their adapters merged, and the adapters alone to `hf`/adapter."""
    model = read_whole(adapters["source"], dtype)
    adapted = add_adapters(model, Lora(**adapters["lora"]))
    learnt = {name: value.to(dtype) for name, value in learnt_weights(checkpoint)}
    left = model.load_state_dict(learnt, strict=False)
    lacking = [name for name in left.missing_keys if ".lora_" in name]
    refuse_other_weights(checkpoint, lacking, left.unexpected_keys)
    adapted.save_pretrained(hf / "adapter")
    adapted.merge_and_unload().save_pretrained(hf)
