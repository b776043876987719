"""Read the tables of rules in this folder.

They list abbreviations, headings, ConText rules and chronic conditions. They are TSV files: lines
that begin with "#" are comments, the first other line names the columns.
"""

import re
from functools import cache
from pathlib import Path

FILES = tuple(sorted(Path(__file__).parent.glob("*.tsv")))
"""The tables; results that rest on them are stored under a fingerprint of their contents."""


def table(name: str) -> list[list[str]]:
    """Return the rows of the table `name`, without comments and column names."""
    text = (Path(__file__).parent / f"{name}.tsv").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return [line.split("\t") for line in lines[1:]]


@cache
def is_chronic(names: str) -> bool:
    """Return whether the words of a condition's names are those of a chronic condition."""
    return _chronic().search(names) is not None


@cache
def _chronic() -> re.Pattern[str]:
    words = "|".join(re.escape(words) for words, _ in table("chronic"))
    return re.compile(rf"\b(?:{words})", re.IGNORECASE)
