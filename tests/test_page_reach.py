"""The page of one graph for everybody: a keyboard reaches what a mouse does; cuts are told."""

from dataclasses import replace
from pathlib import Path

import pytest

from ehrr1.reasoning.pictures.page import page
from tests.everybody import check_for_everybody
from tests.test_page import BY_HAND, Driver, Opened, much_evidence


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [420, 1400])
def test_everybody_can_read_and_reach_the_page(
    browser: Driver, tmp_path: Path, width: int, scheme: str
) -> None:
    path = tmp_path / "page.html"
    path.write_text(page(replace(BY_HAND, graph=much_evidence())), encoding="utf-8")
    check_for_everybody(browser, path, width, scheme)


def test_a_keyboard_reaches_the_numbers_of_lines_and_full_names(
    browser: Driver, tmp_path: Path
) -> None:
    from selenium.webdriver.common.keys import Keys

    path = tmp_path / "page.html"
    path.write_text(page(replace(BY_HAND, graph=much_evidence())), encoding="utf-8")
    opened = Opened(browser, path)
    answer = next(box for box in opened.all(".node.answer") if box.text == "Insulin")
    for _ in range(40):
        opened.press(Keys.TAB)
        if browser.switch_to.active_element == answer:
            break
    assert browser.switch_to.active_element == answer and opened.texts("#numbers") == [""]
    opened.press(Keys.ENTER)
    said = opened.texts("#numbers li")
    assert said[:2] == [f"Item {n} → Insulin · support 9, lift {2.5 + n}" for n in (6, 5)]
    assert "Glucose → Insulin · support 3, lift 2.5" in said
    assert len(said) == len(opened.lit()["edges"])
    assert opened.all("#numbers")[0].get_attribute("aria-live") == "polite"
    opened.press(Keys.ESCAPE)
    assert opened.texts("#numbers") == [""]
    for box in opened.all(".node.event-node")[:1] + opened.all(".node.concept")[:2]:
        browser.execute_script("arguments[0].focus()", box)  # after a key, as a key would
        data = much_evidence().nodes[box.get_attribute("data-node")]
        assert opened.texts("#tip")[0].split("\n")[0] == data["label"]
        assert box.get_attribute("aria-describedby") == "tip"
        opened.press(Keys.ESCAPE)
        assert opened.texts("#tip") == [""]


@pytest.mark.parametrize("width", [420, 1400])
def test_a_graph_says_whether_it_is_wider_than_its_pane(
    browser: Driver, tmp_path: Path, width: int
) -> None:
    path = tmp_path / "page.html"
    path.write_text(page(BY_HAND), encoding="utf-8")
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    opened = Opened(browser, path)
    pane = "document.querySelector('#graph .body')"
    cut = f"return {pane}.scrollWidth > {pane}.clientWidth"
    assert browser.execute_script(cut) == (width == 420)
    assert opened.all("#sideways")[0].is_displayed() == (width == 420)
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
