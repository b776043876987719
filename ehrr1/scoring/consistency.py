"""Combine several answers to one question."""

from collections import Counter
from collections.abc import Sequence

from ehrr1.scoring.sets import normalise


def agreed(answers: Sequence[Sequence[str]]) -> set[str]:
    """Return the items on which several sampled answers agree.

    This is self-consistency (Wang et al., 2022) for sets: the items in more than half of the
    answers or, if there are none, the items in the largest number of answers.
    """
    counts = Counter(item for answer in answers for item in normalise(answer))
    if not counts:
        return set()
    least = min(len(answers) // 2 + 1, max(counts.values()))
    return {item for item, count in counts.items() if count >= least}
