"""Compute ROUGE (Lin, 2004) of a text with Google's implementation."""

from functools import cache
from typing import Any

KINDS = ("rouge1", "rouge2", "rougeL")


def rouge(said: str, true: str) -> dict[str, float]:
    """Return F-measures of unigrams, bigrams and the longest common subsequence, with stemming."""
    return {name: score.fmeasure for name, score in _scorer().score(true, said).items()}


@cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # imports NLTK, which takes a second

    return RougeScorer(list(KINDS), use_stemmer=True)
