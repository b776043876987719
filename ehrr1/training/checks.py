"""Checks of a training stage's settings before anything starts, reported together."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerBase

from ehrr1 import parallel
from ehrr1.config.learning import is_zero, learning, lengths
from ehrr1.config.schema import Config
from ehrr1.config.training import TrainerSettings
from ehrr1.cores import cores
from ehrr1.engines.vllm import check as check_engine
from ehrr1.errors import UserError
from ehrr1.models.attention import check_reach
from ehrr1.models.sizes import check_memory, count_parameters
from ehrr1.training.reward_runner import resolve
from ehrr1.training.strategies import on_gpu
from ehrr1.training.targets import wrong_targets

SMALL = 10_000_000
"""The number of parameters up to which a model trains in any precision on any processor."""

BF16 = ("avx512_bw", "avx_ne_convert")
"""The instructions of an x86 processor of which oneDNN needs one to multiply bf16 matrices."""


def check_training(
    cfg: Config,
    stage: str,
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> None:
    """Raise UserError with every setting of a training stage that cannot work.

    `config` is the model that the stage starts from and `tokenizer` its own, None where it will
    be trained.
    """
    problems = [*_devices(cfg.trainer), *learning(cfg, stage, parallel.wanted(cfg.trainer))]
    problems += wrong_code(cfg, stage)
    problems += lengths(cfg, stage, config.max_position_embeddings)
    problems += _reach(config, cfg.supervised(stage).max_tokens)
    problems += _adapters(cfg, config) + _precision(cfg.trainer, config)
    if cfg.model.lora is not None and tokenizer is None:
        problems.append(
            "model.lora with model.path=null: adapters on random weights learn nothing; set null"
        )
    _report(problems + _vocabulary(cfg, config, tokenizer), cfg)


def check_reinforcement(
    cfg: Config, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, source: Path
) -> None:
    """Raise UserError with every setting of stage=rl that cannot work.

    `config` and `tokenizer` are those of `source`, the weights that it starts from.
    """
    problems = [*_devices(cfg.trainer), *learning(cfg, "rl", parallel.wanted(cfg.trainer))]
    problems += wrong_code(cfg, "rl")
    if cfg.rollout.name == "vllm":
        try:
            check_engine(source, on_gpu(cfg.trainer), "rollout")
        except UserError as error:
            problems.append(str(error))
    problems += lengths(cfg, "rl", config.max_position_embeddings)
    problems += _reach(config, cfg.rl.max_prompt_tokens + cfg.rl.max_completion_tokens)
    problems += _adapters(cfg, config) + _precision(cfg.trainer, config)
    _report(problems + _vocabulary(cfg, config, tokenizer), cfg)


def wrong_code(cfg: Config, stage: str) -> list[str]:
    """Return a line for each class, function or reward of a stage that cannot be used."""
    problems = wrong_targets(cfg, stage)
    if stage == "rl":
        try:
            resolve(cfg.rl.rewards)
        except UserError as error:
            problems.append(str(error))
    return problems


def _vocabulary(
    cfg: Config, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase | None
) -> list[str]:
    if tokenizer is None or len(tokenizer) <= config.vocab_size:
        return []
    return [
        f"model.path={cfg.model.path}: its tokenizer has {len(tokenizer)} tokens, the model "
        f"{config.vocab_size} embeddings; use the model's own tokenizer"
    ]


def _report(problems: list[str], cfg: Config) -> None:
    if problems:
        raise UserError("; ".join(problems))
    check_memory(cfg.model, cfg.trainer.accelerator)


def _devices(trainer: TrainerSettings) -> list[str]:
    gpus = torch.cuda.device_count()
    if trainer.accelerator == "gpu" and not gpus:
        return ["trainer.accelerator=gpu: no GPU is found here; set cpu or auto"]
    if trainer.devices == "auto":
        return []
    have = gpus if on_gpu(trainer) else cores()
    if trainer.devices > have:
        what = "GPUs" if on_gpu(trainer) else "cores (a process needs one)"
        return [f"trainer.devices={trainer.devices}: this machine has {have} {what}; lower it"]
    return []


def _precision(trainer: TrainerSettings, config: PretrainedConfig) -> list[str]:
    """Refuse what oneDNN computes number by number: bf16 without AVX-512 or AVX-NE-CONVERT."""
    if trainer.precision == "32-true" or on_gpu(trainer) or count_parameters(config) <= SMALL:
        return []
    processor = torch.cpu.get_capabilities()
    if processor["architecture"] != "x86_64" or any(map(processor.get, BF16)):
        return []
    return [
        f"trainer.precision={trainer.precision}: this processor has no AVX-512; without it "
        "bf16 is tens of times slower than float32: give trainer.precision=32-true"
    ]


def _reach(config: PretrainedConfig, tokens: int) -> list[str]:
    try:
        check_reach(config, tokens)
    except UserError as error:
        return [str(error)]
    return []


def _adapters(cfg: Config, config: PretrainedConfig) -> list[str]:
    problems = []
    if cfg.model.lora is not None:
        with torch.device("meta"):
            built = AutoModelForCausalLM.from_config(config)
        names = {name.rsplit(".", 1)[-1] for name, _ in built.named_modules()}
        unknown = [target for target in cfg.model.lora.targets if target not in names]
        if unknown:
            linear = sorted(name for name in names if name.endswith("_proj"))
            problems.append(
                f"model.lora.targets={unknown}: no such layers; choose of {', '.join(linear)}"
            )
        if (
            is_zero(cfg.trainer)
            and config.tie_word_embeddings
            and "lm_head" in cfg.model.lora.targets
        ):
            problems.append(
                "model.lora.targets=lm_head: the head is the embeddings' own weight in this model, "
                "which ZeRO keeps once; leave it out"
            )
    return problems
