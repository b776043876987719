"""What an evaluation shows: tables in the terminal, scalars for TensorBoard."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl
from rich.console import Console
from rich.table import Table
from torch.utils.tensorboard import SummaryWriter

from ehrr1.evaluation.scores import one_class
from ehrr1.evaluation.summary import BASELINES, COMPARED, MODELS, last_model
from ehrr1.tasks.catalog import TASKS

Metrics = Mapping[str, float | int]
MAIN = {"risk": "auroc", "decision": "f1"}
MIN_WIDTH = 124
"""Columns of a table that is piped into a file, where the terminal's width is not known."""


def show(predictions: pl.DataFrame, metrics: Metrics, tasks: Sequence[str]) -> None:
    """Print one table for risk, one for decisions, and the paired differences."""
    console = Console()
    console.width = max(console.width, MIN_WIDTH)
    for kind in MAIN:
        chosen = [task for task in tasks if TASKS[task].kind == kind]
        if any(f"{task}/{MAIN[kind]}" in metrics for task in chosen):
            console.print(task_table(predictions, metrics, chosen, kind))
    if silent := one_class(predictions):
        console.print(f"left out, as all answers are the same: {', '.join(silent)}")
    differences = difference_table(metrics)
    if differences.rows:
        console.print(differences)


def task_table(
    predictions: pl.DataFrame, metrics: Metrics, tasks: Sequence[str], kind: str
) -> Table:
    """A row a task: samples, patients, prevalence (risk) or items an answer (decision), the main
    metric of each model and baseline, and the 95 % interval of the last model; a macro row last."""
    metric = MAIN[kind]
    prefixes = {model: f"{model}/" for model in MODELS}
    prefixes |= {name: f"baseline/{name}/" for name in BASELINES}
    shown = [
        name for name, prefix in prefixes.items() if f"{prefix}{kind}/{metric}/macro" in metrics
    ]
    last = last_model(predictions)
    table = Table(title=f"{kind}: {metric.upper()}")
    table.add_column("task", no_wrap=True)
    extra = "yes" if kind == "risk" else "items"
    for heading in ("n", "patients", extra, *shown, f"95 % of {last}"):
        table.add_column(heading, justify="right")
    rows = predictions.filter(pl.col("model") == last)
    for task in [*tasks, "macro"]:
        name = f"{kind}/{metric}/macro" if task == "macro" else f"{task}/{metric}"
        if task == "macro":
            table.add_section()
        elif name not in metrics:
            continue
        counts = ["", "", ""] if task == "macro" else _counts(rows, task, kind)
        values = [_number(metrics, prefixes[model] + name) for model in shown]
        table.add_row(task, *counts, *values, _interval(metrics, name))
    return table


def difference_table(metrics: Metrics) -> Table:
    """Paired differences between models: estimate and interval, bootstrap by patient."""
    table = Table(title="differences, same samples, 95 % interval by patient")
    for heading in ("comparison", "metric", "difference", "interval"):
        table.add_column(heading, justify="left" if heading == "comparison" else "right")
    for first, second in COMPARED:
        for name in ("risk/auroc/macro", "risk/auprc/macro", "decision/f1/macro"):
            key = f"{first}-{second}/{name}"
            if key in metrics:
                difference = f"{metrics[key]:+.3f}"
                table.add_row(f"{first} - {second}", name, difference, _interval(metrics, key))
    return table


def write_scalars(folder: Path, metrics: Metrics) -> None:
    """Write every metric as a TensorBoard scalar at step 0."""
    with SummaryWriter(str(folder)) as writer:
        for name, value in metrics.items():
            writer.add_scalar(name, value, 0)


def _counts(rows: pl.DataFrame, task: str, kind: str) -> list[str]:
    chosen = rows.filter(pl.col("task") == task)
    if kind == "risk":
        extra = f"{(chosen['target'] == 'yes').sum() / len(chosen):.1%}"
    else:
        items = chosen["target"].str.split("\n").list.len().sum()
        extra = f"{items / len(chosen):.1f}"
    return [str(len(chosen)), str(chosen["subject_id"].n_unique()), extra]


def _number(metrics: Metrics, name: str) -> str:
    return f"{metrics[name]:.3f}" if name in metrics else "-"


def _interval(metrics: Metrics, name: str) -> str:
    if f"{name}/low" not in metrics:
        return "-"
    return f"[{metrics[f'{name}/low']:.3f}, {metrics[f'{name}/high']:.3f}]".replace("[", r"\[")
