"""The dictionary of `concepts=open`: a TSV file of concepts with their names.

Columns: concept_id, name, semantic_type, source, synonyms (separated by bars); xrefs is not needed
here. Concepts without a name are left out: nothing can be linked to them.
"""

from pathlib import Path

import polars as pl

from ehrr1.errors import UserError

COLUMNS = ("concept_id", "name", "semantic_type", "source", "synonyms")

UNRELATED_TYPES = frozenset([
    "Discipline", "Geographic Area", "Group", "Information", "Object", "Other", "Publication",
    "Research Activity", "Social Concept",
])  # fmt: skip
"""Semantic types that say nothing of a patient ("records", "family"): never linked to."""

GENERAL_TYPES = UNRELATED_TYPES | {
    "Anatomical Structure", "Behavior", "Health Care Activity", "Medical Device", "Organism",
    "Pharmacologic Action",
}  # fmt: skip
"""And those that say nothing of one patient's state or care without more words ("lung", "male",
"drain"): a whole item name may mean them, no mention in a text and no simplified name does."""

ITEM_LISTS = "MIMIC"
"""Sources that begin so list MIMIC's own items: a name is linked to them only where no terminology
has it, for they lead nowhere."""


def read_dictionary(path: Path) -> pl.DataFrame:
    """The concepts that have a name, as strings: concept_id, name, semantic_type, source, synonyms.

    Raises UserError, naming `concepts.dictionary`, for a file that is missing or has other columns.
    """
    setting = f"concepts.dictionary={path}"
    if not path.is_file():
        raise UserError(f"{setting}: no such file; give a .tsv or .tsv.gz file of concepts")
    try:
        frame = pl.read_csv(path, separator="\t", quote_char=None, infer_schema=False)
    except pl.exceptions.PolarsError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{setting}: not a table of tab-separated text ({reason})") from error
    missing = [name for name in COLUMNS if name not in frame.columns]
    if missing:
        raise UserError(
            f"{setting}: no column {', '.join(missing)}; the first line must name "
            f"{', '.join(COLUMNS)}, separated by tabs"
        )
    named = pl.col("concept_id").is_not_null() & pl.col("name").is_not_null()
    return frame.select(COLUMNS).filter(named).with_columns(pl.col(COLUMNS[2:]).fill_null(""))


def terms(concepts: pl.DataFrame) -> pl.DataFrame:
    """Every name by which a concept is called, in the order in which a name chooses its concept.

    Columns: term, synonym (whether it is one), and those of `concepts`. A concept of a terminology
    comes before an item list's, a preferred name before a synonym, then the smallest id.
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
