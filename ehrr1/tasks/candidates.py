"""Candidate lists for models that were not trained on a task: the answer among other answers.

The answer must not be identifiable from the list alone, without the record. Therefore a list is a
union of whole answers, the sample's own and those of other samples of its split, and all lists of a
task have the same length. Properties of the answer, such as items that occur together or items that
are absent from the training split, hold for the other answers as well.

The other answers resemble the sample's answer, and resemble each other in the same way: a step from
the answer leads to a hub, another answer that shares an item, and steps from that hub lead to
neighbouring answers. A step is as likely in one direction as in the other (`Pool.holding`), so that
an answer is exchangeable with those around its hub (the star of Besag and Clifford, 1989). Since
the neighbourhood of the hub could be recognisable in the list, the list has further hubs, each
reached by a step from a random answer, which is in the list too.
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
"""Items of a list, or twice the longest training answer if that is more; at most all items."""
HUBS = 4
"""Number of answers around which others are drawn; one of them neighbours the sample's own."""
JUMP = 0.1
"""Probability that a step leads to any answer.

Without jumps, an item that only one answer holds would always lead back to it.
"""
BATCHES = 3
"""Maximum number of batches of answers that are drawn around the hubs.

A batch is as many answers as fill two lists if they share no item; items that are still missing are
then drawn one by one.
"""
COUNTED = 100_000
"""Maximum number of samples of a task and split from which answers are drawn."""

Ints = NDArray[np.int64]


class Pool:
    """The answers of one split, as codes of items.

    `items` (pairs,) are the codes of the items, answer by answer; `sizes` (answers,) are the
    numbers of items; `holders` (pairs,) are the answers, sorted by item; `frequency` (items,) is
    the number of answers that hold each item.
    """

    def __init__(self, answers: pl.DataFrame, items: pl.Series):
        """Index the pairs of `answers` (columns `sample, item`).

        `items` are all items of the task, sorted.
        """
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
        """Return `count` random answers."""
        return rng.integers(len(self.sizes), size=count)

    def step(self, answers: Ints, rng: np.random.Generator) -> Ints:
        """Return, for each answer, another one that shares an item."""
        places = rng.integers(self.sizes[answers])
        return self.holding(self.items[self.first[answers] + places], rng)

    def of(self, answers: Ints) -> tuple[Ints, Ints]:
        """Return the items of `answers`, in their order, and the index of each one's answer."""
        sizes = self.sizes[answers]
        turn = np.repeat(np.arange(len(answers)), sizes)
        within = np.arange(len(turn)) - _starts(sizes)[turn]
        return self.items[self.first[answers][turn] + within], turn

    def holding(self, items: Ints, rng: np.random.Generator) -> Ints:
        """Return, for each item, an answer that holds it, with probability proportional to 1/size.

        With probability `JUMP` any answer is returned. Because of the weights, the step from an
        answer A to an item and on to B is as likely as that from B back: both are the sum, over the
        shared items, of 1 / (|A| |B| c), with c depending on the item only.
        """
        low, high = (self.shares[self.holders_first[items + after]] for after in (0, 1))
        place = np.searchsorted(self.shares, low + rng.random(len(items)) * (high - low), "right")
        last = self.holders_first[items + 1]  # rounding may exceed it
        found = self.holders[np.minimum(place, last) - 1]
        jumps = rng.random(len(items)) < JUMP
        return np.where(jumps, self.any(len(items), rng), found)


class Lists:
    """One task's items and answers, and the lists that are drawn from them.

    `items` are all items of the task. `answers` maps a split to a table `sample, item`. `similar`
    maps an item to the items that the user declared similar to it, nearest first.
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
        self._first = np.empty(len(items), dtype=np.int64)
        """Working memory of `_joined`: the first place of each item."""

    def most_frequent(self) -> list[str]:
        """Return the list for a question without a known answer: the training split's items.

        They are the most frequent ones, in descending order.
        """
        if "train" not in self.pools:
            return []
        frequency = self.pools["train"].frequency
        order = np.argsort(-frequency, kind="stable")[: self.length]
        return [self.names[code] for code in order if frequency[code]]

    def around(self, split: str, target: Iterable[str], rng: np.random.Generator) -> list[str]:
        """Return the target among other items, in random order.

        The target must not be longer than the list.
        """
        pool = self.pools[split]
        own = np.array([self.codes[name] for name in target])
        found = self._joined(own, own, np.zeros_like(own), rng)
        if pool.distinct > self.length:  # otherwise all items are listed
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
        """Append the items of more answers to `found`, answer by answer, up to the list's length.

        The last answer is cut at random.
        """
        if self.similar:
            items, turn = self._with_similar(items, turn)
        order = np.lexsort((rng.random(len(items)), turn))
        both = np.concatenate([found, items[order]])
        places = np.arange(len(both))
        self._first[both[::-1]] = places[::-1]  # of an item that is there twice the last one stays
        return both[self._first[both] == places][: self.length]

    def _with_similar(self, items: Ints, turn: Ints) -> tuple[Ints, Ints]:
        """Extend each answer by as many similar items as it has items.

        They are the nearest of each of its items, then the second of each, and so on.
        """
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
        """Return the items to fill up a list, drawn by frequency without replacement.

        Items of the split come first, then those of other splits, then those of the user's file.
        """
        if len(found) == self.length:
            return found[:0]
        weights = pool.frequency + 1e-6 * self.frequency + 1e-12
        race = rng.exponential(size=len(weights)) / weights
        race[found] = np.inf
        return np.argsort(race, kind="stable")[: self.length - len(found)]


class Candidates:
    """Callable that returns the candidates of a sample: its answer among others, shuffled.

    The answers of a task are read once. The list is empty for risk tasks, for texts to write, and
    for an answer that is longer than the list (`too_long` counts them by task). A sample whose
    record was read as text keeps the candidates of its row. The same seed and index give the same
    lists everywhere. `folder` holds the user's similar items as `<task>.csv`. `released` are the
    release's own lists, which are used for their tasks unless the sample has candidates of its own.
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
        """Return candidates with the lists of the release that `prepare` kept."""
        return cls(prepared, seed, released=ReleaseLists.kept(prepared.folder))

    def lacking(self, tasks: Iterable[str]) -> list[str]:
        """Return the tasks that have no list for questions without candidates of their own.

        An index of rows from files has no answers of other samples.
        """
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
        """Return the candidates of a sample."""
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
