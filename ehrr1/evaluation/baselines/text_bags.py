"""Rows of text-only events, as benchmarks have them."""

import re
from collections.abc import Iterator

from ehrr1.records.events import Event

ITEM_KEYS = (
    *("Item_Name", "Test_Name", "Exam_Name", "Drug", "Medication", "Name", "Icd_Title"),
    *("Diagnoses", "Procedures", "Order_Type", "Result_Name", "Careunit", "Curr_Service"),
    *("Admission_Type", "Item"),
)
"""Keys whose value is the item of a row, in order of preference."""

MISSING = ("nan", "None")
"""Missing values as the EHR-R1 release prints them."""

_BORDER = re.compile(r"(?<!\\)\|")
_HEADING = re.compile(r"## (.+?)(?: \[[^\]]*\])?")


def text_rows(event: Event) -> tuple[str, Iterator[tuple[str, dict[str, str]]]]:
    """Return the heading of an event ("text" if none), and each row as its item and its cells.

    The item is "" if the row has none of `ITEM_KEYS`.
    """
    heading, *lines = (event.text or "").split("\n")
    name = found[1] if (found := _HEADING.fullmatch(heading)) else "text"
    return name, (
        (next((row[key] for key in ITEM_KEYS if row.get(key)), ""), row) for row in _rows(lines)
    )


def _rows(lines: list[str]) -> list[dict[str, str]]:
    """Return the rows of a Markdown table, or one row made of all lines `- Key: value`."""
    table = [
        [_cell(cell.replace("\\|", "|")) for cell in _BORDER.split(line.strip().strip("|"))]
        for line in lines
        if line.startswith("|") and not line.startswith("| ---")
    ]
    if table:
        return [dict(zip(table[0], cells, strict=False)) for cells in table[1:]]
    pairs = (line[2:].partition(":") for line in lines if line.startswith("- "))
    return [{key.strip(): _cell(value) for key, _, value in pairs}]


def _cell(text: str) -> str:
    """Return a cell without the blanks around it, "" if its value is missing."""
    text = text.strip()
    return "" if text in MISSING else text
