"""Reading of the release's index files: tasks, answers and positions in the lists of events.

    ehr_ins/ehr_ins.csv                          trains `adapt`
    ehr_ins/ehr_ins_reasoning.csv                trains `reason`; chains in the column `reasoning`
    ehr_ins/ehr_ins_rl.csv                       trains `rl`
    ehr_ins/ehr_ins_validation.csv               of this project's exports; not in the release
    ehr_bench/ehr_bench_decision_making.csv      tests
    ehr_bench/ehr_bench_risk_prediction.csv      tests

A target is JSON or a Python literal: a list of items, or one text (of risk tasks `"no"`, with its
quotes). A chain is a text, a list of drafts (the first is used), or the response of a chat
endpoint.
"""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from ehrr1.errors import UserError
from ehrr1.records.reading import as_id, as_text, as_time, read_batches, read_columns
from ehrr1.tasks.external.cells import value_of

FILES: dict[str, tuple[str, str | None]] = {
    "ehr_ins/ehr_ins.csv": ("train", "adapt"),
    "ehr_ins/ehr_ins_reasoning.csv": ("train", "reason"),
    "ehr_ins/ehr_ins_rl.csv": ("train", "rl"),
    "ehr_ins/ehr_ins_validation.csv": ("validation", None),
    "ehr_bench/ehr_bench_decision_making.csv": ("test", None),
    "ehr_bench/ehr_bench_risk_prediction.csv": ("test", None),
}
"""File -> the split of its rows, and the stage that they train (None: no specific stage)."""

REASONING = "ehr_ins/ehr_ins_reasoning.csv"

NUMBERS = ("subject_id", "hadm_id", "period_begin", "period_end")
PLACES = ("admissions_id", "last_discharge_id")
TOLD = ("prediction_time", "stay_id")
"""Columns of this project's exports that the release does not have."""


def read_release_index(root: Path) -> pl.DataFrame:
    """Read the rows of all index files, with `split` and `stage`.

    Ids and positions are integers, other cells are text. Raises UserError if there is no such file,
    or one lacks a column.
    """
    parts = [
        _read(root / name).with_columns(
            pl.lit(split).alias("split"), pl.lit(stage, pl.String).alias("stage")
        )
        for name, (split, stage) in FILES.items()
        if (root / name).is_file()
    ]
    if not parts:
        raise UserError(f"data.root={root}: none of {', '.join(FILES)} is there")
    return pl.concat(parts)


def _read(path: Path) -> pl.DataFrame:
    optional = TOLD if set(TOLD) <= _header(path) else ()
    return typed(read_columns([path], [*NUMBERS, *PLACES, "task", "target", *optional]))


def typed(frame: pl.DataFrame) -> pl.DataFrame:
    """Convert cells of an index file to integers, times and texts.

    Columns that only this project's exports have are null if missing.
    """
    has_stays = "stay_id" in frame.columns
    return frame.select(
        *(as_id(frame[name]) for name in (*NUMBERS, *PLACES)),
        as_text(frame["task"]),
        as_text(frame["target"]).alias("answer"),
        as_time(frame["prediction_time"])
        if has_stays
        else pl.lit(None, pl.Datetime("us")).alias("prediction_time"),
        as_id(frame["stay_id"]) if has_stays else pl.lit(None, pl.Int64).alias("stay_id"),
    )


def _header(path: Path) -> set[str]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return set(next(csv.reader(file), []))


def reasoning_batches(root: Path) -> Iterator[tuple[pl.DataFrame, list[str | None]]]:
    """Yield the rows of the file of chains in batches, each with its cells of `reasoning`."""
    path = root / REASONING
    if path.is_file() and "reasoning" in _header(path):
        columns = [*NUMBERS, *PLACES, "task", "target", "reasoning"]
        for batch in read_batches([path], columns):
            yield typed(batch), as_text(batch["reasoning"]).to_list()


def items_of(cell: str | None) -> list[str]:
    """Return a target as a list of texts: JSON, a Python literal, or the text as a single item."""
    text = (cell or "").strip()
    if text in ("", "nan"):
        return []
    try:
        value = value_of(text)
    except ValueError:
        return [text]
    if isinstance(value, list | tuple | set):
        return [str(item) for item in value]
    return [value if isinstance(value, str) else text]


def chain_of(cell: Any) -> str | None:
    """Return the chain in a cell of `reasoning`, or None."""
    value = cell
    # A Markdown text may be valid Python too: `## Reasoning` is a comment.
    if isinstance(cell, str) and cell.lstrip()[:1] in ("[", "{"):
        try:
            value = value_of(cell)
        except ValueError:
            value = cell
    if isinstance(value, list) and value:
        value = value[0]
    elif isinstance(value, dict):
        try:
            value = value["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            return None
    return value.strip() or None if isinstance(value, str) else None
