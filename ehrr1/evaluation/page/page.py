"""Writing a page: the data as JSON in the page itself, and the files beside this one."""

import html
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import polars as pl

from ehrr1.evaluation.page.cases import Case
from ehrr1.evaluation.page.data import report_data

CLOSED = (
    "The records are not open (data.open=false): no text of a patient is shown. What was answered "
    "to whom stands in predictions.parquet."
)
GONE = "The records are not where they were when the models were asked: no cases are shown."


def write_report(
    path: Path,
    predictions: pl.DataFrame,
    metrics: Mapping[str, float | int],
    tasks: Sequence[str],
    *,
    title: str,
    settings: Mapping[str, Any],
    split: str,
    cases: Sequence[Case],
    open_data: bool,
) -> None:
    """One evaluation as a page."""
    data = report_data(predictions, metrics, tasks, split, cases if open_data else ())
    data |= {"title": title, "settings": flat(settings), "split": split, "runs": []}
    data["note"] = "" if cases and open_data else CLOSED if not open_data else GONE
    write(path, title, data)


def write(path: Path, title: str, data: dict[str, Any]) -> None:
    here = files("ehrr1.evaluation.page")
    # what ends a script, or begins a comment in one, must not stand in its data
    text = json.dumps(data, allow_nan=False).replace("<", "\\u003c")
    page = here.joinpath("page.html").read_text()
    for mark, content in (
        ("__TITLE__", html.escape(title)),
        ("__CSS__", here.joinpath("page.css").read_text()),
        ("__JS__", here.joinpath("charts.js").read_text() + here.joinpath("page.js").read_text()),
        ("__DATA__", text),
    ):
        page = page.replace(mark, content)
    path.write_text(page)


def flat(settings: Mapping[str, Any], prefix: str = "") -> list[list[str]]:
    """Settings as rows of name and value."""
    rows = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            rows += flat(value, f"{prefix}{name}.")
        else:
            rows.append([prefix + name, "null" if value is None else str(value)])
    return rows
