"""Codes of an export for the release's reader, which looks up names and classes by code.

The store holds names and no codes. Each name gets a code that has this name: a code of the user's
dictionary, or a new number if the dictionary has none. `mappings` are the files of `index_mapping`
in which the reader looks up names and classes; they hold exactly the codes that the exported rows
use.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count

import polars as pl

from ehrr1.records.cells import one_line
from ehrr1.records.codes import as_code
from ehrr1.records.schema import ORDER, TABLES
from ehrr1.records.store import Store
from ehrr1.records.store_schema import NO_CODE

Dictionary = Callable[[str], pl.DataFrame | None]
"""Function from the name of a dictionary file (`d_items`) to its rows as text; None if missing."""

ITEMS = {
    "labevents": ("hosp", "d_labitems"),
    **dict.fromkeys(
        (
            *("chartevents", "datetimeevents", "inputevents", "ingredientevents"),
            *("procedureevents", "outputevents"),
        ),
        ("icu", "d_items"),
    ),
}
"""Table -> module and file in which its `itemid` is looked up."""
TITLES = {"diagnoses_icd": "d_icd_diagnoses", "procedures_icd": "d_icd_procedures"}
CLASSES = {
    "diagnoses_icd": ("hosp", "d_ccs_diagnoses"),
    "procedures_icd": ("hosp", "d_ccs_procedures"),
    "diagnosis": ("ed", "d_ccs_diagnoses"),
    "prescriptions": ("hosp", "d_atc_prescriptions"),
    "medrecon": ("ed", "d_atc_prescriptions"),
}
"""Table -> module and file in which the class of its `icd_code` or `ndc` is looked up."""

NO_NDC = "nan"
FIRST_NDC = 90_000_000_001
"""First new NDC: eleven digits that do not begin with zero.

The release's reader finds no class for codes that begin with zero.
"""
FIRST_ITEM = 900_001

HEADERS = {
    "d_labitems": ("itemid", "label"),
    "d_items": ("itemid", "label"),
    "d_icd_diagnoses": ("icd_code", "icd_version", "long_title"),
    "d_icd_procedures": ("icd_code", "icd_version", "long_title"),
    "d_ccs_diagnoses": ("icd_code", "icd_version", "long_title"),
    "d_ccs_procedures": ("icd_code", "icd_version", "long_title"),
    "d_atc_prescriptions": ("ndc_code", "atc_name"),
    "radiology_detail": ("note_id", "subject_id", "field_name", "field_value", "field_ordinal"),
}

MapRow = tuple[str, ...]


@dataclass
class Codes:
    """The codes of an export, and the mapping files that explain them.

    `of` holds, for each table that is looked up, the codes of its rows, keyed by `item` and
    `class`. `files` holds module and name -> rows of the mapping file.
    """

    of: dict[str, pl.DataFrame] = field(default_factory=dict)
    files: dict[tuple[str, str], list[MapRow]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for place in (*ITEMS.values(), *CLASSES.values(), *(("hosp", n) for n in TITLES.values())):
            self.files.setdefault(place, [])
        self.files.setdefault(("note", "radiology_detail"), [])

    def mappings(self) -> Iterator[tuple[str, pl.DataFrame]]:
        """Yield the path below `index_mapping` and the distinct rows of each file."""
        for (module, name), rows in sorted(self.files.items()):
            frame = pl.DataFrame(
                sorted(set(rows)), schema=dict.fromkeys(HEADERS[name], pl.String), orient="row"
            )
            yield f"{module}/{name}.csv", frame


def codes_of(store: Store, dictionary: Dictionary) -> Codes:
    """Return a code for each name and class that the store's rows have."""
    found = Codes()
    pairs = distinct_pairs(store)
    for table, place in ITEMS.items():
        own = pairs.get(table, [])
        found.of[table] = _frame(own, {"itemid": _items(own, place, dictionary, found)})
    for table, place in CLASSES.items():
        own = pairs.get(table, [])
        drugs = place[1] == "d_atc_prescriptions"
        columns = (
            {"ndc": _drugs(own, place, dictionary, found)}
            if drugs
            else _diagnoses(own, table, place, dictionary, found)
        )
        found.of[table] = _frame(own, columns)
    return found


Pair = tuple[str | None, str | None]


def distinct_pairs(store: Store) -> dict[str, list[Pair]]:
    """Return table -> the distinct pairs of name and class in its rows, sorted."""
    pairs: dict[str, set[Pair]] = {}
    for number in range(len(store.shards)):
        shard = store.shard(number)
        rows = (
            pl.scan_ipc(shard.folder / "rows.arrow", glob=False)
            .select("table", "item", "class")
            .unique()
        )
        names = dict(enumerate(shard.names[:-1]))
        for table, item, kind in rows.collect().iter_rows():
            pair = names.get(item) if item != NO_CODE else None, names.get(kind)
            pairs.setdefault(ORDER[table], set()).add(pair)
    return {
        table: sorted(own, key=lambda pair: tuple((text is not None, text or "") for text in pair))
        for table, own in pairs.items()
    }


def _frame(pairs: list[Pair], columns: Mapping[str, list[str]]) -> pl.DataFrame:
    keys = {
        name: pl.Series([pair[place] for pair in pairs], dtype=pl.String)
        for place, name in enumerate(("item", "class"))
    }
    codes = {name: pl.Series(values, dtype=pl.String) for name, values in columns.items()}
    return pl.DataFrame(keys | codes)


def _items(
    pairs: list[Pair], place: tuple[str, str], dictionary: Dictionary, found: Codes
) -> list[str]:
    """Return an `itemid` for each name: the dictionary's lowest, otherwise a new number."""
    known = _by_name(dictionary(place[1]), ["itemid"], "label")
    numbers = count(FIRST_ITEM)
    codes = []
    for name, _ in pairs:
        if name is None:
            codes.append("0")
            continue
        (code,) = known[name][0] if name in known else (str(next(numbers)),)
        known.setdefault(name, [(code,)])
        found.files[place].append((code, name))
        codes.append(code)
    return codes


def _diagnoses(
    pairs: list[Pair],
    table: str,
    place: tuple[str, str],
    dictionary: Dictionary,
    found: Codes,
) -> dict[str, list[str]]:
    """Return `icd_code, icd_version` for each pair of title and class.

    Two classes of one title get two codes.
    """
    titles = TITLES.get(table)
    known = (
        _by_name(dictionary(titles), ["icd_code", "icd_version"], "long_title") if titles else {}
    )
    numbers = count(1)
    codes, versions = [], []
    for name, kind in pairs:
        free = known.get(name or "", [])
        code, version = free.pop(0) if free else (f"{table}-{next(numbers)}", "9")
        if titles and name is not None:
            found.files["hosp", titles].append((code, version, name))
        if kind is not None:
            found.files[place].append((code, version, kind))
        codes.append(code)
        versions.append(version)
    return {"icd_code": codes, "icd_version": versions}


def _drugs(
    pairs: list[Pair], place: tuple[str, str], dictionary: Dictionary, found: Codes
) -> list[str]:
    """Return an `ndc` for each class that the release's reader finds; `NO_NDC` without a class."""
    known: dict[str, str] = {}
    for kind, drugs in _by_name(dictionary(place[1]), ["ndc_code"], "atc_name").items():
        found_by_reader = [one for (one,) in drugs if not one.zfill(11).startswith("0")]
        if found_by_reader:
            known[kind] = found_by_reader[0]
    numbers = count(FIRST_NDC)
    codes = []
    for _, name in pairs:
        if name is None:
            codes.append(NO_NDC)
            continue
        known.setdefault(name, str(next(numbers)))
        found.files[place].append((known[name], name))
        codes.append(known[name])
    return codes


def _by_name(
    rows: pl.DataFrame | None, columns: Iterable[str], name: str
) -> dict[str, list[tuple[str, ...]]]:
    """Return name in the store's spelling -> the codes of a dictionary for it, sorted."""
    found: dict[str, list[tuple[str, ...]]] = {}
    if rows is None:
        return found
    keys = list(columns)
    texts = rows.select(
        *(as_code(key).alias(key) if key != "ndc_code" else pl.col(key) for key in keys),
        one_line(pl.col(name)).alias("name"),
    ).drop_nulls()
    for *code, text in texts.unique().sort(pl.all()).iter_rows():
        found.setdefault(text, []).append(tuple(code))
    return found


def note_id(subject_id: int, number: int) -> str:
    """Return the id of a note, by which the release's reader looks up its examinations."""
    return f"{subject_id}-RR-{number}"


assert {*ITEMS, *CLASSES} <= set(TABLES)
