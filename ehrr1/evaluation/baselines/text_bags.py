"""Bag-of-items features from text-only events, as benchmarks have them."""

import re

from ehrr1.records.events import Event

ITEM_KEYS = ("Item_Name", "Test_Name", "Exam_Name")
"""Keys whose value is the item of a row, in order of preference."""

NUMBERS, CLASSES = ("Anchor_Age",), ("Gender",)
"""Keys of demographics that become a numeric feature, or a 0/1 feature for each value."""

_BORDER = re.compile(r"(?<!\\)\|")
_HEADING = re.compile(r"## (.+?)(?: \[[^\]]*\])?")


def text_bag(event: Event) -> tuple[list[str], dict[str, float]]:
    """Return the names to count, and the latest values of numeric features by name.

    Names are the heading and `heading/item` for each row. Numeric features are `heading.key` for
    `NUMBERS`, and `heading.key=value` with value 1 for `CLASSES`.
    """
    heading, *lines = (event.text or "").split("\n")
    name = found[1] if (found := _HEADING.fullmatch(heading)) else "text"
    counted, numbers = [name], {}
    for row in _rows(lines):
        item = next((row[key] for key in ITEM_KEYS if row.get(key)), "")
        counted += [f"{name}/{item}"] * bool(item)
        for key in NUMBERS:
            if row.get(key, "").isdecimal():
                numbers[f"{name}.{key}"] = float(row[key])
        numbers |= {f"{name}.{key}={row[key]}": 1.0 for key in CLASSES if row.get(key)}
    return counted, numbers


def _rows(lines: list[str]) -> list[dict[str, str]]:
    """Return the rows of a Markdown table, or one row made of all lines `- Key: value`."""
    table = [
        [cell.strip().replace("\\|", "|") for cell in _BORDER.split(line.strip().strip("|"))]
        for line in lines
        if line.startswith("|") and not line.startswith("| ---")
    ]
    if table:
        return [dict(zip(table[0], cells, strict=False)) for cells in table[1:]]
    pairs = (line[2:].partition(":") for line in lines if line.startswith("- "))
    return [{key.strip(): value.strip() for key, _, value in pairs}]
