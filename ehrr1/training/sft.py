"""Supervised training: the model learns the answers to questions on a record."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from omegaconf import DictConfig
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ehrr1.errors import UserError
from ehrr1.models.logprobs import token_logprobs
from ehrr1.prompts.dataset import StepData, forest_steps, plan_steps, write_trees
from ehrr1.prompts.forest import Forest
from ehrr1.prompts.trees import Question, TreeMaker
from ehrr1.tasks.samples import Prepared, Sample
from ehrr1.training.fitting import evaluate, first_and_last_loss, fit
from ehrr1.training.losses import supervised_loss
from ehrr1.training.module import ForestModule


class SupervisedModule(ForestModule):
    """Maximum likelihood of completions, and of the record where forests carry weights for it."""

    def training_step(self, forests: Sequence[Forest], index: int) -> None:
        begin = time.perf_counter()
        total = sum(forest.weights.sum().item() for forest in forests)

        def loss(forest: Forest) -> Tensor:
            logprobs = token_logprobs(self.model, forest).logprobs
            return supervised_loss(logprobs, forest.weights, total)

        metrics = self.update(forests, loss)
        self.watched = metrics | {
            "tokens": sum(forest.tokens for forest in forests),
            "samples": sum(len(forest.sample_ids) for forest in forests),
            "seconds": time.perf_counter() - begin,
        }

    def on_validation_start(self) -> None:
        self.validation_sums = [0.0, 0.0]

    @torch.no_grad()
    def validation_step(self, forests: Sequence[Forest], index: int) -> None:
        for forest in forests:
            logprobs = token_logprobs(self.model, forest).logprobs
            self.validation_sums[0] -= (forest.weights * logprobs).sum().item()
            self.validation_sums[1] += forest.weights.sum().item()

    def on_validation_end(self) -> None:
        loss, weight = self.validation_sums
        self.validation_loss = loss / max(weight, 1e-9)


@dataclass(frozen=True)
class Material:
    """What a supervised stage trains and evaluates on: samples and what is asked of each."""

    prepared: Prepared
    training: Sequence[Sample]
    evaluation: Sequence[Sample]
    ask: Callable[[Sample], Sequence[Question]]


def train(
    material: Material,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    cfg: DictConfig,
    stage: str,
    begin: Callable[[Dataset], None] | None = None,
) -> dict[str, float | int]:
    """Tokenise, train and evaluate under the section `cfg.<stage>`; `model` is changed in place.

    `begin` may change the model by the tokenised training trees before anything is learnt.
    Returns train/loss/first and last, eval/loss (answers only) and counts of what was read.
    """
    settings = cfg[stage]
    maker = TreeMaker(tokenizer, settings.max_tokens)
    trees, held_out = (
        write_trees(folder / "data" / name, material.prepared, samples, material.ask, maker)
        for name, samples in (
            ("training.arrow", material.training),
            ("evaluation.arrow", material.evaluation),
        )
    )
    if len(trees) == 0:
        raise UserError(
            f"{stage}.max_tokens={settings.max_tokens}: no training sample fits; raise it, or "
            "prepare more data (data.subjects, data.tasks)"
        )
    if begin is not None:
        begin(trees)
    data = _steps(trees, held_out, settings, cfg)
    plan = data.training.plan
    module = SupervisedModule(model, settings, len(plan))
    fit(
        module,
        data,
        folder,
        cfg.trainer,
        description=stage,
        seed=cfg.seed,
        save_seconds=settings.save_seconds,
    )
    metrics = _counts(trees) | {
        "steps": len(plan),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    metrics["train/loss/first"], metrics["train/loss/last"] = first_and_last_loss(
        folder / "train.jsonl"
    )
    if len(held_out):
        evaluate(module, data, cfg.trainer)
        metrics["eval/loss"] = module.validation_loss
    return metrics


def _steps(trees: Dataset, held_out: Dataset, settings: DictConfig, cfg: DictConfig) -> StepData:
    """Training steps in planned order, and the held-out trees once."""
    plan = plan_steps(
        trees["length"],
        settings.trees_per_step,
        settings.epochs,
        settings.max_steps,
        cfg.seed,
        settings.short_first,
    )
    record_weight = cfg.loss.record_weight if cfg.loss.on == "all" else 0.0
    size = settings.trees_per_step
    rest = [list(range(i, min(i + size, len(held_out)))) for i in range(0, len(held_out), size)]
    return StepData(
        forest_steps(trees, plan, settings.max_batch_tokens, record_weight),
        forest_steps(held_out, rest, settings.max_batch_tokens),
    )


def _counts(trees: Dataset) -> dict[str, float | int]:
    return {
        "trees": len(trees),
        "samples": sum(map(len, trees["sample_ids"])),
        "cut_events": sum(trees["cut_events"]),
        "cut_tokens": sum(trees["cut_tokens"]),
    }
