"""Candidates as in the EHR-R1 release, from the lists in its folder.

`cache/similar_item/<task>.csv` has a task's items, each with its similar items;
`cache/item_set/<task>.csv` has the items alone. `stage=prepare` keeps both. They reveal more of an
answer than the lists of `candidates`, since the listed items are neighbours of the answer.
"""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ehrr1.files import replacing
from ehrr1.records.reading import SUFFIXES, as_text, read_columns, read_header
from ehrr1.records.release.archives import part
from ehrr1.tasks.catalog import TASKS
from ehrr1.tasks.samples import ITEM_SET, SIMILAR
from ehrr1.tasks.similar import read_similar

CACHE = "cache"

MOST = 100
"""Maximum number of items besides the answer; a task that has no more is listed as a whole."""


def keep_lists(root: Path, folder: Path, work: Path) -> None:
    """Copy the lists of the release's folder `root` to `folder`; unpack archives into `work`."""
    for name in (SIMILAR, ITEM_SET):
        lists = part(root, f"{CACHE}/{name}", work)
        if any(lists.glob("*.csv")):
            with replacing(folder / name) as temporary:
                shutil.copytree(lists, temporary)


@dataclass(frozen=True)
class ReleaseLists:
    """Similar items of each item, and all items, by task."""

    similar: dict[str, dict[str, list[str]]]
    items: dict[str, list[str]]

    @classmethod
    def kept(cls, prepare: Path) -> "ReleaseLists":
        """Return the lists that a finished `prepare` has kept.

        Raises UserError for a file that cannot be read.
        """
        similar = read_similar(prepare / SIMILAR) if (prepare / SIMILAR).is_dir() else {}
        return cls(similar, _read_items(prepare / ITEM_SET))

    def __contains__(self, task: str) -> bool:
        return task in self.similar or task in self.items

    def candidates(self, task: str, target: Iterable[str], rng: np.random.Generator) -> list[str]:
        """Return the answer among at most `MOST` similar items, in random order.

        Without similar items, or without an answer, they are any items of the task.
        """
        near = self.similar.get(task, {})
        items = list(near) or self.items[task]
        answer = list(target)
        if len(items) > MOST:
            beside = [name for item in answer for name in near.get(item, ())] or items
            items = rng.choice(beside, min(len(beside), MOST), replace=False).tolist()
        return rng.permutation(list(dict.fromkeys([*items, *answer]))).tolist()


def _read_items(folder: Path) -> dict[str, list[str]]:
    """Return task -> the distinct items of the first column of its file."""
    files = {
        path.name.removesuffix(suffix): path
        for suffix in reversed(SUFFIXES)
        for path in (sorted(folder.iterdir()) if folder.is_dir() else ())
        if path.name.endswith(suffix)
    }
    found = {}
    for task in (task for task in TASKS if task in files):
        column = read_columns([files[task]], read_header(files[task])[:1]).to_series()
        found[task] = as_text(column).drop_nulls().unique(maintain_order=True).to_list()
    return found
