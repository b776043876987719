"""What an evaluation shows: tables in the terminal, scalars for TensorBoard, the page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console
from rich.table import Table
from torch.utils.tensorboard import SummaryWriter

from ehrr1.config.schema import Config
from ehrr1.config.types import Section
from ehrr1.evaluation.aggregate import last_result, names, pairs, prefix_of
from ehrr1.evaluation.pages import Case, choose_cases, write_report
from ehrr1.evaluation.scores import one_class
from ehrr1.files import replacing
from ehrr1.records.markdown import record_markdown
from ehrr1.runs import data_is_open
from ehrr1.tasks.catalog import ALL_TASKS
from ehrr1.tasks.samples import Prepared

Metrics = Mapping[str, float | int]
MAIN = {"risk": "auroc", "decision": "f1"}
MIN_WIDTH = 124
"""Columns of a table that is piped into a file, where the terminal's width is not known."""

SHOWN_SETTINGS = ("eval", "engine", "answer", "candidates", "wording", "seed")


def show(predictions: pl.DataFrame, metrics: Metrics, tasks: Sequence[str]) -> None:
    """Print one table for risk, one for decisions, and the paired differences."""
    console = Console()
    console.width = max(console.width, MIN_WIDTH)
    for kind in MAIN:
        chosen = [task for task in tasks if ALL_TASKS[task].kind == kind]
        if any(f"{task}/{MAIN[kind]}" in metrics for task in chosen):
            console.print(task_table(predictions, metrics, chosen, kind))
    if silent := one_class(predictions):
        console.print(f"left out, as all answers are the same: {', '.join(silent)}")
    differences = difference_table(pairs(names(predictions)), metrics)
    if differences.rows:
        console.print(differences)


def task_table(
    predictions: pl.DataFrame, metrics: Metrics, tasks: Sequence[str], kind: str
) -> Table:
    """A row a task: samples, patients, prevalence (risk) or items an answer (decision), the main
    metric of each result and baseline, and the 95 % interval of the last result; a macro row
    last."""
    metric = MAIN[kind]
    prefixes = {name: prefix_of(name) for name in names(predictions)}
    shown = [name for name, p in prefixes.items() if f"{p}{kind}/{metric}/macro" in metrics]
    last = last_result(predictions)
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
        values = [_number(metrics, prefixes[result] + name) for result in shown]
        table.add_row(task, *counts, *values, _interval(metrics, name))
    return table


def difference_table(compared: Sequence[tuple[str, str]], metrics: Metrics) -> Table:
    """Paired differences between results: estimate and interval, bootstrap by patient."""
    table = Table(title="differences, same samples, 95 % interval by patient")
    for heading in ("comparison", "metric", "difference", "interval"):
        table.add_column(heading, justify="left" if heading == "comparison" else "right")
    for kind, metric in MAIN.items():
        name = f"{kind}/{metric}/macro"
        for first, second in compared:
            if (key := f"{first}-{second}/{name}") in metrics:
                difference = f"{metrics[key]:+.3f}"
                table.add_row(f"{first} - {second}", name, difference, _interval(metrics, key))
    return table


def write_scalars(folder: Path, metrics: Metrics) -> None:
    """Write every metric as a TensorBoard scalar at step 0."""
    with SummaryWriter(str(folder)) as writer:
        for name, value in metrics.items():
            writer.add_scalar(name, value, 0)


def publish(
    cfg: Config,
    folder: Path,
    predictions: pl.DataFrame,
    metrics: Metrics,
    tasks: Sequence[str],
    prepared: Prepared | None,
) -> None:
    """Write report.html and tb/. Cases are shown of open data only, and while the records are
    there."""
    settings: dict[str, Any] = {
        name: value.plain() if isinstance(value := cfg.of(name), Section) else value
        for name in SHOWN_SETTINGS
    }
    # what counts is what was prepared, whatever the command says of its data
    is_open = prepared is not None and data_is_open(prepared.folder)
    cases = []
    if is_open and prepared is not None:
        cases = cases_of(predictions.filter(pl.col("split") == cfg.eval.split), prepared, cfg)
    with replacing(folder / "report.html") as path:
        write_report(
            path,
            predictions,
            dict(metrics),
            tasks,
            title=f"{cfg.name}: evaluation",
            settings=settings,
            split=cfg.eval.split,
            cases=cases,
            open_data=is_open,
        )
    with replacing(folder / "tb") as logs:
        write_scalars(logs, metrics)


def cases_of(predictions: pl.DataFrame, prepared: Prepared, cfg: Config) -> list[Case]:
    """A few answers with their records."""
    rows = choose_cases(predictions, cfg.eval.cases)
    wanted = prepared.scan().filter(pl.col("sample_id").is_in(rows["sample_id"].to_list()))
    samples = {sample.sample_id: sample for sample in prepared.as_samples(wanted.collect())}
    return [
        Case(
            sample_id=row["sample_id"],
            task=row["task"],
            result=row["model"],
            context=record_markdown(prepared.context(samples[row["sample_id"]])),
            completion=row["completion"],
            prediction=row["prediction"],
            target=row["target"],
            probability=row["probability"],
        )
        for row in rows.iter_rows(named=True)
    ]


def _counts(rows: pl.DataFrame, task: str, kind: str) -> list[str]:
    chosen = rows.filter((pl.col("task") == task) & (pl.col("draw") == 0))
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
