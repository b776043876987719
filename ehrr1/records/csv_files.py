"""CSV files by Arrow: columns as text, in batches, and a count of the rows that are cut short."""

import csv
import gzip
import io
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import polars as pl
import pyarrow as pa
from pyarrow import csv as arrow_csv

from ehrr1.errors import UserError

BATCH_ROWS = 150_000
"""So many rows of a file are held at a time."""

BLOCK_BYTES = 2 << 20
"""A file is parsed in blocks of so many bytes; one row must fit into a block."""

BLANKS = ("\t", *(" " * count for count in range(1, 9)))
MISSING = ("", "NA", "<NA>", "NULL", "null", "NaN", "nan", r"\N", *BLANKS)
"""What tools write for a missing value."""

TOO_MANY = "too_many_cells"
FIRST_ROWS = 20
"""So many rows say how many of the headings have cells."""

Lost = Counter[str]
"""Reason -> rows that could not be read."""


def csv_header(path: Path) -> list[str]:
    """The file's headings as they are written. Raises UserError for an empty file."""
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        line = file.readline().decode("utf-8-sig")
    if not line.strip():
        raise UserError(f"{path} is empty: not even a header line; fetch the file again")
    return next(csv.reader([line.rstrip("\r\n")]))


def csv_batches(path: Path, columns: list[str], misfits: Lost) -> Iterator[pl.DataFrame]:
    """The named columns as text, missing cells null; rows that are cut short are skipped and
    counted in `misfits`.

    Raises csv.Error for rows with more cells than the header has, and for an open quotation mark:
    nobody knows then where a cell ends.
    """

    def count(row: arrow_csv.InvalidRow) -> str:
        misfits["cut_short" if row.actual_columns < row.expected_columns else TOO_MANY] += 1
        return "skip"

    header = _fitting_header(path)
    distinct = list(dict.fromkeys(columns))
    file = _Quoted(path)
    reader = arrow_csv.open_csv(
        file,
        read_options=arrow_csv.ReadOptions(
            block_size=BLOCK_BYTES, column_names=header, skip_rows=1, use_threads=False
        ),
        parse_options=arrow_csv.ParseOptions(newlines_in_values=True, invalid_row_handler=count),
        convert_options=arrow_csv.ConvertOptions(
            include_columns=distinct,
            column_types=dict.fromkeys(distinct, pa.string()),
            null_values=MISSING,
            strings_can_be_null=True,
        ),
    )
    held: list[pl.DataFrame] = []
    with reader:
        for batch in reader:
            held.append(pl.DataFrame(batch))
            if sum(map(len, held)) >= BATCH_ROWS:
                yield pl.concat(held)
                held.clear()
    # Arrow's pool keeps what it has freed, beside that of Polars.
    pa.default_memory_pool().release_unused()
    if file.quotes % 2:
        raise csv.Error("a quotation mark is opened and never closed")
    if misfits[TOO_MANY]:
        raise csv.Error(f"{misfits[TOO_MANY]:,} rows have more cells than the header")
    yield pl.concat([*held, pl.DataFrame(schema=dict.fromkeys(distinct, pl.String))])


class _Quoted(io.RawIOBase):
    """The bytes of a file, with a count of its quotation marks: pyarrow takes what follows an open
    one for a cell, up to the end of the file."""

    def __init__(self, path: Path):
        self.quotes = 0
        self._stream = pa.input_stream(path, compression="detect")

    def read(self, size: int = -1) -> bytes:
        data: bytes = self._stream.read(size if size >= 0 else None)
        self.quotes += data.count(b'"')
        return data

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._stream.close()
        super().close()


def _fitting_header(path: Path) -> list[str]:
    """The headings that have cells: where most rows are shorter than the header alike, the last
    headings are those of columns without any."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
        header, *rows = islice(csv.reader(file), FIRST_ROWS + 1)
    lengths = Counter(map(len, rows))
    width = lengths.most_common(1)[0][0] if lengths else len(header)
    return header[:width] if 1 < width < len(header) else header
