"""Screen drafts by the rules of EHR-R1 and of this project, each of which is counted separately."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ehrr1.graph.concepts import event_concepts
from ehrr1.prompts.messages import CASES
from ehrr1.reasoning.chain import (
    SECTIONS,
    Chain,
    Citable,
    citable,
    faithfulness,
    parse_cases,
    parse_chain,
)
from ehrr1.records.events import Event
from ehrr1.records.schema import TABLES
from ehrr1.scoring.sets import set_scores
from ehrr1.tasks.catalog import TASKS
from ehrr1.tasks.samples import Sample

BETRAYAL = re.compile(
    r"ground[\s-]*truth|gold[\s-]*(?:standard|label|answer)|answer key|in hindsight|target items?"
    r"|(?:correct|given|provided|expected|reference|true|known|actual|listed|final|right)"
    r" (?:answers?|labels?|outcomes?|solutions?)"
    r"|(?:answers?|outcomes?|solutions?) (?:(?:that )?(?:is|are|was|were) )?(?:already )?"
    r"(?:given|provided|known|told|listed|shown)"
    r"|according to the (?:answers?|labels?|lists?|hints?|graph|solution)"
    r"|(?:knowledge|evidence|thinking|provided|given|relation) graph|\bthe graph\b"
    r"|co-?occur|\blift\b|other patients|(?:so|therefore|thus|hence),? the answer"
    r"|the answer (?:is|must|should|will)\b"
    r"|(?:required|asked|instructed|supposed) to (?:arrive|conclude|derive|reach)",
    re.IGNORECASE,
)
"""Phrases that reveal that the writer saw the answer or the graph, or argues to a given end."""

HEDGING = re.compile(
    r"\b(?:maybe|may be|may|might|possible|possibly|perhaps|probably|probable|though|although"
    r"|however|likely|unlikely|unclear|uncertain|not sure|could|presumably|seems?|apparently"
    r"|suspected to|can not be excluded|cannot be excluded)\b",
    re.IGNORECASE,
)
"""Words of doubt.

Item names are removed before the search, since some of them contain such words.
"""

VERDICT = re.compile(
    r"(?:answer|outcome|prediction|conclusion|verdict)\s*(?:is|:|=|will be)\s*\W?(?:yes|no)\b"
    r"|^\s*(?:yes|no)\W*$",
    re.IGNORECASE | re.MULTILINE,
)
"""A decision on a yes/no question, where a chain may only give the two cases."""

RULES = ("sections", "betrayal", "hedging", "citations", "numbers", "spelling", "coverage")

_NUMBER = re.compile(r"(?<![\w.])\d+(?:,\d{3})*(?:\.\d+)?(?![\w])")
_TIME = re.compile(r"\b\d{4}-\d\d-\d\d\b|\b\d\d?:\d\d(?::\d\d)?\b")


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of screening a draft.

    rejected_by: the rules that it breaks; empty if it may be kept. faithfulness: the share of cited
    items that the context has at the cited time; in free prose, the share of lines that name an
    item of the context. coverage: the share of the answer that it derives.
    """

    rejected_by: tuple[str, ...]
    faithfulness: float
    coverage: float = 1.0


def screen(
    chain: str, sample: Sample, context: Sequence[Event], coverage: float, sections: bool = True
) -> Verdict:
    """Check one draft against every rule.

    - sections: the three headings, each once and in order; for a yes/no question the two cases,
      each with a citation;
    - betrayal: no phrase that reveals that the answer or the graph was seen, and, on a yes/no
      question, no verdict;
    - hedging: no word of doubt (as for betrayal, item names are ignored);
    - citations: there is a citation, and the context has all cited items at that event and time;
    - numbers: every number occurs in the context;
    - spelling: every final result is an item of the answer, spelled exactly;
    - coverage: the final results contain at least this share of the answer (EHR-R1: 0.7).

    Without `sections` (an ablation) the draft is free prose: the items of the answer that it names,
    spelled exactly, are its results, and citations are not checked. Yes/no questions keep their two
    cases.
    """
    risk = TASKS[sample.task].kind == "risk"
    sections = sections or risk
    parts = parse_cases(chain) if risk else parse_chain(chain)
    prose = _without_names(chain, parts if sections else None, sample, context)
    numbers = _numbers(prose)
    decides = risk and VERDICT.search(prose) is not None
    broken = {
        "betrayal": decides or BETRAYAL.search(prose) is not None,
        "hedging": HEDGING.search(prose) is not None,
        "numbers": bool(numbers) and not numbers <= _numbers_of(context),
    }
    if not sections:
        return _judge_prose(chain, sample, context, coverage, broken)
    if parts is None:
        return _verdict(broken | {"sections": True}, 0.0, 0.0)
    return _judge_parts(parts, sample, citable(context, sample.prediction_time), coverage, broken)


def best(verdicts: Sequence[Verdict]) -> int | None:
    """Return the index of the draft to keep, or None if each breaks a rule.

    Of the drafts that break no rule it is the one with the highest coverage, then the highest
    faithfulness, then the first.
    """
    fit = [number for number, verdict in enumerate(verdicts) if not verdict.rejected_by]
    rank = {n: (-verdicts[n].coverage, -verdicts[n].faithfulness, n) for n in fit}
    return min(fit, key=rank.__getitem__, default=None)


def _judge_parts(
    chain: Chain, sample: Sample, allowed: Citable, coverage: float, broken: dict[str, bool]
) -> Verdict:
    faithful = faithfulness(chain, allowed)
    broken["citations"] = faithful < 1.0
    if TASKS[sample.task].kind == "risk":
        return _verdict(broken, faithful, 1.0)
    derived = set_scores(chain.results, sample.target).recall
    broken["spelling"] = not set(chain.results) <= set(sample.target)
    broken["coverage"] = derived < coverage
    return _verdict(broken, faithful, derived)


def _judge_prose(
    text: str,
    sample: Sample,
    context: Sequence[Event],
    coverage: float,
    broken: dict[str, bool],
) -> Verdict:
    names = {item for event in context for item in event.items if item}
    lines = [line for line in text.splitlines() if line.strip()]
    faithful = sum(any(name in line for name in names) for line in lines) / max(len(lines), 1)
    derived = sum(item in text for item in sample.target) / max(len(sample.target), 1)
    return _verdict(broken | {"coverage": derived < coverage}, faithful, derived)


def _verdict(broken: dict[str, bool], faithful: float, derived: float) -> Verdict:
    return Verdict(tuple(rule for rule in RULES if broken.get(rule)), faithful, derived)


def _without_names(text: str, parts: Chain | None, sample: Sample, context: Sequence[Event]) -> str:
    """Return the chain without headings, names of the record and items of the answer.

    Longer names are removed first.
    """
    names = {concept.name for event in context for concept in event_concepts(event)}
    names |= {TABLES[event.table].heading for event in context}
    names |= {*SECTIONS, *CASES}
    if TASKS[sample.task].kind == "decision":
        names |= set(sample.target)
    if parts is not None:
        names |= {citation.name for citation in parts.citations}
    named = [name for name in names if name in text]
    for name in sorted(named, key=lambda name: (-len(name), name)):
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", " ", text)
    return text


def _numbers(text: str) -> set[float]:
    """Return the numbers of a text, except times and dates."""
    plain = _TIME.sub(" ", text)
    return {float(number.replace(",", "")) for number in _NUMBER.findall(plain)}


def _numbers_of(context: Sequence[Event]) -> set[float]:
    """Return the numbers that a context shows."""
    cells = {cell for event in context for row in event.rows for cell in row}
    names = {item for event in context for item in event.items}
    return {
        float(number.replace(",", "")) for text in cells | names for number in _NUMBER.findall(text)
    }
