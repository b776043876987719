"""Baselines that answer from a list of candidates without the record (`candidates=list`).

`list_frequency` predicts the items of the list that are most frequent in the task's training
answers. `list_only` tests whether the list reveals the answer: a logistic regression on each item's
frequency, its mean similarity to the other items of the list, whether it is new to the training
split, and the list's length. It should not score higher than `list_frequency`. A model's score
above both comes from the record.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ehrr1.evaluation.predictions import SCHEMA, WrittenAnswer, frame, prediction_row
from ehrr1.evaluation.prompt_mode import Chooser, PromptMode
from ehrr1.progress import track
from ehrr1.tasks.candidates import COUNTED
from ehrr1.tasks.catalog import ALL_TASKS
from ehrr1.tasks.samples import Prepared, Sample
from ehrr1.tasks.selection import select
from ehrr1.tasks.splits import SPLITS

LEARNT = 300
"""Maximum number of lists per task and split for fitting the baselines."""
SHARES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 24.0)
"""Candidate values of `Guess.share`: multiples of the expected number of correct items."""
LISTED = PromptMode("direct", candidates="list")
NO_LIST = "it has no list, or its answer is longer than a list"

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Listed:
    """A sample, its list of candidates, and their features [items, 4] (`Counts.features`)."""

    sample: Sample
    items: Sequence[str]
    features: Floats

    @property
    def right(self) -> NDArray[np.bool_]:
        """Return which items of the list are in the answer, [items]."""
        return np.isin(self.items, self.sample.target)


class Counts:
    """Frequencies and co-occurrence of items in a task's training answers.

    `frequency` [items] is the number of answers that hold an item, `together` [items, items]
    (sparse) the number that hold both.
    """

    def __init__(self, answers: pl.DataFrame, items: set[str]):
        """Count `items` in `answers` (columns `sample, item`)."""
        self.columns = {name: column for column, name in enumerate(sorted(items))}
        known = pl.DataFrame({"item": list(self.columns)}, schema={"item": pl.String})
        pairs = answers.unique().join(known.with_row_index("column"), on="item")
        row, column = (pairs[name].to_numpy().astype(np.int64) for name in ("sample", "column"))
        shape = (int(row.max(initial=-1)) + 1, len(items))
        has = sparse.csc_array((np.ones(len(row)), (row, column)), shape=shape)
        self.frequency = np.bincount(column, minlength=len(items)).astype(np.float64)
        self.together = (has.T @ has).tocsr()

    def features(self, items: Sequence[str]) -> Floats:
        """Return the features of a list's items, [items, 4].

        They are log(1 + frequency), the mean cosine similarity with the other items (by the
        training answers that hold both), whether no training answer holds the item, and the list's
        length.
        """
        at = [self.columns[item] for item in items]
        frequency = self.frequency[at]
        together = self.together[at][:, at].toarray()
        np.fill_diagonal(together, 0)
        scale = np.sqrt(np.maximum(frequency, 1))
        near = (together / scale / scale[:, None]).sum(axis=1) / max(1, len(at) - 1)
        length = np.full(len(at), float(len(at)))
        return np.stack([np.log1p(frequency), near, frequency == 0, length], axis=1)


@dataclass(frozen=True)
class Guess:
    """A baseline that ranks the items of a list and predicts the first ones."""

    rank: Callable[[Floats], Floats]
    """Function from features [items, 4] to scores [items]; higher scores come first."""
    size: Floats
    """Polynomial coefficients of the expected number of correct items in the list's length."""
    share: float = 1.0

    def named(self, features: Floats) -> Ints:
        """Return the indices of the predicted items, best first."""
        order = np.argsort(-self.rank(features), kind="stable")
        return order[: self.counts(len(features), [self.share])[0]]

    def counts(self, length: int, shares: Sequence[float]) -> Ints:
        """Return how many items of a list of `length` are predicted for each value of `shares`.

        They are the expected number times the share, rounded, at least 1 and at most `length`.
        """
        number = np.rint(np.polyval(self.size, length) * np.array(shares))
        return np.clip(number, 1, length).astype(np.int64)

    def best(self, lists: Sequence[Listed]) -> "Guess":
        """Return a copy with the value of `SHARES` that has the highest mean F1 on `lists`."""
        f1 = np.zeros(len(SHARES))
        for one in lists:
            right = one.right[np.argsort(-self.rank(one.features), kind="stable")]
            counts = self.counts(len(right), SHARES)
            f1 += 2 * np.cumsum(right)[counts - 1] / (counts + right.sum())
        return Guess(self.rank, self.size, SHARES[int(np.argmax(f1))])


def learn(lists: Sequence[Listed]) -> dict[str, Guess]:
    """Return both baselines by name, fitted to `lists`.

    There are none if there are no lists, or if no item or every item of them is correct.
    """
    labels = np.concatenate([one.right for one in lists]) if lists else np.zeros(0, dtype=bool)
    if labels.all() or not labels.any():
        return {}
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
    model.fit(np.concatenate([one.features for one in lists]), labels)
    sizes = np.array([one.right.sum() for one in lists])
    lengths = np.array([len(one.items) for one in lists])
    size = np.polyfit(lengths, sizes, deg=1 if len(set(lengths)) > 1 else 0)
    guesses = {
        "list_only": Guess(lambda features: model.predict_proba(features)[:, 1], size),
        "list_frequency": Guess(lambda features: features[:, 0], sizes.mean(keepdims=True)),
    }
    return {name: guess.best(lists) for name, guess in guesses.items()}


def list_baselines(
    prepared: Prepared, candidates: Chooser, samples: Sequence[Sample], split: str, seed: int
) -> pl.DataFrame:
    """Return the predictions of both baselines on the decision samples of `split`.

    They are fitted to lists of the training and the validation split, except `split` itself. Tasks
    without such lists, as those of a file without rows to train on, and free-text tasks have no
    rows. Lists that came with samples are used like ours.
    """
    by_task: dict[str, list[Sample]] = {}
    for sample in samples:
        entry = ALL_TASKS[sample.task]
        if entry.kind == "decision" and entry.target != "text":
            by_task.setdefault(sample.task, []).append(sample)
    tables = [pl.DataFrame(schema=SCHEMA)]
    for task, own in track(by_task.items(), "baselines: lists", len(by_task)):
        known = [name for name in SPLITS if name not in (split, "test")]
        pools = [select(prepared.scan(name, [task]), LEARNT, seed) for name in known]
        train = select(prepared.scan("train", [task]), COUNTED, seed)
        lists = listed(
            candidates,
            prepared.answers(train),
            {"known": [s for pool in pools for s in prepared.as_samples(pool)], "asked": own},
        )
        for name, guess in learn(lists["known"]).items():
            said = {one.sample.sample_id: answer(one, guess) for one in lists["asked"]}
            none = WrittenAnswer([], problem=NO_LIST)
            rows = [prediction_row(s, LISTED, said.get(s.sample_id, none)) for s in own]
            tables.append(frame(name, rows))
    return pl.concat(tables)


def listed(
    candidates: Chooser, answers: pl.DataFrame, samples: Mapping[str, Sequence[Sample]]
) -> dict[str, list[Listed]]:
    """Return the lists and features of each group of a task's samples.

    Samples without a list are left out. `answers` are the task's training answers (columns
    `sample, item`).
    """
    items = {
        key: [(sample, found) for sample in group if (found := candidates(sample))]
        for key, group in samples.items()
    }
    counts = Counts(answers, {i for group in items.values() for _, found in group for i in found})
    return {
        key: [Listed(sample, found, counts.features(found)) for sample, found in group]
        for key, group in items.items()
    }


def answer(one: Listed, guess: Guess) -> WrittenAnswer:
    """Return a baseline's answer to one sample."""
    return WrittenAnswer([one.items[place] for place in guess.named(one.features)])
