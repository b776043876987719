"""Baselines learn what is there, from many samples or a few, and say nothing where they cannot."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from ehrr1.evaluation.baselines.learners import Boosting, Classifier, Frequency, Logistic
from ehrr1.evaluation.predictions import frame
from ehrr1.tasks.samples import Sample
from tests.test_graph import sample

TASK = "Inpatient_Mortality"
BOTH = pytest.mark.parametrize("kind", [Logistic, Boosting])


def patients(number: int, seed: int) -> tuple[list[Sample], dict[str, dict[str, float]]]:
    """Lactate is measured oftener in those who die; the number of sodiums, far larger, and the age
    say nothing."""
    generator = np.random.default_rng(seed)
    samples, bags = [], {}
    for one in range(number):
        dies = bool(generator.random() < 0.3)
        key = f"{seed}/{one}"
        bags[key] = {
            "labevents/lactate": float(generator.poisson(4 if dies else 1)),
            "labevents/sodium": float(generator.poisson(300)),
            "patients.Anchor_Age": float(generator.integers(18, 90)),
        }
        samples.append(sample(one, TASK, "yes" if dies else "no", context=key))
    return samples, bags


def auroc(model: Classifier, samples: list[Sample], bags: dict[str, dict[str, float]]) -> float:
    rows = frame("it", model.predict(samples, bags))
    assert rows["sample_id"].to_list() == [one.sample_id for one in samples]
    return float(roc_auc_score(rows["target"] == "yes", rows["probability"]))


@BOTH
def test_it_learns_what_tells_the_classes_apart(kind: type[Classifier]) -> None:
    train, bags = patients(1500, 0)
    test, others = patients(500, 1)
    model = kind(seed=0)
    model.fit(train, bags)
    lactate = [others[one.context_id]["labevents/lactate"] for one in test]
    best = roc_auc_score([one.target == ("yes",) for one in test], lactate)
    assert auroc(model, test, others) > best - 0.03
    again = kind(seed=0)
    again.fit(train, bags)
    assert again.predict(test, others) == model.predict(test, others)


@BOTH
def test_probabilities_of_many_samples_are_honest(kind: type[Classifier]) -> None:
    train, bags = patients(3000, 0)
    test, others = patients(1000, 1)
    model = kind()
    model.fit(train, bags)
    said = np.array([row["probability"] for row in model.predict(test, others)])
    true = np.mean([one.target == ("yes",) for one in test])
    assert said.mean() == pytest.approx(true, abs=0.05)


@BOTH
def test_a_few_examples_are_enough_to_answer(kind: type[Classifier]) -> None:
    pool, bags = patients(200, 0)
    few = [one for one in pool if one.target == ("yes",)][:4]
    few += [one for one in pool if one.target == ("no",)][:4]
    test, others = patients(200, 1)
    model = kind()
    model.fit(few, bags)
    assert len(model.columns) == 3
    assert auroc(model, test, others) >= 0.5


def test_features_are_chosen_on_the_training_contexts_alone() -> None:
    train, bags = patients(100, 0)
    bags["0/0"]["rare"] = 1.0
    test, others = patients(20, 1)
    for bag in others.values():
        bag["labevents/unseen"] = 5.0
    model = Logistic(max_features=2)
    model.fit(train, bags)
    assert len(model.columns) == 2 and not {"rare", "labevents/unseen"} & set(model.columns)
    assert len(model.predict(test, others)) == 20


@BOTH
def test_one_class_and_tasks_without_training(kind: type[Classifier]) -> None:
    train, bags = patients(50, 0)
    ones = [sample(n, "ICU_Stay_7day", "yes", context=s.context_id) for n, s in enumerate(train)]
    model = kind()
    model.fit(ones, bags)
    (said,) = model.predict([ones[0], train[0]], bags)  # of mortality it has learnt nothing
    assert said["task"] == "ICU_Stay_7day" and said["probability"] == 1.0
    assert said["prediction"] == "yes"


def test_frequency_leaves_out_discharge_notes() -> None:
    asked = [sample(0, "emar", "A"), sample(1, "discharge", "A long note.")]
    (said,) = Frequency(asked).predict(asked)
    assert said["task"] == "emar" and said["prediction"] == "a"


def test_logistic_regression_does_not_depend_on_the_order_of_sums() -> None:
    """Another order of features, as another processor's kernels, sums in another order."""
    generator = np.random.default_rng(0)
    features = generator.poisson(1.0, (300, 200)).astype(np.float32)
    labels = generator.random(300) < 0.3
    order = generator.permutation(200)
    one, other = (
        Logistic(10).model().fit(given, labels).predict_proba(given)
        for given in (features, features[:, order])
    )
    assert np.abs(one - other).max() < 1e-9
