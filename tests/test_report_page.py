"""report.html in a real browser: it opens, sorts, hides, shows cases, and keeps what is closed."""

import json
import random
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from ehrr1.evaluation.aggregate import summarise
from ehrr1.evaluation.pages import Case, choose_cases, write_report
from ehrr1.evaluation.pages.alerts import warnings
from ehrr1.evaluation.pages.curves import (
    THRESHOLDS,
    curves,
    decision_curve,
    precision_recall,
    reliability,
    roc,
)
from ehrr1.evaluation.pages.html import coloured
from ehrr1.evaluation.predictions import SCHEMA
from tests.everybody import check_for_everybody

Driver = Any

RISK = ("ED_Hospitalization", "Inpatient_Mortality", "ICU_Stay_7day")
DECISIONS = ("labevents", "transfers")
TASKS = (*RISK, *DECISIONS)
ITEMS = ("Sodium", "Potassium", "Lactate", "Creatinine", "Glucose")
SECRET = "Mr. Nobody of Nowhere"
EVIL = "<script>document.title = 'taken'</script></script><img src=x onerror=alert(1)>"
SETTINGS = {
    "eval": {"suite": "smoke", "split": "test", "max_prompt_tokens": 512, "bootstrap": 20},
    "answer": None,
}


def predictions(skill: dict[str, float], seed: int = 0, patients: int = 60) -> pl.DataFrame:
    """Made-up answers: the higher the skill of a result, the closer its answers to the truth."""
    draw = np.random.default_rng(seed)
    rows = []
    for place, name in enumerate(skill):
        for task in TASKS:
            truths = np.random.default_rng(abs(hash_of(task)))
            for number in range(3 * patients):
                patient = 100 + number % patients
                row: dict[str, Any] = dict.fromkeys(SCHEMA.names()) | {
                    "model": name,
                    "split": "test" if patient % 3 else "validation",
                    "mode": "both" if name.endswith(":both") else "direct",
                    "candidates": "none",
                    "wording": "file",
                    "draw": 0,
                    "sample_id": f"{task}/{patient}/{number}",
                    "subject_id": patient,
                    "task": task,
                    "prediction_time": datetime(2150, 1, 1) + timedelta(hours=number),
                    "balanced": False,
                    "sex": "F" if patient % 2 else "M",
                    "completion": f"<think>{SECRET}</think>" if place == 0 else None,
                }
                if task in RISK:
                    yes = bool(truths.random() < 0.3)
                    log_odds = skill[name] * (1 if yes else -1) + draw.normal()
                    p = 1 / (1 + np.exp(-log_odds))
                    row |= {"target": "yes" if yes else "no", "probability": p}
                    row |= {"prediction": "yes" if p >= 0.5 else "no"}
                elif row["split"] == "validation":
                    truths.choice(ITEMS, 2, replace=False)
                    continue
                else:
                    truth = list(truths.choice(ITEMS, 2, replace=False))
                    said = truth if draw.random() < skill[name] / 3 else list(draw.choice(ITEMS, 2))
                    row |= {"target": "\n".join(truth), "prediction": "\n".join(said)}
                rows.append(row)
    return pl.DataFrame(rows, schema=SCHEMA)


def hash_of(text: str) -> int:
    return sum(ord(letter) * 31**at for at, letter in enumerate(text)) % 2**32


def cases_of(table: pl.DataFrame, number: int = 6) -> list[Case]:
    return [
        Case(
            row["sample_id"],
            row["task"],
            row["model"],
            f"What is next? {EVIL}",
            f"## Note\n{SECRET} {EVIL}",
            f"<think>\nwell\n</think>\n{EVIL}",
            row["prediction"],
            row["target"],
            row["probability"],
        )
        for row in choose_cases(table, number).iter_rows(named=True)
    ]


@pytest.fixture(scope="module")
def table() -> pl.DataFrame:
    return predictions({"adapt": 0.6, "rl": 1.2, "rl:both": 0.9, "boosting": 1.5})


@pytest.fixture(scope="module")
def metrics(table: pl.DataFrame) -> dict[str, float | int]:
    return summarise(table, TASKS, "test", 20, 0)


def written(
    folder: Path, table: pl.DataFrame, metrics: dict[str, float | int], open_data: bool
) -> Path:
    path = folder / "report.html"
    scored = table.filter(pl.col("split") == "test")
    write_report(
        path,
        table,
        metrics,
        TASKS,
        title=f"made up {EVIL}",
        about={"data": "synthetic, invented patients, open", "software": f"ehrr1 {EVIL}"},
        settings=SETTINGS | {"note": EVIL},
        split="test",
        cases=cases_of(scored),
        open_data=open_data,
    )
    return path


@pytest.fixture(scope="module")
def report(
    tmp_path_factory: pytest.TempPathFactory,
    table: pl.DataFrame,
    metrics: dict[str, float | int],
) -> Path:
    return written(tmp_path_factory.mktemp("open"), table, metrics, True)


def look(browser: Driver, path: Path, width: int = 1280) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get_log("browser"), browser.get_log("performance")
    browser.get(path.as_uri())


def found(browser: Driver, selector: str) -> list[Driver]:
    elements: list[Driver] = browser.find_elements("css selector", selector)
    return elements


def click(browser: Driver, element: Driver) -> None:
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    element.click()


def requested(browser: Driver) -> list[str]:
    log = (json.loads(row["message"])["message"] for row in browser.get_log("performance"))
    sent = (row for row in log if row["method"] == "Network.requestWillBeSent")
    return [row["params"]["request"]["url"] for row in sent]


def test_it_opens_loads_nothing_and_takes_no_text_for_html(browser: Driver, report: Path) -> None:
    look(browser, report)
    assert browser.title.startswith("made up <script>")
    assert browser.get_log("browser") == [] and requested(browser) == [report.as_uri()]
    assert not found(browser, "img")
    shown = [one.get_attribute("id") for one in found(browser, "section") if one.is_displayed()]
    assert {"overview", "differences", "bars", "curves", "subgroups", "cases"} <= set(shown)
    assert len(found(browser, "#curves svg[role=img]")) == 4
    assert report.stat().st_size < 300_000


def test_every_result_stands_in_the_charts_until_it_is_hidden(
    browser: Driver, report: Path, metrics: dict[str, float | int]
) -> None:
    look(browser, report)
    tips = "return [...document.querySelectorAll('#bars .row title')].map(one => one.textContent)"
    before = browser.execute_script(tips)
    assert len(before) == 4 * (1 + len(RISK))
    value, low, high = (metrics[f"rl/{RISK[0]}/auroc{end}"] for end in ("", "/low", "/high"))
    assert f"{RISK[0]}, rl: {value:.3f} [{low:.3f}, {high:.3f}]" in before
    button = next(one for one in found(browser, "#legend button") if one.text == "rl")
    click(browser, button)
    assert button.get_attribute("aria-pressed") == "false"
    assert [tip for tip in before if ", rl: " not in tip] == browser.execute_script(tips)
    assert len(found(browser, "#overview tbody tr")) == 3 + 3
    click(browser, button)
    assert browser.execute_script(tips) == before


def test_a_click_on_a_heading_sorts_and_a_second_one_turns(browser: Driver, report: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    look(browser, report)
    heading = next(one for one in found(browser, "#everything th button") if one.text == "AUROC")
    values = (
        "return [...document.querySelectorAll('#everything tbody tr')]"
        ".map(row => Number(row.children[4].firstChild.textContent))"
    )
    heading.send_keys(Keys.ENTER)
    down = browser.execute_script(values)
    assert len(down) == 4 * len(RISK) and down == sorted(down, reverse=True)
    assert heading.find_element("xpath", "..").get_attribute("aria-sort") == "descending"
    heading.send_keys(Keys.ENTER)
    assert browser.execute_script(values) == sorted(down)


def test_a_case_opens_with_record_chain_answer_and_truth(browser: Driver, report: Path) -> None:
    from selenium.webdriver.support.wait import WebDriverWait

    look(browser, report)
    cases = found(browser, ".case")
    assert len(cases) == 6 and SECRET not in found(browser, "main")[0].text
    for case in cases[:2]:
        click(browser, case.find_element("css selector", "summary"))
        # a browser tells the page of it in a later task
        WebDriverWait(case, 10).until(lambda one: one.find_elements("css selector", ".inside"))
        assert "What is next?" in case.text
        assert SECRET in case.text and "onerror=alert(1)" in case.text and "well" in case.text
    assert "Truth" in cases[0].text  # a risk task comes first, a decision second
    assert any(word in cases[1].text for word in ("Right", "Missed"))
    wrong = next(one for one in found(browser, "#cases .choice button") if one.text == "wrong")
    click(browser, wrong)
    left = [case for case in found(browser, ".case") if case.is_displayed()]
    assert 0 < len(left) < 6
    assert all(case.find_elements("css selector", ".badge.bad") for case in left)
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("width", [400, 768, 1280])
def test_nothing_is_wider_than_the_window(browser: Driver, report: Path, width: int) -> None:
    look(browser, report, width)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    charts = (
        "return [...document.querySelectorAll('svg[role=img]')]"
        ".map(one => one.getBoundingClientRect().right)"
    )
    assert max(browser.execute_script(charts)) <= width


def test_the_temperature_and_the_task_of_the_curves_are_chosen(
    browser: Driver, report: Path
) -> None:
    look(browser, report)
    dashed = "return document.querySelectorAll('#curves path[stroke-dasharray=\"4 3\"]').length"
    assert browser.execute_script(dashed) == 0
    click(browser, found(browser, "#curves input[type=checkbox]")[0])
    assert browser.execute_script(dashed) == 2 * 4
    names = [one.text for one in found(browser, "#curves .choice button")]
    assert names == ["all tasks pooled", *RISK]
    click(browser, found(browser, "#curves .choice button")[2])
    assert found(browser, "#curves > .soft")[0].text.startswith(f"{RISK[1]}: 120 samples of 40")


def test_closed_data_stay_out_of_the_page(
    browser: Driver, tmp_path: Path, table: pl.DataFrame, metrics: dict[str, float | int]
) -> None:
    closed = written(tmp_path, table, metrics, False)
    text = closed.read_text(encoding="utf-8")
    assert SECRET not in text and "labevents/10" not in text
    look(browser, closed)
    assert found(browser, "#cases .body")[0].text.startswith("Cases are not shown: the data are")


# --- what it warns of -----------------------------------------------------------------------------


def test_saturated_probabilities_are_warned_of_and_the_other_mode_is_named() -> None:
    table = predictions({"rl:think": 0.5, "rl:both": 0.5}, patients=90)
    sure = pl.when(pl.col("probability") >= 0.5).then(0.99999).otherwise(0.00001)
    table = table.with_columns(
        probability=pl.when(pl.col("model") == "rl:think").then(sure).otherwise("probability")
    )
    told = warnings(table, summarise(table, TASKS, "test", 10, 0))
    assert len([one for one in told if "saturated" in one]) == 1
    assert told[0].startswith("The probabilities of rl:think are saturated: 100%")
    assert "TRIAGE" in told[0] and "Look at rl:both" in told[0]
    alone = table.filter(pl.col("model") == "rl:think")
    assert "answer=both" in warnings(alone, {"rl:think/saturated": 0.6})[0]


def test_what_could_not_be_read_or_was_not_asked_is_warned_of() -> None:
    table = predictions({"adapt": 0.5, "rl": 0.5}, patients=30)
    lost = (pl.col("model") == "rl") & (pl.col("task") == "labevents")
    unread = pl.when(lost).then(pl.lit("think block is not closed")).otherwise(None)
    same = pl.when(pl.col("task") == RISK[0]).then(pl.lit("no")).otherwise("target")
    fewer = (pl.col("model") == "adapt") & (pl.col("subject_id") > 110)
    table = table.with_columns(problem=unread, target=same).filter(~fewer)
    told = warnings(table, {})
    assert any("rl: 60 of" in one and "most often: think block is not" in one for one in told)
    assert any(one.startswith("adapt answered ") for one in told)
    assert any("30 patients" in one for one in told)
    assert any(one.endswith(f"all answers are the same there: {RISK[0]}.") for one in told)


def test_probabilities_that_are_no_risks_are_warned_of() -> None:
    table = predictions({"adapt": 0.5, "rl": 0.5}, patients=90)
    metrics = {"adapt/risk/ece/macro": 0.141, "adapt/risk/ece_calibrated/macro": 0.032}
    assert warnings(table, metrics | {"rl/risk/ece/macro": 0.099}) == [
        "Do not read these probabilities as risks, only as ranks: the calibration error (ECE) of "
        "adapt 0.141 (0.032 after recalibration) is large."
    ]


def test_a_model_has_one_colour_on_all_pages_and_a_mark_for_each_mode_and_run() -> None:
    pages = [
        ["adapt", "rl", "boosting"],
        ["rl:both", "EHR-R1-8B:direct", "rl:think-list"],
        ["untrained:both", "adapt:both", "reason:both", "rl:both"],
        ["adapt@a", "rl@a", "boosting", "adapt@b", "rl@b", "rl:both@b", "EHR-R1-8B:direct@b"],
        ["EHR-R1-8B:think@x.1", "EHR-R1-8B:think@x.2", "rl@x.1"],
    ]
    colours: dict[str, set[str]] = {}
    for names in pages:
        shown = coloured(names)
        assert [one["name"] for one in shown] == names
        for one in shown:
            model = one["name"].partition("@")[0].partition(":")[0]
            colours.setdefault(model, set()).add(one["colour"])
        assert len({(one["colour"], one["mark"]) for one in shown}) == len(shown)
    assert all(len(found) == 1 for found in colours.values())
    assert len(set.union(*colours.values())) == len(colours)
    one, other, *_ = coloured(["some:direct", "other:direct"] + pages[0])
    assert one["colour"] != other["colour"]


# --- the page for everybody -----------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [420, 1400])
def test_everybody_can_read_and_reach_it(
    browser: Driver, report: Path, width: int, scheme: str
) -> None:
    check_for_everybody(browser, report, width, scheme)


def test_it_says_what_was_evaluated_and_that_a_table_goes_on(browser: Driver, report: Path) -> None:
    look(browser, report, 420)
    head = found(browser, "header")[0].text
    assert "Research only, not for clinical use." in head
    assert "synthetic, invented patients, open" in head
    wider = (
        "return [...document.querySelectorAll('.scroll')]"
        ".map(one => [one.scrollWidth > one.clientWidth, one.classList.contains('wider')])"
    )
    there = browser.execute_script(wider)
    assert any(cut for cut, _ in there) and all(cut == told for cut, told in there)


# --- curves and cases -----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_curves_are_those_of_scikit_learn(seed: int) -> None:
    draw = np.random.default_rng(seed)
    labels = draw.random(80) < 0.4
    scores = np.round(draw.random(80) * 0.6 + labels * 0.3, 1 + seed % 2)
    x, y = roc(scores, labels)
    assert np.trapezoid(y, x) == pytest.approx(roc_auc_score(labels, scores), abs=1e-3)
    theirs = roc_curve(labels, scores, drop_intermediate=False)
    assert np.allclose(x, theirs[0], atol=1e-4) and np.allclose(y, theirs[1], atol=1e-4)
    recall, precision = map(np.array, precision_recall(scores, labels))
    area = (np.diff(np.append(0.0, recall)) * precision).sum()
    assert area == pytest.approx(average_precision_score(labels, scores), abs=1e-3)
    bins = reliability(scores, labels)
    assert sum(bins["n"]) == 80
    assert np.dot(bins["x"], bins["n"]) == pytest.approx(scores.sum(), abs=0.02)
    assert np.dot(bins["y"], bins["n"]) == pytest.approx(labels.sum(), abs=0.02)


def test_acting_on_everybody_is_worth_the_prevalence_less_the_harm() -> None:
    labels = np.arange(20) < 5
    worth = decision_curve(np.ones(20), labels)
    odds = THRESHOLDS / (1 - THRESHOLDS)
    assert np.allclose(worth, 0.25 - 0.75 * odds, atol=1e-4)


def test_balanced_questions_have_a_roc_curve_only(table: pl.DataFrame) -> None:
    rows = table.filter((pl.col("model") == "rl") & (pl.col("task") == RISK[0]))
    balanced = rows.with_columns(balanced=pl.lit(True))
    assert set(curves(balanced, None) or {}) == {"roc"}
    assert curves(rows.filter(pl.col("target") == "no"), None) is None


def test_the_choice_of_cases_depends_on_nothing_but_the_predictions(table: pl.DataFrame) -> None:
    scored = table.filter(pl.col("split") == "test")
    chosen = choose_cases(scored, 12)
    assert len(chosen) == 12 and set(chosen["task"]) == set(TASKS)
    assert set(chosen["model"]) == {"rl:both"} and chosen.schema == SCHEMA
    order = list(range(len(scored)))
    random.Random(0).shuffle(order)
    by_model = scored[order].sort("model", maintain_order=True)  # rl:both still comes last
    again = choose_cases(by_model.filter(pl.col("model") != "boosting"), 12)
    assert set(again["sample_id"]) == set(chosen["sample_id"])
    risk = chosen.filter(pl.col("task").is_in(RISK))
    right = risk["prediction"] == risk["target"]
    assert right.any() and not right.all()
    assert len(choose_cases(scored.clear(), 5)) == 0
