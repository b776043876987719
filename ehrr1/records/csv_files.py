"""Reading of CSV files by Arrow: text columns in batches, with a count of truncated rows."""

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
"""Number of rows of a file that are held in memory at a time."""

BLOCK_BYTES = 2 << 20
"""Size in bytes of the blocks in which a file is parsed; one row must fit into a block."""

BLANKS = ("\t", *(" " * count for count in range(1, 9)))
MISSING = ("", "NA", "<NA>", "NULL", "null", "NaN", "nan", r"\N", *BLANKS)
"""Spellings of a missing value that other tools write."""

TOO_MANY = "too_many_cells"
FIRST_ROWS = 20
"""Number of rows that are read to determine how many of the headings have cells."""

Lost = Counter[str]
"""Reason -> number of rows that could not be read."""


def csv_header(path: Path) -> list[str]:
    """Return the file's headings as they are written.

    Raises UserError for an empty file.
    """
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        line = file.readline().decode("utf-8-sig")
    if not line.strip():
        raise UserError(f"{path} is empty: not even a header line; fetch the file again")
    return next(csv.reader([line.rstrip("\r\n")]))


def csv_batches(path: Path, columns: list[str], misfits: Lost) -> Iterator[pl.DataFrame]:
    """Yield the named columns as text, with missing cells as null.

    Truncated rows are skipped and counted in `misfits`. Raises csv.Error for rows with more cells
    than the header and for an unclosed quotation mark, since the end of a cell is then unknown.
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
    # Arrow's pool does not return freed memory, and Polars has a pool of its own.
    pa.default_memory_pool().release_unused()
    if file.quotes % 2:
        raise csv.Error("a quotation mark is opened and never closed")
    if misfits[TOO_MANY]:
        raise csv.Error(f"{misfits[TOO_MANY]:,} rows have more cells than the header")
    yield pl.concat([*held, pl.DataFrame(schema=dict.fromkeys(distinct, pl.String))])


class _Quoted(io.RawIOBase):
    """Raw file stream that counts the quotation marks it reads.

    If a quotation mark is not closed, pyarrow reads the rest of the file as one cell.
    """

    def __init__(self, path: Path):
        self.quotes = 0
        self._stream = pa.input_stream(path, compression="detect")

    def read(self, size: int = -1) -> bytes:
        """Read up to `size` bytes and count the quotation marks among them."""
        data: bytes = self._stream.read(size if size >= 0 else None)
        self.quotes += data.count(b'"')
        return data

    def readable(self) -> bool:
        """Return True: the stream can be read."""
        return True

    def close(self) -> None:
        """Close the stream."""
        self._stream.close()
        super().close()


def _fitting_header(path: Path) -> list[str]:
    """Return the headings that have cells.

    If most rows are shorter than the header by the same number of cells, the last headings belong
    to columns without cells.
    """
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
        header, *rows = islice(csv.reader(file), FIRST_ROWS + 1)
    lengths = Counter(map(len, rows))
    width = lengths.most_common(1)[0][0] if lengths else len(header)
    return header[:width] if 1 < width < len(header) else header
