"""Find the reasons for an answer beside evidence: routine, repetition, and what belongs together.

Evidence is what makes an answer likelier. Most of what is done has another reason: it is done to
nearly everybody in this care unit, it was done before and is due again, or it comes with another
item of the answer. These reasons are counted like evidence: a care unit and the items of an answer
are concepts of a sample, though not of its record.
"""

from collections.abc import Iterable, Sequence
from itertools import islice

from ehrr1.graph.associations import (
    Association,
    Contribution,
    EvidenceRule,
    associated,
    candidates,
    likely,
)
from ehrr1.graph.concepts import ROUTINE, TOGETHER, TRANSFERS, Concept, Occurrence
from ehrr1.graph.cooccurrence import Cooccurrence
from ehrr1.graph.states import NOT_DONE

EVERYBODY = "All patients"
"""The care unit that includes all."""

NO_LIMIT = 2**31
"""More reasons than an answer can have."""


def beside_record(shown: Sequence[Occurrence], answer: Iterable[str]) -> list[Concept]:
    """Return the concepts of a sample that are not of its record: care unit and answers.

    The care unit is that of the last transfer among the occurrences `shown`, if there is one;
    everybody's comes after it.
    """
    units = (one.concept.name for one in reversed(shown) if one.concept.kind == TRANSFERS)
    routines = [Concept(ROUTINE, unit) for unit in (*islice(units, 1), EVERYBODY)]
    return [*routines, *(Concept(TOGETHER, item) for item in dict.fromkeys(answer))]


def loosened(rule: EvidenceRule, min_routine: float) -> EvidenceRule:
    """Return the rule of routine and repetition: a share of patients, and no lift."""
    return EvidenceRule(
        min_count=rule.min_count,
        min_support=rule.min_support,
        min_lift=0.0,
        top=NO_LIMIT,
        min_probability=min_routine,
    )


def likely_items(
    counts: Cooccurrence,
    shown: Sequence[Occurrence],
    anchor: str | None,
    rule: EvidenceRule,
    min_routine: float | None,
    own: Contribution | None,
) -> list[str]:
    """Return the items that a record makes likely, whatever the answer is, the likeliest first.

    They have evidence by `rule`, are routine in the care unit, or were done before (items of the
    table `anchor`) and are due again.
    """
    concepts = dict.fromkeys(one.concept for one in shown)
    found = likely(counts, candidates(counts, concepts), rule, own)
    if min_routine is not None:
        loose = loosened(rule, min_routine)
        usual = candidates(counts, beside_record(shown, ())[:1])
        before = [one for one in concepts if one.kind == anchor and one.state not in NOT_DONE]
        chances = [*likely(counts, usual, loose, own).items()]
        for one in before:
            done = associated(counts, one.name, candidates(counts, [one]), loose, own)
            chances += [(one.name, each.probability) for each in done]
        for name, chance in chances:
            found[name] = max(chance, found.get(name, 0.0))
    return sorted(found, key=lambda name: (-found[name], name))


def find_reasons(
    counts: Cooccurrence,
    items: Iterable[str],
    beside: Sequence[Concept],
    shown: Iterable[Concept],
    rule: EvidenceRule,
    min_routine: float,
    own: Contribution | None,
) -> dict[str, list[Association]]:
    """Return the reasons for each of some items, strongest first.

    `beside` are the concepts of `beside_record`, `shown` those of the context of which an answer
    can be a repetition, `own` what the sample's patient adds to the counts. The care unit and the
    item done before are reasons if at least the share `min_routine` of their patients has the
    answer; for other items of the answer the `rule` of evidence holds.
    """
    loose = loosened(rule, min(min_routine, rule.min_probability))
    before: dict[str, Concept] = {}
    for concept in sorted(shown, key=lambda one: one.state):
        if concept.state not in NOT_DONE:
            before.setdefault(concept.name, concept)
    usual = [one for one in beside if one.kind == ROUTINE][:1]
    others = [one for one in beside if one.kind == TOGETHER]
    found = {}
    for item in items:
        again = [before[item]] if item in before else []
        joined = [one for one in others if one.name != item]
        known = candidates(counts, [*usual, *again, *joined])
        found[item] = [
            one
            for one in associated(counts, item, known, loose, own)
            if (rule.admits(one) if one.concept in others else one.probability >= min_routine)
        ]
    return found
