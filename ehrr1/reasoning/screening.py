"""Screen drafts by the rules of EHR-R1 and of this project, each of which is counted separately."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ehrr1.graph.concepts import event_concepts, event_texts
from ehrr1.prompts.messages import CASES
from ehrr1.reasoning.chain import SECTIONS, Chain, parse_cases, parse_chain
from ehrr1.reasoning.claims import Findings, check
from ehrr1.reasoning.facts import Citable
from ehrr1.reasoning.names import find_names
from ehrr1.reasoning.wording import betrays, decides, hedges
from ehrr1.records.events import Event
from ehrr1.records.schema import TABLES
from ehrr1.scoring.answers import answer_lines
from ehrr1.scoring.sets import set_scores
from ehrr1.tasks.catalog import TASKS
from ehrr1.tasks.samples import Sample

RULES = (
    "sections",
    "empty",
    "betrayal",
    "hedging",
    "citations",
    "status",
    "values",
    "directions",
    "derivation",
    "repetition",
    "pasted",
    "numbers",
    "spelling",
    "coverage",
)

MOST_CITATIONS = 24
"""Maximum number of extraction lines, twice what the prompts ask for: more copy the record."""

QUOTED_WORDS = 12
"""Number of consecutive words of a free text that make a line of reasoning a copy."""

_NUMBER = re.compile(r"(?<![\w.])\d+(?:,\d{3})*(?:\.\d+)?(?![\w])")
_TIME = re.compile(r"\b\d{4}-\d\d-\d\d\b|\b\d\d?:\d\d(?::\d\d)?\b")
_CLASS = re.compile(
    r"\b(?:type|stage|grade|class|phase|factor|group|step) \d\b"
    r"|\b(?:within|every|last|past|next|first) \d+ (?:minutes?|hours?|days?|weeks?|months?)\b",
    re.IGNORECASE,
)
"""Numbers that count nothing of the record: "type 2", "within 24 hours"."""
_RECORD_LINE = re.compile(
    r"## .+ \[(?:\d{4}-\d\d-\d\d \d\d:\d\d:\d\d|None)\]"
    rf"|- (?:{'|'.join(sorted({key for table in TABLES.values() for key in table.keys}))}): [^|]*"
    r"|\|[^|]*\|[^|]*\|.*"
)
"""A line of a record: the heading of an event, a key with its value, a row of a table."""
_LOOP = re.compile(r"\b(\w+)\b(?:\W+\1\b){3,}", re.IGNORECASE)
"""The same word four times in succession."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of screening a draft.

    rejected_by: the rules that it breaks; empty if it may be kept. faithfulness: the share of
    claims that hold (`claims.check`); in free prose, the share of lines that name an item of the
    context. coverage: the share of the answer that it derives.
    """

    rejected_by: tuple[str, ...]
    faithfulness: float
    coverage: float = 1.0


def screen(
    chain: str,
    sample: Sample,
    context: Sequence[Event],
    coverage: float,
    sections: bool = True,
    likely: Collection[str] = (),
) -> Verdict:
    """Check one draft against every rule.

    - sections: the three headings, each once and in order, and nothing before them; for a yes/no
      question the two cases, each with a citation;
    - betrayal: no phrase that reveals that the answer or the graph was seen, and, on a yes/no
      question, no verdict;
    - hedging: no word of doubt (as for betrayal, item names are ignored);
    - empty, citations, status, values, directions, derivation, repetition: `claims.check`;
    - pasted: no line of the record, no long passage of a free text, and not more citations than
      `MOST_CITATIONS`;
    - numbers: every number occurs in the context, or in the name of an item of the answer or of
      `likely` (items that the record makes likely, as a graph with candidates knows them);
    - spelling: every final result is an item of the answer, spelled exactly;
    - coverage: the final results contain at least this share of the answer (EHR-R1: 0.7).

    Without `sections` (an ablation) the draft is free prose: the items of the answer that it names,
    spelled exactly, are its results, and neither citations nor derivations are checked. Yes/no
    questions keep their two cases.
    """
    risk = TASKS[sample.task].kind == "risk"
    sections = sections or risk
    parts = parse_cases(chain) if risk else parse_chain(chain)
    prose = _without_names(chain, parts if sections else None, sample, context, likely)
    numbers = _numbers(prose)
    facts = Citable(context, sample.prediction_time)
    broken = {
        "betrayal": betrays(prose) or (risk and decides(prose)),
        "hedging": hedges(prose),
        "numbers": bool(numbers) and not numbers <= _numbers_of(context),
        "pasted": _is_pasted(chain, parts if sections else None, context),
        "repetition": _LOOP.search(chain) is not None,
    }
    if not sections:
        return _judge_prose(chain, sample, facts, coverage, broken)
    if parts is None:
        return _verdict(broken | {"sections": True}, 0.0, 0.0)
    return _judge_parts(parts, sample, facts, coverage, broken | {"sections": parts.opening})


def best(verdicts: Sequence[Verdict]) -> int | None:
    """Return the index of the draft to keep, or None if each breaks a rule.

    Of the drafts that break no rule it is the one with the highest coverage, then the highest
    faithfulness, then the first.
    """
    fit = [number for number, verdict in enumerate(verdicts) if not verdict.rejected_by]
    rank = {n: (-verdicts[n].coverage, -verdicts[n].faithfulness, n) for n in fit}
    return min(fit, key=rank.__getitem__, default=None)


def _judge_parts(
    chain: Chain, sample: Sample, facts: Citable, coverage: float, broken: dict[str, bool]
) -> Verdict:
    found = check(chain, facts)
    broken |= _rules(found, broken)
    if TASKS[sample.task].kind == "risk":
        return _verdict(broken, found.faithfulness, 1.0)
    derived = set_scores(chain.results, sample.target).recall
    broken["spelling"] = not set(chain.results) <= set(sample.target)
    broken["coverage"] = derived < coverage
    return _verdict(broken, found.faithfulness, derived)


def _rules(found: Findings, broken: dict[str, bool]) -> dict[str, bool]:
    return {rule: rule in found.broken or broken.get(rule, False) for rule in RULES}


def _judge_prose(
    text: str, sample: Sample, facts: Citable, coverage: float, broken: dict[str, bool]
) -> Verdict:
    lines = answer_lines(text)
    found = check(Chain((lines,), (), lines, (), 0, False), facts)
    faithful = sum(bool(find_names(line, facts.names)) for line in lines) / max(len(lines), 1)
    derived = sum(item in text for item in sample.target) / max(len(sample.target), 1)
    broken |= _rules(found, broken)
    return _verdict(broken | {"coverage": derived < coverage}, faithful, derived)


def _verdict(broken: dict[str, bool], faithful: float, derived: float) -> Verdict:
    return Verdict(tuple(rule for rule in RULES if broken.get(rule)), faithful, derived)


def _is_pasted(text: str, parts: Chain | None, context: Sequence[Event]) -> bool:
    """Return whether a draft copies the record instead of citing it."""
    lines = [line.strip() for line in text.splitlines()]
    if any(_RECORD_LINE.fullmatch(line) for line in lines):
        return True
    cited = parts.citations if parts is not None else ()
    if len(cited) > MOST_CITATIONS or any(
        len(one.name.split()) > 2 * QUOTED_WORDS for one in cited
    ):
        return True
    passages = [
        " ".join(words[first : first + QUOTED_WORDS])
        for line in (lines if parts is None else parts.reasoning)
        for words in [line.split()]
        for first in range(len(words) - QUOTED_WORDS + 1)
    ]
    if not passages:
        return False
    texts = [" ".join(written.split()) for event in context for written in event_texts(event)]
    return any(passage in written for passage in passages for written in texts)


def _without_names(
    text: str,
    parts: Chain | None,
    sample: Sample,
    context: Sequence[Event],
    likely: Collection[str],
) -> str:
    """Return the chain without headings, names of the record, and items of the answer or likely.

    Longer names are removed first.
    """
    names = {*likely} | {concept.name for event in context for concept in event_concepts(event)}
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
    plain = _CLASS.sub(" ", _TIME.sub(" ", text))
    return {float(number.replace(",", "")) for number in _NUMBER.findall(plain)}


def _numbers_of(context: Sequence[Event]) -> set[float]:
    """Return the numbers that a context shows."""
    cells = {cell for event in context for row in event.rows for cell in row}
    names = {item for event in context for item in event.items}
    return {
        float(number.replace(",", "")) for text in cells | names for number in _NUMBER.findall(text)
    }
