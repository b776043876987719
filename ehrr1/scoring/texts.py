"""ROUGE (Lin, 2004) of a written text, by Google's own implementation."""

from functools import cache
from typing import Any

KINDS = ("rouge1", "rouge2", "rougeL")


def rouge(said: str, true: str) -> dict[str, float]:
    """F-measures of single words, pairs of words and the longest common sequence, stemmed."""
    return {name: score.fmeasure for name, score in _scorer().score(true, said).items()}


@cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # brings NLTK: a second

    return RougeScorer(list(KINDS), use_stemmer=True)
