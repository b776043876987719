"""Link item names to concepts: "Heparin Sodium 5,000 unit/mL" is heparin.

A name is linked by exact comparison of its letters and digits (case, punctuation and spaces are
ignored), first as written, then in increasingly simplified forms until a concept has it:

1. without text in brackets;
2. without strengths and doses, and without trailing dosage forms ("0.5 %", "5 mg/mL", "Oral
   Solution");
3. only the part before a comma, a semicolon or a dash next to a space ("Insulin - Regular");
4. without a trailing salt and "unspecified" ("Ampicillin Sodium").

There is no fuzzy matching, and short codes ("HPE1") are not treated as abbreviations: a synonym of
one word needs five letters, a simplified name four and a clinical type, a name as written three. A
terminology's concept takes precedence over MIMIC's own item of the same name, which has no
relations. `concepts=umls` uses QuickUMLS's similarity instead.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import polars as pl

from ehrr1.config.records import Concepts, ItemConcepts, OpenConcepts
from ehrr1.graph.text.clinical import require_clinical
from ehrr1.graph.text.dictionary import (
    GENERAL_TYPES,
    ITEM_LISTS,
    UNRELATED_TYPES,
    read_dictionary,
    terms,
)
from ehrr1.graph.text.quickumls_index import quickumls_index

MIN_LETTERS = 3
MIN_LETTERS_SIMPLIFIED = 4
MIN_LETTERS_SYNONYM = 5

_BRACKETS = re.compile(r"\([^()]*\)|\[[^\[\]]*\]")
_UNIT = (
    r"(?:mc?g|mg|g|gm|grams?|kg|m?l|cc|units?|iu|meq|mm|mmole?|mcl?|hrs?|h|hours?|days?|puffs?)\b"
)
_STRENGTH = re.compile(
    rf"(?<![\w.])\d[\d.,]*(?:\s*-\s*\d[\d.,]*)?\s*(?:%|{_UNIT})(?:\s*[/-]\s*\d*[\d.,]*\s*{_UNIT})*",
    re.IGNORECASE,
)
_PART = re.compile(r"[,;]|\s-|-\s")
WORD = re.compile(r"[^\W_]+")
"""A word of a name: letters and digits."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


FORMS = _words("""
    aerosol bag bolus buffered cap capsule capsules chew chewable coated cr cream delayed
    disintegrating diskus dr drip drops dwell ec enema enteric er extended flush free gel hfa im inf
    infusion inhalation inhaler inj injectable injection iv jelly kit la liquid lotion lozenge mdi
    nasal neb nebs nebulizer odt oint ointment ophth ophthalmic oral patch pca pf po powder premix
    preserv release replacement rinse sc sl scale sliding soln solution spray sr subq supp
    suppository susp suspension sustained syringe syrup tab tablet tablets td topical transdermal
    vial wafer xl xr
""")
SALTS = _words("""
    acetate besylate bitartrate bromide calcium carbonate chloride citrate disodium fumarate furoate
    gluconate hbr hcl hyclate hydrobromide hydrochloride lactate magnesium maleate mesylate
    mononitrate monohydrate nitrate phosphate potassium propionate sodium succinate sulfate tartrate
    tromethamine
""")
QUALIFIERS = _words("nos unspecified")
NOT_ALONE = FORMS | _words("""
    bath blood csf fluid lead other plasma serum shock stool treatments urine whole
""")
"""Words that are ambiguous once the rest of the name is removed."""
DRUG = "Chemical or Drug"


class Linker(Protocol):
    """Interface of the classes that link item names to concepts."""

    def link(self, names: Sequence[str]) -> dict[str, str]:
        """Return item name -> concept id for each distinct name that is found."""
        ...


def open_linker(concepts: Concepts) -> Linker | None:
    """Return the linker for `concepts.source`, or None for items; builds an index if needed."""
    if isinstance(concepts, ItemConcepts):
        return None
    require_clinical(concepts.source)
    if isinstance(concepts, OpenConcepts):
        return OpenLinker(read_dictionary(Path(str(concepts.dictionary))))
    return UmlsLinker(quickumls_index(concepts), concepts.threshold)


class OpenLinker:
    """A linker to a dictionary by exact names."""

    def __init__(self, concepts: pl.DataFrame):
        kind = pl.col("semantic_type")
        listed = pl.col("source").str.starts_with(ITEM_LISTS)
        key = name_key(pl.col("term"))
        self._terms = (
            terms(concepts)
            .filter(~kind.is_in(UNRELATED_TYPES), long_enough(key))
            .select(
                "concept_id",
                key=key,
                listed=listed,
                # targets of simplified names; of MIMIC's own items only drugs
                broad=~kind.is_in(GENERAL_TYPES) & (~listed | (kind == DRUG)),
            )
            .unique(["key", "listed"], keep="first", maintain_order=True)
        )

    def link(self, names: Sequence[str]) -> dict[str, str]:
        """Return item name -> concept id, by the first form of each name that is a term.

        The module's docstring lists the forms in their order.
        """
        forms = [
            (name, step, form)
            for name in dict.fromkeys(names)
            for step, form in enumerate(simplified(name))
        ]
        columns = {"item": pl.String, "step": pl.Int64, "form": pl.String}
        as_written = pl.col("step") == 0
        enough = _letters(pl.col("key")) >= MIN_LETTERS_SIMPLIFIED
        found = (
            pl.DataFrame(forms, columns, orient="row")
            .with_columns(key=name_key(pl.col("form")))
            .join(self._terms, on="key")
            .filter(as_written | (pl.col("broad") & enough))
            .sort("listed", "step")
            .unique("item", keep="first", maintain_order=True)
        )
        return dict(found.select("item", "concept_id").iter_rows())


class UmlsLinker:
    """A linker to UMLS by QuickUMLS's index, which selects the most similar term of all forms."""

    def __init__(self, folder: Path, threshold: float):
        from quickumls.toolbox import CuiSemTypesDB, SimstringDBReader

        self._similar = SimstringDBReader(str(folder / "umls-simstring.db"), "jaccard", threshold)
        self._concepts = CuiSemTypesDB(str(folder / "cui-semtypes.db"))

    def link(self, names: Sequence[str]) -> dict[str, str]:
        """Return item name -> id of the concept with the most similar term.

        Ties are broken by the form closer to the name as written, then by UMLS's preferred term,
        then by the smallest id.
        """
        found = {}
        for name in dict.fromkeys(names):
            candidates = [
                (-similarity, step, not preferred, concept)
                for step, form in enumerate(simplified(name))
                if sum(map(str.isalpha, form)) >= (MIN_LETTERS_SIMPLIFIED if step else MIN_LETTERS)
                for similarity, preferred, concept in self._candidates(" ".join(form.split()))
            ]
            if candidates:
                found[name] = min(candidates)[-1]
        return found

    def _candidates(self, form: str) -> Iterator[tuple[float, bool, str]]:
        from quickumls.toolbox import get_similarity

        for term in self._similar.get(form.lower()):
            similarity = get_similarity(form.lower(), term, 3, "jaccard")
            for concept, _, preferred in self._concepts.get(term):
                yield similarity, bool(preferred), concept


def simplified(name: str) -> Iterator[str]:
    """Yield the name as written and then its simplified forms; unchanged forms are repeated."""
    yield name
    bare = _BRACKETS.sub(" ", name)
    yield bare
    weak = _STRENGTH.sub(" ", bare)
    yield _without_forms(weak)
    part = _without_forms(_PART.split(weak.strip(" *-"), maxsplit=1)[0])
    yield part
    yield _without_salt(part)


def without_dose(name: str) -> str:
    """Return the name without strengths, doses and trailing dosage forms."""
    return _without_forms(_STRENGTH.sub(" ", name))


def _without_forms(name: str) -> str:
    """Return the name without trailing dosage forms.

    Only trailing words are removed: an oral ulcer is not a dosage form.
    """
    words = WORD.findall(name)
    while len(words) > 1 and words[-1].casefold() in FORMS:
        words.pop()
    return "" if len(words) == 1 and words[0].casefold() in NOT_ALONE else " ".join(words)


def _without_salt(name: str) -> str:
    words = [word for word in name.split() if word.casefold() not in QUALIFIERS]
    if len(words) > 1 and words[-1].casefold() in SALTS:
        words.pop()
    left = " ".join(words)
    return "" if left.casefold() in SALTS | NOT_ALONE else left


def name_key(column: pl.Expr) -> pl.Expr:
    """Return letters and digits in lower case, with one space between words."""
    words = column.str.normalize("NFKC").str.to_lowercase().str.replace_all(r"[^\pL\pN]+", " ")
    return words.str.strip_chars(" ")


def _letters(key: pl.Expr) -> pl.Expr:
    return key.str.count_matches(r"\pL")


def long_enough(key: pl.Expr) -> pl.Expr:
    """Return the condition that a term of the dictionary is long enough to be unambiguous."""
    abbreviation = pl.col("synonym") & ~key.str.contains(" ")
    return _letters(key) >= pl.when(abbreviation).then(MIN_LETTERS_SYNONYM).otherwise(MIN_LETTERS)
