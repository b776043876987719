"""Supervised training: the model learns the answers to questions about a record."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ehrr1 import parallel
from ehrr1.config.learning import is_zero
from ehrr1.config.schema import Config
from ehrr1.config.training import Supervised, TrainerSettings
from ehrr1.errors import UserError
from ehrr1.files import read_json, write_json
from ehrr1.models.gguf import start_of
from ehrr1.models.loading import Sharding, add_adapters, fuse_kernels, load_model, read_config
from ehrr1.models.logprobs import token_logprobs
from ehrr1.models.sizes import TRAINED_TOKENS, count_parameters
from ehrr1.prompts.dataset import write_trees
from ehrr1.prompts.forest import Forest
from ehrr1.prompts.schedule import Step, StepData, forest_steps, plan_steps
from ehrr1.prompts.trees import PromptBuilder, Question
from ehrr1.prompts.wording import Wording
from ehrr1.runs import Run
from ehrr1.tasks.catalog import ALL_TASKS
from ehrr1.tasks.data_card import model_data_card
from ehrr1.tasks.samples import Prepared, Sample
from ehrr1.training.consolidation import consolidate, write_base
from ehrr1.training.losses import supervised_loss
from ehrr1.training.model_card import CARD, DATA_CARD, model_card
from ehrr1.training.module import Build, ForestModule
from ehrr1.training.strategies import on_gpu
from ehrr1.training.targets import find
from ehrr1.training.trainer import fit, log_summary

SupervisedLoss = Callable[[Tensor, Tensor, float], Tensor]
"""(logprobs [N], weights [N], weight of the whole step) -> the row's share of the step's loss."""


class SupervisedModule(ForestModule):
    """Maximum likelihood of completions, and of the record where forests carry weights for it.

    `loss` may be another function of a row's log-probabilities [N], weights [N] and the whole
    step's weight (`loss.function`). The last evaluation's losses are written to `evaluation`.
    """

    def __init__(
        self,
        build: Build,
        settings: Supervised,
        updates: int,
        evaluation: Path,
        loss: SupervisedLoss = supervised_loss,
    ):
        super().__init__(build, settings, updates)
        self.evaluation, self.loss = evaluation, loss

    def training_step(self, step: Step, index: int) -> None:
        """Take one optimizer step on the trees of `step`."""

        def loss(forest: Forest) -> Tensor:
            logprobs = token_logprobs(self.model, forest).logprobs
            return self.loss(logprobs, forest.weights, step.weight)

        metrics = self.update(step.forests, loss)
        self.watch(metrics | {"tokens": step.tokens, "samples": step.samples})

    def on_validation_start(self) -> None:
        """Begin the sums over the held-out trees."""
        self.sums = {
            name: 0.0 for name in ("loss", "weight", *ALL_TASKS, *map(_tokens_of, ALL_TASKS))
        }

    @torch.no_grad()
    def validation_step(self, step: Step, index: int) -> None:
        """Add the losses of `step` to the sums."""
        for forest in step.forests:
            losses = -token_logprobs(self.model, forest).logprobs
            self.sums["loss"] += (forest.weights * losses).sum().item()
            self.sums["weight"] += forest.weights.sum().item()
            for owner, loss in zip(forest.owners.tolist(), losses.tolist(), strict=True):
                if task := forest.tasks[owner]:
                    self.sums[task] += loss
                    self.sums[_tokens_of(task)] += 1

    def on_validation_end(self) -> None:
        """Turn the sums of all processes into `eval/loss` and `eval/loss/<task>` (nats a token)."""
        sums = dict(zip(self.sums, parallel.totals(list(self.sums.values())), strict=True))
        found = {"eval/loss": sums["loss"] / max(sums["weight"], 1e-9)}
        for task in ALL_TASKS:
            if sums[_tokens_of(task)]:
                found[f"eval/loss/{task}"] = sums[task] / sums[_tokens_of(task)]
        self.evaluated = found
        if parallel.rank() == 0:
            write_json(self.evaluation, found)


def _tokens_of(task: str) -> str:
    return f"{task}/tokens"


@dataclass(frozen=True)
class Material:
    """The samples that a supervised stage trains and evaluates on, and the questions on each."""

    prepared: Prepared
    training: Sequence[Sample]
    evaluation: Sequence[Sample]
    ask: Callable[[Sample], Sequence[Question]]


def builder(
    cfg: Config,
    source: Path | None,
    tokenizer: PreTrainedTokenizerBase,
    begin: Callable[[PreTrainedModel], None] | None = None,
) -> Build:
    """Return the function that builds a stage's model when the strategy is ready for it.

    The model starts from `source`, an earlier stage's hf/, or else as the section `model` says;
    `begin` may change it before training.
    """

    def build(sharding: Sharding | None) -> PreTrainedModel:
        # under ZeRO the optimizer keeps float32 weights of its own
        computes = torch.float32 if cfg.trainer.precision == "32-true" else torch.bfloat16
        dtype = computes if is_zero(cfg.trainer) else torch.float32
        model = load_model(cfg.model, source, tokenizer, cfg.seed, dtype, sharding, computes)
        if begin is not None:
            begin(model)
        if cfg.model.lora is not None:
            add_adapters(model, cfg.model.lora)
        if cfg.trainer.activation_checkpointing:
            model.gradient_checkpointing_enable()
        if on_gpu(cfg.trainer):
            fuse_kernels(model)
        return model

    return build


def lay_base(cfg: Config, run: Run, source: Path | None, tokenizer: PreTrainedTokenizerBase) -> int:
    """Write what hf/ will hold beside the weights; return the number of the model's parameters."""
    config = read_config(cfg.model, source, len(tokenizer))
    longest = (
        cfg.rl.max_prompt_tokens if run.stage == "rl" else cfg.supervised(run.stage).max_tokens
    )
    config.update({TRAINED_TOKENS: longest})
    dtype = torch.float32 if cfg.trainer.precision == "32-true" else torch.bfloat16
    adapters = None
    if cfg.model.lora is not None:
        start = start_of(cfg.model, source)
        adapters = {"source": str(start), "lora": cfg.model.lora.plain()}
    parameters = count_parameters(config)
    data_card = model_data_card(Prepared(run.input("prepare")), run.stage)
    cards = {CARD: model_card(cfg, run, parameters), DATA_CARD: data_card}
    write_base(run.folder, config, tokenizer, dtype, cards, adapters)
    return parameters


def tokenise(
    material: Material,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    max_tokens: int,
    style: Wording,
    stage: str,
) -> tuple[Dataset, Dataset]:
    """Return the trees to train on and to evaluate on, tokenised once.

    Raises UserError if no training sample fits `max_tokens`.
    """
    prompt_builder = PromptBuilder(tokenizer, max_tokens, style)

    def trees(name: str, samples: Sequence[Sample]) -> Dataset:
        path = folder / "data" / f"{name}.arrow"
        return parallel.in_turn(
            lambda: write_trees(path, material.prepared, samples, material.ask, prompt_builder)
        )

    training = trees("training", material.training)
    evaluation = trees("evaluation", material.evaluation)
    if len(training) == 0:
        raise UserError(
            f"{stage}.max_tokens={max_tokens}: no training sample fits; raise it, or "
            "prepare more data (data.subjects, data.tasks)"
        )
    return training, evaluation


def train(
    trees: Dataset, held_out: Dataset, build: Build, folder: Path, cfg: Config, stage: str
) -> dict[str, float | int]:
    """Train on `trees` under the section `cfg.<stage>`, evaluate on `held_out`, and write hf/.

    Returns train/loss/first and last, throughput, eval/loss (answers only) by task, and counts of
    what was read. Raises UserError if the checkpoints to keep cannot be ranked.
    """
    settings = cfg.supervised(stage)
    check_monitor(cfg.trainer, held_out)
    loss = supervised_loss
    if cfg.loss.function is not None:
        loss = find(f"loss.function={cfg.loss.function}", cfg.loss.function)
    data = _steps(trees, held_out, settings, cfg)
    plan = data.training.plan
    evaluation = folder / "evaluation.json"
    steps = fit(
        SupervisedModule(build, settings, len(plan), evaluation, loss),
        data,
        folder,
        cfg.trainer,
        description=stage,
        seed=cfg.seed,
        save_seconds=settings.save_seconds,
        eval_every=settings.eval_every,
        logger=cfg.logger,
        callbacks=cfg.callbacks,
    )
    parallel.from_first(lambda: consolidate(folder))
    losses = read_json(evaluation) if len(held_out) else {}
    summary = parallel.from_first(lambda: log_summary(folder / "train.jsonl"))
    return _counts(trees) | {"steps": steps} | losses | summary


def check_monitor(trainer: TrainerSettings, held_out: Dataset) -> None:
    """Raise UserError if `trainer.monitor` is no metric of an evaluation on these trees."""
    tasks = sorted({task for tasks in held_out["tasks"] for task in tasks})
    names = ["eval/loss", *(f"eval/loss/{task}" for task in tasks)] if tasks else []
    if not trainer.save_top_k or trainer.monitor in names:
        return
    if not names:
        raise UserError(
            f"trainer.save_top_k={trainer.save_top_k}: no validation sample is there to tell which "
            "are best; prepare more patients, or set 0"
        )
    raise UserError(f"trainer.monitor={trainer.monitor}: choose one of {', '.join(names)}")


def _steps(trees: Dataset, held_out: Dataset, settings: Supervised, cfg: Config) -> StepData:
    """Return the training steps in planned order, and the held-out trees once."""
    plan = plan_steps(
        trees["length"],
        settings.trees_per_step,
        settings.epochs,
        settings.max_steps,
        cfg.seed,
        settings.short_first,
    )
    record_weight = cfg.loss.record_weight if cfg.loss.on == "all" else 0.0
    who = {"rank": parallel.rank(), "ranks": parallel.size()}
    rows = settings.max_batch_tokens
    training = forest_steps(trees, plan, rows, record_weight, **who)
    if len(held_out) == 0:
        return StepData(training)
    size = settings.trees_per_step
    rest = [list(range(i, min(i + size, len(held_out)))) for i in range(0, len(held_out), size)]
    return StepData(training, forest_steps(held_out, rest, rows, **who))


def _counts(trees: Dataset) -> dict[str, float | int]:
    return {
        "trees": len(trees),
        "samples": sum(trees["branches"]),
        "cut_events": sum(trees["cut_events"]),
        "cut_tokens": sum(trees["cut_tokens"]),
    }
