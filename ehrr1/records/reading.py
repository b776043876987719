"""Finding and reading MIMIC-IV's files: `.csv.gz`, `.csv` or `.parquet`, wherever a module lies.

Every cell is read as text (Parquet keeps its types), so that nothing is guessed. A file that
cannot be read is a `UserError` that names the file, the cause and the remedy.
"""

import csv
import gzip
import zlib
from pathlib import Path

import polars as pl

from ehrr1.errors import UserError

SUFFIXES = (".csv.gz", ".csv", ".parquet")
"""Looked for in this order; the first is how the tables are published."""

TIME_FORMATS = (
    "%Y-%m-%d %H:%M:%S",
    "%Y-%m-%d",
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%dT%H:%M:%S%.f",
)


class Folder:
    """A folder that holds MIMIC-IV's modules (`hosp`, `icu`, `ed`, `note`; any case).

    Raises UserError where the folder is missing or holds no module.
    """

    def __init__(self, root: Path):
        if not root.is_dir():
            raise UserError(
                f"data.root={root}: there is no such folder; give the folder that holds hosp/"
            )
        self.root = root
        self._files: dict[tuple[str, str], Path] = {}
        for module in root.iterdir():
            if module.is_dir():
                for file in module.iterdir():
                    self._files[module.name.lower(), file.name.lower()] = file

    def find(self, module: str, name: str) -> Path | None:
        """The file of a table, or None."""
        for suffix in SUFFIXES:
            path = self._files.get((module, name + suffix))
            if path is not None:
                return path
        return None

    def require(self, module: str, name: str, needed_by: str) -> Path:
        path = self.find(module, name)
        if path is None:
            raise UserError(
                f"data.root={self.root}: {module}/{name} (.csv.gz, .csv or .parquet) is missing, "
                f"and {needed_by} needs it: put the file there"
            )
        return path


def read_columns(path: Path, columns: list[str]) -> pl.DataFrame:
    """The named columns of a file, in that order; column names may differ in case.

    CSV cells are text, empty ones null; Parquet keeps its types. Raises UserError for a file that
    is empty, broken, not UTF-8, or lacks a column.
    """
    actual = _match(path, read_header(path), columns)
    try:
        parquet = path.suffix == ".parquet"
        frame = pl.scan_parquet(path) if parquet else pl.scan_csv(path, infer_schema_length=0)
        read = frame.select(pl.col(actual[name]).alias(name) for name in columns).collect()
    except UNREADABLE as error:
        raise _broken(path, error) from error
    for name, kind in read.schema.items():
        if kind.is_nested() or kind == pl.Binary:
            raise UserError(f"{path}: the column {name} holds {kind}; text or numbers are needed")
    return read


def read_header(path: Path) -> list[str]:
    """The file's headings as they are written. Raises UserError as `read_columns` does."""
    try:
        if path.suffix == ".parquet":
            return pl.scan_parquet(path).collect_schema().names()
        return _csv_header(path)
    except UNREADABLE as error:
        raise _broken(path, error) from error


UNREADABLE = (pl.exceptions.PolarsError, OSError, EOFError, zlib.error, UnicodeDecodeError)


def _broken(path: Path, error: Exception) -> UserError:
    # Polars quotes what it cannot parse: patient text stays out of messages.
    cause = (str(error).strip() or type(error).__name__).splitlines()[0].partition("`")[0]
    return UserError(
        f"{path} cannot be read ({cause.strip()}): fetch the file again, "
        "or mend it; its published checksum tells whether it is whole"
    )


def _csv_header(path: Path) -> list[str]:
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        line = file.readline().decode("utf-8-sig")
    if not line.strip():
        raise UserError(f"{path} is empty: not even a header line; fetch the file again")
    return next(csv.reader([line.rstrip("\r\n")]))


def _match(path: Path, header: list[str], columns: list[str]) -> dict[str, str]:
    """Wanted name -> name in the file."""
    places: dict[str, list[str]] = {}
    for name in header:
        places.setdefault(name.strip().lower(), []).append(name)
    missing = [name for name in columns if name not in places]
    if missing:
        raise UserError(
            f"{path} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}: "
            "is it MIMIC-IV 2.2 or later, with its header line?"
        )
    repeated = [name for name in columns if len(places[name]) > 1]
    if repeated:
        raise UserError(f"{path} has the column {repeated[0]} more than once: keep one of them")
    return {name: places[name][0] for name in columns}


def as_text(column: pl.Series) -> pl.Series:
    """Text of any column, whole numbers without ".0"."""
    if column.dtype == pl.String:
        return column
    if column.dtype.is_float():
        return column.fill_nan(None).cast(pl.String).str.strip_suffix(".0")
    return column.cast(pl.String)


def as_id(column: pl.Series) -> pl.Series:
    """Whole numbers; null where there is none, or another number."""
    if column.dtype.is_float():
        numbers = column.cast(pl.Int64, strict=False)
        return numbers.set(numbers.cast(pl.Float64) != column, None)
    if column.dtype.is_numeric():
        return column.cast(pl.Int64, strict=False)
    numbers = column.cast(pl.Int64, strict=False)
    if numbers.null_count() > column.null_count():
        tidy = as_text(column).str.strip_chars().str.strip_suffix(".0")
        numbers = tidy.cast(pl.Int64, strict=False)
    return numbers


def as_time(column: pl.Series) -> pl.Series:
    """Times in microseconds; null where there is none or where it cannot be read."""
    if column.dtype == pl.Date or column.dtype == pl.Datetime:
        return column.cast(pl.Datetime("us")).dt.replace_time_zone(None)
    text = as_text(column)
    times = text.str.to_datetime(TIME_FORMATS[0], strict=False, time_unit="us")
    for form in TIME_FORMATS[1:]:
        if times.null_count() == text.null_count():
            break
        more = text.str.strip_chars().str.to_datetime(form, strict=False, time_unit="us")
        times = times.fill_null(more)
    return times
