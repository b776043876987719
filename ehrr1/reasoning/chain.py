"""Parse reasoning chains: three sections, cited items, derived answers.

    ## Extraction
    Glucose | Labotary Test Events | 06:10
    ## Reasoning
    Glucose | -> | Insulin | Dextrose 50%
    ## Final Results
    Dextrose 50%
    Insulin

Cells are separated by bars, as in the tables of the record. A name then has the same tokens in the
record, in the chain and in the answer, so that a small model can copy it. Final results may also
be cells of one line (`Dextrose 50% | Insulin`). A citation may include the item's value as the
record shows it: `Glucose: 140 | Labotary Test Events | 06:10`. A citation of free text uses the
words of the text: `worsening dyspnea | Discharge | 2150-03-01 12:00`.

A chain on a yes/no question argues for each outcome in turn and does not decide between them:

    ## Case for yes
    Lactate | Labotary Test Events | 06:10
    ## Case for no
    Urine Output | Output Events | 07:00

Lines of these cases that do not have two bars are prose. A line of reasoning may have the state of
its item as a cell (`Glucose | high | -> | Insulin`), or be prose.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from ehrr1.prompts.messages import CASES
from ehrr1.scoring.answers import answer_lines, has_both_cases

RESULTS = "Final Results"
SECTIONS = ("## Extraction", "## Reasoning", f"## {RESULTS}")

BAR = " | "
ARROW = "->"
AGAIN = "Again"
"""Opens a line of reasoning whose answers were done before and are due again."""
ALL_EVIDENCE = "All evidence"
"""Opens a line of reasoning that weighs all that the record shows."""
NOTHING = "None of these"
"""Stands for the final results of a chain whose reasoning names no item of the answer."""


class Citation(NamedTuple):
    """A cited item, with or without its value, and the heading and time of its event.

    All are as written in the chain.
    """

    name: str
    heading: str
    time: str


@dataclass(frozen=True, slots=True)
class Chain:
    """The parts of a chain.

    sections: the non-blank lines of each section, without bullets. reasoning: the lines that argue;
    for a yes/no question, the lines of both cases that are not citations. unread: number of
    extraction lines that are not citations. opening: whether text precedes the first heading.
    """

    sections: tuple[tuple[str, ...], ...]
    citations: tuple[Citation, ...]
    reasoning: tuple[str, ...]
    results: tuple[str, ...]
    unread: int
    opening: bool


def parse_chain(text: str) -> Chain | None:
    """Parse a chain; returns None unless it has each section exactly once and in order."""
    lines = [line.strip() for line in text.splitlines()]
    if [line for line in lines if line in SECTIONS] != list(SECTIONS):
        return None
    first, second, third = (lines.index(section) for section in SECTIONS)
    extraction = _lines(lines[first + 1 : second])
    reasoning = _lines(lines[second + 1 : third])
    written = tuple(item for line in _lines(lines[third + 1 :]) for item in line.split(BAR))
    citations = _citations(extraction)
    return Chain(
        sections=(extraction, reasoning, written),
        citations=citations,
        reasoning=reasoning,
        results=() if written == (NOTHING,) else written,
        unread=len(extraction) - len(citations),
        opening=any(lines[:first]),
    )


def without_results(text: str) -> str:
    """Return a chain up to the last line that names its final results, which reveal the answer.

    A chain that does not name them is returned unchanged.
    """
    last = text.rfind(RESULTS)
    return text[: text.rfind("\n", 0, last) + 1].rstrip() if last >= 0 else text


def parse_cases(text: str) -> Chain | None:
    """Parse a chain on a yes/no question.

    Returns None unless it argues for yes and then for no, and cites something for each.
    """
    if not has_both_cases(text):
        return None
    lines = [line.strip() for line in text.splitlines()]
    first, second = map(lines.index, CASES)
    cases = (_lines(lines[first + 1 : second]), _lines(lines[second + 1 :]))
    cited = [_citations(case) for case in cases]
    if not all(cited):
        return None
    reasoning = tuple(line for case in cases for line in case if not _citations([line]))
    return Chain(cases, cited[0] + cited[1], reasoning, (), 0, any(lines[:first]))


def _lines(lines: Sequence[str]) -> tuple[str, ...]:
    return answer_lines("\n".join(lines))


def _citations(lines: Sequence[str]) -> tuple[Citation, ...]:
    cells = [line.rsplit(BAR, 2) for line in lines]
    return tuple(Citation(*parts) for parts in cells if len(parts) == 3 and ARROW not in parts[:2])


def written_time(time: datetime | None, prediction_time: datetime) -> str:
    """Return a time in the form that the template uses.

    This is hour and minute for a time within a day before the prediction, otherwise date, hour and
    minute, and "None" for a missing time.
    """
    if time is None:
        return "None"
    within_a_day = timedelta() <= prediction_time - time < timedelta(days=1)
    return time.strftime("%H:%M" if within_a_day else "%Y-%m-%d %H:%M")
