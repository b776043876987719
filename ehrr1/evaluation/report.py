"""The files that publish an evaluation: the page and scalars for TensorBoard."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
from torch.utils.tensorboard import SummaryWriter

from ehrr1.config.schema import Config
from ehrr1.config.types import Section
from ehrr1.evaluation.about import about
from ehrr1.evaluation.pages import Case, choose_cases, write_report
from ehrr1.files import replacing
from ehrr1.records.markdown import record_markdown
from ehrr1.runs import data_is_open
from ehrr1.tasks.catalog import ALL_TASKS
from ehrr1.tasks.samples import Prepared

Metrics = Mapping[str, float | int]
SHOWN_SETTINGS = ("eval", "engine", "answer", "candidates", "wording", "seed")


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
    """Write report.html and tb/.

    Cases are shown of open data only, and only while the prepared records exist.
    """
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
            about=about(cfg, prepared),
            settings=settings,
            split=cfg.eval.split,
            cases=cases,
            open_data=is_open,
        )
    with replacing(folder / "tb") as logs:
        write_scalars(logs, metrics)


def cases_of(predictions: pl.DataFrame, prepared: Prepared, cfg: Config) -> list[Case]:
    """Return a few answers with their records."""
    rows = choose_cases(predictions, cfg.eval.cases)
    wanted = prepared.scan().filter(pl.col("sample_id").is_in(rows["sample_id"].to_list()))
    samples = {sample.sample_id: sample for sample in prepared.as_samples(wanted.collect())}
    return [
        Case(
            sample_id=row["sample_id"],
            task=row["task"],
            result=row["model"],
            question=samples[row["sample_id"]].instruction or ALL_TASKS[row["task"]].instruction,
            context=record_markdown(prepared.context(samples[row["sample_id"]])),
            completion=row["completion"],
            prediction=row["prediction"],
            target=row["target"],
            probability=row["probability"],
        )
        for row in rows.iter_rows(named=True)
    ]
