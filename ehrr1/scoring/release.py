"""Matching as the EHR-R1 release does it: its reading of an answer, beside ours in `answers`.

What is behind a think block is the answer, of which a block that is not closed, or closed more than
once, is part. Lines end where a line ends or, where a literal `\\n` (a backslash and an n) stands
anywhere, there alone. Bullets stay, and blank lines inside an answer together are one wrong item.
"""

from ehrr1.prompts.messages import THINK_CLOSE
from ehrr1.scoring.sets import SetScores
from ehrr1.tasks.external.benchmark_tasks import CDM_DISEASE, CDM_ICD

NEXT_EVENT = "next_event"


def answer_of(text: str) -> str:
    """Return what stands behind the think block; all of it where there is not exactly one end."""
    parts = text.split(THINK_CLOSE)
    return (parts[1] if len(parts) == 2 else text).strip()


def lines_of(answer: str, literal: bool = True) -> set[str]:
    """The distinct lines, lower-cased and stripped; "" is one of them. `literal`: a `\\n` that is
    spelled out ends a line too."""
    lines = answer.split("\\n" if literal and "\\n" in answer else "\n")
    return {line.strip().lower() for line in lines}


def release_scores(task: str, text: str, target: str) -> SetScores:
    """Precision, recall and F1 of what was written, think block included, against lines.

    The main disease (`cdm_disease`) is right where its name stands anywhere in the answer, and
    `next_event` where the answer begins with it: all three are then 1, else 0.
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
