"""The page itself: `page.html`, `.css` and `.js` with `charts.js`, and the data that they show.

Data are JSON in the page: tables are lists of cells (a text, a number, `[value, low, high]`, or
`{"result": position}`), charts are drawn from numbers in the browser, as wide as there is room.
"""

from collections.abc import Iterable, Sequence
from typing import Any
from zlib import crc32

from ehrr1.evaluation.aggregate import BASELINES
from ehrr1.web_page import filled, script_data

CURRICULUM_COLOURS = {"untrained": "c5", "base": "c5", "adapt": "c4", "reason": "c2", "rl": "c0"}
"""A stage has the same colour on every page."""

OTHER_COLOURS = ("c1", "c3", "c6", "c7")
"""Of models that are no stage."""

BASELINE_COLOURS = {
    "frequency": "b2",
    "list_frequency": "b2",
    "list_only": "b1",
    "copy": "b2",
    "copy_cut": "b2",
    "knn": "b1",
    "knn_cut": "b1",
    "linear": "b0",
    "linear_cut": "b0",
    "logistic": "b1",
    "logistic_cut": "b1",
    "boosting": "b0",
    "boosting_cut": "b0",
}

Table = dict[str, Any]


def page(data: dict[str, Any]) -> str:
    """Return the page as HTML; texts in `data` are escaped, never read as HTML."""
    return filled("ehrr1.evaluation.pages", data["title"], data=script_data(data))


def table(label: str, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    """Return a table that readers can sort."""
    return {"label": label, "head": list(head), "rows": [list(row) for row in rows]}


def coloured(names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the results with the colour of their model, and the mark of their mode and run.

    In `rl:both@second` the model is `rl`, the rest its mode and run. A model has the same colour
    on every page, in each mode and run: the curriculum its own, baselines grey, others one by
    their name. The marks tell the results of a model apart, 0 being the first. Colours tell models
    apart for the colour-blind (after Okabe and Ito, 2008).
    """
    rest = {name: name.removeprefix(_model(name)) for name in names if name not in BASELINES}
    marks = list(dict.fromkeys(rest.values()))
    others = _other_colours({_model(name) for name in rest} - CURRICULUM_COLOURS.keys())
    colours = CURRICULUM_COLOURS | BASELINE_COLOURS | others
    return [
        {
            "name": name,
            "colour": colours[_model(name)],
            "baseline": name in BASELINES,
            "mark": marks.index(rest[name]) if name in rest else 0,
        }
        for name in names
    ]


def _model(name: str) -> str:
    return name.partition("@")[0].partition(":")[0]


def _other_colours(models: Iterable[str]) -> dict[str, str]:
    """Return a colour for each model, which follows from its name; the next one if it is taken."""
    found: dict[str, str] = {}
    for model in sorted(models):
        first = crc32(model.encode()) % len(OTHER_COLOURS)
        order = OTHER_COLOURS[first:] + OTHER_COLOURS[:first]
        free = [colour for colour in order if colour not in found.values()]
        found[model] = (free or order)[0]
    return found
