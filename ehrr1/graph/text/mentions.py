"""Concepts in free text: where they are mentioned, in which section, and as what.

A spaCy pipeline of medspaCy's parts: its tokenizer, spaCy's sentence splitter (line breaks end
sentences too), headings, the dictionary (`concepts=open`) or QuickUMLS (`concepts=umls`), ConText.
medspaCy's default splitter, PyRuSH, is not used: it takes most of the time and logs each sentence.

medspaCy is imported when a reader is opened, not before: `concepts=items` does without it.
"""

import hashlib
import warnings
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ehrr1.config.records import Concepts, ItemConcepts, UmlsConcepts
from ehrr1.graph.text.clinical import require_clinical
from ehrr1.graph.text.flowed_text import flow
from ehrr1.graph.text.linking import SALTS

if TYPE_CHECKING:
    from spacy.language import Language
    from spacy.tokens import Doc, Span

    from ehrr1.graph.text.assertion import Assertions, Section, Sections

VERSION = "1"
"""Changes with what a reader finds in the same text."""

EVIDENCE = frozenset({"affirmed", "uncertain"})
"""The statuses of a mention that speaks of the patient, now."""


class Mention(NamedTuple):
    """A concept in a text. `text[start:end]` are its words; `name` is the concept's preferred name.

    section: medspaCy's category ("past_medical_history"), "" before the first heading. status:
    affirmed, uncertain, negated, family, historical (also: in the past medical history) or
    hypothetical (also: an allergy, an instruction).
    """

    concept_id: str
    name: str
    start: int
    end: int
    section: str
    status: str


@dataclass(frozen=True, slots=True)
class TextSource:
    """What a reader reads with: a file of terms (open) or a QuickUMLS folder (umls).

    A few words that another process can open a reader from; `fingerprint` names its results.
    """

    kind: str
    path: Path
    threshold: float

    @property
    def fingerprint(self) -> str:
        parts = (VERSION, self.kind, self.path.stem, f"{self.threshold}")
        packages = [f"{name} {version(name)}" for name in ("spacy", "medspacy")]
        return hashlib.sha256("\n".join((*parts, *packages)).encode()).hexdigest()[:16]


class Reader:
    """Finds the mentions of a text."""

    def __init__(
        self,
        nlp: "Language",
        find: Callable[["Doc"], list["Span"]],
        name_of: Callable[[str], str],
        parts: tuple["Sections", "Assertions"],
    ):
        self._nlp, self._find, self._name_of = nlp, find, name_of
        self._sections, self._assertions = parts

    def read(self, text: str) -> list[Mention]:
        """The mentions in order; none overlaps another."""
        flowed = flow(text)
        doc = self._nlp(flowed.text)
        sections = self._sections(doc)
        headings = {place for section in sections for place in range(section.start, section.end)}
        spans = [span for span in without_salts(self._find(doc)) if span.start not in headings]
        places = [_section(sections, span) for span in spans]
        mentions = []
        for span, section, status in zip(
            spans, places, self._assertions(doc, spans, places), strict=True
        ):
            start, end = flowed.original(span.start_char, span.end_char)
            name = self._name_of(span.label_)
            mentions.append(Mention(span.label_, name, start, end, section, status))
        return mentions


def without_salts(spans: Sequence["Span"]) -> list["Span"]:
    """Without a salt right after another match: in "heparin sodium" nobody measured sodium."""
    ends = {span.end for span in spans}
    return [s for s in spans if s.start not in ends or s.text.lower() not in SALTS]


def open_source(concepts: Concepts) -> TextSource | None:
    """What `concepts` asks for, prepared below `concepts.cache`; None for items."""
    if isinstance(concepts, ItemConcepts):
        return None
    require_clinical(concepts.source)
    if isinstance(concepts, UmlsConcepts):
        from ehrr1.graph.text.quickumls_index import quickumls_index

        return TextSource("umls", quickumls_index(concepts), concepts.threshold)
    from ehrr1.graph.text.text_terms import prepared_terms

    file = prepared_terms(Path(str(concepts.dictionary)), Path(concepts.cache), blank())
    return TextSource("open", file, 1.0)


def open_reader(source: TextSource) -> Reader:
    """Load the pipeline: seconds for a large dictionary."""
    nlp = blank()
    from ehrr1.graph.text.assertion import Assertions, Sections

    parts = Sections(nlp), Assertions(nlp)
    if source.kind == "umls":
        from ehrr1.graph.text.quickumls_index import add_quickumls, name_reader

        add_quickumls(nlp, source.path, source.threshold)
        return Reader(nlp, _entities, name_reader(source.path), parts)
    from ehrr1.graph.text.text_terms import matchers, read_terms

    found, names = matchers(read_terms(source.path))
    return Reader(nlp, LongestMatches(found), names.__getitem__, parts)


def blank() -> "Language":
    """English, medspaCy's tokenizer and a sentence splitter."""
    with warnings.catch_warnings():  # medspaCy silences every warning of the process
        import medspacy  # noqa: F401 (it registers what its parts need)
        import spacy
        from medspacy.custom_tokenizer import create_medspacy_tokenizer
    nlp = spacy.blank("en")
    nlp.tokenizer = create_medspacy_tokenizer(nlp)
    nlp.add_pipe("sentencizer", config={"punct_chars": [".", "!", "?", "\n"]})
    return nlp


class LongestMatches:
    """Matches of a dictionary as spans whose labels are concept ids; the longest win."""

    def __init__(self, matchers: Sequence[Any]):
        self._matchers = matchers

    def __call__(self, doc: "Doc") -> list["Span"]:
        from spacy.tokens import Span
        from spacy.util import filter_spans

        return filter_spans(
            Span(doc, start, end, label=matcher.vocab.strings[key])
            for matcher in self._matchers
            for key, start, end in matcher(doc)
        )


def _entities(doc: "Doc") -> list["Span"]:
    """QuickUMLS's, but for those that a line break or the end of a sentence divides."""
    return [span for span in doc.ents if not any(token.is_sent_start for token in span[1:])]


def _section(sections: Sequence["Section"], span: "Span") -> str:
    """The category of the last heading that begins before the span does."""
    before = bisect_right([section.start for section in sections], span.start)
    return sections[before - 1].category if before else ""
