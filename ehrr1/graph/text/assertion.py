"""Decide whether a mention states a fact about the patient at present.

The decision uses ConText within sentences, and the section. The rules are medspaCy's, with the
additions below; its matcher and its ConText graph apply them. Three things differ from medspaCy's
components, for speed or for correctness:

- A rule that is a pattern of alternatives ("denies", "denied", ...) is expanded to phrases: the
  phrase matcher finds the same, several times faster.
- ConText runs sentence by sentence, since modifiers do not reach further and its cost is quadratic.
- A section heading must be at the beginning of a line and is a sentence of its own.
"""

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import medspacy
from medspacy.common.base_rule import BaseRule
from medspacy.common.util import prune_overlapping_matches
from medspacy.context import ConTextRule
from medspacy.context.context_graph import ConTextGraph
from medspacy.context.context_modifier import ConTextModifier
from medspacy.section_detection import SectionRule
from spacy.language import Language
from spacy.matcher import PhraseMatcher
from spacy.tokens import Doc, Span

STATUSES = {
    "NEGATED_EXISTENCE": "negated",
    "FAMILY": "family",
    "HYPOTHETICAL": "hypothetical",
    "HISTORICAL": "historical",
    "POSSIBLE_EXISTENCE": "uncertain",
}
"""ConText's categories and their statuses, in order of precedence."""

SECTION_STATUSES = {
    "allergies": "hypothetical",
    "allergy": "hypothetical",
    "family_history": "family",
    "past_medical_history": "historical",
    "patient_education": "hypothetical",
    "patient_instructions": "hypothetical",
}
"""The status of mentions in a section, unless ConText marks them as negated."""

RULES = (
    ("may represent", "POSSIBLE_EXISTENCE", "FORWARD"),
    ("could represent", "POSSIBLE_EXISTENCE", "FORWARD"),
    ("may reflect", "POSSIBLE_EXISTENCE", "FORWARD"),
    ("could reflect", "POSSIBLE_EXISTENCE", "FORWARD"),
    ("concern for", "POSSIBLE_EXISTENCE", "FORWARD"),
    ("suspected", "POSSIBLE_EXISTENCE", "FORWARD"),
    ("suspicion of", "POSSIBLE_EXISTENCE", "FORWARD"),
    ("suspicion for", "POSSIBLE_EXISTENCE", "FORWARD"),
    ("questionable", "POSSIBLE_EXISTENCE", "FORWARD"),
    ("can not exclude", "POSSIBLE_EXISTENCE", "FORWARD"),
    ("can not be excluded", "POSSIBLE_EXISTENCE", "BACKWARD"),
    ("not excluded", "POSSIBLE_EXISTENCE", "BACKWARD"),
    ("in mother", "FAMILY", "BACKWARD"),
    ("in father", "FAMILY", "BACKWARD"),
    ("in brother", "FAMILY", "BACKWARD"),
    ("in sister", "FAMILY", "BACKWARD"),
    # "a history of diabetes presented with pneumonia": the pneumonia is not historical
    ("presented", "HISTORICAL", "TERMINATE"),
    ("admitted", "HISTORICAL", "TERMINATE"),
    ("transferred", "HISTORICAL", "TERMINATE"),
)
LEFT_OUT = frozenset([": no"])
"""Rules of medspaCy that are not used.

": no" would negate what precedes the colon in "FINDINGS: no pneumothorax".
"""

HEADINGS = (
    ("History:", "indication"),
    ("Clinical History:", "indication"),
    ("Clinical Information:", "indication"),
    ("Indication:", "indication"),
    ("Reason for exam:", "indication"),
    ("Examination:", "imaging"),
    ("Exam:", "imaging"),
    ("Comparison:", "imaging"),
    ("Procedure:", "imaging"),
    ("Conclusion:", "observation_and_plan"),
    ("Allergies:", "allergies"),
    ("PSH:", "past_medical_history"),
    ("Major Surgical or Invasive Procedure:", "hospital_course"),
    ("Hospital Course:", "hospital_course"),
    ("Medications on Admission:", "medications"),
    ("Transitional Issues:", "observation_and_plan"),
    ("Admission Physical Exam:", "physical_exam"),
    ("Discharge Physical Exam:", "physical_exam"),
    ("Admission Exam:", "physical_exam"),
    ("Discharge Exam:", "physical_exam"),
    ("Physical Exam on Admission:", "physical_exam"),
    ("Physical Exam on Discharge:", "physical_exam"),
    ("Vitals:", "physical_exam"),
)
"""Headings of MIMIC that medspaCy's rules lack or assign to another category."""

RESOURCES = Path(medspacy.__file__).parents[1] / "resources" / "en"


class Section(NamedTuple):
    """A section's heading (tokens `start` to `end`, end excluded) and its category."""

    start: int
    end: int
    category: str


class Phrases:
    """A matcher of rules by their words, ignoring case; it keeps the longest of overlaps."""

    def __init__(self, nlp: Language, rules: Mapping[tuple[str, ...], BaseRule]):
        self._rules = {nlp.vocab.strings.add(f"{words}"): rule for words, rule in rules.items()}
        self._matcher = PhraseMatcher(nlp.vocab, attr="LOWER")
        for words in rules:
            self._matcher.add(f"{words}", [Doc(nlp.vocab, words=list(words))])

    def __call__(self, doc: Doc) -> Iterator[tuple[BaseRule, int, int]]:
        """Yield each matching rule with its first token and the token after its last."""
        for key, start, end in prune_overlapping_matches(self._matcher(doc)):
            yield self._rules[key], start, end


class Sections:
    """A detector of section headings, which also adjusts the sentence boundaries to them."""

    def __init__(self, nlp: Language):
        self._headings = Phrases(nlp, section_rules(nlp))

    def __call__(self, doc: Doc) -> list[Section]:
        """Return the sections in order, and set sentence boundaries of `doc` at their headings."""
        found = []
        for rule, start, end in self._headings(doc):
            if start == 0 or "\n" in doc[start - 1].text:
                found.append(Section(start, end, rule.category))
                doc[start].is_sent_start = True
                if end < len(doc):
                    doc[end].is_sent_start = True
        return found


class Assertions:
    """A classifier of mentions by ConText and section."""

    def __init__(self, nlp: Language):
        self._modifiers = Phrases(nlp, context_rules())

    def __call__(self, doc: Doc, mentions: Sequence[Span], sections: Sequence[str]) -> list[str]:
        """Return a status for each mention, given the category of the section of each mention."""
        categories = self._categories(doc, mentions)
        return [
            _status(categories[mention.start], section)
            for mention, section in zip(mentions, sections, strict=True)
        ]

    def _categories(self, doc: Doc, mentions: Sequence[Span]) -> dict[int, set[str]]:
        """Return the first token of each modified mention -> its ConText categories."""
        starts = [sentence.start for sentence in doc.sents]
        modifiers, targets = defaultdict(list), defaultdict(list)
        for mention in mentions:
            targets[bisect_right(starts, mention.start)].append(mention)
        for rule, start, end in self._modifiers(doc):
            sentence = bisect_right(starts, start)
            if sentence in targets:
                modifiers[sentence].append(ConTextModifier(rule, start, end, doc))
        found: dict[int, set[str]] = defaultdict(set)
        for sentence, here in modifiers.items():
            graph = ConTextGraph(targets[sentence], here)
            graph.update_scopes()
            graph.apply_modifiers()
            for target, modifier in graph.edges:
                found[target.start].add(modifier.category)
        return found


def _status(categories: set[str], section: str) -> str:
    if "NEGATED_EXISTENCE" in categories:
        return "negated"
    if section in SECTION_STATUSES:
        return SECTION_STATUSES[section]
    statuses = (status for category, status in STATUSES.items() if category in categories)
    return next(statuses, "affirmed")


def section_rules(nlp: Language) -> dict[tuple[str, ...], BaseRule]:
    """Return heading rules by their words; rules of this module override medspaCy's."""
    rules = [SectionRule(literal, category) for literal, category in HEADINGS]
    rules += SectionRule.from_json(str(RESOURCES / "section_patterns.json"))
    found: dict[tuple[str, ...], BaseRule] = {}
    for rule in rules:
        words = tuple(token.text for token in nlp.make_doc(rule.literal.lower()))
        found.setdefault(words, rule)
    return found


def context_rules() -> dict[tuple[str, ...], BaseRule]:
    """Return ConText rules by their words.

    The order of precedence is: rules of this module, medspaCy's patterns, medspaCy's literals.
    """
    theirs = ConTextRule.from_json(str(RESOURCES / "context_rules.json"))
    theirs.sort(key=lambda rule: rule.pattern is None)
    found: dict[tuple[str, ...], BaseRule] = {}
    for literal, category, direction in RULES:
        found[tuple(literal.split())] = ConTextRule(literal, category, direction=direction)
    for rule in theirs:
        if rule.literal not in LEFT_OUT:
            for words in phrases(rule.literal, rule.pattern):
                found.setdefault(words, rule)
    return found


def phrases(literal: str, pattern: list[dict[str, Any]] | None) -> Iterator[tuple[str, ...]]:
    """Yield the phrases that a rule matches, one for each combination of alternatives.

    `pattern` has one dict per token: LOWER is a word or {"IN": words}, and OP "?" makes it
    optional.
    """
    if pattern is None:
        yield _tokens(literal)
        return
    for words in product(*map(_alternatives, pattern)):
        yield _tokens(" ".join(words))


def _tokens(text: str) -> tuple[str, ...]:
    """Split a text as medspaCy's tokenizer splits literals with punctuation ("h/o", ": none")."""
    return tuple(re.findall(r"\w+(?:'\w+)?|'\w*|[^\w\s]", text.lower()))


def _alternatives(token: dict[str, Any]) -> list[str]:
    if not token.keys() <= {"LOWER", "OP"} or token.get("OP", "?") != "?":
        raise ValueError(f"medspaCy's rules have a new kind of pattern: {token}")
    words = token["LOWER"]
    return ([""] if "OP" in token else []) + ([words] if isinstance(words, str) else words["IN"])
