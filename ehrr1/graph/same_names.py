"""Find names of the same concept, and drugs of the same ATC class, in the user's dictionary.

Names are compared exactly by their letters and digits. A name can belong to several concepts; two
names mean the same if they share one.
"""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from ehrr1.config.records import Concepts, OpenConcepts, UmlsConcepts
from ehrr1.errors import UserError
from ehrr1.graph.text.dictionary import UNRELATED_TYPES, read_dictionary, terms
from ehrr1.graph.text.linking import WORD, long_enough, name_key, simplified, without_dose

ATC_LENGTHS = {4: 5, 5: 7}
"""Number of characters of an ATC code by level: 4, chemical subgroup; 5, substance."""

ATC_PREFIX = "ATC:"
"""Prefix of ATC codes in the column xrefs of a dictionary."""

CONSO = {
    "CUI": 0, "LAT": 1, "TS": 2, "STT": 4, "ISPREF": 6, "SAB": 11, "CODE": 13, "STR": 14,
    "SUPPRESS": 16,
}  # fmt: skip
"""Positions of columns of MRCONSO.RRF, which has no header."""

CONSO_COLUMNS = 18

Ids = dict[str, frozenset[str]]


@dataclass(frozen=True)
class Meanings:
    """Concepts, ATC codes and words that a dictionary has for some names.

    `concepts` maps the key of a name (`key_of`) to the ids of its concepts, `codes` a concept to
    its ATC codes. `words` are the words, of those that were asked for, in names of the dictionary.
    """

    concepts: Ids
    codes: Ids
    words: frozenset[str]

    def of(self, name: str, is_drug: bool) -> frozenset[str]:
        """Return the concepts of a name; of a drug, also those of its name without the dose."""
        forms = (name, without_dose(name)) if is_drug else (name,)
        return frozenset().union(*(self.concepts.get(key_of(form), ()) for form in forms))

    def atc_classes(self, name: str, level: int) -> frozenset[str]:
        """Return the ATC classes of a drug at a level (`ATC_LENGTHS`).

        They are those of the first form of the name (`linking.simplified`) that a concept has.
        """
        length = ATC_LENGTHS[level]
        forms = (self.concepts.get(key_of(form)) for form in simplified(name))
        ids = next(filter(None, forms), frozenset())
        codes = frozenset().union(*(self.codes.get(one, ()) for one in ids))
        return frozenset(code[:length] for code in codes if len(code) >= length)


def key_of(name: str) -> str:
    """Return the letters and digits of a name in lower case, as `linking.name_key` does."""
    return " ".join(WORD.findall(unicodedata.normalize("NFKC", name).lower()))


def check_dictionary(concepts: Concepts) -> None:
    """Raise UserError if the chosen dictionary is missing."""
    path = dictionary_of(concepts)
    if path is not None and not path.is_file():
        name = "folder" if isinstance(concepts, UmlsConcepts) else "dictionary"
        raise UserError(
            f"concepts.{name}={concepts.of(name)}: there is no file {path}; correct the path, or "
            "set concepts=items"
        )


def dictionary_of(concepts: Concepts) -> Path | None:
    """Return the file with the names of concepts, or None if none is chosen."""
    if isinstance(concepts, OpenConcepts) and concepts.dictionary is not None:
        return Path(concepts.dictionary)
    if isinstance(concepts, UmlsConcepts) and concepts.folder is not None:
        return Path(concepts.folder) / "MRCONSO.RRF"
    return None


def read_meanings(
    concepts: Concepts, names: Iterable[str], drugs: Iterable[str], words: Iterable[str]
) -> Meanings:
    """Return what the dictionary of `concepts` says about names, names of drugs, and words.

    Words are in lower case. Without a dictionary nothing is known. Raises UserError if the
    dictionary cannot be read.
    """
    path = dictionary_of(concepts)
    if path is None:
        return Meanings({}, {}, frozenset())
    check_dictionary(concepts)
    named, coded = _umls(path) if isinstance(concepts, UmlsConcepts) else _open(path)
    forms = {*names, *(form for name in drugs for form in (without_dose(name), *simplified(name)))}
    keys = pl.Series(sorted({key_of(form) for form in forms} - {""}), dtype=pl.String)
    wanted, key = sorted(set(words)), pl.col("key")
    # most names hold none of the words: only those that do are split
    spoken = named.filter(key.str.contains_any(wanted)).select(word=key.str.split(" ").explode())
    found, known = pl.collect_all(
        [
            named.filter(key.is_in(keys.implode())).unique(),
            spoken.filter(pl.col("word").is_in(wanted)).unique(),
        ],
        engine="streaming",
    )
    ids = pl.Series(found["concept_id"].unique().sort()).implode()
    return Meanings(
        _grouped(found.select("key", "concept_id").iter_rows()),
        _grouped(coded.filter(pl.col("concept_id").is_in(ids)).unique().collect().iter_rows()),
        frozenset(known["word"]),
    )


def _open(path: Path) -> tuple[pl.LazyFrame, pl.LazyFrame]:
    """Return the names (key, concept_id) and the ATC codes (concept_id, code) of a dictionary."""
    concepts = read_dictionary(path)
    related = ~pl.col("semantic_type").is_in(UNRELATED_TYPES)
    named = terms(concepts).lazy().filter(related).with_columns(key=name_key(pl.col("term")))
    coded = (
        concepts.lazy().select("concept_id", code=pl.col("xrefs").str.split("|")).explode("code")
    )
    coded = coded.filter(pl.col("code").str.starts_with(ATC_PREFIX))
    return (
        named.filter(long_enough(pl.col("key"))).select("key", "concept_id"),
        coded.with_columns(pl.col("code").str.strip_prefix(ATC_PREFIX)),
    )


def _umls(path: Path) -> tuple[pl.LazyFrame, pl.LazyFrame]:
    """Return the same of MRCONSO.RRF, from its English rows that are not suppressed."""
    rows = pl.scan_csv(
        path,
        separator="|",
        quote_char=None,
        has_header=False,
        schema={str(place): pl.String for place in range(CONSO_COLUMNS + 1)},  # ends with a bar
        encoding="utf8-lossy",
        truncate_ragged_lines=True,
        glob=False,
    ).select(**{name: str(place) for name, place in CONSO.items()})
    rows = rows.filter(pl.col("LAT") == "ENG", pl.col("SUPPRESS") == "N")
    preferred = (pl.col("TS") == "P") & (pl.col("STT") == "PF") & (pl.col("ISPREF") == "Y")
    named = rows.select(key=name_key(pl.col("STR")), synonym=~preferred, concept_id="CUI")
    named = named.filter(long_enough(pl.col("key"))).select("key", "concept_id")
    coded = rows.filter(pl.col("SAB") == "ATC").select(concept_id="CUI", code="CODE")
    return named, coded


def _grouped(pairs: Iterable[tuple[str, str]]) -> Ids:
    found: dict[str, set[str]] = defaultdict(set)
    for key, value in pairs:
        found[key].add(value)
    return {key: frozenset(values) for key, values in found.items()}
