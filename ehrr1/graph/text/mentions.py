"""Find the concepts mentioned in free text, with their sections and statuses.

The reader is a spaCy pipeline of medspaCy's parts: its tokenizer, spaCy's sentence splitter (line
breaks end sentences too), section headings, the dictionary (`concepts=open`) or QuickUMLS
(`concepts=umls`), and ConText. medspaCy's default sentence splitter, PyRuSH, is not used: it takes
most of the time and logs each sentence.

medspaCy is imported only when a reader is opened, so that `concepts=items` works without it.
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
from ehrr1.files import fingerprint
from ehrr1.graph.text.clinical import require_clinical
from ehrr1.graph.text.flowed_text import flow
from ehrr1.graph.text.linking import SALTS
from ehrr1.graph.text.rule_tables import FILES

if TYPE_CHECKING:
    from spacy.language import Language
    from spacy.tokens import Doc, Span

    from ehrr1.graph.text.assertion import Assertions, Section, Sections

VERSION = "2"
"""Version of the reader; increase it when a reader finds other mentions in the same text."""

EVIDENCE = frozenset({"affirmed", "uncertain", "chronic"})
"""The statuses of mentions that refer to the patient at present.

A chronic condition of the past history is still present.
"""


class Mention(NamedTuple):
    """A concept mentioned in a text at `text[start:end]`.

    name: the concept's preferred name. section: medspaCy's category ("past_medical_history"), ""
    before the first heading. status: affirmed, uncertain, negated, family, historical (also: in the
    past medical history, resolved, a drug that is held), chronic (historical, of a condition that
    lasts) or hypothetical (also: an allergy, an instruction).
    """

    concept_id: str
    name: str
    start: int
    end: int
    section: str
    status: str


@dataclass(frozen=True, slots=True)
class TextSource:
    """The source with which texts are read: a file of terms (open) or a QuickUMLS folder (umls).

    It is small enough to be sent to another process, which opens its own reader from it.
    """

    kind: str
    path: Path
    threshold: float

    @property
    def fingerprint(self) -> str:
        """Return a hash of the source, the rules and package versions: what results rest on."""
        parts = (VERSION, fingerprint(FILES), self.kind, self.path.stem, f"{self.threshold}")
        packages = [f"{name} {version(name)}" for name in ("spacy", "medspacy")]
        return hashlib.sha256("\n".join((*parts, *packages)).encode()).hexdigest()[:16]


class Reader:
    """A pipeline that finds the mentions in a text."""

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
        """Return the mentions in order of position, without overlaps."""
        flowed = flow(text)
        doc = self._nlp(flowed.text)
        sections = self._sections(doc)
        headings = {place for section in sections for place in range(section.start, section.end)}
        spans = [span for span in without_salts(self._find(doc)) if span.start not in headings]
        places = [_section(sections, span) for span in spans]
        names = [self._name_of(span.label_) for span in spans]
        statuses = self._assertions(doc, spans, places, names)
        mentions = []
        for span, section, name, status in zip(spans, places, names, statuses, strict=True):
            start, end = flowed.original(span.start_char, span.end_char)
            mentions.append(Mention(span.label_, name, start, end, section, status))
        return mentions


def without_salts(spans: Sequence["Span"]) -> list["Span"]:
    """Return the matches without salts that directly follow another match.

    In "heparin sodium", for example, "sodium" is not a measurement of sodium.
    """
    ends = {span.end for span in spans}
    return [s for s in spans if s.start not in ends or s.text.lower() not in SALTS]


def open_source(concepts: Concepts) -> TextSource | None:
    """Return the text source that `concepts` selects, or None for items.

    The source is prepared in `concepts.cache`. Raises UserError if a package or a file is missing.
    """
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
    """Load the pipeline, which takes seconds for a large dictionary."""
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
    """Return a pipeline for English with medspaCy's tokenizer and a sentence splitter."""
    with warnings.catch_warnings():  # importing medspaCy disables all warnings
        import medspacy  # noqa: F401 (it registers what its parts need)
        import spacy
        from medspacy.custom_tokenizer import create_medspacy_tokenizer
    nlp = spacy.blank("en")
    nlp.tokenizer = create_medspacy_tokenizer(nlp)
    nlp.add_pipe("sentencizer", config={"punct_chars": [".", "!", "?", "\n"]})
    return nlp


class LongestMatches:
    """Dictionary matches as spans whose labels are concept ids.

    Of overlapping matches the longest is kept.
    """

    def __init__(self, matchers: Sequence[Any]):
        self._matchers = matchers

    def __call__(self, doc: "Doc") -> list["Span"]:
        """Return the spans of the dictionary's terms in `doc`, without overlaps."""
        from spacy.tokens import Span
        from spacy.util import filter_spans

        return filter_spans(
            Span(doc, start, end, label=matcher.vocab.strings[key])
            for matcher in self._matchers
            for key, start, end in matcher(doc)
        )


def _entities(doc: "Doc") -> list["Span"]:
    """Return the entities of QuickUMLS that do not cross a line break or the end of a sentence."""
    return [span for span in doc.ents if not any(token.is_sent_start for token in span[1:])]


def _section(sections: Sequence["Section"], span: "Span") -> str:
    """Return the category of the last heading that begins before the span, or ""."""
    before = bisect_right([section.start for section in sections], span.start)
    return sections[before - 1].category if before else ""
