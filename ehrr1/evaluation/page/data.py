"""What a report shows, as plain lists and dictionaries: the page's own script draws them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import polars as pl

from ehrr1.evaluation.calibration import cooled
from ehrr1.evaluation.page import curves
from ehrr1.evaluation.page.cases import Case
from ehrr1.evaluation.scores import one_class
from ehrr1.evaluation.summary import BASELINES, last_result, names, pairs, prefix_of
from ehrr1.tasks.catalog import ALL_TASKS

Metrics = Mapping[str, float | int]

SATURATED = 0.5
"""A larger share of certain probabilities is warned of."""
UNREAD = 0.05
FEW_PATIENTS = 50

METRICS = {
    "risk": ("auroc", "auprc", "brier", "ece", "log_loss"),
    "decision": ("f1", "precision", "recall", "f1_normalised", "micro_f1"),
}
MORE = ("brier_calibrated", "ece_calibrated", "log_loss_calibrated", "f1_self_consistency")


def report_data(
    predictions: pl.DataFrame,
    metrics: Metrics,
    tasks: Sequence[str],
    split: str,
    cases: Sequence[Case],
    compared: Sequence[tuple[str, str]] | None = None,
) -> dict[str, Any]:
    """Everything a page shows of an evaluation, but for its title and settings. `compared`: whose
    differences; None: those that a single evaluation tells."""
    scored = predictions.filter((pl.col("split") == split) & (pl.col("draw") == 0))
    shown = names(scored)
    present = [task for task in tasks if (scored["task"] == task).any()]
    return {
        "main": last_result(scored),
        "results": [_result(scored, metrics, name) for name in shown],
        "warnings": warnings(scored, metrics, shown),
        "tasks": [_task(scored, metrics, task, shown) for task in present],
        "macros": _macros(metrics, shown),
        "curves": {
            task: _curves(scored.filter(pl.col("task") == task), metrics, shown)
            for task in present
            if ALL_TASKS[task].kind == "risk"
        },
        "differences": _differences(metrics, pairs(shown) if compared is None else compared),
        "subgroups": _subgroups(metrics, shown),
        "cases": [asdict(case) for case in cases],
    }


def warnings(scored: pl.DataFrame, metrics: Metrics, shown: Sequence[str]) -> list[str]:
    """What a reader must know before any number."""
    found = []
    for name in shown:
        share = metrics.get(f"{prefix_of(name)}saturated", 0)
        if share > SATURATED and name not in BASELINES:
            found.append(
                f"{name}: {share:.0%} of its probabilities of yes are as good as 0 or 1. After a "
                "chain that has made up its mind the answer is certain, for everybody: they rank "
                "nobody and are not calibrated (TRIAGE, arXiv 2606.09030). Ask it with "
                "answer=both, or directly."
            )
        rows = scored.filter(pl.col("model") == name)
        unread = rows["problem"].is_not_null().sum()
        if unread > UNREAD * len(rows):
            found.append(f"{name}: {unread:,} of {len(rows):,} answers could not be read.")
    if silent := one_class(scored):
        found.append(f"All answers are the same, nothing is told: {', '.join(silent)}.")
    patients = scored["subject_id"].n_unique()
    if patients < FEW_PATIENTS:
        found.append(f"There are only {patients} patients: intervals are wide and rough.")
    return found


def _result(scored: pl.DataFrame, metrics: Metrics, name: str) -> dict[str, Any]:
    rows, prefix = scored.filter(pl.col("model") == name), prefix_of(name)
    risk = rows["probability"].is_not_null()
    return {
        "name": name,
        "baseline": name in BASELINES,
        "risk": ", ".join(sorted(set(rows.filter(risk)["mode"]))),
        "decision": ", ".join(sorted(set(rows.filter(~risk)["mode"]))),
        "candidates": ", ".join(sorted(set(rows["candidates"]))),
        "wording": ", ".join(sorted(set(rows["wording"]))),
        "samples": rows["sample_id"].n_unique(),
        "patients": rows["subject_id"].n_unique(),
        "unread": int(rows["problem"].is_not_null().sum()),
        "temperature": metrics.get(f"{prefix}temperature"),
        "saturated": metrics.get(f"{prefix}saturated"),
    }


def _task(
    scored: pl.DataFrame, metrics: Metrics, task: str, shown: Sequence[str]
) -> dict[str, Any]:
    kind = ALL_TASKS[task].kind
    rows = scored.filter(pl.col("task") == task).unique("sample_id")
    items = rows["target"].str.split("\n").list.len().mean()
    yes = (rows["target"] == "yes").mean()
    return {
        "key": task,
        "kind": kind,
        "samples": len(rows),
        "patients": rows["subject_id"].n_unique(),
        "about": f"{yes:.1%} yes" if kind == "risk" else f"{items:.1f} items",
        "metrics": {
            metric: values
            for metric in (*METRICS[kind], *MORE)
            if (values := _by_result(metrics, f"{task}/{metric}", shown))
        },
    }


def _macros(metrics: Metrics, shown: Sequence[str]) -> dict[str, Any]:
    return {
        f"{kind}/{metric}": values
        for kind, wanted in METRICS.items()
        for metric in (*wanted, *MORE)
        if (values := _by_result(metrics, f"{kind}/{metric}/macro", shown))
    }


def _by_result(metrics: Metrics, name: str, shown: Sequence[str]) -> dict[str, list[float]]:
    """Result -> estimate and interval; the estimate alone where none is told."""
    found = {}
    for result in shown:
        key = prefix_of(result) + name
        if key in metrics:
            ends = (metrics.get(f"{key}/{end}", metrics[key]) for end in ("low", "high"))
            found[result] = [round(float(v), 4) for v in (metrics[key], *ends)]
    return found


def _curves(rows: pl.DataFrame, metrics: Metrics, shown: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    told = rows.filter(pl.col("probability").is_not_null())
    for name in shown:
        own = told.filter(pl.col("model") == name)
        labels = (own["target"] == "yes").to_numpy()
        if len(own) == 0 or labels.all() or not labels.any():
            continue
        scores = own["probability"].to_numpy()
        found[name] = {
            "roc": curves.roc(scores, labels),
            "pr": curves.precision_recall(scores, labels),
            "reliability": curves.reliability(scores, labels),
            "decision": curves.decision_curve(scores, labels),
        }
        temperature = metrics.get(f"{prefix_of(name)}temperature")
        if temperature is not None:
            fitted = cooled(own, float(temperature))
            found[name]["calibrated"] = curves.reliability(fitted, labels)
        found["all"] = {"decision": curves.treat_all(labels), "share": float(labels.mean())}
    return found


def _differences(metrics: Metrics, compared: Sequence[tuple[str, str]]) -> list[list[Any]]:
    found = []
    for first, second in compared:
        for kind, metric in (("risk", "auroc"), ("risk", "brier"), ("decision", "f1")):
            key = f"{first}-{second}/{kind}/{metric}/macro"
            if f"{key}/low" in metrics:
                numbers = (metrics[key], metrics[f"{key}/low"], metrics[f"{key}/high"])
                found.append([first, second, f"{kind} {metric}", *numbers])
    return found


def _subgroups(metrics: Metrics, shown: Sequence[str]) -> list[dict[str, Any]]:
    heads = [prefix_of(name) + "subgroup/" for name in shown]
    groups = dict.fromkeys(
        tuple(key[len(head) :].split("/")[:2])
        for head in heads
        for key in metrics
        if key.startswith(head)
    )
    return [
        {
            "column": column.replace("_", " "),
            "value": value,
            "patients": max(
                int(metrics.get(f"{head}{column}/{value}/patients", 0)) for head in heads
            ),
            "auroc": _by_result(metrics, f"subgroup/{column}/{value}/auroc/macro", shown),
            "f1": _by_result(metrics, f"subgroup/{column}/{value}/f1/macro", shown),
        }
        for column, value in groups
    ]
