"""Baselines in the same harness: what one gets without a language model."""

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
"""Longest answer that the frequency baseline tries."""

FLAG_KEYS = ("Flag", "Warning", "Event_Txt", "Interpretation")
"""Shown keys that qualify an item: an abnormal value, a drug not given, a resistant organism."""

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
"""Shown keys of tables without items that boosting reads as numbers (latest value)."""

Bag = dict[str, float]


class Frequency:
    """Answers each sample of a task with the k most frequent items of the task's training targets.

    k is the one with the best mean F1 on the training samples, ties to the smaller k: an honest
    baseline for set answers, which one that names every item ever seen would not be.
    """

    def __init__(self, train: Sequence[Sample]):
        self.answers: dict[str, list[str]] = {}
        by_task: dict[str, list[Sample]] = {}
        for sample in train:
            by_task.setdefault(sample.task, []).append(sample)
        for task, samples in by_task.items():
            self.answers[task] = most_frequent([sample.target for sample in samples])

    def predict(self, samples: Sequence[Sample]) -> list[dict[str, Any]]:
        """One row a sample; an empty answer for a task that was never trained on."""
        return [
            prediction_row(sample, DIRECT, WrittenAnswer(self.answers.get(sample.task, [])))
            for sample in samples
            if ALL_TASKS[sample.task].target != "text"
        ]


def most_frequent(targets: Sequence[Sequence[str]]) -> list[str]:
    """The k most frequent items (lower-cased, as scored), k chosen by mean F1 on `targets`."""
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
    """How often each item, item with flag and event kind stands in a context, and latest numbers.

    Features are "table/item", "table/item/flag", "table" and, for rows without an item,
    "table.key" with the value itself: what a careful analyst would put into a table.
    """
    bag: Counter[str] = Counter()
    numbers: Bag = {}
    for event in context:
        if event.text is not None:  # a benchmark's
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
    """One model a risk task, on bags of items.

    Features that fewer than `min_samples` training contexts have are dropped, then the most
    frequent `max_features` are kept. Tasks whose training samples are of one class get no model
    and answer the class's frequency.
    """

    def __init__(self, max_features: int = 400, min_samples: int = 10, seed: int = 0):
        self.max_features = max_features
        self.min_samples = min_samples
        self.seed = seed
        self.columns: dict[str, int] = {}
        self.models: dict[str, Any] = {}

    def fit(self, samples: Sequence[Sample], bags: Mapping[str, Bag]) -> None:
        """Learn from risk samples; `bags` maps a context_id to its bag."""
        used = {sample.context_id for sample in samples}
        frequency = Counter(name for context in sorted(used) for name in bags[context])
        least = min(self.min_samples, max(1, len(used) // 2))  # a few shots have few contexts
        common = [name for name, count in frequency.items() if count >= least]
        common.sort(key=lambda name: (-frequency[name], name))
        self.columns = {name: column for column, name in enumerate(common[: self.max_features])}
        for task in sorted({sample.task for sample in samples}):
            self.models[task] = self._fit([s for s in samples if s.task == task], bags)

    def predict(self, samples: Sequence[Sample], bags: Mapping[str, Bag]) -> list[dict[str, Any]]:
        """One row a sample of a task that `fit` has seen; others are left out."""
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
        labels = np.array([sample.target == ("yes",) for sample in samples])
        if labels.all() or not labels.any() or not self.columns:
            return float(labels.mean())
        return self.model().fit(self._features(samples, bags), labels)

    @abstractmethod
    def model(self) -> Any:
        """A fresh model of scikit-learn."""

    def _features(self, samples: Sequence[Sample], bags: Mapping[str, Bag]) -> NDArray[np.float32]:
        """Bags as rows [samples, features]; a feature that a bag lacks is 0."""
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
    """Gradient boosting."""

    def model(self) -> Any:
        return HistGradientBoostingClassifier(
            max_iter=80,
            learning_rate=0.08,
            max_leaf_nodes=8,
            l2_regularization=1.0,
            early_stopping=False,
            random_state=self.seed,
        )


class Logistic(Classifier):
    """Logistic regression on the logarithms of counts, standardised.

    In double precision: in single the solver's last steps, and the third digit of the scores, are
    the processor's rounding errors.
    """

    def model(self) -> Any:
        return make_pipeline(
            FunctionTransformer(partial(np.log1p, dtype=np.float64)),
            StandardScaler(),
            LogisticRegression(C=0.01, max_iter=500, random_state=self.seed),
        )


def _is_number(value: str) -> bool:
    return value.replace(".", "", 1).isdigit()
