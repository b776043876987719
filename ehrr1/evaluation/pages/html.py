"""The page itself: `page.html`, `.css` and `.js` with `charts.js`, and the data that they show.

Data are JSON in the page: tables are lists of cells (a text, a number, `[value, low, high]`, or
`{"result": position}`), charts are drawn from numbers in the browser, as wide as there is room.
"""

from collections.abc import Sequence
from typing import Any

from ehrr1.evaluation.aggregate import BASELINES
from ehrr1.web_page import filled, script_data

CURRICULUM_COLOURS = {"untrained": "c5", "base": "c5", "adapt": "c4", "reason": "c2", "rl": "c0"}
"""A stage has the same colour on every page."""

COLOURS = ("c1", "c3", "c6", "c7", "c0", "c2", "c4", "c5")
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
    """Results with their colours: the curriculum's own, baselines grey, others what is left.

    Colours tell apart for the colour-blind (after Okabe and Ito, 2008); marks differ too. Of
    several runs (`rl@first`, `rl@second`) a stage keeps its colour, and each run has a mark.
    """
    runs = list(dict.fromkeys(name.partition("@")[2] for name in names if "@" in name))
    stages = {name: name.partition("@")[0] for name in names}
    taken = {CURRICULUM_COLOURS[stage] for stage in stages.values() if stage in CURRICULUM_COLOURS}
    free = [colour for colour in COLOURS if colour not in taken] or list(COLOURS)
    found, others = [], 0
    for name in names:
        if stages[name] in CURRICULUM_COLOURS or name in BASELINES:
            colour = (CURRICULUM_COLOURS | BASELINE_COLOURS)[stages[name]]
        else:
            colour = free[others % len(free)]
            others += 1
        run = runs.index(name.partition("@")[2]) if "@" in name else 0
        found.append({"name": name, "colour": colour, "baseline": name in BASELINES, "run": run})
    return found
