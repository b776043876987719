"""What stands in an event that came as text (a benchmark's), for the baselines to count."""

import re

from ehrr1.records.events import Event

ITEM_KEYS = ("Item_Name", "Test_Name", "Exam_Name")
"""Keys whose value names a row, in the order of preference."""

NUMBERS, CLASSES = ("Anchor_Age",), ("Gender",)
"""Keys of demographics that are read as a number, or as a yes/no column for each value."""

_BORDER = re.compile(r"(?<!\\)\|")
_HEADING = re.compile(r"## (.+?)(?: \[[^\]]*\])?")


def text_bag(event: Event) -> tuple[list[str], dict[str, float]]:
    """What is counted (the heading, `heading/item` for each row) and the latest numbers."""
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
    """The rows of a Markdown table, or the one row that lines `- Key: value` are."""
    table = [
        [cell.strip().replace("\\|", "|") for cell in _BORDER.split(line.strip().strip("|"))]
        for line in lines
        if line.startswith("|") and not line.startswith("| ---")
    ]
    if table:
        return [dict(zip(table[0], cells, strict=False)) for cells in table[1:]]
    pairs = (line[2:].partition(":") for line in lines if line.startswith("- "))
    return [{key.strip(): value.strip() for key, _, value in pairs}]
