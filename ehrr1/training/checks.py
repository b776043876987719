"""What cannot work is said before anything starts, all of it in one report."""

import os

import torch
from omegaconf import DictConfig
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerBase

from ehrr1 import parallel
from ehrr1.errors import UserError
from ehrr1.models.sizes import check_memory
from ehrr1.training.strategies import is_zero, on_gpu


def check_training(
    cfg: DictConfig,
    stage: str,
    config: PretrainedConfig | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> None:
    """Raise UserError with every setting of a training stage that cannot work.

    `config` is the model that the stage starts from and `tokenizer` its own, None where they are
    not there yet (a model from nothing).
    """
    problems = [*_devices(cfg.trainer), *_strategy(cfg, stage), *_steps(cfg, stage)]
    if config is not None:
        problems += _model(cfg, stage, config)
    elif cfg.model.lora is not None:
        problems.append(
            "model.lora with model.path=null: adapters on random weights learn nothing; set null"
        )
    if config is not None and tokenizer is not None and len(tokenizer) > config.vocab_size:
        problems.append(
            f"model.path={cfg.model.path}: its tokenizer has {len(tokenizer)} tokens, the model "
            f"{config.vocab_size} embeddings; use the model's own tokenizer"
        )
    if problems:
        raise UserError("; ".join(problems))
    check_memory(cfg.model, cfg.trainer.accelerator)


def _devices(trainer: DictConfig) -> list[str]:
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


def _strategy(cfg: DictConfig, stage: str) -> list[str]:
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
    if is_zero(trainer) and cfg[stage].optimizer == "muon":
        problems.append(
            f"{stage}.optimizer=muon with trainer.strategy={trainer.strategy}: ZeRO divides the "
            "matrices that Muon needs whole; choose adamw, or trainer=ddp"
        )
    return problems


def _steps(cfg: DictConfig, stage: str) -> list[str]:
    processes, trees = parallel.wanted(cfg.trainer), cfg[stage].trees_per_step
    if trees % processes:
        return [
            f"{stage}.trees_per_step={trees}: {processes} processes cannot share it evenly; "
            f"choose a multiple of {processes}"
        ]
    return []


def _model(cfg: DictConfig, stage: str, config: PretrainedConfig) -> list[str]:
    problems = []
    if cfg[stage].max_tokens > config.max_position_embeddings:
        problems.append(
            f"{stage}.max_tokens={cfg[stage].max_tokens}: model={cfg.model.name} reads at most "
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
