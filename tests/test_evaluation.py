"""Metrics equal scikit-learn, the bootstrap covers the truth, baselines are honest."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from ehrr1.evaluation.aggregate import last_result, pairs, summarise
from ehrr1.evaluation.baselines.decisions import Frequency, most_frequent
from ehrr1.evaluation.bootstrap import Resamples, estimate
from ehrr1.evaluation.metrics import macro, weighted_auprc, weighted_auroc, weighted_mean
from ehrr1.evaluation.predictions import (
    DIRECT,
    SCHEMA,
    WrittenAnswer,
    YesProbability,
    frame,
    prediction_row,
    risk_row,
)
from ehrr1.evaluation.scores import counts, one_class, score
from ehrr1.evaluation.tables import WIDTH, difference_table, heading, score_text, task_tables
from ehrr1.tasks.catalog import TASKS
from tests.test_graph import sample


@pytest.mark.parametrize("seed", range(30))
def test_metrics_equal_scikit_learn_with_ties_and_weights(seed: int) -> None:
    generator = np.random.default_rng(seed)
    n = int(generator.integers(5, 300))
    scores = np.round(generator.random(n), int(generator.integers(1, 6)))
    labels = generator.random(n) < 0.3
    labels[:2] = [True, False]
    weights = np.stack([np.ones(n), generator.integers(0, 4, n).astype(float)])
    weights[1, :2] = 1
    for weight, auroc, auprc in zip(
        weights,
        weighted_auroc(scores, labels, weights),
        weighted_auprc(scores, labels, weights),
        strict=True,
    ):
        assert auroc == pytest.approx(roc_auc_score(labels, scores, sample_weight=weight), abs=1e-9)
        expected = average_precision_score(labels, scores, sample_weight=weight)
        assert auprc == pytest.approx(expected, abs=1e-9)


def test_one_class_is_nan_and_leaves_the_macro_mean() -> None:
    scores, labels = np.array([0.1, 0.2, 0.3]), np.array([True, False, True])
    weights = np.array([[1.0, 1, 1], [1, 0, 1], [0, 1, 0]])
    auroc, auprc = (f(scores, labels, weights) for f in (weighted_auroc, weighted_auprc))
    assert auroc[0] == 0.5 and np.isnan(auroc[1:]).all() and np.isnan(auprc[1:]).all()
    np.testing.assert_array_equal(macro([auroc, np.array([1.0, 0.7, np.nan])]), [0.75, 0.7, np.nan])
    assert np.isnan(weighted_mean(np.ones(3), np.zeros((1, 3)))).all()


def test_scores_that_are_not_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        weighted_auroc(np.array([np.nan, 1.0]), np.array([True, False]), np.ones((1, 2)))


def study(generator: np.random.Generator, patients: int) -> tuple[NDArray, NDArray, NDArray]:
    """Two to four samples a patient that share the patient's level; the true mean is 0."""
    size = generator.integers(2, 5, patients)
    subjects = np.repeat(np.arange(patients), size)
    level = np.repeat(generator.normal(0, 1, patients), size)
    return subjects, level + generator.normal(0, 0.5, len(subjects)), level


def test_interval_by_patient_covers_the_truth() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for number in range(300):
        subjects, values, _ = study(generator, 120)
        resamples = Resamples.draw(subjects, 300, seed=number)
        low, high = estimate(weighted_mean(values, resamples.weights(subjects)))[1:]
        covered += low <= 0 <= high
    assert 0.91 <= covered / 300 <= 0.985  # by sample instead of by patient it is about 0.75


def test_paired_difference_is_narrower_than_its_parts() -> None:
    subjects, values, _ = study(np.random.default_rng(1), 200)
    weights = Resamples.draw(subjects, 500, seed=0).weights(subjects)
    first, second = weighted_mean(values + 0.1, weights), weighted_mean(values, weights)
    difference = estimate(first - second)
    assert difference == pytest.approx((0.1, 0.1, 0.1))
    assert estimate(first).high - estimate(first).low > 0.1


def test_resamples_are_seeded_and_draw_as_many_patients() -> None:
    one, two = (Resamples.draw([5, 3, 3, 9], 50, seed=4) for _ in range(2))
    assert (one.counts == two.counts).all() and one.patients.tolist() == [3, 5, 9]
    assert (one.counts.sum(axis=1) == 3).all() and (one.counts[0] == 1).all()
    assert one.weights(np.array([9, 9, 3])).shape == (51, 3)


def test_score_names_macros_and_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(2)
    rows = []
    for number in range(60):
        target = "yes" if number % 3 == 0 else "no"
        risk = sample(number, "Inpatient_Mortality", target, subject=number // 2)
        rows.append(risk_row(risk, YesProbability(float(generator.random()))))
        rows.append(
            risk_row(
                sample(number, "ICU_Stay_7day", "no", subject=number // 2), YesProbability(0.1)
            )
        )
        drugs = sample(number, "emar", "A", "B", subject=number // 2)
        items = ["a", "c"] if number % 2 else []
        problem = None if number % 2 else "empty answer"
        rows.append(prediction_row(drugs, DIRECT, WrittenAnswer(items, None, problem)))
    table = frame("adapt", rows)
    assert table.schema == SCHEMA
    resamples = Resamples.draw(table["subject_id"], 40, seed=0)
    found = score(table, resamples, ["Inpatient_Mortality", "ICU_Stay_7day", "emar", "poe"])
    risk_rows = table.filter(pl.col("task") == "Inpatient_Mortality")
    expected = roc_auc_score(risk_rows["target"] == "yes", risk_rows["probability"])
    assert found["risk/auroc/macro"][0] == pytest.approx(expected, abs=1e-9)
    assert found["emar/f1"][0] == found["decision/f1/macro"][0] == pytest.approx(0.25)
    assert "ICU_Stay_7day/auroc" not in found and "poe/f1" not in found
    assert one_class(table) == ["ICU_Stay_7day"]
    told = counts(table)
    assert told["empty_answers/emar"] == 30 and told["parse_failures/emar"] == 0
    assert told["samples/emar"] == 60 and told["patients/emar"] == 30
    monkeypatch.setattr("ehrr1.evaluation.scores.MAX_ELEMENTS", 100)
    for name, values in score(table, resamples, ["Inpatient_Mortality", "emar"]).items():
        np.testing.assert_allclose(values, found[name], rtol=1e-9)


def test_balanced_sets_have_no_auprc() -> None:
    rows = []
    for number in range(40):
        for task in ("Inpatient_Mortality", "ICU_Stay_7day"):
            asked = sample(number, task, "yes" if number % 3 else "no", subject=number)
            asked = replace(asked, balanced=task == "ICU_Stay_7day")
            rows.append(risk_row(asked, YesProbability(number / 40)))
    table = frame("adapt", rows)
    found = score(table, Resamples.draw(table["subject_id"], 5, seed=0), list(TASKS))
    assert "ICU_Stay_7day/auroc" in found and "ICU_Stay_7day/auprc" not in found
    assert found["risk/auprc/macro"][0] == found["Inpatient_Mortality/auprc"][0]


def test_frequency_chooses_k_by_training_f1() -> None:
    assert most_frequent([["a"], ["a"], ["a", "b"], ["c"]]) == ["a"]
    assert most_frequent([["a", "B"], ["b", "a"], ["c", "a", "b"]]) == ["a", "b"]
    baseline = Frequency([sample(0, "emar", "A"), sample(1, "emar", "A", "B")])
    said, unknown = baseline.predict([sample(2, "emar", "B"), sample(3, "poe", "X")])
    assert said["prediction"] == "a" and unknown["prediction"] == ""


def test_summary_names_models_baselines_differences_and_compares_common_samples() -> None:
    def answers(model: str, share: float, only: int = 40) -> pl.DataFrame:
        generator = np.random.default_rng(len(model))
        rows = []
        for number in range(40):
            target = "yes" if number % 2 else "no"
            risk = sample(number, "Inpatient_Mortality", target)
            if model != "frequency":
                rows.append(
                    risk_row(risk, YesProbability(float(generator.random() < share) * (number % 2)))
                )
            if model != "boosting" and number < only:
                items = ["A"] if generator.random() < share else []
                drugs = sample(number, "emar", "A")
                rows.append(prediction_row(drugs, DIRECT, WrittenAnswer(items)))
        return frame(model, rows)

    models = {"untrained": 0.0, "adapt": 0.5, "rl": 1.0, "frequency": 0.1, "boosting": 0.6}
    tables = [
        answers(name, share, 10 if name == "untrained" else 40) for name, share in models.items()
    ]
    predictions = pl.concat(tables)
    metrics = summarise(predictions, ["Inpatient_Mortality", "emar", "poe"], "train", 100, seed=0)
    assert metrics["decision/f1/macro"] == metrics["rl/decision/f1/macro"] == 1.0
    assert metrics["risk/auroc/macro/low"] <= metrics["risk/auroc/macro"] == 1.0
    assert metrics["baseline/frequency/emar/f1"] < metrics["adapt/emar/f1"]
    assert "baseline/boosting/risk/auprc/macro" in metrics and metrics["one_class_tasks"] == 0
    assert "rl-reason/decision/f1/macro" not in metrics
    early = predictions.filter(pl.col("model") == "adapt", pl.col("task") == "emar").head(10)
    expected = (early["prediction"] == "A").mean()
    assert metrics["adapt-untrained/decision/f1/macro"] == pytest.approx(expected)
    assert metrics["adapt-untrained/risk/auroc/macro/low"] > 0
    assert metrics["adapt/parse_failures/emar"] == 0 and last_result(predictions) == "rl"
    again = (summarise(predictions, ["emar"], "train", 100, seed=0) for _ in range(2))
    assert next(again) == next(again)
    tasks = ["Inpatient_Mortality", "emar"]
    risk = list(task_tables(predictions, metrics, tasks[:1], "risk"))
    heads = [column.header for table in risk for column in table.columns[1:]]
    models_of_risk = ["untrained", "adapt", "rl", "boosting"]
    assert heads == ["n", "patients", "yes", *models_of_risk, "rl\n95 % interval"]
    assert [table.row_count for table in risk] == [1, 1]
    decision = list(task_tables(predictions, metrics, tasks[1:], "decision"))
    assert [table.row_count for table in decision] == [1] * len(decision)
    # rl - untrained is not told: its start stands beside the first stage only
    assert difference_table(pairs(list(models)), metrics).row_count == 6
    text = score_text(predictions, metrics, tasks)
    assert max(map(len, text.splitlines())) <= WIDTH
    scores = {line.split()[0]: line.split()[-3] for line in text.splitlines()[-5:-1]}
    assert scores == {
        "untrained": "0.000", "adapt": f"{metrics['adapt/decision/f1/macro']:.3f}", "rl": "1.000",
        "frequency": f"{metrics['baseline/frequency/decision/f1/macro']:.3f}",
    }  # fmt: skip
    boosting = f"{metrics['baseline/boosting/risk/auroc/macro']:.3f}"
    assert text.splitlines()[-1].split()[:2] == ["boosting", boosting]


def test_a_table_of_many_modes_fits_and_tells_them_apart() -> None:
    """Eighteen results of models and modes: each has a heading of its own in 80 columns."""
    models, answers = ("adapt", "EHR-R1-8B", "rl"), ("direct", "both", "think")
    modes = [f"{m}:{a}{c}" for m in models for a in answers for c in ("", "-list")]
    assert len({heading(name) for name in modes}) == len(modes)
    assert heading("EHR-R1-8B:direct-list") == "EHR-R1-8B:\ndirect-\nlist"
    assert heading("logistic_cut") == "logistic_\ncut" and heading("rl:both") == "rl:both"
    rows = []
    for number in range(20):
        target = "yes" if number % 2 else "no"
        risk = sample(number, "ED_Reattendance_3day", target)
        rows.append(risk_row(risk, YesProbability(number / 20)))
    predictions = pl.concat([frame(name, rows) for name in modes])
    tasks = ["ED_Reattendance_3day"]
    metrics = summarise(predictions, tasks, "train", 20, seed=0)
    shown = list(task_tables(predictions, metrics, tasks, "risk"))
    heads = [str(column.header) for table in shown for column in table.columns[1:]]
    last = f"{heading(modes[-1])}\n95 % interval"
    assert heads == ["n", "patients", "yes", *map(heading, modes), last]
    assert max(map(len, score_text(predictions, metrics, tasks).splitlines())) <= WIDTH
