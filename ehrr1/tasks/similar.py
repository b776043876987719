"""Similar items, counted in answers or read from a user's files.

Counted items are similar if they occur in the same answers, by cosine: n(a, b) / sqrt(n(a) n(b)).
"""

from pathlib import Path

import numpy as np
import polars as pl

from ehrr1.errors import UserError
from ehrr1.json_text import BadJsonError, from_json
from ehrr1.records.reading import SUFFIXES, as_text, read_columns, read_header
from ehrr1.tasks.catalog import TASKS

SIMILAR = 100
"""Maximum number of neighbours of an item."""
BLOCK = 256
"""Number of items whose neighbours are counted by one sparse product, which bounds the memory."""

ITEM = ("item", "item_name", "name", "target")
ONE = ("similar_item", "similar", "candidate")
SEVERAL = ("similar_items", "similars", "candidates")
"""Headings in files of similar items, in order of similarity.

`ITEM` is the item; `ONE` is one similar item per row, `SEVERAL` a JSON list of them in a cell.
Numbers from 0 on are columns of one neighbour each.
"""


def neighbours_of(answers: pl.DataFrame) -> dict[str, list[str]]:
    """Return item -> the `SIMILAR` items nearest to it by cosine, ties by name.

    `answers` has the columns `sample, item`. Items that never occur together with another are left
    out.
    """
    from scipy import sparse  # lazy: it takes 0.1 s, which `stage=prepare` saves

    pairs = answers.unique()
    items = pairs["item"].unique().sort()
    column = items.search_sorted(pairs["item"]).to_numpy()
    row = pairs["sample"].rank("dense").to_numpy().astype(np.int64) - 1
    shape = (int(row.max(initial=-1)) + 1, len(items))
    has = sparse.csc_array((np.ones(len(row), dtype=np.float32), (row, column)), shape=shape)
    frequency = np.bincount(column, minlength=len(items))
    names = items.to_list()
    found = {}
    for first in range(0, len(items), BLOCK):
        joint = (has[:, first : first + BLOCK].T @ has).tocsr()
        for offset in range(joint.shape[0]):
            own = slice(joint.indptr[offset], joint.indptr[offset + 1])
            others, together = joint.indices[own], joint.data[own]
            # the item's own frequency is the same for all its neighbours
            cosine = np.where(others == first + offset, -1, together / np.sqrt(frequency[others]))
            nearest = np.lexsort((others, -cosine))[:SIMILAR]
            nearest = nearest[cosine[nearest] > 0]
            if len(nearest):
                found[names[first + offset]] = [names[other] for other in others[nearest]]
    return found


def read_similar(folder: Path) -> dict[str, dict[str, list[str]]]:
    """Return task -> item -> similar items, from the files `<task>.csv` (.csv.gz, .parquet).

    Raises UserError for a folder without any, and for a file without the columns `ITEM` and `ONE`
    or `SEVERAL`.
    """
    files = {
        path.name.removesuffix(suffix): path
        for suffix in reversed(SUFFIXES)
        for path in (sorted(folder.iterdir()) if folder.is_dir() else ())
        if path.name.endswith(suffix)
    }
    known = {task: files[task] for task in TASKS if task in files}
    if not known:
        raise UserError(
            f"similar_items={folder}: no file <task>.csv of any task is there; name the folder "
            "that holds them, or null to draw among answers alone"
        )
    return {task: _read_lists(path) for task, path in known.items()}


def _read_lists(path: Path) -> dict[str, list[str]]:
    header = read_header(path)
    columns = [name.strip().lower() for name in header]
    item = next((name for name in ITEM if name in columns), None)
    one = next((name for name in ONE if name in columns), None)
    several = next((name for name in SEVERAL if name in columns), None)
    similar = one or several
    if similar is None and header[1:] and all(map(str.isdecimal, columns[1:])):
        return _read_wide(path, header)
    if item is None or similar is None:
        raise UserError(
            f"similar_items: {path} has the columns {', '.join(columns)}: give {ITEM[0]} and "
            f"{ONE[0]} (one a row, nearest first) or {SEVERAL[0]} (a JSON list), or {ITEM[0]}, 0, "
            "1, ... (a neighbour a column), as the EHR-R1 release has it"
        )
    frame = read_columns([path], [item, similar])
    items, cells = (as_text(frame[name]).to_list() for name in (item, similar))
    lists: dict[str, list[str]] = {}
    for number, (name, cell) in enumerate(zip(items, cells, strict=True), start=2):
        if name is None or cell is None:
            raise UserError(f"similar_items: {path}, line {number}: an empty cell")
        lists.setdefault(name, []).extend([cell] if one else _list(cell, path, number))
    return lists


def _read_wide(path: Path, header: list[str]) -> dict[str, list[str]]:
    """Read lists of the release: the item, then its neighbours in columns numbered from 0.

    Lists that are shorter than the longest end in empty cells.
    """
    columns = [name.strip().lower() for name in header]
    frame = read_columns([path], columns).select(pl.all().cast(pl.String))
    lists: dict[str, list[str]] = {}
    for number, (name, *near) in enumerate(frame.iter_rows(), start=2):
        if name is None:
            raise UserError(f"similar_items: {path}, line {number}: an empty cell")
        lists[name] = [other for other in near if other is not None]
    return lists


def _list(cell: str, path: Path, line: int) -> list[str]:
    try:
        names = from_json(cell)
    except BadJsonError:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"similar_items: {path}, line {line}: no JSON list of names")
    return names
