"""The store: every row of every patient, in the order of the trajectory, memory-mapped.

    store/
        shards.json          the lowest subject_id of each shard
        0000/                the patients of one range of ids
            rows.arrow       one row per table row, sorted by patient, event time, table, stay
            patients.arrow   one row per patient, with the range of its rows
            names.arrow      the names of the codes `item` and `class`, in alphabetical order
            parent-*.arrow   patients, admissions, edstays, icustays, as labels need them

The files are uncompressed Arrow IPC with one record batch: a patient's rows are read without
copying the rest, in well under 5 ms. A shard is written atomically and independently of the others.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from ehrr1.damage import MANIFEST, reading
from ehrr1.files import read_json, write_json
from ehrr1.progress import in_threads
from ehrr1.records.cells import SEPARATOR
from ehrr1.records.reading import READ_ERRORS
from ehrr1.records.release.order import listed as as_listed
from ehrr1.records.schema import TABLES
from ehrr1.records.shard_buffer import Spool
from ehrr1.records.source import Shards, Source
from ehrr1.records.store_schema import NO_CODE, NO_ID, NO_TIME, STORE_SCHEMA

SORTED_BY = (
    *("subject_id", "event_time", "table", "stay_id", "hadm_id"),
    *("order", "item", "available_time", "content"),
)
"""Sort keys that do not depend on the order of the files.

The hash of the content decides between rows that are otherwise equal.
"""

AS_LISTED = ("subject_id", "order")
"""Sort keys of an input that already is a list of events."""

SHARDS = "shards.json"


def shard_folder(store: Path, number: int) -> Path:
    """Return the folder of a shard."""
    return store / f"{number:04d}"


def write_shards(store: Path, shards: Shards) -> None:
    """Write the lowest subject_id of each shard to `shards.json`."""
    write_json(store / SHARDS, {"firsts": shards.firsts})


def read_all(source: Source, spool: Spool) -> None:
    """Read every table of `source` once into the spool.

    Two tables are read at a time: while one is decompressed, which uses one core, the rows of the
    other are processed.
    """

    def read(table: str) -> None:
        for frame in source.rows(table):
            spool.add(frame)

    in_threads(read, source.reading_order, "reading tables", 2)


def write_shard(
    folder: Path, source: Source, frames: list[pl.DataFrame], parents: dict[str, pl.DataFrame]
) -> tuple[pl.DataFrame, pl.Series]:
    """Write a shard's files into `folder`.

    `frames` hold the shard's rows as `source` yields them; the list is emptied to free memory.
    `parents` are the parent tables of the shard. Returns the rows, sorted and coded, and the names.
    """
    rows = pl.concat(frames or [pl.DataFrame(schema=STORE_SCHEMA)])
    frames.clear()
    rows = source.complete(rows)
    if source.as_released:
        rows = as_listed(rows)
    rows = rows.select(*STORE_SCHEMA)
    names = _names(rows, source.names)
    listed = source.listed or source.as_released
    rows = _sorted(_coded(rows, names), AS_LISTED if listed else SORTED_BY)
    folder.mkdir(parents=True)
    _write(rows, folder / "rows.arrow")
    _write(_patients(parents["patients"], rows), folder / "patients.arrow")
    _write(names.to_frame(), folder / "names.arrow")
    for name, parent in parents.items():
        _write(
            parent.drop("shard", "bad_id", "bad_time", strict=False),
            folder / f"parent-{name}.arrow",
        )
    return rows, names


def _names(rows: pl.DataFrame, more: Collection[str]) -> pl.Series:
    """Return every name that an item, a class, a kind of event or an answer can have."""
    headings = [table.heading for table in TABLES.values()]
    given = pl.Series("name", [*TABLES, *headings, "yes", "no", *more])
    parts = [rows["item"].drop_nulls().unique(), rows["class"].drop_nulls().unique(), given]
    return pl.concat([part.rename("name") for part in parts]).unique().sort()


def _coded(rows: pl.DataFrame, names: pl.Series) -> pl.DataFrame:
    coded = pl.col("item", "class").cast(pl.Enum(names)).to_physical().cast(pl.Int32)
    return rows.with_columns(coded.fill_null(NO_CODE))


def _sorted(rows: pl.DataFrame, by: Sequence[str]) -> pl.DataFrame:
    # Do not sort by class: the values contain it, and any new name would renumber the classes and
    # thereby change the order.
    content = pl.struct("values", "late_time").hash().alias("content")
    ordered = rows.with_columns(content).sort(by).drop("order", "content")
    # Nulls would require a copy when the mapped column is read as numbers.
    return ordered.with_columns(
        pl.col("hadm_id", "stay_id").fill_null(NO_ID),
        pl.col("late_time").fill_null(pl.lit(NO_TIME).cast(pl.Datetime("us"))),
    )


def _patients(patients: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    """Return patients by id, each with `first` and `last` (exclusive) of its rows."""
    ids = patients["subject_id"].sort()
    first = rows["subject_id"].search_sorted(ids, side="left").alias("first")
    last = rows["subject_id"].search_sorted(ids, side="right").alias("last")
    columns = ["subject_id", "gender", "anchor_age", "anchor_year"]
    shown = patients.sort("subject_id").select(columns)
    numbers = pl.col("anchor_age", "anchor_year").cast(pl.Int64, strict=False)
    return shown.with_columns(numbers, first.cast(pl.Int64), last.cast(pl.Int64))


def _write(frame: pl.DataFrame, path: Path) -> None:
    """Write Arrow IPC in one batch, uncompressed, with plain (not view) strings."""
    frame.rechunk().write_ipc(
        path,
        compression="uncompressed",
        compat_level=pl.CompatLevel.oldest(),
        record_batch_size=max(frame.height, 1),
    )


@dataclass(frozen=True, slots=True)
class Patient:
    """Demographics (None where missing) and the range of the patient's rows."""

    gender: str | None
    anchor_age: int | None
    anchor_year: int | None
    first: int
    last: int


class Shard:
    """Rows of some patients.

    Arrays are views of the mapped file and have shape (rows,); times are in microseconds since
    1970. Nothing is loaded before it is used.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        listed = (folder.parents[1] / MANIFEST).exists()  # and checked by the stage that reads it
        rows = _mapped(folder / "rows.arrow", whole=not listed)
        self._values = _only_chunk(rows, "values")
        self.subject_id = _numbers(rows, "subject_id", np.int64)
        self.table = _numbers(rows, "table", np.uint8)
        self.event_time = _numbers(rows, "event_time", np.int64)
        self.available_time = _numbers(rows, "available_time", np.int64)
        self.late_time = _numbers(rows, "late_time", np.int64)
        self.hadm_id = _numbers(rows, "hadm_id", np.int64)
        self.stay_id = _numbers(rows, "stay_id", np.int64)
        self.item = _numbers(rows, "item", np.int32)

    @cached_property
    def names(self) -> list[str]:
        """Return the name of each code; the last name, "", belongs to code -1."""
        return [*_mapped(self.folder / "names.arrow")["name"].to_pylist(), ""]

    @cached_property
    def patients(self) -> dict[int, Patient]:
        """Return the shard's patients by subject_id."""
        path = self.folder / "patients.arrow"
        with reading(path, TypeError, KeyError):  # other columns
            return {row.pop("subject_id"): Patient(**row) for row in _mapped(path).to_pylist()}

    @property
    def parents(self) -> dict[str, pl.DataFrame]:
        """Return the parent tables of these patients: patients, admissions, edstays, icustays.

        Tables that the input lacks are left out.
        """
        prefix = "parent-"
        paths = sorted(self.folder.glob(f"{prefix}*.arrow"))
        return {path.stem.removeprefix(prefix): read_ipc(path) for path in paths}

    def values(self, positions: np.ndarray) -> list[str]:
        """Return the shown values of each row at `positions`, joined by `SEPARATOR`."""
        return self._values.take(pa.array(positions)).to_pylist()

    def note(self, position: int) -> str:
        """Return the text of one row of free text: the last of its values."""
        return self.values(np.array([position]))[0].rsplit(SEPARATOR, 1)[-1]


class Store:
    """All shards of a store; each is opened on first use."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.shards = Shards(tuple(read_json(folder / SHARDS)["firsts"]))
        self._firsts = np.array(self.shards.firsts)
        self._open: dict[int, Shard] = {}

    def shard(self, number: int) -> Shard:
        """Return a shard by its number."""
        if number not in self._open:
            self._open[number] = Shard(shard_folder(self.folder, number))
        return self._open[number]

    def find(self, subject_id: int) -> tuple[Shard, Patient]:
        """Return the shard of a patient and the patient's entry.

        Raises KeyError for an unknown patient.
        """
        number = int(np.searchsorted(self._firsts, subject_id, side="right")) - 1
        shard = self.shard(max(number, 0))
        return shard, shard.patients[subject_id]

    @property
    def parents(self) -> dict[str, pl.DataFrame]:
        """Return the parent tables of all patients: patients, admissions, edstays, icustays.

        Tables that the input lacks are left out.
        """
        parts = [self.shard(number).parents for number in range(len(self.shards))]
        return {name: pl.concat(part[name] for part in parts) for name in parts[0]}


def _mapped(path: Path, whole: bool = True) -> pa.Table:
    """Map an Arrow file. Raises DamagedError if it is none.

    `whole` reads all of it, since a place outside of the file would end the process.
    """
    with reading(path, *READ_ERRORS), pa.memory_map(str(path)) as file:
        table = pa.ipc.open_file(file).read_all()
        table.validate(full=whole)
        return table


def read_ipc(path: Path, remedy: str | None = None) -> pl.DataFrame:
    """Read an Arrow file. Raises DamagedError if it is none."""
    with reading(path, *READ_ERRORS, remedy=remedy):
        return pl.scan_ipc(path, glob=False).collect()


def _only_chunk(table: pa.Table, name: str) -> pa.Array:
    column = table[name]
    return column.chunk(0) if column.num_chunks else pa.array([], column.type)


def _numbers(table: pa.Table, name: str, dtype: type) -> np.ndarray:
    """Return a column as a numpy view of the mapped file."""
    column = _only_chunk(table, name)
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.int64())
    return column.to_numpy(zero_copy_only=True).astype(dtype, copy=False)
