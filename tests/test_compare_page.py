"""The page of `compare=` in a real browser: its head, its colours, its legend, what it cuts."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from ehrr1.evaluation.aggregate import summarise
from tests.everybody import check_for_everybody
from tests.test_compare import evaluated, side_by_side
from tests.test_report_page import TASKS, click, found, look, predictions, written

Driver = Any

SKILLS = {"adapt": 0.6, "rl": 1.2, "rl:both": 0.9, "boosting": 1.5}
UNIT = "Cardiac Vascular Intensive Care Unit (CVICU)"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of two runs of one model, `first` with the facts of a finished evaluation."""
    root = tmp_path_factory.mktemp("compared")
    data = {"name": "synthetic", "protocol": "strict"}
    told = {"variant": "long", "data": data, "model": {"name": "tiny"}}
    unit = pl.when(pl.col("sex") == "F").then(pl.lit(UNIT)).otherwise(pl.lit("CCU"))
    asked = predictions(SKILLS, patients=30).with_columns(care_unit=unit)
    first = evaluated(root / "first" / "eval", asked, **told)
    (first / "environment.txt").write_text("python 3.12\nehrr1 0.2.0, commit 1a2b3c4\n")
    second = predictions({"reason": 0.5, **SKILLS}, seed=1, patients=30)
    side_by_side([first, evaluated(root / "second" / "eval", second)], root / "compare", 20)
    return root / "compare" / "report.html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [420, 1400])
def test_everybody_can_read_and_reach_it(
    browser: Driver, page: Path, width: int, scheme: str
) -> None:
    check_for_everybody(browser, page, width, scheme)


def test_its_head_says_of_each_run_what_it_is_of(browser: Driver, page: Path) -> None:
    look(browser, page, 1400)
    assert "compared by" in found(browser, "#about")[0].text
    first, second = (one.text.split("\n") for one in found(browser, "#about_runs dl"))
    assert [" ".join(pair) for pair in zip(first[::2], first[1::2], strict=True)][:-1] == [
        "run first",
        "data synthetic, invented patients, open or closed is not recorded",
        "protocol strict",
        "experiment made_up, variant long",
        "model tiny",
        "software ehrr1 0.2.0, commit 1a2b3c4",
    ]
    assert first[-2] == "date" and first[-1][:2] == "20"
    assert second[1] == "second" and "not recorded" in second


COLOURS = """
return Object.fromEntries([...document.querySelectorAll("#legend button")]
  .map(one => [one.textContent, getComputedStyle(one.querySelector("svg")).color]));
"""


def test_a_model_has_its_colour_on_both_pages(browser: Driver, page: Path, tmp_path: Path) -> None:
    table = predictions({"rl": 1.0, "reason": 1.0, "rl:both": 1.0}, patients=20)
    report = written(tmp_path, table, summarise(table, TASKS, "test", 2, 0), True)
    look(browser, report)
    alone = browser.execute_script(COLOURS)
    look(browser, page)
    compared = browser.execute_script(COLOURS)
    assert len(compared) == 3 + 1 + 4 and alone["rl"] != alone["reason"]
    models = {name: name.partition("@")[0].partition(":")[0] for name in compared}
    assert {compared[name] for name in models if models[name] == "rl"} == {alone["rl"]}
    assert alone["rl:both"] == alone["rl"] and compared["reason@second"] == alone["reason"]
    assert len(set(compared.values())) == 4
    shapes = browser.execute_script(
        "return [...document.querySelectorAll('#legend svg')].map(one => one.outerHTML)"
    )
    assert len(set(shapes)) == len(shapes)


@pytest.mark.parametrize("width", [420, 1400])
def test_the_legend_stays_in_sight_and_covers_no_heading(
    browser: Driver, page: Path, width: int
) -> None:
    look(browser, page, width)
    place = "return document.querySelector('#legend').getBoundingClientRect().toJSON()"
    assert browser.execute_script(place)["top"] > 0
    for link in found(browser, "nav a")[1:-1]:
        browser.execute_script("arguments[0].click()", link)
        target = link.get_attribute("href").partition("#")[2]
        heading = found(browser, f"#{target} h2")[0]
        top = browser.execute_script("return arguments[0].getBoundingClientRect().top", heading)
        legend = browser.execute_script(place)
        assert legend["top"] == 0 and 0 < legend["bottom"] <= top
    click(browser, found(browser, "#legend button")[0])  # it can be pressed where it is


def test_a_switched_off_result_is_told_apart_and_readable(browser: Driver, page: Path) -> None:
    look(browser, page, 1400)
    on, off = found(browser, "#legend button")[:2]
    click(browser, off)
    looks = [
        browser.execute_script(
            "const style = getComputedStyle(arguments[0]);"
            "return [style.opacity, style.textDecorationLine]",
            button,
        )
        for button in (on, off)
    ]
    assert looks == [["1", "none"], ["1", "line-through"]]


def test_no_label_of_a_chart_is_cut_at_1400_px(browser: Driver, page: Path) -> None:
    look(browser, page, 1400)
    labels = "return [...document.querySelectorAll('svg text')].map(one => one.textContent)"
    told = browser.execute_script(labels)
    assert UNIT in told and not [label for label in told if label.endswith("…")]


HINTS = """
return [...document.querySelectorAll(".scroll")].map(one => [one.scrollWidth > one.clientWidth,
  one.classList.contains("wider"), one.nextElementSibling?.className === "hint"]);
"""


def test_a_table_says_at_any_width_whether_it_goes_on(browser: Driver, tmp_path: Path) -> None:
    table = predictions({"rl": 1.0}, patients=20)
    runs = [
        evaluated(tmp_path / f"run_{number}" / "eval", table, note=f"{number}" * 38)
        for number in range(5)
    ]
    side_by_side(runs, tmp_path / "compare", 2)
    for width in (420, 1400):
        look(browser, tmp_path / "compare" / "report.html", width)
        hints = browser.execute_script(HINTS)
        assert all(len(set(hint)) == 1 for hint in hints)
        assert {cut for cut, *_ in hints} == {True, False}
