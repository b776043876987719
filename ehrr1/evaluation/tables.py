"""The scores of an evaluation as text: tables that fit a terminal of 80 columns."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO

import polars as pl
from rich import box
from rich.table import Table

from ehrr1.evaluation.aggregate import last_result, names, pairs, prefix_of
from ehrr1.evaluation.scores import one_class
from ehrr1.tasks.catalog import ALL_TASKS
from ehrr1.terminal import plain_console

Metrics = Mapping[str, float | int]

MAIN = {"risk": "auroc", "decision": "f1"}
"""The main metric of each kind of task."""

TITLES = {"risk": "risk AUROC", "decision": "decision F1"}

SHOWN = {
    "risk/auroc": "risk AUROC",
    "decision/f1": "decision F1",
    "decision/f1_tolerant": "F1 tolerant",
}
"""Scores in the table of results, with their headings."""

WIDTH = 80
"""Columns of a line: what a terminal has, and a pipe whose width is not known."""

HEADING = 10
"""Characters of a heading's line; longer names of results are written on several lines."""

GAP = 2
"""Blanks between two columns."""


@dataclass(frozen=True)
class Column:
    """A column of a table of tasks: its heading, lines divided by newlines, and a cell a task."""

    heading: str
    cells: list[str]

    @property
    def width(self) -> int:
        """Characters of the longest line."""
        return max(len(line) for text in (self.heading, *self.cells) for line in text.split("\n"))


def score_text(predictions: pl.DataFrame, metrics: Metrics, tasks: Sequence[str]) -> str:
    """Return all tables: each task, the paired differences, and last the mean scores."""
    out = plain_console(file=StringIO(), width=WIDTH, highlight=False)
    for kind in MAIN:
        chosen = [task for task in tasks if ALL_TASKS[task].kind == kind]
        if any(f"{task}/{MAIN[kind]}" in metrics for task in chosen):
            for table in task_tables(predictions, metrics, chosen, kind):
                out.print(table, "")
    if silent := one_class(predictions):
        out.print(f"left out, as all answers are the same: {', '.join(silent)}\n")
    differences = difference_table(pairs(names(predictions)), metrics)
    if differences.row_count:
        out.print(differences, "")
    calibration = calibration_table(predictions, metrics)
    if calibration.row_count:
        out.print(calibration, "")
    out.print(result_table(predictions, metrics))
    text: str = out.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def result_table(predictions: pl.DataFrame, metrics: Metrics) -> Table:
    """Return a row a result (a model in a mode, or a baseline): its mean scores over tasks."""
    table = _plain("scores: mean over tasks, 95 % interval by patient")
    table.add_column("result", overflow="fold")
    # without decisions, or without their tolerant scores, there is no column for them
    shown = [score for score in SHOWN if any(key.endswith(f"{score}/macro") for key in metrics)]
    for score in shown:
        table.add_column(SHOWN[score], justify="right", no_wrap=True)
    for name in names(predictions):
        keys = [f"{prefix_of(name)}{score}/macro" for score in shown]
        table.add_row(name, *(_with_interval(metrics, key, "") for key in keys))
    return table


def calibration_table(predictions: pl.DataFrame, metrics: Metrics) -> Table:
    """Return a row a result with risk probabilities: how far they are from what happens."""
    table = _plain("calibration of risk: mean over tasks")
    table.add_column("result", overflow="fold")
    names_of = {"brier": "Brier", "ece": "ECE", "ece_calibrated": "ECE recalibrated"}
    for title in names_of.values():
        table.add_column(title, justify="right", no_wrap=True)
    for name in names(predictions):
        keys = [f"{prefix_of(name)}risk/{metric}/macro" for metric in names_of]
        if keys[0] in metrics:
            table.add_row(name, *(_number(metrics, key) for key in keys))
    return table


def difference_table(compared: Sequence[tuple[str, str]], metrics: Metrics) -> Table:
    """Return a row a pair of results: paired differences of mean scores, bootstrap by patient."""
    table = _plain("differences on the same samples, 95 % interval by patient")
    table.add_column("results", overflow="fold")
    for title in TITLES.values():
        table.add_column(title, justify="right", no_wrap=True)
    for first, second in compared:
        keys = [f"{first}-{second}/{kind}/{metric}/macro" for kind, metric in MAIN.items()]
        if any(key in metrics for key in keys):
            cells = [_with_interval(metrics, key, "+") for key in keys]
            table.add_row(f"{first} - {second}", *cells)
    return table


def task_differences(
    compared: Sequence[tuple[str, str]], metrics: Metrics, tasks: Sequence[str]
) -> Iterator[Table]:
    """Yield tables with a row a task: its paired differences, bootstrap by patient."""
    for kind, metric in MAIN.items():
        heads = {f"{heading(a)} -\n{heading(b)}": f"{a}-{b}" for a, b in compared}
        rows = [
            task
            for task in tasks
            if any(f"{pair}/{task}/{metric}" in metrics for pair in heads.values())
        ]
        columns = [
            Column(head, [_with_interval(metrics, f"{pair}/{task}/{metric}", "+") for task in rows])
            for head, pair in heads.items()
        ]
        yield from _by_row(f"differences by task: {TITLES[kind]}", Column("task", rows), columns)


def seed_table(metrics: Metrics) -> Table:
    """Return a row a result or difference of runs that differ in their seed only."""
    table = _plain("mean over seeds, 95 % interval over seeds and patients")
    table.add_column("results", overflow="fold")
    for title in TITLES.values():
        table.add_column(title, justify="right", no_wrap=True)
    for name, cells in seed_rows(metrics):
        table.add_row(name, *cells)
    return table


def seed_rows(metrics: Metrics) -> list[tuple[str, list[str]]]:
    """Return name and mean scores of the results of several seeds and of their differences."""
    found: dict[str, list[str]] = {}
    for key in metrics:
        if (place := key.find("/risk/")) < 0:
            place = key.find("/decision/")
        if key.startswith("seeds/") and key.endswith("/macro"):
            found.setdefault(key[:place], [])
    return [
        (
            name.removeprefix("seeds/"),
            [
                _with_interval(metrics, f"{name}/{kind}/{metric}/macro", "")
                for kind, metric in MAIN.items()
            ],
        )
        for name in found
    ]


def task_tables(
    predictions: pl.DataFrame, metrics: Metrics, tasks: Sequence[str], kind: str
) -> Iterator[Table]:
    """Yield tables with a row a task, as many as the width needs for all columns.

    The columns are samples, patients, prevalence (risk) or items an answer (decision), the main
    metric of each result and baseline, and the 95 % interval of the main result.
    """
    metric, last = MAIN[kind], last_result(predictions)
    scored = [task for task in tasks if f"{task}/{metric}" in metrics]
    prefixes = {name: prefix_of(name) for name in names(predictions)}
    shown = [name for name, p in prefixes.items() if f"{p}{kind}/{metric}/macro" in metrics]
    rows = predictions.filter(pl.col("model") == last)
    counted = zip(*(_counts(rows, task, kind) for task in scored), strict=True)
    heads = ("n", "patients", "yes" if kind == "risk" else "items")
    columns = [Column(head, list(cells)) for head, cells in zip(heads, counted, strict=True)]
    columns += [
        Column(heading(name), [_number(metrics, f"{prefixes[name]}{t}/{metric}") for t in scored])
        for name in shown
    ]
    spans = [_interval(metrics, f"{task}/{metric}") for task in scored]
    columns.append(Column(f"{heading(str(last))}\n95 % interval", spans))
    if any(f"{task}/{metric}_tolerant" in metrics for task in scored):
        tolerant = [_number(metrics, f"{task}/{metric}_tolerant") for task in scored]
        columns.append(Column(f"{heading(str(last))}\ntolerant", tolerant))
    yield from _by_row(f"{TITLES[kind]} by task", Column("task", scored), columns)


def _by_row(title: str, first: Column, columns: Sequence[Column]) -> Iterator[Table]:
    """Yield tables that begin with the column `first`, as many as the width needs."""
    for some in fitting(columns, WIDTH - first.width) if first.cells else []:
        table = _plain(title)
        table.add_column(first.heading, no_wrap=True)
        for column in some:
            table.add_column(column.heading, justify="right", no_wrap=True)
        for cells in zip(first.cells, *(column.cells for column in some), strict=True):
            table.add_row(*cells)
        yield table


def fitting(columns: Sequence[Column], width: int) -> list[list[Column]]:
    """Divide columns, in order, into groups that fit `width` together."""
    groups: list[list[Column]] = []
    left = 0
    for column in columns:
        needed = column.width + GAP
        if not groups or needed > left:
            groups.append([])
            left = width
        groups[-1].append(column)
        left -= needed
    return groups


def heading(name: str) -> str:
    """Return a result's name in lines of at most `HEADING` characters where it can be divided.

    It is divided behind the signs between its parts: `rl:both-list` is `rl:both-` and `list`.
    """
    lines = [""]
    for part in re.findall(r"[^:_@-]+[:_@-]*|[:_@-]+", name):
        for begin in range(0, len(part), HEADING):
            piece = part[begin : begin + HEADING]
            if lines[-1] and len(lines[-1]) + len(piece) > HEADING:
                lines.append("")
            lines[-1] += piece
    return "\n".join(lines)


def _plain(title: str) -> Table:
    return Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )


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


def _with_interval(metrics: Metrics, name: str, sign: str) -> str:
    if name not in metrics:
        return "-"
    return f"{metrics[name]:{sign}.3f} {_interval(metrics, name)}"


def _interval(metrics: Metrics, name: str) -> str:
    if f"{name}/low" not in metrics:
        return "-"
    return f"({metrics[f'{name}/low']:.3f}, {metrics[f'{name}/high']:.3f})"
