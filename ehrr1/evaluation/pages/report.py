"""report.html: what was asked of whom, every score with its interval, curves, cases."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ehrr1.evaluation.aggregate import (
    BASELINES,
    calibrators,
    last_result,
    names,
    pairs,
    prefix_of,
)
from ehrr1.evaluation.calibration import Calibrator, recalibrated
from ehrr1.evaluation.pages import numbers
from ehrr1.evaluation.pages.alerts import warnings
from ehrr1.evaluation.pages.cases import Case, shown
from ehrr1.evaluation.pages.curves import THRESHOLDS, curves, decision_curve
from ehrr1.evaluation.pages.html import Table, coloured, page, table
from ehrr1.tasks.catalog import ALL_TASKS

PROBABILITY_RULE = (
    "A probability of yes is P(yes) / (P(yes) + P(no)), each summed over all one-token spellings "
    "of the word, read behind the prompt (or behind the chain) without sampling."
)
CLOSED = "Cases are not shown: the data are not open, and a page is easily passed on."
NO_CASES = "Cases are not shown: the records that were asked about are not beside the predictions."

POOLED = "all tasks pooled"


def write_report(
    path: Path,
    predictions: pl.DataFrame,
    metrics: Mapping[str, float | int],
    tasks: Sequence[str],
    *,
    title: str,
    about: Mapping[str, str],
    settings: Mapping[str, Any],
    split: str,
    cases: Sequence[Case],
    open_data: bool,
) -> None:
    """Write the page of one evaluation, from the rows of `split`.

    `about` says what was evaluated, a fact a name. `settings` has those of the evaluation under
    `eval`. Texts of patients (`cases`) are left out
    unless the data are open.
    """
    scored = predictions.filter(pl.col("split") == split)
    told = pairs(names(scored))
    data = report_data(predictions, split, metrics, tasks, dict.fromkeys(told, ""))
    data |= {
        "title": title,
        "about": list(about.items()),
        "lead": [["benchmark", settings["eval"]["suite"]], *lead(scored, split)],
        "rules": rules(settings["eval"]),
        "settings": [table("Settings", ["setting", "value"], flat_settings(settings))],
        "cases": [shown(case) for case in cases if open_data],
        "no_cases": NO_CASES if open_data else CLOSED,
    }
    path.write_text(page(data), encoding="utf-8")


def report_data(
    predictions: pl.DataFrame,
    split: str,
    metrics: Mapping[str, float | int],
    tasks: Sequence[str],
    compared: Mapping[tuple[str, str], str],
) -> dict[str, Any]:
    """Return the content of the page, from the predictions on `split` and their metrics.

    `compared` has the pairs of results whose difference is shown, with a note on each.
    """
    scored, maps = predictions.filter(pl.col("split") == split), calibrators(predictions, split)
    found = names(scored)
    results = [(name, prefix_of(name)) for name in found]
    main = last_result(scored) or found[-1]
    charts = [("risk", "auroc"), ("decision", "f1"), ("text", "rougeL")]
    bars = [numbers.bars(metrics, results, tasks, *chart) for chart in charts]
    told = [(f"{a} \N{MINUS SIGN} {b}", f"{a}-{b}", note) for (a, b), note in compared.items()]
    return {
        "warnings": warnings(scored, metrics),
        "results": coloured(found),
        "asked": [asked(scored, metrics, maps)],
        "overview": numbers.overview(metrics, results),
        "bars": [chart for chart in bars if chart],
        "curves": all_curves(scored, metrics, tasks, maps),
        "thresholds": [float(threshold) for threshold in THRESHOLDS],
        "everything": numbers.everything(metrics, results, tasks, prefix_of(main)),
        "subgroups": numbers.subgroups(metrics, results, scored),
        "differences": numbers.differences(metrics, told),
    }


def rules(settings: Mapping[str, Any]) -> list[str]:
    """Return how to read probabilities, records and intervals; `settings` are those of `eval`."""
    return [
        PROBABILITY_RULE,
        f"Records and questions have at most {settings['max_prompt_tokens']:,} tokens: longer "
        "records lose their oldest events.",
        f"Intervals hold 95 %: {settings['bootstrap']:,} bootstrap replicates, drawn by patient; "
        "an interval of a difference is paired.",
    ]


def lead(scored: pl.DataFrame, split: str) -> list[list[str]]:
    """Return the few facts at the top of the page."""
    risk = scored.filter(pl.col("task").is_in(_of_kind("risk")))
    facts = {
        "split": split,
        "patients": f"{scored['subject_id'].n_unique():,}",
        "questions": f"{scored['sample_id'].n_unique():,}",
        "tasks": f"{risk['task'].n_unique()} risk, "
        f"{scored['task'].n_unique() - risk['task'].n_unique()} decision",
        "results": f"{scored['model'].n_unique()}",
    }
    return [[name, str(value)] for name, value in facts.items()]


def asked(
    scored: pl.DataFrame, metrics: Mapping[str, float | int], maps: Mapping[str, Calibrator]
) -> Table:
    """Return the prompt mode of each model, and its number of questions."""
    rows: list[list[Any]] = []
    for at, name in enumerate(names(scored)):
        own = scored.filter(pl.col("model") == name)
        parts = [own.filter(pl.col("task").is_in(_of_kind(k))) for k in ("risk", "decision")]
        rows.append(
            [
                {"result": at},
                *([_mode(part) for part in parts] if name not in BASELINES else ["baseline"] * 2),
                *(
                    [_only(own[c]) for c in ("candidates", "wording")]
                    if name not in BASELINES
                    else ["", ""]
                ),
                int((own["draw"].max() or 0) + 1),  # type: ignore[operator]
                *(part["sample_id"].n_unique() for part in parts),
                own["subject_id"].n_unique(),
                numbers.cell(metrics, f"{prefix_of(name)}saturated"),
                maps[name].method if name in maps else "",
            ]
        )
    head = [
        *("result", "risk", "decisions", "candidates", "wording", "draws", "risk questions"),
        *("decision questions", "patients", "saturated", "recalibrated by"),
    ]
    return table("What was asked of whom", head, rows)


def all_curves(
    scored: pl.DataFrame,
    metrics: Mapping[str, float | int],
    tasks: Sequence[str],
    maps: Mapping[str, Calibrator],
) -> list[dict[str, Any]]:
    """Curves of each risk task, and of all of them pooled (first)."""
    risk = [task for task in tasks if task in _of_kind("risk")]
    told = scored.filter(pl.col("probability").is_not_null() & pl.col("task").is_in(risk))
    places = {name: at for at, name in enumerate(names(scored))}
    groups = [(POOLED, told)] + [(task, told.filter(pl.col("task") == task)) for task in risk]
    found = []
    for title, rows in groups:
        series = []
        for name, at in places.items():
            own = rows.filter(pl.col("model") == name)
            if own.is_empty():
                continue
            drawn = curves(own, recalibrated(own, maps[name]) if name in maps else None)
            if drawn:
                numbers_of = {
                    m: _of_task(metrics, name, title, m) for m in ("auroc", "auprc", "ece")
                }
                series.append({"result": at, **drawn, **numbers_of})
        if series:
            found.append({"title": title, "series": series, **_of_all(rows)})
    return found


def flat_settings(settings: Mapping[str, Any], head: str = "") -> list[list[str]]:
    """`eval.split`, `test`: a row a setting."""
    rows = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            rows += flat_settings(value, f"{head}{name}.")
        else:
            rows.append([f"{head}{name}", "null" if value is None else str(value)])
    return rows


def _of_all(rows: pl.DataFrame) -> dict[str, Any]:
    """Return what depends on the questions only: numbers, prevalence, acting on all patients."""
    once = rows.unique(["task", "sample_id"], maintain_order=True)
    labels = (once["target"] == "yes").to_numpy()
    return {
        "samples": len(once),
        "patients": once["subject_id"].n_unique(),
        "prevalence": round(float(labels.mean()), 4),
        "everybody": decision_curve(np.ones(len(labels)), labels),
    }


def _of_task(metrics: Mapping[str, float | int], name: str, title: str, metric: str) -> Any:
    where = f"risk/{metric}/macro" if title == POOLED else f"{title}/{metric}"
    return numbers.cell(metrics, f"{prefix_of(name)}{where}")


def _of_kind(kind: str) -> list[str]:
    return [key for key, task in ALL_TASKS.items() if task.kind == kind]


def _mode(rows: pl.DataFrame) -> str:
    return _only(rows["mode"]) if len(rows) else "not asked"


def _only(values: pl.Series) -> str:
    return ", ".join(values.unique().sort().to_list())
