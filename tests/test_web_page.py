"""Pages: one head, places filled once, data that cannot end their script."""

import json
import re

import pytest

from ehrr1.web_page import filled, script_data

PAGES = {
    "ehrr1.evaluation.pages": ("data",),
    "ehrr1.reasoning.pictures": ("data",),
    "ehrr1.inference.pages": (
        *("warning", "not_for_care", "about", "answer", "chain", "curves", "timeline"),
    ),
}


@pytest.mark.parametrize("package", PAGES)
def test_titles_are_text_and_braces_stay(package: str) -> None:
    parts = dict.fromkeys(PAGES[package], "{{title}} {{nowhere}}")
    page = filled(package, "<b>{{data}}</b>", **parts)
    assert "<title>&lt;b&gt;{{data}}&lt;/b&gt;</title>" in page
    assert "{{title}} {{nowhere}}" in page
    assert page.startswith("<!doctype html>") and page.count("<head>") == page.count("<body>") == 1


@pytest.mark.parametrize("package", PAGES)
def test_only_pages_with_a_script_may_run_one(package: str) -> None:
    page = filled(package, "", **dict.fromkeys(PAGES[package], ""))
    [policy] = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy.startswith("default-src 'none'")
    assert ("script-src" in policy) == ("<script" in page)


def test_a_place_without_a_part_is_told() -> None:
    with pytest.raises(KeyError, match="timeline"):
        filled(
            "ehrr1.inference.pages", "", **dict.fromkeys(PAGES["ehrr1.inference.pages"][:-1], "")
        )


def test_data_hold_no_tag() -> None:
    data = {"text": "</script><!-- é", "number": 0.5}
    text = script_data(data)
    assert "<" not in text and "é" in text and json.loads(text) == data
    with pytest.raises(ValueError, match=r"not JSON compliant|Out of range"):
        script_data(float("nan"))
