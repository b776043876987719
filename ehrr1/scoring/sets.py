"""Compute set precision, recall and F1 of answer lines."""

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple


class SetScores(NamedTuple):
    """Scores of one sample, each in [0, 1]."""

    precision: float
    recall: float
    f1: float


def normalise(items: Iterable[str]) -> set[str]:
    """Return the distinct items, lower-cased and stripped, without blank ones."""
    return {line for line in (item.strip().lower() for item in items) if line}


@lru_cache(maxsize=2**16)
def reduce(item: str) -> str:
    """Return an item without the differences between spellings of the same name.

    These are case, width and Unicode composition of letters, leading numbers or bullets,
    punctuation and repeated blanks.
    """
    text = _LISTED.sub("", unicodedata.normalize("NFKC", item).casefold().strip())
    return " ".join(_NO_WORD.sub(" ", text).split())


_LISTED = re.compile(r"^(?:[-*•]|\(?\d{1,3}[.)])\s+")
_NO_WORD = re.compile(r"[^\w]+")


def set_scores(prediction: Iterable[str], target: Iterable[str]) -> SetScores:
    """Compare two sets of items as the EHR-R1 benchmark does, in lower case.

    Order and repetitions are ignored. Two empty sets agree (1, 1, 1). An empty set against a
    non-empty one scores (0, 0, 0), including precision, so that empty answers are never rewarded.
    """
    said, truth = normalise(prediction), normalise(target)
    if not said and not truth:
        return SetScores(1.0, 1.0, 1.0)
    hits = len(said & truth)
    if hits == 0:
        return SetScores(0.0, 0.0, 0.0)
    precision, recall = hits / len(said), hits / len(truth)
    return SetScores(precision, recall, 2 * hits / (len(said) + len(truth)))
