"""Select the names of a dictionary that are searched in free text, and their spelling.

Not every name of a concept has its meaning in prose. These are left out:

- names of concepts of MIMIC's own item lists and of general types ("lung", "male", "eating":
  `TEXT_TYPES`);
- names with a comma or a bracket (catalogue entries such as "Pain, Chest"), of more than six words,
  or with fewer than four letters;
- single words of everyday English (`EVERYDAY`).

`abbreviations.tsv` adds abbreviations that mean one thing in a hospital and takes precedence: a
catalogue of syndromes has other meanings for HLD and IBD, and also contains SNF, NAD and PCA.

A single word in capitals ("HTN", "COPD") is an abbreviation and is matched in capitals only. All
other names are matched in any case. `dictionary.terms` decides which of two concepts with the same
name is used.
"""

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
from spacy.lang.en import STOP_WORDS
from spacy.language import Language
from spacy.matcher import PhraseMatcher
from spacy.strings import get_string_id
from spacy.vocab import Vocab

from ehrr1.files import fingerprint, locked, replacing, settle_beside
from ehrr1.graph.text.dictionary import (
    GENERAL_TYPES,
    ITEM_LISTS,
    read_dictionary,
    terms,
)
from ehrr1.graph.text.rule_tables import FILES, table
from ehrr1.progress import track

VERSION = "2"
"""Version of this module's rules; increase it when they change."""
MAX_WORDS = 6

_EVERYDAY = """
    adiposity allergens alloys alps anes antibodies antibody antigen antigens arts auscultation
    bends buffer buffers butter cadaver candle capsule capsules card cards coal coffee coffees
    cold complement convalescence convalescences corpse death deaths decam diagnose diagnoses
    diagnosis disease diseases dish dissection dissections doors drugs dump dust element
    elements emergencies emergency enzymes face facies fame fats gait gaits gel gels glass gold
    hormones illusion illusions inhalation injection injections ink insufflation latex lead
    leanness lord march mash medications metals milk oils ointments palpation percussion
    pharmaceuticals photography plat pollen powders prognoses prognosis prost protein proteins
    recurrence recurrences reflex scar scars screening sega self-care sens silicon silk sits
    smoke solution solutions soot spotting steam stem suction suggestion suggestions surgery
    syndrome syndromes tablets tea teas telemetry tempo tens therapeutic therapeutics therapies
    therapy thinness traps treatment treatments tungsten water wolfram
"""
EVERYDAY = frozenset(_EVERYDAY.split()) | STOP_WORDS
"""Words that are names of concepts but usually mean something else in a note."""

TEXT_TYPES = GENERAL_TYPES | {"Biologic Function"}
"""Semantic types that are not searched, such as breathing and eating."""


class TextTerm(NamedTuple):
    """A term to search for, as the tokenizer splits it.

    capitals: True if the term is matched only in its own spelling.
    """

    concept_id: str
    name: str
    capitals: bool
    words: tuple[str, ...]


def choose(concepts: pl.DataFrame) -> pl.DataFrame:
    """Return the distinct terms to search for.

    Columns: term (in lower case unless it is in capitals), capitals, concept_id, name.
    """
    text = pl.col("term").str.replace_all(r"\s+", " ").str.strip_chars()
    letters = text.str.count_matches(r"\pL")
    one_word = ~text.str.contains(" ")
    capitals = one_word & (text.str.to_uppercase() == text)
    everyday = one_word & text.str.to_lowercase().is_in(EVERYDAY)
    unsuited = text.str.contains(r"[,;()\[\]{}<>]") | (text.str.count_matches(" ") >= MAX_WORDS)
    searched = (
        terms(concepts)
        .filter(
            ~pl.col("semantic_type").is_in(TEXT_TYPES),
            ~pl.col("source").str.starts_with(ITEM_LISTS),
            letters >= 4,
            ~everyday,
            ~unsuited,
        )
        .with_columns(term=pl.when(capitals).then(text).otherwise(text.str.to_lowercase()))
        .with_columns(capitals=capitals)
        .select("term", "capitals", "concept_id", "name")
    )
    every = pl.concat([_abbreviations(concepts), searched])
    return every.unique("term", keep="first", maintain_order=True)


def _abbreviations(concepts: pl.DataFrame) -> pl.DataFrame:
    """Return the abbreviations whose meaning the dictionary has, with the columns of `choose`.

    A meaning may be of a type that is not searched otherwise: MRSA is an organism.
    """
    meanings = [
        (abbreviation, name) for abbreviation, names, _ in table("abbreviations")
        for name in names.split("|")
    ]  # fmt: skip
    capitals = pl.col("term").str.to_uppercase() == pl.col("term")
    named = terms(concepts).filter(~pl.col("source").str.starts_with(ITEM_LISTS)).select(
        pl.col("term").str.to_lowercase().alias("meaning"), "concept_id", "name"
    )  # fmt: skip
    first = named.unique("meaning", keep="first", maintain_order=True)
    return (
        pl.DataFrame(meanings, ["term", "meaning"], orient="row")
        .join(first, on="meaning", maintain_order="left")
        .unique("term", keep="first", maintain_order=True)
        .with_columns(capitals=capitals)
        .with_columns(
            term=pl.when("capitals").then("term").otherwise(pl.col("term").str.to_lowercase())
        )
        .select("term", "capitals", "concept_id", "name")
    )


def prepared_terms(dictionary: Path, cache: Path, nlp: Language) -> Path:
    """Return a file of the tokenised terms in `cache`, made if it is missing.

    Tokenising half a million names takes most of a minute, reading the file less than a second. A
    line holds one term: concept id, name, 1 for capitals, words separated by spaces. Raises
    UserError, naming `concepts.dictionary`, if the dictionary cannot be read.
    """
    read_dictionary(dictionary)  # raises UserError for an unusable file
    name = fingerprint([dictionary, *FILES], VERSION, version("spacy"), version("medspacy"))
    file = cache / f"terms-{name}.tsv"
    with locked(file.with_suffix(".lock")):
        settle_beside(file)
        if not file.exists():
            with replacing(file) as temporary, temporary.open("w", encoding="utf-8") as lines:
                lines.writelines(_lines(choose(read_dictionary(dictionary)), nlp))
    return file


def _lines(chosen: pl.DataFrame, nlp: Language) -> Iterator[str]:
    docs = map(nlp.make_doc, chosen["term"].to_list())
    rows = chosen.select("concept_id", "name", "capitals").iter_rows()
    for doc, (concept, name, capitals) in track(
        zip(docs, rows, strict=True), "splitting the dictionary's names", len(chosen)
    ):
        yield f"{concept}\t{name}\t{int(capitals)}\t{' '.join(token.text for token in doc)}\n"


def read_terms(file: Path) -> Iterator[TextTerm]:
    """Yield the terms of a file made by `prepared_terms`."""
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            concept, name, capitals, words = line.rstrip("\n").split("\t")
            yield TextTerm(concept, name, capitals == "1", tuple(words.split(" ")))


def matchers(found: Iterator[TextTerm]) -> tuple[list[PhraseMatcher], dict[str, str]]:
    """Return matchers of the terms, keyed by concept id, and the names of the concepts.

    A matcher stores hashes of words. They are passed to it directly, since creating a Doc for each
    of 200,000 terms takes ten times as long. A separate empty vocabulary avoids computing the
    lexical attributes of each key.
    """
    vocab = Vocab()
    in_any_case, as_spelled = PhraseMatcher(vocab, attr="LOWER"), PhraseMatcher(vocab, attr="ORTH")
    names = {}
    for term in found:
        names[term.concept_id] = term.name
        matcher = as_spelled if term.capitals else in_any_case
        hashes: Any = [get_string_id(word) for word in term.words]
        matcher.add(term.concept_id, [hashes])
    return [in_any_case, as_spelled], names
