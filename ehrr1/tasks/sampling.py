"""Sampling of the index in `stage=prepare`: numbers per task, balance, and selected patients.

Pure functions on the index; files of users are read and checked here too. A number applies to each
split separately. Balancing changes the training split only: validation and test always keep their
natural prevalence. Rows that were drawn for balance are marked in `balanced`, so that no AUPRC is
reported for them.
"""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl

from ehrr1.errors import UserError
from ehrr1.json_text import BadJsonError, from_json, id_of, is_id
from ehrr1.tasks.catalog import OWN, TASKS
from ehrr1.tasks.selection import RISK, rank, select

Balance = Literal["none", "weights", "force"]
Limits = Mapping[str, int | None]
"""Task -> maximum number of its samples in each split; None: all."""

YES_OR_NO = (*RISK, OWN)
"""Tasks whose answer is yes or no."""

BALANCED = (*YES_OR_NO, "chartevents", "emar", "next_event")
"""Tasks with few or very unequal labels, the only ones that EHR-R1 balances."""

SHOWN = 5
"""Wrong entries of a list of patients that an error names."""

SHOWN_CHARS = 60
"""Characters of a wrong value that an error shows."""

ALL = -1
"""Number that means all samples in a file of numbers."""


def read_limits(path: Path) -> dict[str, int | None]:
    """Read numbers per task from a JSON object `{task: n}`; -1 means all.

    As in the release, tasks that are not listed get 0. Raises UserError for a malformed file,
    unknown tasks and invalid numbers.
    """
    given = _json(path, "data.sampling")
    if not isinstance(given, dict):
        raise UserError(f'data.sampling={path}: a JSON object {{"task": number}} is needed')
    problems = [f"{name[:SHOWN_CHARS]} is no task" for name in given if name not in TASKS]
    problems += [
        f"{name}: {str(number)[:SHOWN_CHARS]} is no whole number of at least 0, or {ALL} for all"
        for name, number in given.items()
        if not is_id(number) and (number != ALL or not isinstance(number, int))
    ]
    if problems:
        raise UserError(f"data.sampling={path}: {'; '.join(problems)}")
    return {task: None if (n := given.get(task, 0)) == ALL else n for task in TASKS}


def read_subjects(path: Path, setting: str = "data.subjects_file") -> pl.Series:
    """Return the distinct patients of a file, sorted.

    The file has one id per line, or is a .csv with `subject_id`, or a .json list. A first line
    `subject_id` is a heading in every kind of text. Raises UserError for a file that does not
    exist, contains no ids, or contains anything else.
    """
    if path.suffix == ".json":
        cells = _json(path, setting)
        if not isinstance(cells, list):
            raise UserError(f"{setting}={path}: a JSON list of subject_ids is needed")
    else:
        cells = _column(path, setting)
    ids = [id_of(cell.strip() if isinstance(cell, str) else str(cell)) for cell in cells]
    wrong = [number for number, one in enumerate(ids, start=1) if one is None]
    if wrong:
        told = f"{', '.join(map(str, wrong[:SHOWN]))}{', ...' * (len(wrong) > SHOWN)}"
        raise UserError(
            f"{setting}={path}: {len(wrong)} of {len(cells)} entries are no "
            f"subject_id (a whole number), as number {told}: one a line, a .csv with the column "
            "subject_id, or a .json list"
        )
    if not ids:
        raise UserError(f"{setting}={path}: it names no patient")
    return pl.Series("subject_id", ids, dtype=pl.Int64).unique().sort()


@dataclass(frozen=True)
class Draw:
    """Parameters of a draw: limits, balance, seed and share.

    `limits` are the maximum numbers of samples per task; `share` is a share of these numbers (of
    all samples for tasks without one).
    """

    limits: Limits
    balance: Balance
    seed: int
    share: float | None = None

    @property
    def takes_all(self) -> bool:
        """Return whether the draw keeps all samples."""
        no_limits = all(limit is None for limit in self.limits.values())
        return self.balance == "none" and self.share is None and no_limits

    @property
    def by_rank(self) -> bool:
        """Return whether the draw of several shards is a draw from the draws of each."""
        return self.balance == "none" and self.share is None

    def __call__(self, index: pl.DataFrame) -> pl.DataFrame:
        """Return the samples of `index` that are drawn (see `draw`)."""
        return draw(index, self.limits, self.balance, self.seed, self.share)


def draw(
    index: pl.DataFrame, limits: Limits, balance: Balance, seed: int, share: float | None = None
) -> pl.DataFrame:
    """Draw at most `limits` samples of each task and split, in the index's order, with `balanced`.

    `share` applies to each limit, as in the release, and for a task without a limit to the number
    of samples of each split; at least one sample is drawn if the limit is not 0.

    The columns used are `task, split, context_id, sample_id, target` (lists of codes or names).
    Every draw is ordered by the rank of `selection`: samples of one context stay together, and a
    smaller draw is part of a larger one. In the training split and for the tasks of `BALANCED`

    - "weights" draws by 1 / the mean frequency of a sample's labels, without replacement;
    - "force" draws equally many "yes" and "no" of each risk task, and the decision tasks by
      weights, as in the release.
    """
    index = index.with_row_index("position")
    to_balance = (
        (pl.col("split") == "train") & pl.col("task").is_in(BALANCED) & pl.lit(balance != "none")
    ).alias("balanced")
    index = index.with_columns(to_balance)
    parts = []
    for (_, balanced), rows in index.group_by("split", "balanced", maintain_order=True):
        own = limits if share is None else _of_share(rows, limits, share)
        if not balanced:
            everything = all(limit is None for limit in own.values())
            parts.append(select(rows, None if everything else own, seed))
        elif balance == "weights":
            parts.append(_by_weight(rows, own, seed))
        else:
            risk = pl.col("task").is_in(YES_OR_NO)
            parts.append(select(rows.filter(risk), own, seed, balance=True))
            parts.append(_by_weight(rows.filter(~risk), own, seed))
    drawn = pl.concat(parts) if parts else index
    return drawn.sort("position").drop("position")


def _of_share(rows: pl.DataFrame, limits: Limits, share: float) -> Limits:
    """Return the numbers that correspond to a share of each task's limit or samples."""
    samples = dict(rows["task"].value_counts().iter_rows())
    whole = {task: n if (n := limits[task]) is not None else samples[task] for task in samples}
    return {task: max(min(count, 1), round(share * count)) for task, count in whole.items()}


def _by_weight(rows: pl.DataFrame, limits: Limits, seed: int) -> pl.DataFrame:
    """Draw without replacement by weight: the lowest of -log(u) / w (Efraimidis and Spirakis)."""
    uniform = (rank(seed).cast(pl.Float64) + 0.5) / 2.0**64
    frequency = _labels(rows).group_by("position").agg(pl.col("frequency").mean())
    ranked = rows.join(frequency, on="position", how="left").with_columns(
        (-uniform.log() * pl.col("frequency")).alias("key")
    )
    return _first(ranked.sort("key", "sample_id"), limits, rows.columns)


def _first(ordered: pl.DataFrame, limits: Limits, columns: list[str]) -> pl.DataFrame:
    limit = pl.col("task").replace_strict(dict(limits), return_dtype=pl.Int64)
    nth = pl.int_range(pl.len()).over("task")
    return ordered.filter(limit.is_null() | (nth < limit)).select(columns)


def _labels(rows: pl.DataFrame) -> pl.DataFrame:
    """Return one row per sample and label, with the label's share of the task's samples."""
    pairs = rows.select("position", "task", "target").explode("target").unique(maintain_order=True)
    samples = rows.group_by("task").len("samples")
    counts = pairs.group_by("task", "target").len("having")
    return (
        pairs.join(counts, on=["task", "target"])
        .join(samples, on="task")
        .with_columns((pl.col("having") / pl.col("samples")).alias("frequency"))
    )


def _json(path: Path, setting: str) -> object:
    try:
        return from_json(_text(path, setting))
    except BadJsonError as error:
        raise UserError(f"{setting}={path}: it is {error}: mend the file") from None


def _text(path: Path, setting: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{setting}={path}: it cannot be read ({error}): name a text file"
        ) from None


def _column(path: Path, setting: str) -> list[str]:
    """Return the column `subject_id` of a table, or the only column of a file without a heading."""
    lines = [row for row in csv.reader(_text(path, setting).splitlines()) if any(row)]
    heading = [name.strip().lower() for name in lines[0]] if lines else []
    if "subject_id" in heading:
        place = heading.index("subject_id")
        return [row[place] if place < len(row) else "" for row in lines[1:]]
    if any(len(row) > 1 for row in lines):
        raise UserError(
            f"{setting}={path}: it has several columns, none named subject_id: name that column"
        )
    return [row[0] for row in lines]
