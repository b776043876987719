"""Checks of a training stage's settings before anything starts, reported together."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerBase

from ehrr1 import parallel
from ehrr1.config.schema import Config
from ehrr1.config.training import RL, TrainerSettings
from ehrr1.engines.vllm import check as check_engine
from ehrr1.errors import UserError
from ehrr1.models.sizes import check_memory
from ehrr1.training.reward_runner import resolve
from ehrr1.training.rollouts import PROPER
from ehrr1.training.strategies import is_zero, on_gpu
from ehrr1.training.targets import wrong_targets


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
    problems = [*_devices(cfg.trainer), *_strategy(cfg, stage), *_steps(cfg, stage)]
    problems += wrong_targets(cfg, stage)
    problems += _model(cfg, config, f"{stage}.max_tokens", cfg.supervised(stage).max_tokens)
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
    rl = cfg.rl
    problems = [*_devices(cfg.trainer), *_strategy(cfg, "rl"), *wrong_targets(cfg, "rl")]
    if cfg.rollout.name == "vllm":
        try:
            check_engine(source, on_gpu(cfg.trainer), "rollout")
        except UserError as error:
            problems.append(str(error))
    problems += _model(
        cfg,
        config,
        f"rl.max_prompt_tokens={rl.max_prompt_tokens} with rl.max_completion_tokens",
        rl.max_completion_tokens,
        rl.max_prompt_tokens,
    )
    if rl.prompts_per_step % rl.minibatches:
        problems.append(
            f"rl.minibatches={rl.minibatches}: rl.prompts_per_step={rl.prompts_per_step} cannot be "
            "shared evenly by so many steps; choose a divisor"
        )
    low, high = rl.ratio_bounds
    if not low < 1 < high:
        problems.append(f"rl.ratio_bounds=[{low}, {high}]: 1 must lie between the two")
    weights = rl.rewards
    try:
        resolve(weights)
    except UserError as error:
        problems.append(str(error))
    problems += [
        f"rl.rewards.{name}={weight}: a number is needed"
        for name, weight in weights.items()
        if not isinstance(weight, int | float) or isinstance(weight, bool)
    ]
    if proper := PROPER.intersection(weights):
        problems += _proper(rl, weights, ", ".join(f"rl.rewards.{name}" for name in sorted(proper)))
    _report(problems + _vocabulary(cfg, config, tokenizer), cfg)


def _proper(rl: RL, weights: Mapping[str, float], names: str) -> list[str]:
    """Return a line for each setting under which a proper reward is not proper."""
    wanted = {"scale": "none", "top_p": 1.0, "top_k": 0}
    if rl.think == "both":
        wanted["temperature"] = 1.0
    off = [f"rl.{name}={value}" for name, value in wanted.items() if rl.of(name) != value]
    problems = [f"{names}: proper with {', '.join(off)} only; set them"] if off else []
    if weights.get("accuracy"):
        problems.append(
            f"{names} with rl.rewards.accuracy: that also pays risk answers, and drives their "
            "probability to 0 or 1; replace it, by '~rl.rewards.accuracy' and "
            "'+rl.rewards={set_f1: 1.0}'"
        )
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
    have = gpus if on_gpu(trainer) else len(os.sched_getaffinity(0))
    if trainer.devices > have:
        what = "GPUs" if on_gpu(trainer) else "cores (a process needs one)"
        return [f"trainer.devices={trainer.devices}: this machine has {have} {what}; lower it"]
    return []


def _strategy(cfg: Config, stage: str) -> list[str]:
    trainer, problems = cfg.trainer, []
    if trainer.strategy == "single" and parallel.wanted(trainer) > 1:
        problems.append(
            f"trainer.strategy=single: {parallel.wanted(trainer)} processes would each train a "
            "model of their own; choose trainer=ddp, zero1, zero2 or zero3"
        )
    if trainer.offload and not is_zero(trainer):
        problems.append(
            f"trainer.offload=true with trainer.strategy={trainer.strategy}: only zero1, zero2 and "
            "zero3 put the optimizer on the CPU"
        )
    if cfg.model.attention == "varlen" and trainer.precision == "32-true":
        problems.append(
            "model.attention=varlen with trainer.precision=32-true: flash-attn computes in 16 bits "
            "only; choose model.attention=flex, or trainer.precision=bf16-mixed"
        )
    if trainer.offload and isinstance(cfg.training(stage).optimizer, dict):
        problems.append(
            f"{stage}.optimizer={cfg.training(stage).optimizer} with trainer.offload=true: there "
            "DeepSpeed's own AdamW steps on the CPU; choose adamw, or trainer.offload=false"
        )
    if is_zero(trainer) and cfg.training(stage).optimizer == "muon":
        problems.append(
            f"{stage}.optimizer=muon with trainer.strategy={trainer.strategy}: ZeRO divides the "
            "matrices that Muon needs whole; choose adamw, or trainer=ddp"
        )
    return problems


def _steps(cfg: Config, stage: str) -> list[str]:
    processes, trees = parallel.wanted(cfg.trainer), cfg.supervised(stage).trees_per_step
    if trees % processes:
        return [
            f"{stage}.trees_per_step={trees}: {processes} processes cannot share it evenly; "
            f"choose a multiple of {processes}"
        ]
    return []


def _model(
    cfg: Config, config: PretrainedConfig, name: str, tokens: int, before: int = 0
) -> list[str]:
    problems = []
    if before + tokens > config.max_position_embeddings:
        problems.append(
            f"{name}={tokens}: model={cfg.model.name} reads at most "
            f"{config.max_position_embeddings} tokens; lower it"
        )
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
