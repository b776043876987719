"""Baselines without a language model, evaluated on the same samples."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from ehrr1.evaluation.baselines.text_bags import text_bag
from ehrr1.evaluation.predictions import (
    DIRECT,
    WrittenAnswer,
    YesProbability,
    prediction_row,
    risk_row,
)
from ehrr1.records.events import Event
from ehrr1.records.schema import TABLES
from ehrr1.tasks.catalog import ALL_TASKS
from ehrr1.tasks.samples import Sample

MAX_K = 50
"""Maximum number of items in an answer of the frequency baseline."""

FLAG_KEYS = ("Flag", "Warning", "Event_Txt", "Interpretation")
"""Record keys that qualify an item: an abnormal value, a drug not given, a resistant organism."""

NUMBER_KEYS = (
    "Anchor_Age",
    "Temperature",
    "Heartrate",
    "Resprate",
    "O2Sat",
    "Sbp",
    "Dbp",
    "Acuity",
)
"""Record keys, in rows without an item, whose latest value becomes a numeric feature."""

Bag = dict[str, float]


class Frequency:
    """A baseline that predicts the k most frequent items of a task's training targets.

    All samples of a task get the same answer. k maximises the mean F1 on the training samples; of
    equally good values the smallest is taken. Predicting every item that was ever seen would be too
    weak a baseline for set answers.
    """

    def __init__(self, train: Sequence[Sample]):
        """Choose the answer of each task from its training samples."""
        self.answers: dict[str, list[str]] = {}
        by_task: dict[str, list[Sample]] = {}
        for sample in train:
            by_task.setdefault(sample.task, []).append(sample)
        for task, samples in by_task.items():
            self.answers[task] = most_frequent([sample.target for sample in samples])

    def predict(self, samples: Sequence[Sample]) -> list[dict[str, Any]]:
        """Return one row per sample; samples of free-text tasks are left out.

        The answer is empty for a task without training samples.
        """
        return [
            prediction_row(sample, DIRECT, WrittenAnswer(self.answers.get(sample.task, [])))
            for sample in samples
            if ALL_TASKS[sample.task].target != "text"
        ]


def most_frequent(targets: Sequence[Sequence[str]]) -> list[str]:
    """Return the k most frequent items, with the k that maximises the mean F1 on `targets`.

    Items are stripped and lower-cased, as in scoring. k is at most `MAX_K`.
    """
    sets = [{item.strip().lower() for item in target} for target in targets]
    counts = Counter(item for target in sets for item in target)
    ranked = sorted(counts, key=lambda item: (-counts[item], item))[:MAX_K]
    rank = {item: position for position, item in enumerate(ranked)}
    hits = np.zeros((len(sets), len(ranked)))
    for row, target in enumerate(sets):
        hits[row, [rank[item] for item in target if item in rank]] = 1
    size = np.array([len(target) for target in sets])[:, None]
    k = np.arange(1, len(ranked) + 1)[None, :]
    f1 = (2 * np.cumsum(hits, axis=1) / (size + k)).mean(axis=0)
    return ranked[: int(np.argmax(f1)) + 1]


def bag_of_items(context: Sequence[Event]) -> Bag:
    """Return the features of a context by name: counts, and the latest numeric values.

    "table", "table/item" and "table/item/flag" count events, items, and items with a flag
    (`FLAG_KEYS`). For rows without an item, "table.key" is the latest value of a key of
    `NUMBER_KEYS`, and "table.Gender=value" is 1. Events that came as text are read by `text_bag`.
    """
    bag: Counter[str] = Counter()
    numbers: Bag = {}
    for event in context:
        if event.text is not None:  # an event of a benchmark
            counted, told = text_bag(event)
            bag.update(counted)
            numbers |= told
            continue
        keys = TABLES[event.table].keys
        flags = [position for position, key in enumerate(keys) if key in FLAG_KEYS]
        bag[event.table] += 1
        for item, row in zip(event.items, event.rows, strict=True):
            if item:
                bag[f"{event.table}/{item}"] += 1
                bag.update(f"{event.table}/{item}/{row[i]}" for i in flags if row[i])
                continue
            for key, value in zip(keys, row, strict=True):
                if key in NUMBER_KEYS and _is_number(value):
                    numbers[f"{event.table}.{key}"] = float(value)
                elif key == "Gender" and value:
                    numbers[f"{event.table}.{key}={value}"] = 1.0
    return {**bag, **numbers}


class Classifier(ABC):
    """One model per risk task, on bags of items.

    Features that occur in fewer than `min_samples` training contexts are dropped; of the others,
    the `max_features` most frequent ones are kept. If the training samples of a task are all of one
    class, or no feature is left, the task has no model, and the predicted probability is its
    training share of "yes".
    """

    def __init__(self, max_features: int = 400, min_samples: int = 10, seed: int = 0):
        self.max_features = max_features
        self.min_samples = min_samples
        self.seed = seed
        self.columns: dict[str, int] = {}
        self.models: dict[str, Any] = {}

    def fit(self, samples: Sequence[Sample], bags: Mapping[str, Bag]) -> None:
        """Select the features and fit one model per task; `bags` maps a context_id to its bag."""
        used = {sample.context_id for sample in samples}
        frequency = Counter(name for context in sorted(used) for name in bags[context])
        least = min(self.min_samples, max(1, len(used) // 2))  # few-shot sets have few contexts
        common = [name for name, count in frequency.items() if count >= least]
        common.sort(key=lambda name: (-frequency[name], name))
        self.columns = {name: column for column, name in enumerate(common[: self.max_features])}
        for task in sorted({sample.task for sample in samples}):
            self.models[task] = self._fit([s for s in samples if s.task == task], bags)

    def predict(self, samples: Sequence[Sample], bags: Mapping[str, Bag]) -> list[dict[str, Any]]:
        """Return one row per sample; samples of tasks that were not fitted are left out."""
        rows = []
        for task, model in self.models.items():
            chosen = [sample for sample in samples if sample.task == task]
            if not chosen:
                continue
            if isinstance(model, float):
                probabilities = np.full(len(chosen), model)
            else:
                probabilities = model.predict_proba(self._features(chosen, bags))[:, 1]
            rows += [
                risk_row(s, YesProbability(float(p)))
                for s, p in zip(chosen, probabilities, strict=True)
            ]
        return rows

    def _fit(self, samples: Sequence[Sample], bags: Mapping[str, Bag]) -> Any:
        """Return one task's fitted model, or the share of "yes" if there is nothing to fit."""
        labels = np.array([sample.target == ("yes",) for sample in samples])
        if labels.all() or not labels.any() or not self.columns:
            return float(labels.mean())
        return self.model().fit(self._features(samples, bags), labels)

    @abstractmethod
    def model(self) -> Any:
        """Return an unfitted scikit-learn classifier."""

    def _features(self, samples: Sequence[Sample], bags: Mapping[str, Bag]) -> NDArray[np.float32]:
        """Return the feature matrix [samples, features]; features absent from a bag are 0."""
        rows, columns, values = [], [], []
        for row, sample in enumerate(samples):
            for name, value in bags[sample.context_id].items():
                if name in self.columns:
                    rows.append(row)
                    columns.append(self.columns[name])
                    values.append(value)
        shape = (len(samples), len(self.columns))
        return sparse.coo_array((values, (rows, columns)), shape, dtype=np.float32).toarray()


class Boosting(Classifier):
    """Gradient boosting (histogram-based)."""

    def model(self) -> Any:
        """Return an unfitted gradient boosting classifier."""
        return HistGradientBoostingClassifier(
            max_iter=80,
            learning_rate=0.08,
            max_leaf_nodes=8,
            l2_regularization=1.0,
            early_stopping=False,
            random_state=self.seed,
        )


class Logistic(Classifier):
    """Logistic regression on standardised log(1 + count).

    The features are float64: in float32 the solver's last steps, and the third digit of the scores,
    depend on the processor's rounding.
    """

    def model(self) -> Any:
        """Return an unfitted pipeline of transformation, scaling and logistic regression."""
        return make_pipeline(
            FunctionTransformer(partial(np.log1p, dtype=np.float64)),
            StandardScaler(),
            LogisticRegression(C=0.01, max_iter=500, random_state=self.seed),
        )


def _is_number(value: str) -> bool:
    return value.replace(".", "", 1).isdigit()
