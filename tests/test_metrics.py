"""Calibration, several answers, subgroups: equal to other implementations; honest intervals."""

import shutil
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss
from torchmetrics.functional.classification import binary_calibration_error

from benchmarks.coverage import Study, coverage, exact
from ehrr1.evaluation.aggregate import summarise
from ehrr1.evaluation.bootstrap import Resamples
from ehrr1.evaluation.calibration import (
    METHODS,
    fit_calibrator,
    fit_platt,
    fit_temperature,
    logits_of,
)
from ehrr1.evaluation.metrics import (
    net_benefit,
    pass_at_k,
    weighted_brier,
    weighted_ece,
    weighted_log_loss,
)
from ehrr1.evaluation.predictions import (
    SUBGROUPS,
    WrittenAnswer,
    YesProbability,
    frame,
    prediction_row,
    risk_row,
)
from ehrr1.evaluation.prompt_mode import PromptMode
from ehrr1.evaluation.scores import score
from ehrr1.evaluation.subgroups import with_subgroups
from ehrr1.files import read_json, write_json
from ehrr1.scoring.consistency import agreed
from ehrr1.scoring.sets import normalise, reduce, set_scores
from ehrr1.scoring.texts import rouge
from ehrr1.stages.eval import rescore
from ehrr1.tasks.samples import Prepared
from tests.settings import composed, record
from tests.small_tables import DAY, DICTIONARIES, START, SUBJECT, Rows, place, row, write_csv
from tests.test_graph import sample
from tests.test_records import prepared


@pytest.mark.parametrize("seed", range(30))
def test_calibration_metrics_equal_other_implementations(seed: int) -> None:
    """With ties, zeros and ones, and under weights."""
    generator = np.random.default_rng(seed)
    n = int(generator.integers(3, 400))
    scores = np.round(generator.beta(0.5, 0.5, n), int(generator.integers(1, 9)))
    labels = generator.random(n) < scores
    labels[:2] = [True, False]
    weights = np.stack([np.ones(n), generator.integers(0, 4, n) + 1e-9])
    brier, loss, ece = (
        f(scores, labels, weights) for f in (weighted_brier, weighted_log_loss, weighted_ece)
    )
    for number, weight in enumerate(weights):
        known = brier_score_loss(labels, scores, sample_weight=weight)
        assert brier[number] == pytest.approx(known, abs=1e-9)
        known = log_loss(labels, scores, sample_weight=weight, labels=[False, True])
        assert loss[number] == pytest.approx(known, abs=1e-9)
    theirs = binary_calibration_error(
        torch.tensor(scores), torch.tensor(labels).int(), n_bins=15, norm="l1"
    )
    assert ece[0] == pytest.approx(float(theirs), abs=1e-9)


def test_net_benefit_by_hand() -> None:
    scores, labels = np.array([0.1, 0.4, 0.6, 0.9]), np.array([False, False, True, True])
    found = net_benefit(
        scores, labels, np.array([[1.0, 1, 1, 1], [0, 1, 0, 1]]), np.array([0.4, 0])
    )
    # at 0.4 three act: two rightly, one wrongly, at odds of two thirds
    assert found[0, 0] == pytest.approx(2 / 4 - 1 / 4 * (0.4 / 0.6))
    assert found[1, 0] == pytest.approx(1 / 2 - 1 / 2 * (0.4 / 0.6))
    assert found[0, 1] == pytest.approx(0.5)  # at 0 a false alarm costs nothing
    assert np.isnan(net_benefit(scores, labels, np.zeros((1, 4)), np.array([0.4]))).all()


@pytest.mark.parametrize("true", [0.25, 1.0, 3.0])
def test_temperature_is_found_again(true: float) -> None:
    generator = np.random.default_rng(0)
    honest = generator.normal(0, 2, 20_000)
    labels = generator.random(len(honest)) < 1 / (1 + np.exp(-honest))
    assert fit_temperature(honest * true, labels) == pytest.approx(true, rel=0.06)


def test_platt_scaling_equals_logistic_regression() -> None:
    generator = np.random.default_rng(0)
    honest = generator.normal(0, 2, 5000)
    labels = generator.random(len(honest)) < 1 / (1 + np.exp(-honest))
    logits = 2 * honest + 1.5
    theirs = LogisticRegression(C=np.inf).fit(logits[:, None], labels)
    slope, intercept = fit_platt(logits, labels)
    assert slope == pytest.approx(theirs.coef_[0, 0], abs=2e-3)
    assert intercept == pytest.approx(theirs.intercept_[0], abs=2e-3)
    assert (slope, intercept) == pytest.approx((0.5, -0.75), abs=0.06)
    apart = fit_platt(logits, logits > 0)  # separable labels
    assert np.isfinite(apart).all() and apart[0] > 1


@pytest.mark.parametrize(
    ("distorted", "method"),
    [
        (lambda honest: 2.5 * honest + 3, "platt"),
        (lambda honest: np.where(honest > 0, 8 + honest, honest / 8 - 4), "isotonic"),
    ],
)
def test_the_calibration_is_chosen_on_patients_that_it_was_not_fitted_on(
    distorted: Any, method: str
) -> None:
    """Check that a moved base rate is mended by Platt's, a bent scale by the isotonic map."""
    generator = np.random.default_rng(2)
    honest = generator.normal(-1, 1.5, 4000)
    labels = generator.random(len(honest)) < 1 / (1 + np.exp(-honest))
    told = distorted(honest)
    rows = [
        risk_row(
            sample(n, "Inpatient_Mortality", "yes" if label else "no", split="validation"),
            YesProbability(float(1 / (1 + np.exp(-v))), -np.logaddexp(0, -v), -np.logaddexp(0, v)),
        )
        for n, (label, v) in enumerate(zip(labels, told, strict=True))
    ]
    table = frame("m", rows)
    calibrator = fit_calibrator(table)
    assert calibrator is not None and calibrator.method == method
    assert set(calibrator.log_losses) == set(METHODS)
    assert calibrator.log_losses[method] < calibrator.log_losses["temperature"] - 0.05
    new = generator.normal(-1, 1.5, 4000)
    ours = calibrator.to_probability(np.asarray(distorted(new), dtype=np.float64))
    assert np.abs(ours - 1 / (1 + np.exp(-new))).mean() < 0.03
    few = fit_calibrator(table.filter(pl.col("subject_id") < 8))  # one of them has a yes
    assert few is not None and (few.method, few.log_losses) == ("temperature", {})


def test_the_calibration_comes_from_validation_and_is_applied_to_what_is_scored() -> None:
    generator = np.random.default_rng(1)
    rows = []
    for number in range(1200):
        honest = float(generator.normal(0, 1.5))
        label = "yes" if generator.random() < 1 / (1 + np.exp(-honest)) else "no"
        one = sample(
            number, "Inpatient_Mortality", label, split="validation" if number % 2 else "test"
        )
        sure = 4 * honest
        told = YesProbability(
            1 / (1 + np.exp(-sure)), -np.logaddexp(0, -sure), -np.logaddexp(0, sure)
        )
        rows.append(risk_row(one, told))
    table = frame("m:direct", rows)
    metrics = summarise(table, ["Inpatient_Mortality"], "test", 50, seed=0)
    slope = 1 / metrics["temperature"] if "temperature" in metrics else metrics["platt_slope"]
    assert slope == pytest.approx(1 / 4, rel=0.15)
    assert metrics["calibration/temperature"] == pytest.approx(
        metrics["calibration/platt"], abs=0.01
    )
    assert metrics["risk/ece_calibrated/macro"] < 0.06 < metrics["risk/ece/macro"]
    assert metrics["risk/log_loss_calibrated/macro"] < metrics["risk/log_loss/macro"]
    assert metrics["samples/Inpatient_Mortality"] == 600
    for name in ("auroc", "ece", "ece_calibrated", "brier"):
        key = f"risk/{name}/macro"
        assert metrics[f"{key}/low"] <= metrics[key] <= metrics[f"{key}/high"]
    own = summarise(table, ["Inpatient_Mortality"], "validation", 50, seed=0)
    assert "calibration/platt" not in own and "risk/ece_calibrated/macro" not in own
    one_class = table.filter(pl.col("target") == "yes")
    assert fit_calibrator(one_class) is None and fit_calibrator(table.clear()) is None
    certain = frame("m", [risk_row(sample(0, "Inpatient_Mortality", "yes"), YesProbability(1.0))])
    assert np.isfinite(logits_of(certain)).all()  # of a probability of 1 too


def test_saturated_probabilities_are_counted() -> None:
    values = [1.0, 0.99985, 0.5, 0.0, 0.0001]
    rows = [
        risk_row(
            sample(n, "Inpatient_Mortality", "yes" if n % 2 else "no"),
            YesProbability(p),
            PromptMode("think"),
        )
        for n, p in enumerate(values)
    ]
    metrics = summarise(frame("m:think", rows), ["Inpatient_Mortality"], "train", 10, seed=0)
    assert metrics["m:think/saturated"] == 0.8


def test_answers_without_a_probability_are_counted_and_not_ranked() -> None:
    rows = [
        risk_row(sample(n, "Inpatient_Mortality", "yes" if n % 2 else "no"), YesProbability(n / 9))
        for n in range(9)
    ]
    lost = sample(9, "Inpatient_Mortality", "yes")
    rows.append(
        prediction_row(lost, PromptMode("direct"), WrittenAnswer([], None, "refused by the server"))
    )
    table = frame("m", rows)
    found = score(table, Resamples.draw(range(10), 5, 0), ["Inpatient_Mortality"])
    assert np.isfinite(found["Inpatient_Mortality/auroc"][0])
    metrics = summarise(table, ["Inpatient_Mortality"], "train", 5, seed=0)
    assert metrics["m/parse_failures/Inpatient_Mortality"] == 1


def draws(
    number: int, target: list[str], answers: list[list[str]], **more: Any
) -> list[dict[str, Any]]:
    asked = sample(number, "emar", *target, **more)
    return [
        prediction_row(asked, PromptMode("think"), WrittenAnswer(a), draw=n)
        for n, a in enumerate(answers)
    ]


def test_several_draws_tell_pass_at_k_and_what_they_agree_on() -> None:
    rows = draws(0, ["A"], [["a"], ["b"], ["A"], ["a", "c"]])
    rows += draws(1, ["A", "B"], [["a"], ["b", "a"], ["c"], ["b"]])
    found = score(frame("m", rows), Resamples.draw([0, 1], 5, 0), ["emar"])
    right = [2, 1]
    for k in (1, 2, 4):
        chances = [
            np.mean([any(place < c for place in some) for some in combinations(range(4), k)])
            for c in right
        ]
        assert found[f"emar/pass@{k}"][0] == pytest.approx(np.mean(chances))
    # a in three of four; then a and b in two of four each, which no more than half name
    expected = [set_scores(["a"], ["A"]).f1, set_scores(["a", "b"], ["A", "B"]).f1]
    assert found["emar/f1_self_consistency"][0] == pytest.approx(np.mean(expected))
    singles = [
        set_scores(row["prediction"].split("\n"), row["target"].split("\n")).f1 for row in rows
    ]
    assert found["emar/f1"][0] == pytest.approx(np.mean(singles))


def test_matching_as_released_scores_what_was_written(tmp_path: Path) -> None:
    """By `rescore`: its rows keep completions, and baselines, which write none, their lines."""
    rows = [
        prediction_row(
            sample(n, "emar", "A", "B", subject=n, split="test"), PromptMode("direct"), one
        )
        for n, one in enumerate(
            [
                WrittenAnswer(("A", "B"), "- A\n\nB"),
                WrittenAnswer(("A\\nB",), "A\\nB"),
                WrittenAnswer(("A",)),
            ]
        )
    ]
    table = pl.concat([frame("m:direct", rows), frame("frequency", rows)])
    table.write_parquet(tmp_path / "predictions.parquet")
    record(composed(output_root=str(tmp_path)), tmp_path)  # no records: not those of `outputs/`
    speed = {"seconds": 3.5, "samples_per_second": 2.0, "m:direct/samples_per_second": 2.5}
    write_json(tmp_path / "metrics.json", speed)
    found = {}
    for matching in ("ours", "release"):
        rescore(composed(rescore=str(tmp_path), eval={"matching": matching, "bootstrap": 5}))
        found[matching] = read_json(tmp_path / "metrics.json")
    assert all(found[name].items() >= speed.items() for name in found)
    assert found["ours"]["emar/f1"] == pytest.approx((1 + 0 + 2 / 3) / 3)
    released = found["release"]
    assert released["emar/precision"] == pytest.approx((1 / 3 + 1 + 1) / 3)
    assert released["emar/recall"] == pytest.approx((1 / 2 + 1 + 1 / 2) / 3)
    assert released["emar/f1"] == pytest.approx((2 / 5 + 1 + 2 / 3) / 3)
    assert released["baseline/frequency/decision/f1/macro"] == released["decision/f1/macro"]
    assert released["emar/f1_normalised"] == found["ours"]["emar/f1_normalised"]
    assert released["m:direct-frequency/decision/f1/macro"] == 0


def test_pass_at_k_equals_counting() -> None:
    n, c = np.array([5, 5, 5, 7]), np.array([0, 2, 5, 3])
    for k in (1, 3, 5):
        counted = [
            np.mean([any(one < right for one in some) for some in combinations(range(all_), k)])
            for all_, right in zip(n, c, strict=True)
        ]
        np.testing.assert_allclose(pass_at_k(n, c, k), counted)


def test_agreed() -> None:
    assert agreed([["A", "b"], ["a"], ["c"]]) == {"a"}
    assert agreed([["a"], ["b"], ["c"]]) == {"a", "b", "c"}  # none is named twice
    assert agreed([[], []]) == set() and agreed([["a"]]) == {"a"}


def test_micro_scores_count_all_items_together() -> None:
    pairs = [(["A", "B", "C"], ["a"]), (["A"], ["a", "b"]), (["A", "B"], [])]
    rows = []
    for number, (target, said) in enumerate(pairs):
        asked = sample(number, "emar", *target, subject=number)
        rows.append(prediction_row(asked, PromptMode("direct"), WrittenAnswer(said)))
    found = score(frame("m", rows), Resamples.draw(range(3), 5, 0), ["emar"])
    assert found["emar/micro_precision"][0] == pytest.approx(2 / 3)
    assert found["emar/micro_recall"][0] == pytest.approx(2 / 6)
    assert found["emar/micro_f1"][0] == pytest.approx(2 * 2 / 9)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1. Sepsis, unspecified", "Sepsis unspecified"),
        ("- Heparin (IV)", "heparin iv"),
        ("  METOPROLOL\u00a0Tartrate ", "metoprolol tartrate"),
        ("(2) Chest  X-Ray", "chest x ray"),
    ],
)
def test_normalised_matching_forgives_how_a_name_is_written(one: str, other: str) -> None:
    assert reduce(one) == reduce(other)
    asked = sample(0, "emar", other)
    rows = [prediction_row(asked, PromptMode("direct"), WrittenAnswer([one]))]
    found = score(frame("m", rows), Resamples.draw([0], 2, 0), ["emar"])
    assert found["emar/f1_normalised"][0] == 1.0
    assert found["emar/f1"][0] == float(normalise([one]) == normalise([other]))


def test_normalised_matching_keeps_different_names_apart() -> None:
    names = ["Vitamin B12", "Vitamin B1", "Insulin 70/30", "Insulin", "beta-amylase", "amylase"]
    assert len({reduce(name) for name in names}) == len(names)


def test_a_discharge_note_is_scored_by_rouge_and_by_nothing_else() -> None:
    asked = sample(0, "discharge", "The patient was admitted with pneumonia")
    said = "Patient admitted with severe pneumonia"
    rows = [prediction_row(asked, PromptMode("direct"), WrittenAnswer([said]))]
    found = score(frame("m", rows), Resamples.draw([0], 2, 0), ["discharge"])
    assert {name.split("/")[1] for name in found if name.startswith("discharge/")} == {
        *("rouge1", "rouge2", "rougeL")
    }
    assert found["discharge/rouge1"][0] == pytest.approx(2 * 4 / (6 + 5))
    assert rouge("same words", "same words") == {"rouge1": 1.0, "rouge2": 1.0, "rougeL": 1.0}


def test_subgroups_have_scores_where_they_have_patients() -> None:
    rows = []
    for number in range(60):
        asked = sample(number, "Inpatient_Mortality", "yes" if number % 3 else "no", subject=number)
        row = risk_row(asked, YesProbability(number / 60))
        rows.append(
            row | {"sex": "F" if number < 40 else "M", "race": "WHITE" if number < 5 else None}
        )
    metrics = summarise(frame("m", rows), ["Inpatient_Mortality"], "train", 20, seed=0)
    assert metrics["m/subgroup/sex/F/patients"] == 40
    low, value, high = (
        metrics[f"m/subgroup/sex/F/auroc/macro{end}"] for end in ("/low", "", "/high")
    )
    assert low <= value <= high
    assert metrics["m/subgroup/race/WHITE/patients"] == 5
    assert "m/subgroup/race/WHITE/auroc/macro" not in metrics


def test_a_difference_of_calibration_errors_may_be_negative() -> None:
    generator = np.random.default_rng(0)
    honest = generator.normal(0, 1.5, 600)
    dies = generator.random(600) < 1 / (1 + np.exp(-honest))

    def said(name: str, logits: NDArray[np.float64]) -> pl.DataFrame:
        asked = [sample(n, "Inpatient_Mortality", "yes" if d else "no") for n, d in enumerate(dies)]
        told = [YesProbability(float(p)) for p in 1 / (1 + np.exp(-logits))]
        return frame(name, [risk_row(*pair) for pair in zip(asked, told, strict=True)])

    sure, fair = said("m:think", 3 * honest), said("m:direct", honest)
    key = "risk/ece/macro"
    for tables, name, sign in (
        ((fair, sure), f"m:think-m:direct/{key}", 1),
        ((sure, fair), f"m:direct-m:think/{key}", -1),
    ):
        metrics = summarise(pl.concat(tables), ["Inpatient_Mortality"], "train", 200, seed=0)
        ends = [sign * metrics[f"{name}/{end}"] for end in ("low", "high")]
        assert 0 < min(ends) < sign * metrics[name] < max(ends)


WHO = (
    ("F", 44, "WHITE - RUSSIAN", "Medicare", "Medical Intensive Care Unit (MICU)"),
    ("M", 79, "HISPANIC/LATINO - CUBAN", "", "Neuro Stepdown"),
    ("M", 85, "UNABLE TO OBTAIN", "Medicaid", "Trauma SICU (TSICU)"),
)


def hospital(root: Path) -> Path:
    """Three patients with one stay each, in the year in which they have their anchor age."""
    tables: dict[str, Rows] = {}
    for number, (sex, age, race, insurance, unit) in enumerate(WHO):
        given = {
            "patients": {"gender": sex, "anchor_age": age, "anchor_year": START.year},
            "admissions": {"race": race, "insurance": insurance, "dischtime": START + 6 * DAY},
            "icustays": {"first_careunit": unit, "outtime": START + 4 * DAY},
            "labevents": {},
        }
        for name, cells in given.items():
            one = row(name, number, number, START + DAY * (name != "admissions"), **cells)
            tables.setdefault(place(name), []).append(one)
    return write_csv(root, DICTIONARIES | tables)


def test_groups_come_from_the_tables_that_are_there(tmp_path: Path) -> None:
    study, _ = prepared(hospital(tmp_path / "csv"), tmp_path / "prepare")
    samples = study.samples(tasks=["ICU_Stay_7day", "Inpatient_Mortality"])
    table = frame("m", [risk_row(one, YesProbability(0.5)) for one in reversed(samples)])
    found = with_subgroups(table, study)
    assert found["sample_id"].equals(table["sample_id"]) and found.schema == table.schema
    bands, races = ("18-44", "65-79", "80+"), ("WHITE", "HISPANIC", "OTHER")
    wanted = {
        SUBJECT + number: (sex, band, race, insurance or None, unit)
        for number, ((sex, _, _, insurance, unit), band, race) in enumerate(
            zip(WHO, bands, races, strict=True)
        )
    }
    stays = dict.fromkeys(one.sample_id for one in samples if one.stay_id is not None)
    assert stays and len(stays) < len(samples)
    for one in found.iter_rows(named=True):
        *first, unit = wanted[one["subject_id"]]
        unit = unit if one["sample_id"] in stays else None
        assert [one[name] for name in SUBGROUPS] == [*first, unit]

    shutil.rmtree(tmp_path / "prepare" / "store")  # as of records that a benchmark brings
    bare = with_subgroups(table, Prepared(tmp_path / "prepare"))
    assert bare.select(SUBGROUPS).null_count().row(0) == (len(table),) * len(SUBGROUPS)


def test_the_studies_have_the_auroc_that_is_taken_for_true() -> None:
    large = Study(np.random.default_rng(1), 100_000)
    found = large.values(np.ones((1, len(large.subjects))))
    for name, value in exact().items():
        assert found[name][0] == pytest.approx(value, abs=0.005)


@pytest.mark.slow
def test_intervals_cover_the_truth() -> None:
    """A smaller copy of `python -m benchmarks.coverage`; the bounds are four standard errors."""
    studies = 120
    least = 0.95 - 4 * np.sqrt(0.95 * 0.05 / studies)
    for name, share in coverage(studies, patients=300, replicates=300).items():
        assert share >= least, name
