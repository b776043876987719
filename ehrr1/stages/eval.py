"""stage=eval: score every finished stage, and baselines, on held-out patients.

predictions.parquet has a row a model and sample; metrics.json follows from it alone
(`evaluation.summary`). Risk tasks are always asked directly; decision tasks directly of the
untrained and the adapted model, after thinking of the others. Each model's predictions are kept in
parts/ as soon as they are there, so that a stopped evaluation goes on with the next model.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import polars as pl
import torch
from omegaconf import DictConfig
from transformers import PreTrainedModel

from ehrr1.errors import UserError
from ehrr1.evaluation.baselines import Boosting, Frequency, bag_of_items
from ehrr1.evaluation.predict import Predictor
from ehrr1.evaluation.predictions import frame
from ehrr1.evaluation.report import show, write_scalars
from ehrr1.evaluation.summary import MODELS, summarise
from ehrr1.files import replacing
from ehrr1.models.loading import load_model
from ehrr1.progress import track
from ehrr1.prompts.tokenizer import load_tokenizer
from ehrr1.prompts.trees import TreeMaker
from ehrr1.runs import Run
from ehrr1.tasks.catalog import SUITES, TASKS
from ehrr1.tasks.samples import Prepared, Sample
from ehrr1.tasks.selection import by_context, select

THINKING = frozenset({"reason", "rl"})
"""The stages whose model thinks before it decides."""

Rows = list[dict[str, Any]]


def run(cfg: DictConfig, run: Run) -> dict[str, float | int]:
    """Predict with each model and baseline, score, show the tables."""
    prepared = Prepared(run.input("prepare"))
    tasks = suite_tasks(cfg)
    index = choose_samples(cfg, prepared, tasks)
    if index.is_empty():
        raise UserError(
            f"eval.split={cfg.eval.split}: it has no samples of suite {cfg.eval.suite}; "
            "prepare more patients (data.subjects) or a larger share of them (data.split)"
        )
    predictions = predict_all(cfg, run, prepared, index)
    with replacing(run.folder / "predictions.parquet") as path:
        predictions.write_parquet(path)
    metrics = summarise(predictions, tasks, cfg.eval.bootstrap, cfg.seed)
    show(predictions, metrics, tasks)
    with replacing(run.folder / "tb") as folder:
        write_scalars(folder, metrics)
    return metrics


def suite_tasks(cfg: DictConfig) -> tuple[str, ...]:
    """The tasks of `eval.suite`; raises UserError for a suite that is not there."""
    if cfg.eval.suite not in SUITES:
        raise UserError(f"eval.suite={cfg.eval.suite}: no such suite; use {' or '.join(SUITES)}")
    return tuple(SUITES[cfg.eval.suite])


def choose_samples(cfg: DictConfig, prepared: Prepared, tasks: Sequence[str]) -> pl.DataFrame:
    """The rows of the index that every model answers. Decisions are written word by word and cost
    far more than risk, so they may have a smaller number of their own."""
    counts = {"risk": cfg.eval.samples_per_task, "decision": cfg.eval.decision_samples_per_task}
    chosen = []
    for kind, count in counts.items():
        pool = prepared.scan(cfg.eval.split, [task for task in tasks if TASKS[task].kind == kind])
        chosen.append(select(pool, count or cfg.eval.samples_per_task, cfg.seed))
    return pl.concat(chosen)


def predict_all(cfg: DictConfig, run: Run, prepared: Prepared, index: pl.DataFrame) -> pl.DataFrame:
    """The predictions of every finished stage's model and of the baselines on `index`."""
    samples = prepared.as_samples(index)
    pool = prepared.scan("train", index["task"].unique().to_list())
    train = prepared.as_samples(select(pool, cfg.eval.baselines.samples_per_task, cfg.seed))
    makers: dict[bytes, TreeMaker] = {}
    parts = []
    models = [m for m in MODELS if m == "untrained" or m in run.inputs]
    # baselines learn from the training split, which a benchmark file does not have
    for name in [*models, "boosting"] if train else models:
        part = run.folder / "parts" / f"{name}.parquet"
        if not part.exists():
            rows = (
                boost(cfg, prepared, train, samples)
                if name == "boosting"
                else ask(cfg, run, prepared, index, name, makers)
            )
            with replacing(part) as path:
                frame(name, rows).write_parquet(path)
        parts.append(pl.read_parquet(part))
    if not train:
        return pl.concat(parts)
    frequency = Frequency(of_kind(train, "decision")).predict(of_kind(samples, "decision"))
    return pl.concat([*parts, frame("frequency", frequency)])


def ask(
    cfg: DictConfig,
    run: Run,
    prepared: Prepared,
    index: pl.DataFrame,
    name: str,
    makers: dict[bytes, TreeMaker],
) -> Rows:
    """One stage's model: risk directly, decisions in the mode that it was trained for.

    `makers` are those of the models before it, by the content of the tokenizer's file: stages of
    one curriculum have the same tokenizer, and what it made of an event need not be made again.
    """
    settings = cfg.eval
    source = run.input("adapt" if name == "untrained" else name) / "hf"
    tokenizer = load_tokenizer(source)
    maker = TreeMaker(tokenizer, settings.max_prompt_tokens)
    maker = makers.setdefault((source / "tokenizer.json").read_bytes(), maker)
    if name == "untrained":
        model = load_model(cfg.model, None, tokenizer, seed=cfg.seed)
    else:
        model = load_model(cfg.model, source, tokenizer)
    predictor = Predictor(on_device(model, cfg), maker, prepared, settings.batch_tokens)
    risk = of_kind(prepared.as_samples(index), "risk")
    if name == "untrained":
        index = select(index, settings.untrained_samples_per_task, cfg.seed)
    mode = "think" if name in THINKING else "direct"
    return predictor.risk(risk, f"{name}: risk") + predictor.decisions(
        of_kind(prepared.as_samples(index), "decision"),
        think=name in THINKING,
        max_new_tokens=settings.max_new_tokens[mode],
        description=f"{name}: decisions",
    )


def boost(
    cfg: DictConfig, prepared: Prepared, train: Sequence[Sample], samples: Sequence[Sample]
) -> Rows:
    """Gradient boosting on the bags of items of the same risk contexts."""
    train, risk = of_kind(train, "risk"), of_kind(samples, "risk")
    groups = by_context([*train, *risk])
    bags = {
        context: bag_of_items(prepared.context(group[0]))
        for context, group in track(groups.items(), "boosting: contexts", len(groups))
    }
    boosting = Boosting(cfg.eval.baselines.max_features, seed=cfg.seed)
    boosting.fit(train, bags)
    return boosting.predict(risk, bags)


def of_kind(samples: Iterable[Sample], kind: str) -> list[Sample]:
    return [sample for sample in samples if TASKS[sample.task].kind == kind]


def on_device(model: PreTrainedModel, cfg: DictConfig) -> PreTrainedModel:
    """The model ready to infer: on the GPU where there is one and the trainer may use it."""
    gpu = torch.cuda.is_available() and cfg.trainer.accelerator != "cpu"
    return model.eval().to("cuda" if gpu else "cpu")
