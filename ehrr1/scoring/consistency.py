"""Several answers to one question: which of them agree."""

from collections import Counter
from collections.abc import Sequence

from ehrr1.scoring.sets import normalise


def agreed(answers: Sequence[Sequence[str]]) -> set[str]:
    """The answer that several draws give together (self-consistency, Wang et al., 2022, for sets):
    the items that more than half of them name; where there is none, those that most of them name.
    """
    counts = Counter(item for answer in answers for item in normalise(answer))
    if not counts:
        return set()
    least = min(len(answers) // 2 + 1, max(counts.values()))
    return {item for item, count in counts.items() if count >= least}
