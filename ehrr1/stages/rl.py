"""stage=rl: group relative policy optimisation from the weights of `reason`.

Decision tasks think, risk tasks answer at once, as released (`rl.think`). The greedy completions to
held-out validation prompts are scored before and after, on the same prompts.
"""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ehrr1 import parallel
from ehrr1.config.schema import Config
from ehrr1.config.writers import TransformersEngineConfig, VllmServerConfig
from ehrr1.engines.base import TrainableEngine
from ehrr1.engines.endpoint import check_url
from ehrr1.engines.factory import open_engine
from ehrr1.engines.weight_sync import SYNC_TOLERANCE
from ehrr1.errors import UserError
from ehrr1.evaluation.bootstrap import Resamples, estimate
from ehrr1.files import read_json
from ehrr1.models.loading import read_config
from ehrr1.prompts.chat_format import load_chat_tokenizer
from ehrr1.prompts.dataset import evenly
from ehrr1.prompts.schedule import plan_evenly
from ehrr1.prompts.trees import PromptBuilder
from ehrr1.prompts.wording import style_of
from ehrr1.runs import Run, data_is_open
from ehrr1.tasks.catalog import ALL_TASKS
from ehrr1.tasks.samples import Prepared, Sample
from ehrr1.tasks.selection import LEARNABLE, select
from ehrr1.training.checks import check_reinforcement
from ehrr1.training.consolidation import consolidate
from ehrr1.training.groups import mean
from ehrr1.training.grpo import EngineSpec, GRPOModule, Policy
from ehrr1.training.prompts import PromptData, Prompts
from ehrr1.training.sft import builder, lay_base
from ehrr1.training.strategies import on_gpu
from ehrr1.training.trainer import fit, log_summary

CPU = torch.device("cpu")


def check(cfg: Config, inputs: dict[str, Path]) -> None:
    """Raise UserError for everything that cannot work, before anything is read or sent."""
    if isinstance(cfg.rollout, VllmServerConfig):
        check_url(
            *("rollout", "vllm_server", cfg.rollout.url),
            open_data=data_is_open(inputs["prepare"]),
            compliant=cfg.rollout.compliant_endpoint,
        )
    source = inputs[cfg.rl.start] / "hf"
    check_reinforcement(cfg, read_config(cfg.model, source), load_chat_tokenizer(source), source)


def run(cfg: Config, run: Run) -> dict[str, float | int]:
    """Train by reinforcement learning; return the metrics of the run."""
    check(cfg, run.inputs)
    source = run.input(cfg.rl.start) / "hf"
    tokenizer, training, validation = tokenised(cfg, run)
    plan = plan_evenly(training.tasks, cfg.rl.prompts_per_step, cfg.rl.steps, cfg.seed)
    parameters = parallel.from_first(lambda: lay_base(cfg, run, source, tokenizer))
    data = PromptData(training, validation, plan)
    build = builder(cfg, source, tokenizer)
    module = GRPOModule(
        # the reference is the same model before training; adapters are switched off instead
        Policy(build, tokenizer, reference=build if cfg.model.lora is None else None),
        cfg.rl,
        data,
        EngineSpec(
            partial(start_engine, cfg, tokenizer, source, run.folder),
            SYNC_TOLERANCE[engine_dtype(cfg)],
        ),
        run.folder,
        seed=cfg.seed,
        shown=data_is_open(run.input("prepare")),
    )
    try:
        steps = fit(
            module,
            data,
            run.folder,
            cfg.trainer,
            description="rl",
            seed=cfg.seed,
            save_seconds=cfg.rl.save_seconds,
            logger=cfg.logger,
            callbacks=cfg.callbacks,
        )
    finally:
        module.close()
    parallel.from_first(lambda: consolidate(run.folder))
    return parallel.from_first(lambda: compare(run.folder, validation, cfg)) | {
        "steps": steps,
        "prompts": len(training),
        "cut_events": sum(training.trees["cut_events"]),
        "cut_tokens": sum(training.trees["cut_tokens"]),
        "parameters": parameters,
        "validation/prompts": len(validation),
        **parallel.from_first(lambda: log_summary(run.folder / "train.jsonl")),
    }


def tokenised(cfg: Config, run: Run) -> tuple[PreTrainedTokenizerBase, Prompts, Prompts]:
    """Return the tokenizer, training and validation prompts, which are made only once.

    Raises UserError if no prompt fits.
    """
    prepared = Prepared(run.input("prepare"))
    tokenizer = load_chat_tokenizer(run.input(cfg.rl.start) / "hf")
    training = make_prompts(cfg, "train", prepared, tokenizer, run.folder)
    validation = make_prompts(cfg, "validation", prepared, tokenizer, run.folder)
    if not training or not validation:
        raise UserError(
            f"rl.max_prompt_tokens={cfg.rl.max_prompt_tokens}: {len(training)} training and "
            f"{len(validation)} validation prompts fit; raise it, or prepare more patients or "
            f"tasks (data.subjects, data.tasks) than {prepared.folder} has"
        )
    return tokenizer, training, validation


def start_engine(
    cfg: Config,
    tokenizer: PreTrainedTokenizerBase,
    source: Path,
    folder: Path,
    model: PreTrainedModel,
) -> TrainableEngine:
    """Return the engine that generates; one in a process of its own starts from `source`."""
    chosen = cfg.rollout
    exchange = None if isinstance(chosen, TransformersEngineConfig) else chosen.exchange
    engine = open_engine(
        chosen,
        tokenizer,
        group="rollout",
        load=lambda: model,
        source=source,
        max_length=cfg.rl.max_prompt_tokens + cfg.rl.max_completion_tokens,
        device=torch.device("cuda", parallel.local_rank()) if on_gpu(cfg.trainer) else CPU,
        dtype=engine_dtype(cfg),
        exchange=Path(exchange or folder / "exchange") / "weights",
        log=folder / "engine" / f"{parallel.rank()}.log",
        sleeps=True,
    )
    assert isinstance(engine, TrainableEngine)
    return engine


def engine_dtype(cfg: Config) -> torch.dtype:
    """Return the dtype in which the engine computes."""
    return torch.float32 if cfg.trainer.precision == "32-true" else torch.bfloat16


def make_prompts(
    cfg: Config,
    split: str,
    prepared: Prepared,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
) -> Prompts:
    """Prompts of a split, risk labels balanced: a policy that always says "no" gains nothing."""
    wanted = cfg.rl.validation_prompts
    per_task = cfg.rl.samples_per_task if split == "train" else 2 * wanted
    train = split == "train"
    learnt = (*LEARNABLE, *prepared.own_tasks)
    tasks = [task for task in learnt if cfg.rl.tasks in ("all", ALL_TASKS[task].kind)]
    index = prepared.scan_training("rl", tasks) if train else prepared.scan(split, tasks)
    chosen = select(index, per_task, cfg.seed, balance=True)
    samples: list[Sample] = prepared.as_samples(chosen)
    if split == "validation":
        samples = evenly(samples, wanted, cfg.seed)
    prompt_builder = PromptBuilder(tokenizer, cfg.rl.max_prompt_tokens, style_of(cfg.wording, "rl"))
    path = folder / "data" / f"{split}.arrow"
    return parallel.in_turn(
        lambda: Prompts(path, prepared, samples, prompt_builder, think=cfg.rl.think)
    )


def compare(folder: Path, prompts: Prompts, cfg: Config) -> dict[str, float | int]:
    """Return the rewards before and after training, and the accuracy's gain.

    `validation/reward[/<name>]/before|after` are means; the gain has a paired interval, over all
    prompts and, as `validation/reward/set_f1`, over those of decision tasks.
    """
    before, after = (read_json(folder / f"{moment}.json") for moment in ("before", "after"))
    metrics: dict[str, float | int] = {}
    for moment, values in (("before", before), ("after", after)):
        for name, rewards in values.items():
            prefix = "validation/reward" if name == "total" else f"validation/reward/{name}"
            metrics[f"{prefix}/{moment}"] = mean(rewards)
    subjects = np.array([sample.subject_id for sample in prompts.asked])
    decisions = np.array([ALL_TASKS[sample.task].kind == "decision" for sample in prompts.asked])
    of_decisions = "accuracy" if "accuracy" in before else "set_f1"
    for name, reward, chosen in (
        ("accuracy", "accuracy", np.ones_like(decisions)),
        ("set_f1", of_decisions, decisions),
    ):
        if reward in before and chosen.any():
            pair = np.array([before[reward], after[reward]], float)[:, chosen]
            metrics |= gain(f"validation/reward/{name}", pair, subjects[chosen], cfg)
    return metrics


def gain(name: str, pair: np.ndarray, subjects: np.ndarray, cfg: Config) -> dict[str, float]:
    """Return the means of a reward and their difference with an interval.

    `pair` has shape [before and after, prompts]. The interval is that of a bootstrap by patient.
    """
    weights = Resamples.draw(subjects, cfg.rl.bootstrap, cfg.seed).weights(subjects)
    found = estimate(weights @ (pair[1] - pair[0]) / weights.sum(axis=1))
    return {
        f"{name}/before": float(pair[0].mean()),
        f"{name}/after": float(pair[1].mean()),
        f"{name}/gain": found.value,
        f"{name}/gain/low": found.low,
        f"{name}/gain/high": found.high,
    }
