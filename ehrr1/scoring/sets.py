"""Set precision, recall and F1 of answer lines."""

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
    """The distinct items, lower-cased and stripped; blank ones fall away."""
    return {line for line in (item.strip().lower() for item in items) if line}


@lru_cache(maxsize=2**16)
def reduce(item: str) -> str:
    """An item without what two spellings of a name differ in: letters' case and width, accents
    apart from their letters, numbers or bullets before it, punctuation, repeated blanks."""
    text = _LISTED.sub("", unicodedata.normalize("NFKC", item).casefold().strip())
    return " ".join(_NO_WORD.sub(" ", text).split())


_LISTED = re.compile(r"^(?:[-*•]|\(?\d{1,3}[.)])\s+")
_NO_WORD = re.compile(r"[^\w]+")


def set_scores(prediction: Iterable[str], target: Iterable[str]) -> SetScores:
    """Compare two sets of items as the EHR-R1 benchmark does: lower-cased, order and repeats aside.

    Empty cases: two empty sets agree (1, 1, 1); one empty set against a filled one is (0, 0, 0),
    also its precision, so that answering nothing never pays.
    """
    said, truth = normalise(prediction), normalise(target)
    if not said and not truth:
        return SetScores(1.0, 1.0, 1.0)
    hits = len(said & truth)
    if hits == 0:
        return SetScores(0.0, 0.0, 0.0)
    precision, recall = hits / len(said), hits / len(truth)
    return SetScores(precision, recall, 2 * hits / (len(said) + len(truth)))
