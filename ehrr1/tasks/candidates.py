"""Candidate lists for models that were not trained on a task: the answer among similar items.

Items are similar if they stand in the same answers: by cosine, n(a, b) / sqrt(n(a) n(b)) over the
answers of the training split. A user may bring lists instead (`similar_items=DIR`). Answers of one
item each never stand together, and rare items have few neighbours: such lists are filled up with
the task's most frequent items, as a list of nothing but the answer would tell it.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from scipy import sparse

from ehrr1.errors import UserError
from ehrr1.records.reading import SUFFIXES, as_text, read_columns, read_header
from ehrr1.tasks.catalog import ALL_TASKS, TASKS
from ehrr1.tasks.samples import Prepared, Sample
from ehrr1.tasks.selection import select

SIMILAR = 100
"""So many items stand beside the answer at most."""
COUNTED = 100_000
"""Training samples of a task that are counted at most."""
BLOCK = 256
"""Items whose neighbours are counted by one sparse product: bounds the memory."""

ITEM = ("item", "item_name", "name", "target")
ONE = ("similar_item", "similar", "candidate")
SEVERAL = ("similar_items", "similars", "candidates")
"""Headings that are read in files of similar items: the item; one similar item a row; or a JSON
list of them in a cell. The order is that of similarity."""


@dataclass(frozen=True)
class Similar:
    """One task's items: what each is similar to, the nearest first, and all by frequency."""

    neighbours: dict[str, list[str]]
    frequent: list[str]

    def around(self, answer: tuple[str, ...]) -> list[str]:
        """At most `SIMILAR` items that are not in the answer, the nearest first.

        The nearest of each item of the answer, then the second of each, and so on; then the most
        frequent items of the task.
        """
        found: dict[str, None] = {}
        own = set(answer)
        for item in self._in_turn(answer):
            if len(found) == SIMILAR:
                break
            if item not in own:
                found[item] = None
        return list(found)

    def _in_turn(self, answer: tuple[str, ...]) -> Iterator[str]:
        lists = [self.neighbours[item] for item in answer if item in self.neighbours]
        for place in range(max(map(len, lists), default=0)):
            for neighbours in lists:
                if place < len(neighbours):
                    yield neighbours[place]
        yield from self.frequent


class Candidates:
    """`candidates(sample)`: its answer among similar items, shuffled; counted a task at a time.

    Empty for risk tasks and for texts to write. The same seed and training split give the same
    lists. `folder` holds users' lists as `<task>.csv`; tasks without a file are counted.
    """

    def __init__(self, prepared: Prepared, seed: int, folder: Path | None = None):
        self.prepared = prepared
        self.seed = seed
        self.given = {} if folder is None else read_similar(folder)
        self._similar: dict[str, Similar] = {}

    def __call__(self, sample: Sample) -> list[str]:
        task = ALL_TASKS[sample.task]
        if task.kind == "risk" or task.target == "text":
            return []
        if sample.task not in self._similar:
            self._similar[sample.task] = self._count(sample.task)
        chosen = [*sample.target, *self._similar[sample.task].around(sample.target)]
        random.Random(f"{self.seed}/{sample.sample_id}").shuffle(chosen)
        return chosen

    def _count(self, task: str) -> Similar:
        index = select(self.prepared.index("train", [task]), COUNTED, self.seed)
        answers = self.prepared.answers(index)
        neighbours = self.given.get(task)
        frequent = by_frequency(answers)
        return Similar(neighbours_of(answers) if neighbours is None else neighbours, frequent)


def by_frequency(answers: pl.DataFrame) -> list[str]:
    """The most frequent items of `answers` (`sample, item`), ties by name; enough for any answer
    of `SIMILAR` items."""
    counts = answers["item"].value_counts().sort("count", "item", descending=[True, False])
    return counts["item"].head(2 * SIMILAR).to_list()


def neighbours_of(answers: pl.DataFrame) -> dict[str, list[str]]:
    """Item -> the `SIMILAR` items nearest to it by cosine, ties by name.

    `answers` has `sample, item`. Items that stand in no answer with another have none.
    """
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
    """Task -> item -> similar items, from the files `<task>.csv` (.csv.gz, .parquet) of a folder.

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
            "that holds them, or null to count similar items in the training split"
        )
    return {task: _read_lists(path) for task, path in known.items()}


def _read_lists(path: Path) -> dict[str, list[str]]:
    columns = [name.strip().lower() for name in read_header(path)]
    item = next((name for name in ITEM if name in columns), None)
    one = next((name for name in ONE if name in columns), None)
    several = next((name for name in SEVERAL if name in columns), None)
    similar = one or several
    if item is None or similar is None:
        raise UserError(
            f"similar_items: {path} has the columns {', '.join(columns)}: give {ITEM[0]} and "
            f"{ONE[0]} (one a row, nearest first) or {SEVERAL[0]} (a JSON list)"
        )
    frame = read_columns([path], [item, similar])
    items, cells = (as_text(frame[name]).to_list() for name in (item, similar))
    lists: dict[str, list[str]] = {}
    for number, (name, cell) in enumerate(zip(items, cells, strict=True), start=2):
        if name is None or cell is None:
            raise UserError(f"similar_items: {path}, line {number}: an empty cell")
        lists.setdefault(name, []).extend([cell] if one else _list(cell, path, number))
    return lists


def _list(cell: str, path: Path, line: int) -> list[str]:
    try:
        names = json.loads(cell)
    except json.JSONDecodeError:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"similar_items: {path}, line {line}: no JSON list of names")
    return names
