"""Weigh all concepts of a record together: which items of a task does it make likely?

A lift judges a concept by itself, so that what several concepts say is counted several times. Here
each item has a ridge regression on all concepts that a record shows. Its score estimates the share
of such records whose answer has the item.

No score rests on a patient's own answers: training patients are divided into `FOLDS` parts, and
those of each part are scored by regressions on the others.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from threadpoolctl import threadpool_limits

from ehrr1.graph.concepts import Concept, Occurrence
from ehrr1.scoring.ridge import Floats, Sums, hits_of

FOLDS = 5
"""Parts of the training patients."""

MOST_CONCEPTS, MOST_ITEMS = 700, 300
"""Maximum number of a task's concepts and items that are weighed, the most frequent ones."""

MIN_COUNT = 5
"""Minimum number of training samples that show a concept."""

RECENT = 3
"""Number of the latest events whose concepts are weighed once more: what has just been done."""

PENALTIES = (0.3, 1.0, 3.0)
"""Ridge penalties, as multiples of the number of training samples."""

THRESHOLDS = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6)
"""Minimum scores of likely items."""

Marks: TypeAlias = NDArray[np.bool_]


class Weighed(NamedTuple):
    """The likeliest items of a sample, the likeliest first, and how many of them are likely.

    That many maximise the mean F1 of the task's training samples, one at least.
    """

    items: tuple[str, ...]
    likely: int


class Rows(NamedTuple):
    """Samples of one task with the concepts that their records show.

    sample_ids, subjects, answers [S]; learnt [S]: whether a sample is learnt from, or only scored.
    concepts [C] are those of all samples, codes the positions of each sample's concepts among them,
    one sample after the other, and sizes [S] their numbers.
    """

    sample_ids: list[str]
    subjects: list[int]
    answers: list[tuple[str, ...]]
    learnt: list[bool]
    concepts: list[Concept]
    codes: NDArray[np.int32]
    sizes: list[int]


def weighable(shown: Sequence[Occurrence]) -> list[Concept]:
    """Return the concepts of a record, and once more those of its `RECENT` latest events."""
    latest = {*sorted({one.event for one in shown})[-RECENT:]}
    recent = (one.concept for one in shown if one.event in latest)
    again = map(_recent, recent)
    return list(dict.fromkeys([*(one.concept for one in shown), *again]))


@lru_cache(maxsize=2**16)
def _recent(concept: Concept) -> Concept:
    return concept._replace(kind=f"recent {concept.kind}")


def joined(parts: Iterable[Rows]) -> Rows:
    """Return the rows of several parts as one, in their order."""
    found = Rows([], [], [], [], [], np.zeros(0, np.int32), [])
    places: dict[Concept, int] = {}
    codes = [found.codes]
    for part in parts:
        own = [places.setdefault(concept, len(places)) for concept in part.concepts]
        codes.append(np.array(own, np.int32)[part.codes])
        for name in ("sample_ids", "subjects", "answers", "learnt", "sizes"):
            getattr(found, name).extend(getattr(part, name))
    return found._replace(concepts=list(places), codes=np.concatenate(codes))


@threadpool_limits.wrap(limits=1)  # sums in one order, whatever the number of threads
def weigh_rows(rows: Rows, most: int) -> tuple[dict[str, Weighed], float]:
    """Return what each sample's record makes likely, by sample_id, and the F1 of likely items.

    A sample has at most `most` items; the F1 is the mean over the training samples. With fewer of
    these than `MIN_COUNT` there is nothing. Penalty and threshold are those with the highest F1,
    where each training sample is scored by regressions on other patients.
    """
    learnt = np.array(rows.learnt, dtype=bool)
    if learnt.sum() < MIN_COUNT:
        return {}, 0.0
    answers = [answer for answer, known in zip(rows.answers, rows.learnt, strict=True) if known]
    counts = Counter(item for answer in answers for item in dict.fromkeys(answer))
    items = sorted(counts, key=lambda item: (-counts[item], item))[:MOST_ITEMS]
    x, y = _features(rows, learnt), hits_of(answers, items)
    subjects = np.array(rows.subjects)[learnt]
    scores = cross_fitted(x[learnt], y, subjects)
    sizes = np.array([len({*answer}) for answer in answers])
    choices = [(penalty, threshold) for penalty in PENALTIES for threshold in THRESHOLDS]
    f1 = {(p, t): round(float(_f1(likely(scores[p], t), y, sizes)), 9) for p, t in choices}
    penalty, threshold = max(choices, key=f1.__getitem__)
    every = np.zeros((len(learnt), len(items)))
    every[learnt] = scores[penalty]
    if not learnt.all():
        every[~learnt] = Sums.of(x[learnt], y).fit(penalty).scores(x[~learnt]).round(9)
    order = np.argsort(-every, axis=1, kind="stable")[:, :most]
    numbers = likely(every, threshold).sum(axis=1)
    found = {
        name: Weighed(tuple(items[place] for place in own), min(int(number), most))
        for name, own, number in zip(rows.sample_ids, order.tolist(), numbers, strict=True)
    }
    return found, f1[penalty, threshold]


def _features(rows: Rows, learnt: Marks) -> Floats:
    """Return standardised marks of the most frequent concepts [samples, concepts]."""
    ends = np.concatenate([[0], np.cumsum(rows.sizes)])
    ones = np.ones(len(rows.codes))
    marks = sparse.csr_array((ones, rows.codes, ends), shape=(len(learnt), len(rows.concepts)))
    counts = marks[np.flatnonzero(learnt)].sum(axis=0)
    by_name = sorted(range(len(counts)), key=lambda at: (-counts[at], rows.concepts[at]))
    chosen = [at for at in by_name[:MOST_CONCEPTS] if counts[at] >= MIN_COUNT]
    x: Floats = marks[:, chosen].toarray()
    return (x - x[learnt].mean(axis=0)) / np.maximum(x[learnt].std(axis=0), 1e-9)


def cross_fitted(x: Floats, y: Floats, subjects: NDArray[np.int64]) -> dict[float, Floats]:
    """Return the scores of samples [samples, items] by regressions on other patients, by penalty.

    Patients are dealt to `FOLDS` parts in the order of their ids.
    """
    fold = np.unique(subjects, return_inverse=True)[1] % FOLDS
    scores = {penalty: np.tile(y.mean(axis=0), (len(y), 1)) for penalty in PENALTIES}
    every = Sums.of(x, y)
    for part in range(FOLDS):
        own = fold == part
        if own.any() and not own.all():
            others = every.without(Sums.of(x[own], y[own]))
            for penalty, found in scores.items():
                found[own] = others.fit(penalty).scores(x[own])
    # equal scores stay equal, and small differences between processors do not matter
    return {penalty: found.round(9) for penalty, found in scores.items()}


def likely(scores: Floats, threshold: float) -> Marks:
    """Return which items of each sample are likely [samples, items], one at least."""
    found: Marks = scores >= threshold
    found[np.arange(len(scores)), scores.argmax(axis=1)] = True
    return found


def _f1(chosen: Marks, hits: Floats, sizes: NDArray[np.int64]) -> np.floating:
    found = (chosen * hits).sum(axis=1)
    return (2 * found / (chosen.sum(axis=1) + sizes)).mean()
