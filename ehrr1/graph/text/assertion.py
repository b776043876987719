"""Decide whether a mention states a fact about the patient at present.

The decision uses ConText within sentences, and the section. The rules are medspaCy's, with the
additions of `context_rules.tsv` and `headings.tsv`; its matcher and its ConText graph apply them.
Four things differ from medspaCy's components, for speed or for correctness:

- A rule that is a pattern of alternatives ("denies", "denied", ...) is expanded to phrases: the
  phrase matcher finds the same, several times faster.
- ConText runs sentence by sentence, since modifiers do not reach further and its cost is quadratic.
- A rule that ends others ends those of its categories; medspaCy's own end all.
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

from ehrr1.graph.text.rule_tables import is_chronic, table

STATUSES = {
    "NEGATED_EXISTENCE": "negated",
    "FAMILY": "family",
    "HYPOTHETICAL": "hypothetical",
    "HISTORICAL": "historical",
    "POSSIBLE_EXISTENCE": "uncertain",
}
"""medspaCy's categories and their statuses, in order of precedence."""

ENDED = ("HELD", "RESOLVED")
"""Categories of this package: a drug that is stopped or held, a problem that is over.

Such a mention is historical, and never chronic.
"""

ALL = "ALL"
"""The category of a TERMINATE rule that ends the rules of every category."""

SIGN = "SIGN"
"""The category of "+" and "-", which mark findings as present or absent; see `_signs`."""

SECTION_STATUSES = {
    "allergies": "hypothetical",
    "allergy": "hypothetical",
    "family_history": "family",
    "past_medical_history": "historical",
    "patient_education": "hypothetical",
    "patient_instructions": "hypothetical",
}
"""The status of mentions in a section, unless ConText marks them as negated or ended."""

SIGNS = ("( - )", "( + )", "-", "+")
ABSENT = ConTextRule("-", "NEGATED_EXISTENCE", direction="FORWARD")
ABSENT_NEXT = ConTextRule("-", "NEGATED_EXISTENCE", direction="FORWARD", max_targets=1)
ABSENT_BEFORE = ConTextRule("(-)", "NEGATED_EXISTENCE", direction="BACKWARD", max_targets=1)
PRESENT = ConTextRule("+", "NEGATED_EXISTENCE", direction="TERMINATE")

LEFT_OUT = frozenset([": no"])
"""Rules of medspaCy that are not used.

": no" would negate what precedes the colon in "FINDINGS: no pneumothorax".
"""

RELATIVES = frozenset(["brother", "child", "father", "mother", "parents", "sibling", "sister"])
"""First words of lines that are no headings, for they belong to the family history."""

_HEADING = re.compile(
    r"^(?:[A-Z][\w/&' -]{2,50}:$|[A-Z]+[A-Z/&' ]* [A-Z/&' ]+:(?= ))", re.MULTILINE
)
"""A heading that no rule lists: words alone on their line, or at least two words in capitals."""

RESOURCES = Path(medspacy.__file__).parents[1] / "resources" / "en"


class Section(NamedTuple):
    """A section's heading (tokens `start` to `end`, end excluded) and its category."""

    start: int
    end: int
    category: str


Match = tuple[Any, int, int]
"""A rule with its first token and the token after its last."""


class Phrases:
    """A matcher of rules by their words, ignoring case; it keeps the longest of overlaps."""

    def __init__(self, nlp: Language, rules: Mapping[tuple[str, ...], BaseRule]):
        self._rules = {nlp.vocab.strings.add(f"{words}"): rule for words, rule in rules.items()}
        self._matcher = PhraseMatcher(nlp.vocab, attr="LOWER")
        for words in rules:
            self._matcher.add(f"{words}", [Doc(nlp.vocab, words=list(words))])

    def __call__(self, doc: Doc) -> Iterator[Match]:
        """Yield each matching rule with its first token and the token after its last."""
        for key, start, end in prune_overlapping_matches(self._matcher(doc)):
            yield self._rules[key], start, end


class Sections:
    """A detector of section headings, which also adjusts the sentence boundaries to them."""

    def __init__(self, nlp: Language):
        self._headings = Phrases(nlp, section_rules(nlp))

    def __call__(self, doc: Doc) -> list[Section]:
        """Return the sections in order, and set sentence boundaries of `doc` at their headings.

        A heading that no rule lists ends a section whose mentions have a status of their own: what
        follows the past history under "Pertinent Findings:" is not history.
        """
        found = {}
        for rule, start, end in self._headings(doc):
            if start == 0 or "\n" in doc[start - 1].text:
                found[start] = Section(start, end, rule.category)
        for section in _unlisted(doc):
            found.setdefault(section.start, section)
        sections, last = [], ""
        for section in (found[start] for start in sorted(found)):
            if section.category or last in SECTION_STATUSES:
                sections.append(section)
                last = section.category
                doc[section.start].is_sent_start = True
                if section.end < len(doc):
                    doc[section.end].is_sent_start = True
        return sections


def _unlisted(doc: Doc) -> Iterator[Section]:
    """Yield lines that look like headings; a history belongs to the past medical history."""
    for heading in _HEADING.finditer(doc.text):
        words = heading[0].lower()
        span = doc.char_span(*heading.span())
        if span is not None and words.split(" ")[0].rstrip(":s") not in RELATIVES:
            category = "past_medical_history" if "history" in words else ""
            yield Section(span.start, span.end, category)


class Assertions:
    """A classifier of mentions by ConText and section."""

    def __init__(self, nlp: Language):
        self._modifiers = Phrases(nlp, context_rules())

    def __call__(
        self,
        doc: Doc,
        mentions: Sequence[Span],
        sections: Sequence[str],
        names: Sequence[str],
    ) -> list[str]:
        """Return a status for each mention.

        `sections` has the category of the section of each mention, `names` its concept's name.
        """
        categories = self._categories(doc, mentions)
        return [
            _status(categories[mention.start], section, is_chronic(f"{name} {mention.text}"))
            for mention, section, name in zip(mentions, sections, names, strict=True)
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
                modifiers[sentence].append((rule, start, end))
        found: dict[int, set[str]] = defaultdict(set)
        for sentence, matches in modifiers.items():
            rules = list(_signs(doc, matches))
            for category in {rule.category for rule, *_ in rules if _modifies(rule)}:
                here = [
                    ConTextModifier(*match, doc) for match in rules if _concerns(match, category)
                ]
                graph = ConTextGraph(targets[sentence], here)
                graph.update_scopes()
                graph.apply_modifiers()
                for target, modifier in graph.edges:
                    found[target.start].add(modifier.category)
        return found


def _modifies(rule: ConTextRule) -> bool:
    return rule.direction not in ("TERMINATE", "PSEUDO")


def _concerns(match: Match, category: str) -> bool:
    """Return whether a rule assigns a category or ends the scope of a rule that does."""
    rule, _, _ = match
    return rule.category == ALL or category in rule.category.split()


def _signs(doc: Doc, matches: Sequence[Match]) -> Iterator[Match]:
    """Yield the matches of a sentence with signs replaced by the rules that they stand for.

    "(-) fever, cough" and "fever (-)" are negated. A bare "-" is a sign only after a "+" in the
    same sentence ("+ cough, - fever"); otherwise it is a bullet or a dash.
    """
    plus = False
    for rule, start, end in matches:
        if rule.category != SIGN:
            yield rule, start, end
        elif rule.literal in ("+", "( + )"):
            plus = True
            yield PRESENT, start, end
        elif rule.literal == "( - )":
            last = end == len(doc) or doc[end].is_punct or doc[end].is_space
            yield (ABSENT_BEFORE if last else ABSENT), start, end
        elif plus and _is_free(doc, start):
            yield ABSENT_NEXT, start, end


def _is_free(doc: Doc, place: int) -> bool:
    """Return whether a token stands after a space and not at the beginning of a line."""
    return place > 0 and doc[place - 1].whitespace_ != ""


def _status(categories: set[str], section: str, chronic: bool) -> str:
    if "NEGATED_EXISTENCE" in categories:
        return "negated"
    if not categories.isdisjoint(ENDED):
        return "historical"
    of_section = SECTION_STATUSES.get(section, "affirmed")
    if of_section in ("family", "hypothetical"):
        return of_section
    statuses = (status for category, status in STATUSES.items() if category in categories)
    status = next(statuses, "affirmed")
    if "historical" not in (status, of_section) or status in ("family", "hypothetical"):
        return status
    if not chronic:
        return "historical"
    return "uncertain" if "POSSIBLE_EXISTENCE" in categories else "chronic"


def section_rules(nlp: Language) -> dict[tuple[str, ...], BaseRule]:
    """Return heading rules by their words; rules of `headings.tsv` override medspaCy's."""
    rules = [SectionRule(heading, category) for heading, category in table("headings")]
    rules += SectionRule.from_json(str(RESOURCES / "section_patterns.json"))
    found: dict[tuple[str, ...], BaseRule] = {}
    for rule in rules:
        words = tuple(token.text for token in nlp.make_doc(rule.literal.lower()))
        found.setdefault(words, rule)
    return found


def context_rules() -> dict[tuple[str, ...], ConTextRule]:
    """Return ConText rules by their words.

    The order of precedence is: rules of `context_rules.tsv`, medspaCy's patterns, medspaCy's
    literals.
    """
    theirs = ConTextRule.from_json(str(RESOURCES / "context_rules.json"))
    theirs.sort(key=lambda rule: rule.pattern is None)
    found: dict[tuple[str, ...], ConTextRule] = {}
    for literal, category, direction, targets, scope in table("context_rules"):
        found[tuple(literal.split())] = ConTextRule(
            literal,
            category,
            direction=direction,
            max_targets=int(targets) if targets else None,
            max_scope=int(scope) if scope else None,
        )
    for sign in SIGNS:
        found[tuple(sign.split())] = ConTextRule(sign, SIGN)
    for rule in theirs:
        if rule.direction == "TERMINATE":
            rule.category = ALL
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
