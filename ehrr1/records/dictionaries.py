"""The dictionaries' names behind the codes of rows, whatever the codes are written as."""

import polars as pl

from ehrr1.errors import UserError
from ehrr1.records.cells import one_line
from ehrr1.records.codes import as_code
from ehrr1.records.reading import Folder, as_text, read_columns
from ehrr1.records.table import Lookup

PADDED = (4, 5, 3)
"""Lengths to which the digits of an ICD-9 code are filled up where its leading zeros are lost: a
code is as long as a code of the dictionary, the commonest first."""


class Dictionaries:
    """The dictionary files of a folder; each is read when it is first asked for."""

    def __init__(self, folder: Folder):
        self.folder = folder
        self._read: dict[tuple[str, str], pl.DataFrame] = {}
        self._seen: dict[str, tuple[int, int]] = {}

    def named(self, frame: pl.DataFrame, lookup: Lookup, table: str) -> pl.DataFrame:
        """Adds the names of `lookup` to rows of `table`, null where the dictionary has none.

        Codes become those of the dictionary. Raises UserError where the file is missing, and where
        it does not name most of the table's rows: it is then of another version.
        """
        place = lookup.module, lookup.file
        if place not in self._read:
            self._read[place] = self._names(lookup, table)
        names = self._read[place]
        keys = list(lookup.on)
        frame = frame.with_columns(as_code(key).alias(key) for key in keys)
        if "icd_code" in keys:
            frame = _with_zeros(frame, names)
        named = frame.join(names, on=keys, how="left", maintain_order="left")
        if not lookup.optional:
            self._refuse_another(lookup, table, named[lookup.name])
        return named

    def _names(self, lookup: Lookup, needed_by: str) -> pl.DataFrame:
        if lookup.optional and not self.folder.find(lookup.module, lookup.file):
            return pl.DataFrame(schema=dict.fromkeys([*lookup.on, lookup.name], pl.String))
        paths = self.folder.require(lookup.module, lookup.file, needed_by)
        keys = list(lookup.on.values())
        only = [lookup.only[0]] if lookup.only else []
        frame = read_columns(paths, [*keys, lookup.value, *only])
        frame = frame.select(as_text(column) for column in frame.get_columns())
        if lookup.only:
            frame = frame.filter(pl.col(lookup.only[0]).str.strip_chars() == lookup.only[1])
        names = frame.select(
            *(as_code(theirs).alias(ours) for ours, theirs in lookup.on.items()),
            one_line(pl.col(lookup.value)).alias(lookup.name),
        )
        return names.sort(pl.all()).unique(list(lookup.on), keep="first")

    def _refuse_another(self, lookup: Lookup, table: str, names: pl.Series) -> None:
        rows, unnamed = self._seen.get(table, (0, 0))
        rows, unnamed = rows + len(names), unnamed + names.null_count()
        self._seen[table] = rows, unnamed
        if 2 * unnamed > rows:
            raise UserError(
                f"{lookup.module}/{lookup.file} names {rows - unnamed:,} of the first {rows:,} "
                f"rows of {table}: take the dictionary of the same version as the tables"
            )


def _with_zeros(frame: pl.DataFrame, names: pl.DataFrame) -> pl.DataFrame:
    """ICD-9 codes that the dictionary knows with leading zeros only."""
    keys = ["icd_code", "icd_version"]
    there = names.select(keys)
    digits = (pl.col("icd_version") == "9") & pl.col("icd_code").str.contains(r"^\d+$")
    lost = frame.select(keys).unique().filter(digits).join(there, on=keys, how="anti")
    if not lost.height:
        return frame
    padded = pl.concat(
        lost.select(*keys, pl.col("icd_code").str.zfill(length).alias("padded"))
        for length in PADDED
    )
    found = padded.join(there, left_on=["padded", "icd_version"], right_on=keys, how="semi").unique(
        keys, keep="first", maintain_order=True
    )
    frame = frame.join(found, on=keys, how="left", maintain_order="left")
    return frame.with_columns(pl.coalesce("padded", "icd_code").alias("icd_code")).drop("padded")
