"""Build and read a QuickUMLS index of the user's own UMLS (MRCONSO.RRF and MRSTY.RRF).

Nothing is downloaded. The index is built once in a folder of `concepts.cache` whose name is a
fingerprint of the two files (their names, sizes, and first and last MiB, since they are too long to
be read at every start):

    umls-simstring.db, cui-semtypes.db, *.flag   in QuickUMLS's formats (unqlite)
    nltk_data/corpora/stopwords/english          the list of stop words that QuickUMLS loads by NLTK
    names.sqlite                                 concept id -> preferred name

It contains only English terms of the semantic types below that UMLS does not mark as obsolete or
suppressed. QuickUMLS stores pickled concept ids in the index, so that only an index from a trusted
source may be opened; this one is built locally.
"""

import os
import sqlite3
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from ehrr1.config.records import UmlsConcepts
from ehrr1.errors import UserError
from ehrr1.files import fingerprint, locked, replacing, settle_beside, write_text
from ehrr1.progress import bar

FILES = ("MRCONSO.RRF", "MRSTY.RRF")
VERSION = "1"
"""Version of the index; increase it when this module writes something else."""

CUI, LANGUAGE, STATUS, FORM, PREFERRED, STRING, SUPPRESSED = 0, 1, 2, 4, 6, 14, 16
"""Column indices of MRCONSO.RRF, which has no header."""
CONSO_COLUMNS = 18
OBSOLETE = ("E", "O", "Y")

SEMANTIC_TYPES = frozenset([
    # abnormalities, findings, injuries, diseases, neoplasms, symptoms
    "T019", "T020", "T033", "T037", "T046", "T047", "T048", "T049", "T184", "T190", "T191",
    # procedures and measurements
    "T034", "T058", "T059", "T060", "T061", "T201",
    # drugs, chemicals, and devices that deliver them
    "T103", "T104", "T109", "T114", "T116", "T120", "T121", "T123", "T125", "T126", "T127",
    "T129", "T130", "T131", "T192", "T195", "T196", "T197", "T200", "T203",
])  # fmt: skip
"""Semantic types (TUI) of clinical terms.

Anatomy, organisms, people, places and publications are excluded.
"""

STOP_WORDS = (
    "a about after all also an and any are as at be been before but by can could did do does for "
    "from had has have he her him his how i if in into is it its may more no nor not of off on or "
    "our out over she should so some than that the their them then there they this to up was we "
    "were what when which while who will with without would you your"
)
"""Words with which QuickUMLS neither begins nor ends a term."""


def quickumls_index(concepts: UmlsConcepts) -> Path:
    """Return the index of `concepts.folder`, built first if it is missing.

    Raises UserError, naming the setting, if a file is missing or does not have the columns of UMLS.
    """
    sources = [Path(str(concepts.folder)) / name for name in FILES]
    for source in sources:
        if not source.is_file():
            raise UserError(
                f"concepts.folder={concepts.folder}: no {source.name}; give the META folder of a "
                "UMLS release, unpacked"
            )
    folder = Path(concepts.cache) / f"quickumls-{fingerprint(sources, VERSION)}"
    with locked(folder.with_suffix(".lock")):
        settle_beside(folder)
        if not folder.exists():
            with replacing(folder) as temporary:
                _build(sources[0], sources[1], temporary)
    return folder


def _build(conso: Path, sty: Path, folder: Path) -> None:
    from quickumls.install import parse_and_encode_ngrams

    folder.mkdir()
    (folder / "lowercase.flag").touch()
    write_text(folder / "language.flag", "ENG")
    write_text(folder / "database_backend.flag", "unqlite")
    words = folder / "nltk_data" / "corpora" / "stopwords" / "english"
    write_text(words, "\n".join(STOP_WORDS.split()) + "\n")
    types = _semantic_types(sty)
    with closing(sqlite3.connect(folder / "names.sqlite")) as names, names:
        names.execute("CREATE TABLE names (cui TEXT PRIMARY KEY, name TEXT) WITHOUT ROWID")
        terms = _terms(conso, types, names)
        simstring, databases = str(folder / "umls-simstring.db"), str(folder / "cui-semtypes.db")
        try:
            parse_and_encode_ngrams(terms, simstring, databases, "unqlite")
        except BaseException as error:
            # close its databases now: closing them after their folder is gone would abort the
            # process
            traceback.clear_frames(error.__traceback__)
            raise


def _semantic_types(sty: Path) -> dict[str, list[str]]:
    """Return concept id -> accepted semantic types; concepts without one are left out."""
    types: dict[str, list[str]] = {}
    with sty.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            columns = line.split("|")
            if len(columns) < 2:
                raise UserError(f"concepts.folder: {sty.name}, line {number}: not UMLS's columns")
            if columns[1] in SEMANTIC_TYPES:
                types.setdefault(columns[0], []).append(columns[1])
    return types


def _terms(
    conso: Path, types: dict[str, list[str]], names: sqlite3.Connection
) -> Iterator[tuple[str, str, list[str], int]]:
    """Yield terms in QuickUMLS's form: term, concept id, semantic types, 1 if preferred.

    It also inserts each concept's name into `names`: UMLS's preferred name, else the first name.
    """
    keep = "INSERT INTO names VALUES (?, ?) ON CONFLICT DO "
    with conso.open("rb") as lines, bar() as progress:
        task = progress.add_task("indexing UMLS (bytes)", total=conso.stat().st_size)
        for number, line in enumerate(lines, 1):
            progress.advance(task, len(line))
            row = line.decode().rstrip("\r\n").split("|")
            if len(row) < CONSO_COLUMNS:
                raise UserError(
                    f"concepts.folder: {conso.name}, line {number}: {len(row)} columns, not UMLS's "
                    f"{CONSO_COLUMNS}"
                )
            concept, text = row[CUI], row[STRING].strip()
            if row[LANGUAGE] != "ENG" or row[SUPPRESSED] in OBSOLETE or concept not in types:
                continue
            preferred = row[PREFERRED] == "Y"
            first_choice = preferred and row[STATUS] == "P" and row[FORM] == "PF"
            change = "UPDATE SET name = excluded.name" if first_choice else "NOTHING"
            names.execute(keep + change, (concept, text))
            yield text.lower(), concept, types[concept], int(preferred)


def add_quickumls(nlp: Any, folder: Path, threshold: float) -> None:
    """Add QuickUMLS to a spaCy pipeline; its entities are labelled by concept id.

    A match has a Jaccard similarity of at least `threshold`; of overlapping matches the longest is
    kept.
    """
    import nltk

    own = str(folder / "nltk_data")
    if own not in nltk.data.path:
        nltk.data.path.insert(0, own)
    settings = {
        "quickumls_fp": os.fspath(folder),
        "threshold": threshold,
        "overlapping_criteria": "length",
        "accepted_semtypes": None,  # the index has no others
    }
    nlp.add_pipe("medspacy_quickumls", config=settings)


def name_reader(folder: Path) -> Callable[[str], str]:
    """Return a function that maps a concept id to its preferred name in the index."""
    rows = sqlite3.connect(f"file:{folder / 'names.sqlite'}?mode=ro", uri=True)

    def name_of(concept_id: str) -> str:
        query = "SELECT name FROM names WHERE cui = ?"
        return str(rows.execute(query, (concept_id,)).fetchone()[0])

    return name_of
