"""Check the settings of a training stage, by themselves and for a number of processes.

Nothing here needs torch, a model or a GPU: `sweep.py` and a curriculum check all training stages
(`ahead`) before the first stage runs, and each training stage checks itself again before it starts.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ehrr1.config.training import RL, TrainerSettings

if TYPE_CHECKING:
    from ehrr1.config.schema import Config

PROPER = frozenset({"brier", "log"})
"""Rewards that must know the probability of yes."""


def ahead(cfg: "Config", stage: str, processes: int) -> list[str]:
    """Return what a training stage would refuse, as far as the settings alone say it."""
    positions = (cfg.model.config or {}).get("max_position_embeddings")
    problems = learning(cfg, stage, processes)
    return problems + (lengths(cfg, stage, positions) if positions is not None else [])


def names_code(cfg: "Config", stage: str) -> bool:
    """Return whether a training stage uses classes or functions of the user."""
    settings = cfg.training(stage)
    paths = [settings.schedule, *([cfg.rl.loss, *cfg.rl.rewards] if stage == "rl" else [])]
    own = (
        isinstance(settings.optimizer, dict) or bool(cfg.callbacks) or any("." in p for p in paths)
    )
    return own or (stage != "rl" and cfg.loss.function is not None)


def lengths(cfg: "Config", stage: str, positions: int) -> list[str]:
    """Check that a model with so many `positions` can read the longest text of a stage."""
    if stage == "rl":
        prompt, tokens = cfg.rl.max_prompt_tokens, cfg.rl.max_completion_tokens
        name = f"rl.max_prompt_tokens={prompt} with rl.max_completion_tokens"
    else:
        prompt, tokens = 0, cfg.supervised(stage).max_tokens
        name = f"{stage}.max_tokens"
    if prompt + tokens <= positions:
        return []
    told = f"{name}={tokens}: model={cfg.model.name} reads at most {positions} tokens; lower it"
    return [told]


def learning(cfg: "Config", stage: str, processes: int) -> list[str]:
    """Return a line for each setting of a training stage that cannot work.

    `processes` is the number of processes that train, one per device, on all nodes.
    """
    problems = [*_strategy(cfg.trainer, processes), *_optimizer(cfg, stage)]
    if cfg.model.attention == "varlen" and cfg.trainer.precision == "32-true":
        problems.append(
            "model.attention=varlen with trainer.precision=32-true: flash-attn computes in 16 bits "
            "only; choose model.attention=flex, or trainer.precision=bf16-mixed"
        )
    problems += _shared_evenly(cfg, stage, processes)
    return problems + (_reinforcement(cfg.rl) if stage == "rl" else [])


def is_zero(trainer: TrainerSettings) -> bool:
    """Return whether DeepSpeed divides optimizer states, gradients or weights."""
    return trainer.strategy.startswith("zero")


def _strategy(trainer: TrainerSettings, processes: int) -> list[str]:
    problems = []
    if trainer.strategy == "single" and processes > 1:
        problems.append(
            f"trainer.strategy=single: {processes} processes would each train a model of their "
            "own; choose trainer=ddp, zero1, zero2 or zero3"
        )
    if trainer.offload and not is_zero(trainer):
        problems.append(
            f"trainer.offload=true with trainer.strategy={trainer.strategy}: only zero1, zero2 and "
            "zero3 put the optimizer on the CPU"
        )
    return problems


def _optimizer(cfg: "Config", stage: str) -> list[str]:
    optimizer, trainer = cfg.training(stage).optimizer, cfg.trainer
    if trainer.offload and isinstance(optimizer, dict):
        return [
            f"{stage}.optimizer={optimizer} with trainer.offload=true: there DeepSpeed's own AdamW "
            "steps on the CPU; choose adamw, or trainer.offload=false"
        ]
    if is_zero(trainer) and optimizer == "muon":
        return [
            f"{stage}.optimizer=muon with trainer.strategy={trainer.strategy}: ZeRO divides the "
            "matrices that Muon needs whole; choose adamw, or trainer=ddp"
        ]
    return []


def _shared_evenly(cfg: "Config", stage: str, processes: int) -> list[str]:
    """Check that processes share a step evenly; otherwise some would wait for the others."""
    if stage == "rl":
        name, count = "rl.prompts_per_step", cfg.rl.prompts_per_step
    else:
        name, count = f"{stage}.trees_per_step", cfg.supervised(stage).trees_per_step
    if count % processes:
        return [
            f"{name}={count}: {processes} processes cannot share it evenly; choose a multiple of "
            f"{processes}"
        ]
    return []


def _reinforcement(rl: RL) -> list[str]:
    problems = []
    if rl.prompts_per_step % rl.minibatches:
        problems.append(
            f"rl.minibatches={rl.minibatches}: rl.prompts_per_step={rl.prompts_per_step} cannot be "
            "shared evenly by so many steps; choose a divisor"
        )
    low, high = rl.ratio_bounds
    if not low < 1 < high:
        problems.append(f"rl.ratio_bounds=[{low}, {high}]: 1 must lie between the two")
    weights = rl.rewards
    problems += [
        f"rl.rewards.{name}={weight}: a number is needed"
        for name, weight in weights.items()
        if not isinstance(weight, int | float) or isinstance(weight, bool)
    ]
    if proper := PROPER.intersection(weights):
        problems += _proper(rl, weights, ", ".join(f"rl.rewards.{name}" for name in sorted(proper)))
    return problems


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
