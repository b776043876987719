r"""Match answers as the EHR-R1 release does, as an alternative to the parser in `answers`.

The answer is the text after the think block. A block that is not closed, or closed more than once,
is part of the answer. Lines are separated by line breaks or, if the answer contains a literal `\n`
(a backslash and an n), only by that. Bullets are kept, and blank lines inside an answer together
count as one wrong item.
"""

from ehrr1.prompts.messages import THINK_CLOSE
from ehrr1.scoring.sets import SetScores
from ehrr1.tasks.external.benchmark_tasks import CDM_DISEASE, CDM_ICD

NEXT_EVENT = "next_event"


def answer_of(text: str) -> str:
    """Return the text after the think block; the whole text unless it has exactly one end tag."""
    parts = text.split(THINK_CLOSE)
    return (parts[1] if len(parts) == 2 else text).strip()


def lines_of(answer: str, literal: bool = True) -> set[str]:
    r"""Return the distinct lines, lower-cased and stripped; "" can be one of them.

    With `literal`, a literal `\n` separates lines if there is any.
    """
    lines = answer.split("\\n" if literal and "\\n" in answer else "\n")
    return {line.strip().lower() for line in lines}


def release_scores(task: str, text: str, target: str) -> SetScores:
    """Return precision, recall and F1 of a text against the lines of `target`.

    The text may include a think block. For `cdm_disease` (the main disease) all three are 1 if its
    name occurs anywhere in the answer, and for `next_event` if the answer begins with it; else 0.
    """
    answer = answer_of(text)
    if task == CDM_DISEASE:
        return _all(target.lower() in answer.lower())
    if task == NEXT_EVENT:
        return _all(answer.startswith(target))
    said, true = (
        lines_of(answer, literal=task != CDM_ICD),
        {line.lower() for line in target.split("\n")},
    )
    hits = len(said & true)
    if not hits:
        return _all(False)
    return SetScores(hits / len(said), hits / len(true), 2 * hits / (len(said) + len(true)))


def _all(right: bool) -> SetScores:
    return SetScores(float(right), float(right), float(right))
