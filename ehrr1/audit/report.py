"""Output of an audit: tables in the terminal and a figure."""

from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich import box
from rich.table import Table
from rich.text import Text

from ehrr1.audit.index_checks import OTHER, Audit
from ehrr1.audit.recheck import KINDS
from ehrr1.records.schema import ORDER
from ehrr1.terminal import plain_console

WIDTH = 80
"""Columns of a line: those of a terminal, and of a pipe, whose width is unknown."""

TABLES_NAMED = 3
"""Number of responsible tables that are printed for each task."""

GAP = 2
"""Blanks between two columns."""


# --- the terminal -----------------------------------------------------------------------------


def show(audit: Audit, is_open: bool) -> None:
    """Print the tables of all checks by task, and then the results that are not by task.

    Rules name what stands in records: of closed ones they are counted, and audit.json has them.
    """
    console = plain_console(width=WIDTH)
    tables = [leak_table(audit), responsible_table(audit), label_table(audit), answer_table(audit)]
    for table in [*tables, *([rule_table(audit)] if is_open else [])]:
        if table.row_count:
            console.print(table, "")
    rules = [] if is_open else [f"single features that predict the answer: {audit.rules.height:,}"]
    for line in [*notes(audit), *rules]:
        console.print(line, highlight=False)


def leak_table(audit: Audit) -> Table:
    """Return a table with one row per task: leaking samples and their hours ahead."""
    table = _table(f"samples that leak, data.protocol={audit.protocol}")
    table.add_column("task", no_wrap=True)
    for heading in ("samples", "leaking", "%", "median\nhours ahead", "maximum\nhours ahead"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in audit.tasks.iter_rows(named=True):
        leaking = row["leaking"]
        table.add_row(
            row["task"],
            f"{row['samples']:,}",
            Text(f"{leaking:,}", "bold red" if leaking else ""),
            f"{100 * leaking / row['samples']:.1f}",
            *(_hours(row[name]) for name in ("median", "most")),
        )
    return table


def responsible_table(audit: Audit) -> Table:
    """Return a table with one row per task that leaks: the tables whose rows leak most often."""
    table = _table("tables whose rows leak, with the number of samples")
    table.add_column("task", no_wrap=True)
    table.add_column("tables", no_wrap=True)
    leaking = audit.tables["task"].unique().to_list()
    tasks = [task for task in audit.tasks["task"] if task in leaking]
    width = WIDTH - max(map(len, tasks), default=0) - GAP
    for task in tasks:
        table.add_row(task, _responsible(audit.tables.filter(pl.col("task") == task), width))
    return table


def label_table(audit: Audit) -> Table:
    """Return a table with one row per risk task: its labels beside the other protocol's."""
    other = OTHER[audit.protocol]
    table = _table(f"labels of data.protocol={audit.protocol} compared with {other}")
    table.add_column("task", no_wrap=True)
    for heading in (
        *("samples\nin both", "labels\nchanged", f"yes only\nin {other}"),
        *(f"samples only\nin {audit.protocol}", f"samples only\nin {other}"),
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    if audit.labels is not None:
        _fill(table, audit, audit.labels)
    return table


def answer_table(audit: Audit) -> Table:
    """Return a table with one row per decision task: answers that occur in their contexts."""
    table = _table("answers that occur in their contexts")
    table.add_column("task", no_wrap=True)
    for heading in ("contexts\nsearched", "whole answer\nfound", "at least one\nitem found"):
        table.add_column(heading, justify="right", no_wrap=True)
    _fill(table, audit, audit.texts.answers)
    return table


def rule_table(audit: Audit) -> Table:
    """Return a table with one row per suspiciously precise rule, for inspection."""
    table = _table("single features that predict the answer: inspect them for leaks")
    table.add_column("task: feature -> answer", overflow="fold")
    for heading in ("precision\nor AUROC", "base\nrate", "recall", "samples"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in audit.rules.iter_rows(named=True):
        shares = (row["precision"], row["base"], row["recall"])
        table.add_row(
            f"{row['task']}: {row['feature']} -> {row['answer']}",
            *("" if share is None else f"{share:.2f}" for share in shares),
            f"{row['support']:,}",
        )
    return table


def _table(title: str) -> Table:
    return Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, GAP - 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )


def _fill(table: Table, audit: Audit, counts: pl.DataFrame) -> None:
    """Add the rows of `counts` (a task and its counts), in the order of the audit's tasks."""
    rows = {task: [f"{count:,}" for count in row] for task, *row in counts.iter_rows()}
    for task in audit.tasks["task"]:
        if task in rows:
            table.add_row(task, *rows[task])


def _hours(hours: float | None) -> str:
    return "" if hours is None else f"{hours:,.1f}"


def _responsible(tables: pl.DataFrame, width: int) -> str:
    """Return names and counts of the first tables, in lines of at most `width` characters."""
    named = tables.head(TABLES_NAMED).select("table", "leaking").iter_rows()
    words = [f"{name} {count:,}" for name, count in named]
    more = tables.height - len(words)
    lines: list[str] = []
    for word in [*words, f"{more} more"] if more > 0 else words:
        if lines and len(lines[-1]) + len(", ") + len(word) < width:
            lines[-1] += f", {word}"
        else:
            lines.append(word)
    return ",\n".join(lines)


def notes(audit: Audit) -> list[str]:
    """Return one line for each result that is not in the tables."""
    other = OTHER[audit.protocol]
    lines = [
        f"{audit.leaking:,} of {audit.samples:,} samples ({audit.contexts:,} contexts) show what "
        "was known only after their prediction time",
        f"patients in several splits: {audit.splits.height}; "
        f"the same record under two numbers in several splits: {len(audit.records)}",
        f"contexts rendered and searched: {audit.texts.contexts:,}; "
        f"with a different number of rows than judged: {len(audit.texts.unlike)}",
    ]
    lines.append(recheck_note(audit))
    undated = int(audit.tasks["undated"].sum())
    if undated:
        lines.append(
            f"never known (totals without an end, codes of the own stay): {undated:,} rows"
        )
    if audit.labels is None:
        lines.append(f"labels were not compared: data.protocol={other} is not available")
    else:
        lines.append(f"labels are compared with those of data.protocol={other}")
    if audit.assumed:
        shares = ", ".join(f"{name} {share:.1%}" for name, share in sorted(audit.assumed.items()))
        lines.append(f"depends on assumed times of knowledge for: {shares}")
        if audit.surely_leaking < audit.leaking:
            lines.append(
                f"without the tables whose times are all assumed {audit.surely_leaking:,} samples "
                "leak"
            )
    return lines


def recheck_note(audit: Audit) -> str:
    """Return the line for the comparison with the raw files."""
    if not audit.texts.rechecked:
        return "contexts checked against the raw files: none (no tables, or data.protocol=paper)"
    kinds = Counter(finding.kind for finding in audit.texts.findings)
    numbers = "; ".join(f"{words}: {kinds[kind]:,}" for kind, words in KINDS.items())
    return f"contexts checked against the raw files: {audit.texts.rechecked:,}; {numbers}"


# --- the figure -------------------------------------------------------------------------------

INK, SOFT, GRID = "#1f2933", "#66727f", "#dde2e7"
LEAK, ANSWER_ALL, ANSWER_ANY, LABEL = "#b5372b", "#1f5f8b", "#a9cce3", "#d9902f"


def draw(audit: Audit, path: Path) -> None:
    """Write the figure as PNG.

    It shows, by task, the share of leaking samples, the hours ahead, the responsible tables, the
    answers that occur in the context, and the labels that change.
    """
    tasks = audit.tasks["task"].to_list()
    guilty = [name for name in ORDER if name in audit.tables["table"].unique().to_list()]
    widths = [2.6, 2.6, max(1.5, 0.24 * len(guilty)), 2.6] if audit.leaking else [4, 4]
    figure = Figure(figsize=(3.6 + sum(widths), 2.2 + 0.22 * len(tasks)), layout="constrained")
    panels = figure.subplots(1, len(widths), sharey=True, width_ratios=widths)
    _shares(panels[0], audit.tasks)
    if audit.leaking:
        _ahead(panels[1], audit.tasks)
        _guilt(panels[2], audit, tasks, guilty)
    _standing(panels[-1], audit, tasks)
    panels[0].set_yticks(range(len(tasks)), tasks, fontsize=8, color=INK)
    panels[0].set_ylim(len(tasks) - 0.4, -0.6)
    figure.suptitle(
        f"Known only after the prediction time: {audit.leaking:,} of {audit.samples:,} samples "
        f"(data.protocol={audit.protocol})",
        fontsize=11,
        color=INK,
    )
    figure.savefig(path, format="png", dpi=150)


def _plain(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=9, color=INK, loc="left")
    axes.tick_params(length=0, labelsize=8, labelcolor=SOFT)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)


def _shares(axes: Axes, tasks: pl.DataFrame) -> None:
    shares = 100 * (tasks["leaking"] / tasks["samples"]).to_numpy()
    _plain(axes, "leaking samples, %")
    axes.barh(range(len(shares)), shares, height=0.66, color=LEAK)
    axes.set_xlim(0, 118)
    axes.set_xticks([0, 50, 100])
    for place, (share, count) in enumerate(zip(shares, tasks["leaking"], strict=True)):
        axes.text(share + 2, place, f"{count:,}", va="center", fontsize=7, color=SOFT)


def _ahead(axes: Axes, tasks: pl.DataFrame) -> None:
    """Draw a dot at the median and a line to the maximum."""
    _plain(axes, "hours ahead: median, max")
    places = np.arange(tasks.height)
    median, most = (tasks[name].to_numpy().astype(float) for name in ("median", "most"))
    axes.hlines(places, median, most, color=LEAK, linewidth=1.2, alpha=0.45)
    axes.plot(most, places, "|", color=LEAK, markersize=7)
    axes.plot(median, places, "o", color=LEAK, markersize=4)
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xlim(left=-0.2)
    axes.xaxis.set_major_formatter("{x:,.0f}")


def _guilt(axes: Axes, audit: Audit, tasks: list[str], guilty: list[str]) -> None:
    """Draw a square for each task and table, darker with the share of samples it makes leak."""
    _plain(axes, "tables, share of samples")
    shares = np.full((len(tasks), len(guilty)), np.nan)
    samples = dict(audit.tasks.select("task", "samples").iter_rows())
    for task, table, count in audit.tables.select("task", "table", "leaking").iter_rows():
        shares[tasks.index(task), guilty.index(table)] = 100 * count / samples[task]
    image = axes.imshow(shares, aspect="auto", cmap="Reds", vmin=0, vmax=100)
    axes.set_xticks(range(len(guilty)), guilty, rotation=90, fontsize=7)
    axes.grid(visible=False)
    bar = axes.figure.colorbar(image, ax=axes, shrink=0.3, aspect=14, anchor=(0, 1))
    bar.ax.tick_params(length=0, labelsize=7, labelcolor=SOFT)
    bar.ax.set_title("%", fontsize=7, color=SOFT)
    bar.outline.set_visible(False)


def _standing(axes: Axes, audit: Audit, tasks: list[str]) -> None:
    """Draw the answers that occur in the context, and the labels of risk tasks that change."""
    _plain(axes, "answers in the context, labels, %")
    answers = audit.texts.answers
    places = [tasks.index(task) for task in answers["task"]]
    words = ("any", ANSWER_ANY, "part of the answer found"), ("all", ANSWER_ALL, "whole answer")
    for name, color, word in words:
        shares = 100 * (answers[name] / answers["examined"]).to_numpy()
        axes.barh(places, shares, height=0.66, color=color, label=word)
    if audit.labels is not None:
        compared = audit.labels.filter(pl.col("both") > 0)
        places = [tasks.index(task) for task in compared["task"]]
        shares = 100 * (compared["changed"] / compared["both"]).to_numpy()
        word = f"label changes under {OTHER[audit.protocol]}"
        axes.barh(places, shares, height=0.66, color=LABEL, label=word)
    axes.set_xlim(0, 100)
    axes.set_xticks([0, 50, 100])
    axes.legend(fontsize=7, frameon=False, labelcolor=SOFT, loc="lower right")
