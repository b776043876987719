"""Metrics as the page shows them: which there are, what they are called, tables of them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import polars as pl

from ehrr1.evaluation.aggregate import SUBGROUPS
from ehrr1.evaluation.pages.html import Table, table
from ehrr1.tasks.catalog import ALL_TASKS

Metrics = Mapping[str, float | int]
Cell = list[float] | None

LABELS = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "brier": "Brier",
    "brier_calibrated": "Brier, calibrated",
    "ece": "ECE",
    "ece_calibrated": "ECE, calibrated",
    "log_loss": "log loss",
    "log_loss_calibrated": "log loss, calibrated",
    "f1": "F1",
    "f1_tolerant": "F1, tolerant",
    "precision": "precision",
    "recall": "recall",
    "f1_normalised": "F1, normalised",
    "micro_f1": "micro F1",
    "micro_precision": "micro precision",
    "micro_recall": "micro recall",
    "f1_self_consistency": "F1, self-consistency",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
}
"""In the order of columns."""

KINDS = {"risk": "Risk", "decision": "Decisions", "text": "Texts"}

LOWER_IS_BETTER = ("brier", "ece", "log_loss")

Result = tuple[str, str]
"""What a result is called, and what its metrics begin with."""


def label(metric: str) -> str:
    """`pass@4` and what else is counted up to a number are called what they are."""
    return LABELS.get(metric, metric)


def cell(metrics: Metrics, name: str) -> Cell:
    """`[value, low, high]`, `[value]` where no interval is told, None without the metric."""
    found = [metrics[key] for key in (name, f"{name}/low", f"{name}/high") if key in metrics]
    return [round(float(number), 4) for number in found] or None


def kind_of(task: str) -> str:
    """risk, decision, or text where the answer is one."""
    return "text" if ALL_TASKS[task].target == "text" else ALL_TASKS[task].kind


def ordered(found: Iterable[str]) -> list[str]:
    """Metrics in the order of `LABELS`, others (pass@1, pass@2, ...) behind."""
    places = {name: at for at, name in enumerate(LABELS)}
    return sorted(dict.fromkeys(found), key=lambda name: (places.get(name, len(places)), name))


def macro_metrics(metrics: Metrics, results: Sequence[Result], kind: str) -> list[str]:
    """Return the metrics that at least one result has a mean of over the tasks of a kind."""
    heads = tuple(f"{prefix}{kind}/" for _, prefix in results)
    keys = [key for key in metrics if key.endswith("/macro") and key.startswith(heads)]
    return ordered(key.split("/")[-2] for key in keys if key.split("/")[-3] == kind)


def overview(metrics: Metrics, results: Sequence[Result]) -> list[Table]:
    """Means over tasks: a table a kind of question, a row a result."""
    tables = []
    for kind in ("risk", "decision"):
        shown = macro_metrics(metrics, results, kind)
        rows = []
        for at, (_, prefix) in enumerate(results):
            cells = [cell(metrics, f"{prefix}{kind}/{metric}/macro") for metric in shown]
            if any(cells):
                rows.append([{"result": at}, *cells])
        if rows:
            head = ["result", *map(label, shown)]
            tables.append(table(f"{KINDS[kind]}: means over tasks", head, rows))
    return tables


def everything(
    metrics: Metrics, results: Sequence[Result], tasks: Sequence[str], main: str
) -> list[Table]:
    """Return every metric of every task and result, one table per kind of task.

    `main` is the prefix of the result whose samples and patients are shown where a result has no
    count of its own.
    """
    tables = []
    names: dict[str, list[str]] = {}
    for key in metrics:
        owner, _, name = key.rpartition("/")
        names.setdefault(owner, []).append(name)
    for kind, title in KINDS.items():
        chosen = [task for task in tasks if kind_of(task) == kind]
        shown = ordered(
            name
            for task in chosen
            for _, prefix in results
            for name in names.get(f"{prefix}{task}", [])
        )
        rows = []
        for task in chosen:
            for at, (_, prefix) in enumerate(results):
                cells = [cell(metrics, f"{prefix}{task}/{metric}") for metric in shown]
                if any(cells):
                    counted = [
                        metrics.get(f"{prefix}{name}/{task}", metrics.get(f"{main}{name}/{task}"))
                        for name in ("samples", "patients")
                    ]
                    rows.append([task, {"result": at}, *counted, *cells])
        if rows:
            head = ["task", "result", "samples", "patients", *map(label, shown)]
            tables.append(table(f"{title}: all metrics", head, rows))
    return tables


def bars(
    metrics: Metrics, results: Sequence[Result], tasks: Sequence[str], kind: str, metric: str
) -> dict[str, Any] | None:
    """One metric of all results, task by task, with their mean first."""
    rows: list[dict[str, Any]] = []
    for task in tasks:
        cells = [cell(metrics, f"{prefix}{task}/{metric}") for _, prefix in results]
        if kind_of(task) == kind and any(cells):
            rows.append({"label": task, "values": cells})
    if not rows:
        return None
    means = [cell(metrics, f"{prefix}{kind}/{metric}/macro") for _, prefix in results]
    if any(means):
        rows.insert(0, {"label": "mean over tasks", "values": means, "strong": True})
    return {
        "title": f"{KINDS[kind]}: {label(metric)}",
        "base": 0.5 if metric == "auroc" else 0.0,
        "least": 0.0,
        "rows": rows,
    }


def subgroups(
    metrics: Metrics, results: Sequence[Result], scored: pl.DataFrame
) -> list[dict[str, Any]]:
    """Means over tasks of each group of patients, AUROC and F1."""
    charts = []
    for kind, metric in (("risk", "auroc"), ("decision", "f1")):
        rows: list[dict[str, Any]] = []
        for column in SUBGROUPS:
            of_column = []
            for value in sorted(scored[column].drop_nulls().unique().to_list()):
                head = f"subgroup/{column}/{value.replace('/', ' or ')}"
                cells = [cell(metrics, f"{p}{head}/{metric}/macro") for _, p in results]
                counts = [metrics.get(f"{p}{head}/patients", 0) for _, p in results]
                if any(cells):
                    of_column.append(
                        {"label": value, "note": f"{max(counts):,} patients", "values": cells}
                    )
            if of_column:
                rows += [{"label": column.replace("_", " "), "heading": True}, *of_column]
        if rows:
            title = f"{KINDS[kind]}: {label(metric)}, mean over tasks"
            base = 0.5 if metric == "auroc" else 0.0
            charts.append({"title": title, "base": base, "least": 0.0, "rows": rows})
    return charts


def differences(
    metrics: Metrics, found: Iterable[tuple[str, str, str]]
) -> dict[str, list[dict[str, Any]]]:
    """Return the paired differences by what is compared (`Risk: AUROC`).

    `found` has the name of each difference, the prefix of its metrics, and a note.
    """
    by_metric: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for told, head, note in found:
        start = f"{head}/"
        for key in metrics:
            if key.startswith(start) and key.endswith("/macro"):
                kind, metric, _ = key.removeprefix(start).split("/")
                lower = metric.startswith(LOWER_IS_BETTER)
                row = {"label": told, "note": note, "value": cell(metrics, key), "lower": lower}
                by_metric.setdefault((kind, metric), []).append(row)
    main = [("risk", "auroc"), ("decision", "f1")]
    rest = [(kind, metric) for metric in ordered(m for _, m in by_metric) for kind in KINDS]
    return {
        f"{KINDS[kind]}: {label(metric)}"
        + ", lower is better" * metric.startswith(LOWER_IS_BETTER): by_metric[kind, metric]
        for kind, metric in dict.fromkeys(main + rest)
        if (kind, metric) in by_metric
    }
