"""Baselines for decision tasks: frequency, copy-forward, nearest neighbours, a linear model."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from ehrr1.evaluation.baselines.bag_table import Bags, Floats
from ehrr1.evaluation.baselines.risk import filled
from ehrr1.evaluation.baselines.tuning import by_task, fitted_and_tuned
from ehrr1.evaluation.predictions import DIRECT, WrittenAnswer, prediction_row
from ehrr1.scoring.ridge import Sums, hits_of
from ehrr1.tasks.catalog import ALL_TASKS
from ehrr1.tasks.samples import Sample

MAX_K = 50
"""Maximum number of items in an answer."""

MAX_ITEMS = 500
"""Number of a task's most frequent items that are ranked."""

NEIGHBOURS = (30, 10, 100)
"""Numbers of neighbours."""

PENALTIES = (1.0, 0.1, 10.0)
"""Ridge penalties, as multiples of the number of training samples."""

THRESHOLDS = (0.3, 0.05, 0.1, 0.15, 0.2, 0.25, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 2.0)
"""Minimum scores of predicted items; 2: only the item with the highest score is predicted."""

QUERIES_AT_ONCE = 256

Answers = list[list[str]]
Scores = NDArray[np.float64]


class Frequency:
    """A baseline that predicts the k most frequent items of a task's training targets.

    All samples of a task get the same answer. k maximises the mean F1 on the training samples; of
    equally good values the smallest is taken. Predicting every item that was ever seen would be too
    weak a baseline for set answers.
    """

    def __init__(self, train: Sequence[Sample]):
        """Choose the answer of each task from its training samples."""
        self.answers = {
            task: most_frequent([sample.target for sample in samples])
            for task, samples in by_task(train).items()
        }

    def predict(
        self, samples: Sequence[Sample], repeated: Mapping[str, list[str]] | None = None
    ) -> list[dict[str, Any]]:
        """Return one row per sample; samples of free-text tasks are left out.

        The answer is empty for a task without training samples. An answer in `repeated`, by
        sample_id, replaces the frequent items (copy-forward) unless it is empty.
        """
        known = repeated or {}
        return [
            prediction_row(
                sample,
                DIRECT,
                WrittenAnswer(known.get(sample.sample_id) or self.answers.get(sample.task, [])),
            )
            for sample in listed(samples)
        ]


def listed(samples: Sequence[Sample]) -> list[Sample]:
    """Return the samples whose answer is a list of items, not a text."""
    return [sample for sample in samples if ALL_TASKS[sample.task].target != "text"]


def most_frequent(targets: Sequence[Sequence[str]]) -> list[str]:
    """Return the k most frequent items, with the k that maximises the mean F1 on `targets`.

    Items are stripped and lower-cased, as in scoring. k is at most `MAX_K`.
    """
    sets = [scored_items(target) for target in targets]
    ranked = ranked_items(sets)[:MAX_K]
    hits = hits_of(sets, ranked)
    f1 = prefix_f1(hits, sets).mean(axis=0)
    return ranked[: int(np.argmax(f1)) + 1]


def scored_items(target: Sequence[str]) -> set[str]:
    """Return the items of an answer, stripped and lower-cased."""
    return {item.strip().lower() for item in target}


def ranked_items(sets: Sequence[set[str]]) -> list[str]:
    """Return all items, the most frequent ones first."""
    counts = Counter(item for target in sets for item in target)
    return sorted(counts, key=lambda item: (-counts[item], item))


def prefix_f1(hits: Floats, sets: Sequence[set[str]]) -> Floats:
    """Return the F1 of predicting the first 1, 2, ... items [sets, items].

    `hits` [sets, items] says whether each item, in the order of prediction, is in the set.
    """
    size = np.array([len(target) for target in sets])[:, None]
    k = np.arange(1, hits.shape[1] + 1)[None, :]
    found: Floats = 2 * np.cumsum(hits, axis=1) / (size + k)
    return found


@dataclass(frozen=True)
class DecisionData:
    """One task: its samples, the bags of all of them, and the answers to learn.

    `hits` [training samples, items] are the training answers among the `items`.
    """

    train: list[Sample]
    tune: list[Sample]
    asked: list[Sample]
    bags: Bags
    max_features: int
    items: list[str]
    hits: Floats

    def best(self, candidates: Iterator[tuple[Scores, Scores]]) -> Answers:
        """Return the answers of the candidate and the threshold with the highest F1.

        A candidate is its scores [samples, items] of the samples to tune on and of the samples that
        are asked. Of equally good ones the first is taken, as it is without samples to tune on.
        """
        sets = [scored_items(sample.target) for sample in self.tune]
        best, answers = -1.0, []
        for tuned, asked in candidates:
            # equal scores stay equal, and small differences between processors do not matter
            tuned, asked = tuned.round(9), asked.round(9)
            order = first_items(tuned)
            ranked = np.take_along_axis(tuned, order, axis=1)
            hits = np.take_along_axis(hits_of(sets, self.items), order, axis=1)
            f1 = prefix_f1(hits, sets)
            for threshold in THRESHOLDS:
                count = np.maximum((ranked >= threshold).sum(axis=1), 1)
                mean = float(f1[np.arange(len(sets)), count - 1].mean()) if sets else 0.0
                if round(mean, 9) > best:
                    best, answers = round(mean, 9), self.answers(asked, threshold)
        return answers

    def answers(self, scores: Scores, threshold: float) -> Answers:
        """Return the items of each sample with a score of at least `threshold`, one at least."""
        return [
            [self.items[i] for n, i in enumerate(order) if n == 0 or row[i] >= threshold]
            for row, order in zip(scores, first_items(scores), strict=True)
        ]


Ranking = Callable[[DecisionData], Iterator[tuple[Scores, Scores]]]
"""Function from the data of a task to candidates, as `DecisionData.best` takes them."""


@threadpool_limits.wrap(limits=1)  # sums in one order, whatever the number of threads
def decision_rows(
    ranking: Ranking,
    train: Sequence[Sample],
    validation: Sequence[Sample],
    samples: Sequence[Sample],
    bags: Bags,
    max_features: int,
) -> list[dict[str, Any]]:
    """Return one row per sample; free-text tasks and tasks without training samples are left out.

    Samples have the most frequent items as their answer if no feature is left.
    """
    rows, tuning, asked = [], by_task(listed(validation)), by_task(listed(samples))
    for task, own in by_task(listed(train)).items():
        if task not in asked:
            continue
        fit, tune = fitted_and_tuned(own, tuning.get(task, []))
        fit = fit or own  # few-shot sets are too small to be divided
        sets = [scored_items(sample.target) for sample in fit]
        items = ranked_items(sets)[:MAX_ITEMS]
        hits = hits_of(sets, items)
        data = DecisionData(fit, tune, asked[task], bags, max_features, items, hits)
        if len(bags.columns(fit, max_features)):
            answers = data.best(ranking(data))
        else:
            answers = [most_frequent([s.target for s in fit])] * len(asked[task])
        told = zip(asked[task], answers, strict=True)
        rows += [prediction_row(sample, DIRECT, WrittenAnswer(items)) for sample, items in told]
    return rows


def neighbours(data: DecisionData) -> Iterator[tuple[Scores, Scores]]:
    """Yield for each number of neighbours the share of them that have each item.

    Neighbours are the training samples with the highest cosine similarity of log(1 + count),
    weighted by inverse frequency. Their shares are weighted by the similarity.
    """
    columns = data.bags.columns(data.train, len(data.bags.table.ids))
    counts = partial(data.bags.sparse_counts, columns=columns)
    known = counts(data.train)
    frequency = np.bincount(known.indices, minlength=known.shape[1])
    inverse = np.log(1 + len(data.train) / np.maximum(frequency, 1))
    known = normalised(known, inverse)
    near = [nearest(normalised(counts(s), inverse), known) for s in (data.tune, data.asked)]
    for number in NEIGHBOURS:
        tuned, asked = (shares(order, weight, number, data.hits) for order, weight in near)
        yield tuned, asked


def linear(data: DecisionData) -> Iterator[tuple[Scores, Scores]]:
    """Yield for each penalty the scores of ridge regressions, one for each item.

    Features are standardised, and missing numbers are replaced by the mean.
    """
    columns = data.bags.columns(data.train, data.max_features)
    scaler = StandardScaler()
    x = filled(scaler.fit_transform(data.bags.matrix(data.train, columns)))
    sums = Sums.of(x, data.hits)
    tuned, asked = (
        filled(scaler.transform(data.bags.matrix(s, columns))) if s else np.zeros((0, len(columns)))
        for s in (data.tune, data.asked)
    )
    for penalty in PENALTIES:
        fitted = sums.fit(penalty)
        yield fitted.scores(tuned), fitted.scores(asked)


def first_items(scores: Scores) -> NDArray[np.int64]:
    """Return the indices of the `MAX_K` highest scores of each row, the highest first."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :MAX_K]


def normalised(counts: sparse.csr_array, inverse: Floats) -> sparse.csr_array:
    """Return weighted counts with rows of length 1; empty rows stay empty."""
    weighted = sparse.csr_array(counts * inverse[None, :])
    length = np.sqrt((weighted * weighted).sum(axis=1))
    return sparse.csr_array(weighted * (1 / np.maximum(length, 1e-12))[:, None])


def nearest(asked: sparse.csr_array, known: sparse.csr_array) -> tuple[NDArray[np.int64], Floats]:
    """Return the rows of `known` nearest to each row of `asked`, and their similarities.

    Both have the shape [rows of `asked`, largest number of `NEIGHBOURS`].
    """
    most = min(max(NEIGHBOURS), known.shape[0])
    orders, weights = [np.zeros((0, most), np.int64)], [np.zeros((0, most))]
    for start in range(0, asked.shape[0], QUERIES_AT_ONCE):
        similar = (asked[start : start + QUERIES_AT_ONCE] @ known.T).toarray().round(9)
        orders.append(np.argsort(-similar, axis=1, kind="stable")[:, :most])
        weights.append(np.take_along_axis(similar, orders[-1], axis=1))
    return np.concatenate(orders), np.concatenate(weights)


def shares(order: NDArray[np.int64], weight: Floats, number: int, hits: Floats) -> Scores:
    """Return the weighted share of the first neighbours that have each item [samples, items].

    `order` and `weight` [samples, neighbours] are those of `nearest`.
    """
    weight = weight[:, :number] + 1e-9  # samples that resemble nothing have neighbours as well
    row = np.repeat(np.arange(len(order)), weight.shape[1])
    weight = (weight / weight.sum(axis=1, keepdims=True)).ravel()
    place = (row, order[:, :number].ravel())
    found: Scores = sparse.csr_array((weight, place), shape=(len(order), len(hits))) @ hits
    return found
