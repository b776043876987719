"""Lookup of the names that MIMIC-IV's dictionaries give to codes, in any spelling of the codes."""

import polars as pl

from ehrr1.errors import UserError
from ehrr1.records.cells import one_line
from ehrr1.records.codes import as_code
from ehrr1.records.reading import Folder, as_text, read_columns
from ehrr1.records.table_spec import Lookup

PADDED = (4, 5, 3)
"""Lengths to which an ICD-9 code is padded if its leading zeros are lost, the commonest first.

The first length at which the dictionary has the code is used.
"""


class Dictionaries:
    """The dictionary files of a folder; each is read on first use."""

    def __init__(self, folder: Folder):
        self.folder = folder
        self._read: dict[tuple[str, str], pl.DataFrame] = {}
        self._seen: dict[str, tuple[int, int]] = {}

    def named(self, frame: pl.DataFrame, lookup: Lookup, table: str) -> pl.DataFrame:
        """Add the names of `lookup` to rows of `table`, null if the dictionary has none.

        Codes are replaced by the dictionary's spelling. Raises UserError if the file is missing, or
        if it does not name most of the table's rows and therefore belongs to another version.
        """
        place = lookup.module, lookup.file
        if place not in self._read:
            self._read[place] = self._names(lookup, table)
        names, keys = self._read[place], list(lookup.on)
        written = {key: f"{key} as written" for key in keys}
        frame = frame.rename(written)
        codes = frame.select(written.values()).unique()
        codes = codes.with_columns(
            pl.col(name).str.strip_chars().alias(key) for key, name in written.items()
        )
        found = _joined(codes, names, keys)
        rest = found.filter(pl.col(lookup.name).is_null()).drop(lookup.name)
        if rest.height:
            found = pl.concat([found.drop_nulls(lookup.name), _compared(rest, names, keys)])
        frame = frame.join(
            found,
            on=list(written.values()),
            how="left",
            maintain_order="left",
            nulls_equal=True,
        ).drop(written.values())
        if not lookup.optional:
            self._refuse_another(lookup, table, frame[lookup.name])
        return frame

    def _names(self, lookup: Lookup, needed_by: str) -> pl.DataFrame:
        """Read the dictionary's codes as they are written, and their names."""
        if lookup.optional and not self.folder.find(lookup.module, lookup.file):
            return pl.DataFrame(schema=dict.fromkeys([*lookup.on, lookup.name], pl.String))
        paths = self.folder.require(lookup.module, lookup.file, needed_by)
        keys = list(lookup.on.values())
        only = [lookup.only[0]] if lookup.only else []
        frame = read_columns(paths, [*keys, lookup.value, *only])
        frame = frame.select(as_text(column) for column in frame.get_columns())
        if lookup.only:
            frame = frame.filter(pl.col(lookup.only[0]).str.strip_chars() == lookup.only[1])
        return frame.select(
            *(pl.col(theirs).str.strip_chars().alias(ours) for ours, theirs in lookup.on.items()),
            pl.col(lookup.value).alias(lookup.name),
        )

    def _refuse_another(self, lookup: Lookup, table: str, names: pl.Series) -> None:
        rows, unnamed = self._seen.get(table, (0, 0))
        rows, unnamed = rows + len(names), unnamed + names.null_count()
        self._seen[table] = rows, unnamed
        if 2 * unnamed > rows:
            raise UserError(
                f"{lookup.module}/{lookup.file} names {rows - unnamed:,} of the first {rows:,} "
                f"rows of {table}: take the dictionary of the same version as the tables"
            )


def _joined(codes: pl.DataFrame, names: pl.DataFrame, keys: list[str]) -> pl.DataFrame:
    """Add the name of each code, the alphabetically first if there are several."""
    own = names.join(codes, on=keys, how="semi")
    name = next(column for column in names.columns if column not in keys)
    own = own.with_columns(one_line(pl.col(name))).sort(pl.all(), nulls_last=True)
    return codes.join(own.unique(keys, keep="first", maintain_order=True), on=keys, how="left")


def _compared(codes: pl.DataFrame, names: pl.DataFrame, keys: list[str]) -> pl.DataFrame:
    """Add the name of each code after normalising the spelling of both sides by `as_code`."""
    compared = [as_code(key).alias(key) for key in keys]
    codes, names = codes.with_columns(compared), names.with_columns(compared)
    if "icd_code" in keys:
        codes = _with_zeros(codes, names)
    return _joined(codes, names, keys)


def _with_zeros(codes: pl.DataFrame, names: pl.DataFrame) -> pl.DataFrame:
    """Restore leading zeros of ICD-9 codes that the dictionary has only with them."""
    keys = ["icd_code", "icd_version"]
    there = names.select(keys).unique()
    digits = (pl.col("icd_version") == "9") & pl.col("icd_code").str.contains(r"^\d+$")
    lost = codes.select(keys).unique().filter(digits).join(there, on=keys, how="anti")
    padded = pl.concat(
        lost.with_columns(pl.col("icd_code").str.zfill(length).alias("padded")) for length in PADDED
    )
    known = padded.join(there, left_on=["padded", "icd_version"], right_on=keys, how="semi")
    found = known.unique(keys, keep="first", maintain_order=True)
    codes = codes.join(found, on=keys, how="left", maintain_order="left")
    return codes.with_columns(pl.coalesce("padded", "icd_code").alias("icd_code")).drop("padded")
