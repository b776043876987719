"""Which drafts are kept: the rules of EHR-R1's screening, each counted on its own."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ehrr1.graph.chain import SECTIONS, Chain, citable, faithfulness, parse_chain
from ehrr1.graph.writer import Draft
from ehrr1.records.events import Event
from ehrr1.scoring.sets import set_scores
from ehrr1.tasks.samples import Sample

BETRAYAL = re.compile(
    r"ground[\s-]*truth|(?:correct|given|provided|expected|reference|true|known) answers?"
    r"|answers? (?:is|are|was|were) (?:given|provided|known)|target items?"
    r"|(?:knowledge|evidence|thinking|provided|given) graph|co-?occurrence",
    re.IGNORECASE,
)
"""Phrases that say that the writer saw the answer or the graph."""

HEDGING = re.compile(
    r"\b(?:maybe|may be|might|possible|possibly|perhaps|probably|though|although|however"
    r"|likely|unclear|not sure|could be|presumably)\b",
    re.IGNORECASE,
)
"""Words of doubt; item names are taken out before the search, as some titles contain them."""

RULES = ("sections", "betrayal", "hedging", "citations", "spelling", "coverage")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What screening says of a draft: the rules it breaks (none: it may be kept), and its
    faithfulness, the share of cited items that stand in the context at the cited time."""

    rejected_by: tuple[str, ...]
    faithfulness: float


def screen(draft: Draft, sample: Sample, context: Sequence[Event], coverage: float) -> Verdict:
    """Check one draft against every rule.

    - sections: the three headings, each once and in order;
    - betrayal, hedging: no such phrase outside item names;
    - citations: something is cited, and all of it stands in the context at that event and time;
    - spelling: every final result is an item of the answer, spelled exactly;
    - coverage: the final results name at least this share of the answer (EHR-R1: 0.7).
    """
    chain = parse_chain(draft.chain)
    if chain is None:
        return Verdict(("sections",), 0.0)
    faithful = faithfulness(chain, citable(context, sample.prediction_time))
    prose = _without_names(draft.chain, chain, sample)
    broken = {
        "betrayal": BETRAYAL.search(prose) is not None,
        "hedging": HEDGING.search(prose) is not None,
        "citations": faithful < 1.0,
        "spelling": not set(chain.results) <= set(sample.target),
        "coverage": set_scores(chain.results, sample.target).recall < coverage,
    }
    return Verdict(tuple(rule for rule in RULES if broken.get(rule)), faithful)


def _without_names(text: str, chain: Chain, sample: Sample) -> str:
    """The chain without headings, cited names and answer items, longest first."""
    names = {citation.name for citation in chain.citations} | set(sample.target) | set(SECTIONS)
    for name in sorted(names, key=len, reverse=True):
        text = text.replace(name, " ")
    return text
