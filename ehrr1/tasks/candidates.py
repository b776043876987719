"""Candidate lists for models that were not trained on a task: the answer among others' answers.

Whoever sees the list alone, and not the record, should not find the answer in it. So a list is a
union of whole answers, the sample's own and those of other samples of its split, and all lists of
a task are equally long. What holds of the answer, that its items stand together, that some are
new to the training split, holds of the others as well.

The others are like it, and like each other in the same way: from the answer a step leads to a hub,
another answer that shares an item, and steps from that hub to answers beside it. A step is as
likely forth as back (`Pool.holding`), so an answer and those around its hub could change places
(the star of Besag and Clifford, 1989). As what surrounds the hub might still be seen in the list,
other hubs stand beside it, each reached by a step from an answer drawn at random, which is in the
list too.
"""

import math
from collections import Counter
from collections.abc import Iterable
from hashlib import sha256
from itertools import zip_longest
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ehrr1.tasks.catalog import ALL_TASKS
from ehrr1.tasks.release.lists import ReleaseLists
from ehrr1.tasks.samples import NAMES, Prepared, Sample
from ehrr1.tasks.selection import select
from ehrr1.tasks.similar import read_similar
from ehrr1.tasks.splits import SPLITS

LENGTH = 100
"""Items of a list, where twice the longest training answer is not more, and all items not fewer."""
HUBS = 4
"""Answers around which others are drawn, one of them beside the sample's own."""
JUMP = 0.1
"""How often a step leads to any answer: items that one answer holds lead back to it alone."""
BATCHES = 3
"""Answers are drawn around the hubs as many at a time as fill two lists if they share nothing, and
so often at most; what is missing then is drawn item by item."""
COUNTED = 100_000
"""Samples of a task and split that are drawn from at most."""

Ints = NDArray[np.int64]


class Pool:
    """The answers of one split, as codes of items."""

    def __init__(self, answers: pl.DataFrame, items: pl.Series):
        """`answers` has `sample, item`; `items` are all of the task's, sorted."""
        pairs = answers.unique().sort("sample", "item")
        holder = pairs["sample"].rank("dense").to_numpy().astype(np.int64) - 1
        self.items = items.search_sorted(pairs["item"]).to_numpy().astype(np.int64)
        self.sizes = np.bincount(holder)
        self.mean_size = len(self.items) / len(self.sizes)
        self.first = _starts(self.sizes)
        order = np.argsort(self.items, kind="stable")
        self.holders = holder[order]
        self.frequency = np.bincount(self.items, minlength=len(items))
        self.distinct = int(np.count_nonzero(self.frequency))
        self.holders_first = _starts(self.frequency)
        self.shares = np.concatenate([[0.0], np.cumsum(1 / self.sizes[self.holders])])

    def any(self, count: int, rng: np.random.Generator) -> Ints:
        """Answers drawn at random."""
        return rng.integers(len(self.sizes), size=count)

    def step(self, answers: Ints, rng: np.random.Generator) -> Ints:
        """From each answer to another that shares an item."""
        places = rng.integers(self.sizes[answers])
        return self.holding(self.items[self.first[answers] + places], rng)

    def of(self, answers: Ints) -> tuple[Ints, Ints]:
        """The items of some answers, one after the other, and the place of each one's answer."""
        sizes = self.sizes[answers]
        turn = np.repeat(np.arange(len(answers)), sizes)
        within = np.arange(len(turn)) - _starts(sizes)[turn]
        return self.items[self.first[answers][turn] + within], turn

    def holding(self, items: Ints, rng: np.random.Generator) -> Ints:
        """For each item an answer that holds it, by 1 / the answer's size; now and then any.

        By the sizes the step from an answer to its item and on to B is as likely as that from B
        back: both are the sum, over the items that they share, of 1 / (|A| |B| c), c of the item.
        """
        low, high = (self.shares[self.holders_first[items + after]] for after in (0, 1))
        place = np.searchsorted(self.shares, low + rng.random(len(items)) * (high - low), "right")
        last = self.holders_first[items + 1]  # rounding may reach beyond
        found = self.holders[np.minimum(place, last) - 1]
        jumps = rng.random(len(items)) < JUMP
        return np.where(jumps, self.any(len(items), rng), found)


class Lists:
    """One task's items and answers, and the lists that are drawn from them.

    `items`: all of the task's. `answers`: split -> the table `sample, item`. `similar`: an item ->
    those that the user calls similar to it, nearest first.
    """

    def __init__(
        self, items: pl.Series, answers: dict[str, pl.DataFrame], similar: dict[str, list[str]]
    ):
        given = [name for key, names in similar.items() for name in (key, *names)]
        items = pl.concat([items, pl.Series(given, dtype=pl.String)]).unique().sort()
        self.names: list[str] = items.to_list()
        self.codes = {name: code for code, name in enumerate(self.names)}
        self.similar = {
            self.codes[key]: [self.codes[name] for name in names] for key, names in similar.items()
        }
        self.pools = {split: Pool(table, items) for split, table in answers.items() if len(table)}
        self.frequency = np.zeros(len(items), dtype=np.int64)
        for pool in self.pools.values():
            self.frequency += pool.frequency
        longest = int(self.pools["train"].sizes.max()) if "train" in self.pools else 0
        self.length = min(len(items), max(LENGTH, 2 * longest))

    def most_frequent(self) -> list[str]:
        """The list for a question whose answer nobody knows: the training split's items."""
        if "train" not in self.pools:
            return []
        frequency = self.pools["train"].frequency
        order = np.argsort(-frequency, kind="stable")[: self.length]
        return [self.names[code] for code in order if frequency[code]]

    def around(self, split: str, target: Iterable[str], rng: np.random.Generator) -> list[str]:
        """The target, which is no longer than the list, among others; in no order."""
        pool = self.pools[split]
        own = np.array([self.codes[name] for name in target])
        found = self._joined(own, own, np.zeros_like(own), rng)
        if pool.distinct > self.length:  # else all of them are listed
            others = pool.any(HUBS - 1, rng)
            held = own[pool.frequency[own] > 0]
            first = pool.holding(rng.choice(held, 1), rng) if len(held) else pool.any(1, rng)
            hubs = np.append(first, pool.step(others, rng))
            each = math.ceil(2 * self.length / pool.mean_size / HUBS)
            found = self._joined(found, *pool.of(others), rng)
            for _ in range(BATCHES):
                if len(found) < self.length:
                    drawn = pool.step(np.tile(hubs, each), rng)
                    found = self._joined(found, *pool.of(drawn), rng)
        found = np.append(found, self._missing(found, pool, rng))
        return [self.names[code] for code in rng.permutation(found)]

    def _joined(self, found: Ints, items: Ints, turn: Ints, rng: np.random.Generator) -> Ints:
        """`found` and the items of more answers, in turn, as far as there is room; of the last one
        any items."""
        if self.similar:
            items, turn = self._with_similar(items, turn)
        order = np.lexsort((rng.random(len(items)), turn))
        both = np.concatenate([found, items[order]])
        return both[np.sort(np.unique(both, return_index=True)[1])][: self.length]

    def _with_similar(self, items: Ints, turn: Ints) -> tuple[Ints, Ints]:
        """Each answer and as many similar items: the nearest of each of its items, then the second
        of each, ..."""
        answers: dict[int, list[int]] = {}
        for item, place in zip(items.tolist(), turn.tolist(), strict=True):
            answers.setdefault(place, []).append(item)
        for answer in answers.values():
            lists = [self.similar.get(item, []) for item in answer]
            near = (item for rank in zip_longest(*lists) for item in rank if item is not None)
            answer.extend(list(dict.fromkeys(near))[: len(answer)])
        sizes = [len(answer) for answer in answers.values()]
        return np.concatenate(list(answers.values())), np.repeat(list(answers), sizes)

    def _missing(self, found: Ints, pool: Pool, rng: np.random.Generator) -> Ints:
        """Add what a list lacks, by frequency: the split's items, then others', then the user's."""
        if len(found) == self.length:
            return found[:0]
        weights = pool.frequency + 1e-6 * self.frequency + 1e-12
        race = rng.exponential(size=len(weights)) / weights
        race[found] = np.inf
        return np.argsort(race, kind="stable")[: self.length - len(found)]


class Candidates:
    """`candidates(sample)`: its answer among others, shuffled; a task's answers are read once.

    Empty for risk tasks, for texts to write, and for an answer that is longer than the list
    (`too_long` counts them by task). A sample that came with its record as a text has those that
    came with it. The same seed and index give the same lists everywhere. `folder` holds users'
    similar items as `<task>.csv`. `released` are the release's own lists, which stand instead
    where it has one of the task and the sample brings none.
    """

    def __init__(
        self,
        prepared: Prepared,
        seed: int,
        folder: Path | None = None,
        released: ReleaseLists | None = None,
    ):
        self.prepared = prepared
        self.seed = seed
        self.released = released or ReleaseLists({}, {})
        self.given = {} if folder is None else read_similar(folder)
        self.too_long: Counter[str] = Counter()
        self._lists: dict[str, Lists] = {}

    @classmethod
    def of(cls, prepared: Prepared, seed: int) -> "Candidates":
        """With the lists of the release that `prepare` has kept."""
        return cls(prepared, seed, released=ReleaseLists.kept(prepared.folder))

    def lacking(self, tasks: Iterable[str]) -> list[str]:
        """Those of the tasks that have no list where a question brings none: the rows of a file
        come without the answers of others."""
        if (self.prepared.folder / NAMES).exists():
            return []
        return [
            task
            for task in dict.fromkeys(tasks)
            if ALL_TASKS[task].kind == "decision"
            and ALL_TASKS[task].target != "text"
            and task not in self.released
        ]

    def __call__(self, sample: Sample) -> list[str]:
        task = ALL_TASKS[sample.task]
        listed = task.kind == "decision" and task.target != "text" and not sample.candidates
        if listed and sample.task in self.released:
            return self.released.candidates(sample.task, sample.target, self._random(sample))
        if sample.text_row is not None or not listed:
            return list(sample.candidates)
        if sample.task not in self._lists:
            self._lists[sample.task] = self._read(sample.task)
        lists = self._lists[sample.task]
        if not sample.target:
            return lists.most_frequent()
        if len(sample.target) > lists.length:
            self.too_long[sample.task] += 1
            return []
        return lists.around(sample.split, sample.target, self._random(sample))

    def _random(self, sample: Sample) -> np.random.Generator:
        word = f"{self.seed}/{sample.sample_id}".encode()
        return np.random.default_rng(int.from_bytes(sha256(word).digest()[:8], "big"))

    def _read(self, task: str) -> Lists:
        codes = self.prepared.scan(None, [task]).select(pl.col("target").explode().unique())
        names = pl.Series(self.prepared.names, dtype=pl.String)
        items = names.gather(codes.collect()["target"].drop_nulls())
        answers = {
            split: self.prepared.answers(
                select(self.prepared.scan(split, [task]), COUNTED, self.seed)
            )
            for split in SPLITS
        }
        return Lists(items, answers, self.given.get(task, {}))


def _starts(sizes: Ints) -> Ints:
    return np.concatenate([[0], np.cumsum(sizes)])
