"""Estimate the seconds of a step of rl by phase: reading prompts, writing, new weights, learning.

Writing token by token is bound by memory: each pass reads all weights of an engine once, and the
keys and values of the completions that it writes at a time. With `rollout=transformers` and ZeRO-3
the weights also come from the other GPUs, in every pass. The slowest of reading, computing and
gathering counts. docs/plan.md lists the assumptions.
"""

from dataclasses import dataclass
from math import ceil, floor

from ehrr1.config.schema import Config
from ehrr1.models import flops
from ehrr1.models.memory import STAGES, Anatomy, TreeShape, cache_bytes, generation_bytes
from ehrr1.models.sizes import GIB

SERVER_SHARE = 0.9
"""Share of a GPU's memory that a vLLM server takes by default."""


@dataclass(frozen=True, slots=True)
class Engines:
    """The engines that write the completions of a step.

    number: how many. gpus: GPUs that divide the model of one. holds: completions of full length
    for which one has memory beside its weights; negative if not even these fit.
    """

    number: int
    gpus: int
    holds: int


def engine_room(cfg: Config) -> float:
    """Return the bytes of all GPUs of a vLLM engine that it takes for weights, keys and values."""
    rollout, memory = cfg.rollout, cfg.cluster.gpu_memory_gib * GIB
    if rollout.name == "vllm":
        return float(rollout.gpu_memory_utilization * memory)
    return SERVER_SHARE * cfg.plan.server_gpus * memory


def engines(cfg: Config, body: Anatomy, gpus: int) -> Engines:
    """Return the engines of `cfg.rollout` for `gpus` training processes."""
    if cfg.rollout.name == "transformers":  # its memory is the trainer's
        return Engines(gpus, 1, cfg.rollout.batch_size)
    left = engine_room(cfg) - body.base * generation_bytes(cfg.trainer)
    length = cfg.rl.max_prompt_tokens + cfg.rl.max_completion_tokens
    holds = floor(left / cache_bytes(body, cfg.trainer, length))
    if cfg.rollout.name == "vllm":
        return Engines(gpus, 1, holds)
    return Engines(cfg.plan.servers, cfg.plan.server_gpus, holds)


def phases(cfg: Config, body: Anatomy, gpus: int, learning: float) -> dict[str, float]:
    """Return the seconds of each phase of a step, in their order.

    `learning` is the number of operations of one GPU's update. Completions and prompts have the
    share `plan.fill` of their maximum length.
    """
    peak = cfg.cluster.peak_tflops * 1e12 * cfg.plan.utilisation
    prompt = ceil(cfg.rl.max_prompt_tokens * cfg.plan.fill)
    prompts = gpus * ceil(cfg.rl.prompts_per_step / gpus)
    fleet = engines(cfg, body, gpus)
    reading = prompts / fleet.number * flops.forward(body, TreeShape(prompt, (), 0))
    return {
        "weights": new_weights(cfg, body, gpus),
        "prompts": reading / (fleet.gpus * peak),
        "completions": writing(cfg, body, gpus, prompts * cfg.rl.group_size / fleet.number),
        "learning": learning / peak,
    }


def writing(cfg: Config, body: Anatomy, gpus: int, completions: float) -> float:
    """Return the seconds in which an engine writes so many completions."""
    fleet, cluster, fill = engines(cfg, body, gpus), cfg.cluster, cfg.plan.fill
    prompt, length = cfg.rl.max_prompt_tokens * fill, cfg.rl.max_completion_tokens * fill
    asked = cfg.rollout.batch_size * gpus / fleet.number
    rows = max(1, min(completions, asked, fleet.holds))
    seen = prompt + length / 2
    read = body.base * generation_bytes(cfg.trainer) + cache_bytes(body, cfg.trainer, 1) * (
        rows * seen
    )
    memory = cluster.memory_gb_per_second * 1e9 * cfg.plan.bandwidth_utilisation
    operations = rows * (2 * (body.layers + body.head) + 4 * body.attention * body.depth * seen)
    seconds = [
        read / (fleet.gpus * memory),
        operations / (fleet.gpus * cluster.peak_tflops * 1e12 * cfg.plan.utilisation),
    ]
    if cfg.rollout.name == "transformers":
        seconds.append(gathering(cfg, body, gpus))
    return length * max(1.0, completions / rows) * max(seconds)


def gathering(cfg: Config, body: Anatomy, gpus: int) -> float:
    """Return the seconds in which weights that ZeRO-3 divides reach every GPU once; 0 if whole.

    All GPUs of a node take the same weights, so that its adapters share the work.
    """
    if STAGES[cfg.trainer.strategy] < 3 or gpus == 1:
        return 0.0
    cluster = cfg.cluster
    speed = cluster.nvlink_gb_per_second
    if gpus > cluster.gpus_per_node:
        speed = min(speed, cluster.gpus_per_node * cluster.network_gb_per_second)
    return body.base * generation_bytes(cfg.trainer) / (speed * 1e9)


def new_weights(cfg: Config, body: Anatomy, gpus: int) -> float:
    """Return the seconds in which the weights of a step reach the engines; 0 within the trainer.

    By files they are written once and read once, all engines at a time; in memory they are copied
    on each GPU, or sent by process 0 through one adapter to all servers.
    """
    rollout, cluster = cfg.rollout, cfg.cluster
    if rollout.name == "transformers":
        return 0.0
    size = body.base * generation_bytes(cfg.trainer) / 1e9
    if rollout.sync == "files":
        moved = 2 * size / cluster.write_gb_per_second
    elif rollout.name == "vllm":
        moved = 2 * size / cluster.memory_gb_per_second
    else:
        moved = size / cluster.network_gb_per_second
    return gathering(cfg, body, gpus) + moved
