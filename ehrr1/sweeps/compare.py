"""Compare the runs of a sweep, with intervals of the differences.

compare.md and compare.csv in the sweep's folder have one row per setting, with its seeds combined;
compare.json also has each seed's value. Of evaluations the intervals cover seeds and patients, as
those of `stage=eval compare=` (`evaluation.seeds`), and differences are paired; of other stages
the intervals cover seeds alone (Student's t).
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, stdev

import polars as pl
from rich.table import Table
from scipy.stats import t as student

from ehrr1.config.names import ORDER
from ehrr1.damage import check
from ehrr1.errors import UserError
from ehrr1.evaluation.aggregate import flat as with_bounds
from ehrr1.evaluation.aggregate import last_result
from ehrr1.evaluation.bootstrap import Resamples
from ehrr1.evaluation.predictions import read_predictions
from ehrr1.evaluation.scores import Replicates, score
from ehrr1.evaluation.seeds import draw_seeds, mean_over
from ehrr1.files import read_yaml, write_json, write_text
from ehrr1.runs import NOT_COMPARED, flat, metrics_of
from ehrr1.sweeps.control import chosen, wide_console
from ehrr1.sweeps.state import Entry, Sweep
from ehrr1.tasks.catalog import ALL_TASKS

METRICS = {
    "eval": ("risk/auroc/macro", "decision/f1/macro"),
    "rl": ("validation/reward/accuracy/after", "validation/reward/accuracy/gain"),
}
"""Default metrics of a stage, shown unless `metric=` is given."""

LOSSES = ("eval/loss", "train/loss/last")

REPLICATES = 1000


@dataclass
class ComparisonRow:
    """One setting of the grid with its seeds combined."""

    settings: dict[str, str]
    runs: list[str] = field(default_factory=list)
    values: dict[str, list[float]] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    """Mean over seeds, and the bounds of its interval over seeds and patients."""
    gpu_hours: float = 0.0
    hours: float = 0.0
    tokens: int = 0
    difference: str = ""

    def told(self, metric: str) -> str:
        """Return the mean over seeds with its 95 % interval, or a single value."""
        values = self.values.get(metric, [])
        if not values:
            return ""
        if metric in self.intervals:
            mean, low, high = self.intervals[metric]
            return f"{mean:.4f} [{low:.4f}, {high:.4f}] (n={len(values)})"
        if len(values) == 1:
            return f"{values[0]:.4f}"
        half = student.ppf(0.975, len(values) - 1) * stdev(values) / len(values) ** 0.5
        return f"{fmean(values):.4f} ± {half:.4f} (n={len(values)})"


def compare_sweep(book: Sweep, words: Sequence[str], metric: str | None, as_json: bool) -> int:
    """Print the finished runs side by side, or the settings in which two runs differ.

    Returns the exit code. Raises UserError if no run of the last stage is finished, or no run has
    the metric.
    """
    if words:
        return show_settings([entry for word in words for entry in chosen(book, [word])])
    entries = [entry for entry in leaves(book) if entry.done]
    if not entries:
        raise UserError(f"{book.folder.name}: no run of the last stage is finished yet")
    metrics = [metric] if metric else default_metrics(entries[0])
    rows = grouped(book, entries, metrics)
    if metric and not any(row.values.get(metric) for row in rows):
        known = sorted(name for name in metrics_of(Path(entries[0].folder)))
        near = [name for name in known if metric.split("/")[-1] in name]
        near = sorted(near, key=lambda name: (not name.endswith("/macro"), len(name)))[:10]
        raise UserError(
            f"metric={metric}: no run has it; there are {', '.join(near or known[:20])}"
        )
    lower = any(word in metrics[0] for word in ("loss", "brier", "ece", "seconds"))
    rows.sort(key=lambda row: fmean(row.values.get(metrics[0]) or [0.0]), reverse=not lower)
    tell_intervals(book, rows, metrics)
    columns, cells = table_of(rows, metrics)
    write_text(book.folder / "compare.md", markdown(columns, cells))
    pl.DataFrame(cells, schema=columns, orient="row").write_csv(book.folder / "compare.csv")
    write_json(book.folder / "compare.json", [asdict(row) for row in rows])
    if as_json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
        return 0
    show(book, columns, cells, metrics[0], rows)
    return 0


def leaves(book: Sweep) -> list[Entry]:
    """Return the runs at the ends of the chains, of the last stage."""
    entries = book.entries()
    needed = {need for entry in entries for need in entry.needs}
    ends = [entry for entry in entries if entry.run not in needed]
    last = max((ORDER.index(entry.stage) for entry in ends), default=0)
    return [entry for entry in ends if ORDER.index(entry.stage) == last]


def default_metrics(entry: Entry) -> list[str]:
    """Return the metrics that are shown by default for a run."""
    there = metrics_of(Path(entry.folder))
    wanted = METRICS.get(entry.stage, LOSSES)
    return [name for name in wanted if name in there] or ["seconds"]


def grouped(book: Sweep, entries: Sequence[Entry], metrics: Sequence[str]) -> list[ComparisonRow]:
    """Combine runs that differ only in their seed into one row."""
    rows: dict[str, ComparisonRow] = {}
    by_name = {entry.run: entry for entry in book.entries()}
    for entry in entries:
        settings = {k: v for k, v in entry.settings.items() if k != "seed"}
        row = rows.setdefault(json.dumps(settings, sort_keys=True), ComparisonRow(settings))
        row.runs.append(entry.run)
        found = metrics_of(Path(entry.folder))
        for name in metrics:
            if name in found:
                row.values.setdefault(name, []).append(found[name])
        for one in chain_of(entry, by_name):
            add_cost(row, one)
    return list(rows.values())


def chain_of(entry: Entry, by_name: dict[str, Entry]) -> list[Entry]:
    """Return a run and all runs of this sweep that it needs, directly or indirectly."""
    found = {entry.run: entry}
    for need in entry.needs:
        found |= {one.run: one for one in chain_of(by_name[need], by_name)}
    return list(found.values())


def add_cost(row: ComparisonRow, entry: Entry) -> None:
    """Add the cost of a run to a row.

    It consists of hours and GPU-hours of wall-clock time, and tokens of training.
    """
    metrics = metrics_of(Path(entry.folder)) if entry.done else {}
    hours = metrics.get("seconds", 0.0) / 3600
    row.hours += hours
    row.gpu_hours += hours * entry.job.get("gpus_per_node", 0) * entry.job.get("nodes", 1)
    row.tokens += int(metrics.get("train/tokens", 0))


def tell_intervals(book: Sweep, rows: Sequence[ComparisonRow], metrics: Sequence[str]) -> None:
    """Set each row's intervals, and its difference from the first row in the first metric.

    A replicate draws patients and, independently for each row, seeds. Scores are those of the
    samples that all runs have answered. It applies to evaluations only.
    """
    folders = {entry.run: Path(entry.folder) for entry in book.entries()}
    files = [[folders[run] / "predictions.parquet" for run in row.runs] for row in rows]
    if not all(file.exists() for group in files for file in group):
        return
    groups = [[main_rows(file) for file in group] for group in files]
    common = groups[0][0].select("task", "sample_id")
    for table in (table for group in groups for table in group):
        common = common.join(table, on=["task", "sample_id"], how="semi")
    groups = [
        [table.join(common, on=["task", "sample_id"], how="semi") for table in group]
        for group in groups
    ]
    tasks = [task for task in ALL_TASKS if (groups[0][0]["task"] == task).any()]
    resamples = Resamples.draw(groups[0][0]["subject_id"], REPLICATES, 0)
    main = set(metrics) <= set(METRICS["eval"])  # all scores take three times as long
    scores = [
        mean_over(
            [score(table, resamples, tasks, main_only=main) for table in group],
            draw_seeds(len(group), REPLICATES, 0, json.dumps(row.settings)),
        )
        for row, group in zip(rows, groups, strict=True)
    ]
    for row, found in zip(rows, scores, strict=True):
        row.intervals = interval_of({name: found[name] for name in metrics if name in found}, 0.0)
        first = metrics[0]
        if row is not rows[0] and first in found and first in scores[0]:
            gap = interval_of({first: found[first] - scores[0][first]}, -1.0)
            if first in gap:
                row.difference = "{:+.4f} [{:.4f}, {:.4f}]".format(*gap[first])


def interval_of(scores: Replicates, least: float) -> dict[str, tuple[float, float, float]]:
    """Return each score with the bounds of its interval, without those that have none.

    `least` is the smallest possible value (see `evaluation.aggregate.flat`).
    """
    found = with_bounds(scores, least)
    ends = ("", "/low", "/high")
    told = {name: [found[name + end] for end in ends if name + end in found] for name in scores}
    return {name: (some[0], some[1], some[2]) for name, some in told.items() if len(some) == 3}


def main_rows(file: Path) -> pl.DataFrame:
    """Return the predictions of the main result of an evaluation, for the scored split."""
    check(file.parent)
    split = read_yaml(file.with_name("config.yaml"))["eval"]["split"]
    table = read_predictions(file).filter(pl.col("split") == split)
    return table.filter(pl.col("model") == last_result(table))


def table_of(
    rows: Sequence[ComparisonRow], metrics: Sequence[str]
) -> tuple[list[str], list[list[str]]]:
    """Return the headings and rows of the comparison as text."""
    keys = list(dict.fromkeys(key for row in rows for key in row.settings))
    columns = [*(keys or ["run"]), *metrics, "minus the best", "hours", "GPU-hours", "tokens"]
    cells = [
        [
            *([row.settings.get(key, "") for key in keys] or [row.runs[0]]),
            *(row.told(name) for name in metrics),
            row.difference,
            f"{row.hours:.2f}",
            f"{row.gpu_hours:.2f}",
            f"{row.tokens:,}",
        ]
        for row in rows
    ]
    return columns, cells


def markdown(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [columns, ["---"] * len(columns), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def show(
    book: Sweep,
    columns: Sequence[str],
    cells: Sequence[Sequence[str]],
    metric: str,
    rows: Sequence[ComparisonRow],
) -> None:
    """Print the comparison to the terminal."""
    console = wide_console()
    table = Table(title=f"{book.folder.name}: the last stage, best {metric} first")
    for column in columns:
        table.add_column(column)
    for line in cells:
        table.add_row(*line)
    console.print(table)
    console.print(f"best: {', '.join(rows[0].runs)}", soft_wrap=True)
    console.print(f"also in {book.folder}/compare.md, .csv, .json", soft_wrap=True)


def show_settings(entries: Sequence[Entry]) -> int:
    """Print the settings in which two runs differ and return the exit code."""
    if len(entries) != 2:
        raise UserError("compare: name two runs to see in which settings they differ")
    settings = []
    for entry in entries:
        file = Path(entry.folder) / "config.yaml"
        if not file.exists():
            raise UserError(f"{entry.run}: it has not begun, there is no configuration yet")
        plain = read_yaml(file)
        settings.append({k: v for key, value in plain.items() for k, v in flat(value, key).items()})
    one, other = settings
    told = [
        [key, str(one.get(key)), str(other.get(key))]
        for key in sorted(one.keys() | other.keys())
        if one.get(key) != other.get(key) and key not in NOT_COMPARED
    ]
    print(markdown(["setting", *(entry.run for entry in entries)], told), end="")
    return 0
