"""Read the dictionary of `concepts=open`: a TSV file of concepts with their names.

Columns: concept_id, name, semantic_type, source, synonyms (separated by bars). A column xrefs with
codes of other vocabularies (separated by bars: "ATC:C07AB02") is optional. Concepts without a name
are left out, since nothing can be linked to them.
"""

from pathlib import Path

import polars as pl

from ehrr1.errors import UserError
from ehrr1.records.reading import READ_ERRORS

COLUMNS = ("concept_id", "name", "semantic_type", "source", "synonyms")

UNRELATED_TYPES = frozenset([
    "Discipline", "Geographic Area", "Group", "Information", "Object", "Other", "Publication",
    "Research Activity", "Social Concept",
])  # fmt: skip
"""Semantic types that do not describe a patient ("records", "family"); never linked to."""

GENERAL_TYPES = UNRELATED_TYPES | {
    "Anatomical Structure", "Behavior", "Health Care Activity", "Medical Device", "Organism",
    "Pharmacologic Action",
}  # fmt: skip
"""Semantic types that are too general to describe a patient's state or care on their own.

Examples are "lung", "male" and "drain". A whole item name may be linked to such a concept, but a
mention in a text or a simplified name may not.
"""

ITEM_LISTS = "MIMIC"
"""Prefix of sources that list MIMIC's own items.

A name is linked to such an item only if no terminology has the name, because these items have no
relations.
"""


def read_dictionary(path: Path) -> pl.DataFrame:
    """Read the concepts that have a name.

    All columns are strings: concept_id, name, semantic_type, source, synonyms, xrefs ("" if the
    file has no such column). Raises UserError, naming `concepts.dictionary`, if the file is missing
    or lacks a column.
    """
    setting = f"concepts.dictionary={path}"
    if not path.is_file():
        raise UserError(f"{setting}: no such file; give a .tsv or .tsv.gz file of concepts")
    try:
        frame = pl.read_csv(path, separator="\t", quote_char=None, infer_schema=False, glob=False)
    except READ_ERRORS as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{setting}: not a table of tab-separated text ({reason})") from error
    missing = [name for name in COLUMNS if name not in frame.columns]
    if missing:
        raise UserError(
            f"{setting}: no column {', '.join(missing)}; the first line must name "
            f"{', '.join(COLUMNS)}, separated by tabs"
        )
    named = pl.col("concept_id").is_not_null() & pl.col("name").is_not_null()
    xrefs = pl.col("xrefs") if "xrefs" in frame.columns else pl.lit("").alias("xrefs")
    chosen = frame.select(*COLUMNS, xrefs).filter(named)
    return chosen.with_columns(pl.col(*COLUMNS[2:], "xrefs").fill_null(""))


def terms(concepts: pl.DataFrame) -> pl.DataFrame:
    """Return every name of every concept, in the order in which a name selects its concept.

    Columns: term, synonym (True if the term is one), and those of `concepts`. Concepts of a
    terminology come before those of item lists, preferred names before synonyms, then smaller ids
    first.
    """
    preferred = concepts.with_columns(term="name", synonym=pl.lit(False))
    synonyms = concepts.with_columns(
        term=pl.col("synonyms").str.split("|"), synonym=pl.lit(True)
    ).explode("term")
    listed = pl.col("source").str.starts_with(ITEM_LISTS)
    return (
        pl.concat([preferred, synonyms])
        .filter(pl.col("term").str.strip_chars() != "")
        .sort(listed, "synonym", "concept_id", "term")
    )
