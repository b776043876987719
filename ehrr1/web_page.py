"""Fill the template of a page: a single HTML file that loads nothing.

The head is the same for all pages. A template is what follows it, with `{{name}}` where a part
belongs; `{{page.css}}` is the file of that name beside the template.
"""

import json
import re
from html import escape
from importlib.resources import files
from typing import Any

HEAD = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<!-- Nothing is loaded and nothing is sent: the page holds what it shows. -->
<meta http-equiv="Content-Security-Policy" content="{{policy}}">
<title>{{title}}</title>
<style>
{{page.css}}
</style>
</head>
"""

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
SCRIPTS = "; script-src 'unsafe-inline'"
"""Allowed only where the template has a script."""

_PLACE = re.compile(r"\{\{([\w.]+)\}\}")


def filled(package: str, title: str, **parts: str) -> str:
    """Return the page of the template `page.html` in `package`; `parts` are HTML, `title` is text.

    Places are filled in one pass, since a part may hold braces of its own. Raises KeyError for a
    place without a part, and OSError for a file that is not there.
    """
    folder = files(package)
    template = folder.joinpath("page.html").read_text(encoding="utf-8")
    policy = POLICY + SCRIPTS * ("<script" in template)

    def part(match: re.Match[str]) -> str:
        name = match[1]
        if "." in name:
            return folder.joinpath(name).read_text(encoding="utf-8").rstrip()
        return {"title": escape(title), "policy": policy, **parts}[name]

    return _PLACE.sub(part, HEAD + template)


def script_data(data: Any) -> str:
    """Return `data` as JSON for a script element: it holds no tag, neither `</script>` nor `<!--`.

    Raises ValueError for a number that is not finite.
    """
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")
