"""Check that everybody can read a page and reach its parts: contrast, keyboard, width."""

from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def check_for_everybody(browser: Any, page: Path, width: int, scheme: str) -> None:
    """Open a page at a width, light or dark; fail for what cannot be read or reached."""
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get_log("browser")
    browser.get(page.as_uri())
    for check in ("readable.js", "reachable.js"):
        assert browser.execute_script((HERE / check).read_text(encoding="utf-8"))[:5] == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.get_log("browser") == []
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
