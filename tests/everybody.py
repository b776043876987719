"""Check that everybody can read a page and reach its parts: contrast, keyboard, width."""

from pathlib import Path
from typing import Any

HERE = Path(__file__).parent

CHECKS = ("readable.js", "reachable.js", "untold.js")

SWITCH = "const one = document.querySelector('[aria-pressed]'); one?.click(); return !!one;"
OPEN = "for (const one of document.querySelectorAll('details')) one.open = true;"


def check_for_everybody(browser: Any, page: Path, width: int, scheme: str) -> None:
    """Open a page at a width, light or dark; fail for what cannot be read, reached or told.

    It is checked as it opens, with its first switch pressed, and with all parts unfolded.
    """
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get_log("browser")
    browser.get(page.as_uri())
    _check(browser, width)
    if browser.execute_script(SWITCH):
        _check(browser, width)
    browser.execute_script(OPEN)
    browser.execute_async_script("setTimeout(arguments[0], 100)")  # pages fill what is unfolded
    _check(browser, width)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def _check(browser: Any, width: int) -> None:
    for check in CHECKS:
        assert browser.execute_script((HERE / check).read_text(encoding="utf-8"))[:5] == [], check
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.get_log("browser") == []
