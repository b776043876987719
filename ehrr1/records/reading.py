"""Finding and reading of MIMIC-IV's files: `.csv.gz`, `.csv` or `.parquet`.

Every cell is read as text (Parquet keeps its types), so that no type is guessed; the spellings of a
missing value in `MISSING`, quoted or not, become null. A file that cannot be read raises a
`UserError` that names the file, the cause and the remedy.
"""

import csv
import re
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import polars as pl
import pyarrow as pa

from ehrr1.errors import UserError
from ehrr1.records.csv_files import BATCH_ROWS, MISSING, Lost, csv_batches, csv_header

SUFFIXES = (".csv.gz", ".csv", ".parquet")
"""Suffixes in the order of the search; the first is that of the published tables."""

TIME_FORMATS = (
    "%Y-%m-%d %H:%M:%S",
    "%Y-%m-%d",
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%dT%H:%M:%S%.f",
)

READ_ERRORS = (
    *(pl.exceptions.PolarsError, pl.exceptions.PanicException, pa.ArrowException),
    *(OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error),
)
"""Exceptions that a broken file raises.

A panic of Polars is not an `Exception` and would pass all handlers.
"""

SECOND, MICROSECOND = timedelta(seconds=1), timedelta(microseconds=1)
EARLIEST, LATEST = datetime(1800, 1, 1), datetime(2500, 1, 1)
"""Times outside are typing errors (year 0, 0214, 9999).

MIMIC-IV's shifted years lie around 2150, and Python has no time after the year 9999.
"""


UTC = frozenset(("UTC", "Etc/UTC", "GMT", "Etc/GMT"))


def is_data(name: str) -> bool:
    """Return whether a file or folder of this name holds data.

    `.ipynb_checkpoints`, `._table.csv`, `.part-0.parquet` and `_temporary` are left behind by other
    programs and do not.
    """
    return not name.startswith((".", "_"))


def data_files(root: Path, suffix: str = ".parquet") -> list[Path]:
    """Return the data files below `root` whose names end in `suffix`, sorted by name."""
    found = sorted(root.rglob(f"*{suffix}"))
    return [path for path in found if all(map(is_data, path.relative_to(root).parts))]


class Folder:
    """A folder that holds MIMIC-IV's modules (`hosp`, `icu`, `ed`, `note`; any case).

    A table is one file, or a folder of that name with several files. Raises UserError if the folder
    is missing.
    """

    def __init__(self, root: Path):
        if not root.is_dir():
            raise UserError(
                f"data.root={root}: there is no such folder; give the folder that holds hosp/"
            )
        self.root = root
        self._paths: dict[tuple[str, str], list[Path]] = {}
        for module in sorted(root.iterdir()):
            if module.is_dir():
                for path in sorted(module.iterdir()):
                    key = module.name.lower(), path.name.lower()
                    self._paths.setdefault(key, []).append(path)

    def find(self, module: str, name: str) -> list[Path]:
        """Return the files of a table, sorted by name; empty if there is no such table.

        Raises UserError if the table exists twice: whether the second holds the same rows cannot be
        decided, and ignoring it could lose rows.
        """
        found = [path for end in SUFFIXES for path in self._paths.get((module, name + end), [])]
        found += [path for path in self._paths.get((module, name), []) if path.is_dir()]
        if len(found) > 1:
            raise UserError(
                f"data.root={self.root}: the table {module}/{name} is there twice, as {found[0]} "
                f"and as {found[1]}: keep one of them"
            )
        if not found or found[0].name.lower() != name:
            return found
        parts = sorted(
            part
            for part in found[0].iterdir()
            if part.name.endswith(SUFFIXES) and is_data(part.name)
        )
        if not parts:
            raise UserError(f"{found[0]} is a folder without a .csv.gz, .csv or .parquet file")
        return parts

    def require(self, module: str, name: str, needed_by: str) -> list[Path]:
        """Return the files of a table.

        Raises UserError, which names `needed_by`, if there is no such table.
        """
        paths = self.find(module, name)
        if not paths:
            raise UserError(
                f"data.root={self.root}: {module}/{name} (.csv.gz, .csv or .parquet) is missing, "
                f"and {needed_by} needs it: put the file there"
            )
        return paths


def read_columns(paths: list[Path], columns: list[str], lost: Lost | None = None) -> pl.DataFrame:
    """Read the named columns of a table's files into memory, as `read_batches` yields them."""
    return pl.concat(read_batches(paths, columns, lost), how="vertical_relaxed")


def read_batches(
    paths: list[Path], columns: list[str], lost: Lost | None = None
) -> Iterator[pl.DataFrame]:
    """Yield the named columns of a table's files, in that order, about `BATCH_ROWS` rows at a time.

    Column names may differ in case. CSV cells are text, missing ones null; Parquet keeps its types.
    Truncated rows of a CSV are counted in `lost`. Memory is bounded whatever the size of the files;
    a file without rows yields one empty batch. Raises UserError for a file that is empty, broken,
    not UTF-8, or lacks a column, and, if `lost` is None, for truncated rows.
    """
    for path in paths:
        misfits: Lost = Counter()
        frames = _batches(path, columns, misfits)
        while True:
            try:
                frame = next(frames, None)
            except READ_ERRORS as error:
                raise _broken(path, error) from error
            if frame is None:
                break
            yield frame
        if lost is not None:
            lost.update(misfits)
        elif misfits:
            raise UserError(
                f"{path}: {misfits.total():,} rows are cut short: fetch the file again, or mend it"
            )


def _batches(path: Path, columns: list[str], misfits: Lost) -> Iterator[pl.DataFrame]:
    actual = _match(path, read_header(path), columns)
    names = [actual[name] for name in columns]
    parquet = path.suffix == ".parquet"
    frames = _parquet_batches(path, names) if parquet else csv_batches(path, names, misfits)
    for frame in frames:
        frame.columns = columns
        for name, kind in frame.schema.items():
            if kind.is_nested() or kind in (pl.Binary, pl.Duration, pl.Object):
                raise UserError(
                    f"{path}: the column {name} holds {kind}; text or numbers are needed"
                )
        yield frame


def _parquet_batches(path: Path, columns: list[str]) -> Iterator[pl.DataFrame]:
    wanted = pl.scan_parquet(path, glob=False).select(columns)
    text = pl.selectors.string()
    wanted = wanted.with_columns(pl.when(~text.is_in(MISSING)).then(text).name.keep())
    yield pl.DataFrame(schema=wanted.collect_schema())
    yield from wanted.collect_batches(chunk_size=BATCH_ROWS, lazy=True)


def read_header(path: Path) -> list[str]:
    """Return the file's headings as they are written.

    Raises UserError as `read_columns` does.
    """
    try:
        if path.suffix == ".parquet":
            return pl.scan_parquet(path, glob=False).collect_schema().names()
        return csv_header(path)
    except READ_ERRORS as error:
        raise _broken(path, error) from error


def _broken(path: Path, error: BaseException) -> UserError:
    # Polars and Arrow quote what they cannot parse: messages must not contain text of patients.
    cause = (str(error).strip() or type(error).__name__).splitlines()[0].partition("`")[0]
    if isinstance(error, pa.ArrowException):
        row = re.search(r"Row #(\d+)", cause)
        kind = "it is no UTF-8 text" if "UTF8" in cause else "it is no table of text"
        cause = f"{kind}, row {row[1]}" if row else kind
    return UserError(
        f"{path} cannot be read ({cause.strip()}): fetch the file again, "
        "or mend it; check it against its published checksum"
    )


def _match(path: Path, header: list[str], columns: list[str]) -> dict[str, str]:
    """Return wanted name -> name in the file."""
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
    """Convert a column of any type to text, whole numbers without ".0"."""
    if column.dtype == pl.String:
        return column
    if column.dtype.is_float():
        return column.fill_nan(None).cast(pl.String).str.strip_suffix(".0")
    return column.cast(pl.String)


def as_id(column: pl.Series) -> pl.Series:
    """Convert a column to integers, with null for missing and non-integer values."""
    if column.dtype.is_integer():
        return column.cast(pl.Int64, strict=False)
    if column.dtype.is_numeric():
        numbers = column.cast(pl.Int64, strict=False)
        return numbers.set(numbers.cast(pl.Float64) != column.cast(pl.Float64), None)
    if column.dtype.is_temporal() or column.dtype == pl.Boolean:
        return pl.repeat(None, len(column), dtype=pl.Int64, eager=True).alias(column.name)
    text = as_text(column)
    numbers = text.cast(pl.Int64, strict=False)
    if numbers.null_count() > column.null_count():
        tidy = text.str.strip_chars().str.strip_suffix(".0")
        numbers = tidy.cast(pl.Int64, strict=False)
    return numbers


def as_time(column: pl.Series, up: bool = False) -> pl.Series:
    """Convert a column to times in whole seconds, with null for missing and unreadable values.

    Fractions of a second are truncated, or rounded up if `up` is True. Times of storing must be
    rounded up: a value that is stored within a second was not known when the second began.
    """
    if column.dtype == pl.Date or column.dtype == pl.Datetime:
        if column.dtype == pl.Datetime:
            # Keep the local time, as the tables have it; a cast alone would convert it to UTC.
            column = column.dt.replace_time_zone(None)
        return _plausible(column.cast(pl.Datetime("us"), strict=False), up)
    text = as_text(column)
    times = text.str.to_datetime(TIME_FORMATS[0], strict=False, time_unit="us")
    for form in TIME_FORMATS[1:]:
        if times.null_count() == text.null_count():
            break
        more = text.str.strip_chars().str.to_datetime(form, strict=False, time_unit="us")
        times = times.fill_null(more)
    return _plausible(times, up)


def _plausible(times: pl.Series, up: bool) -> pl.Series:
    there = times.is_between(EARLIEST, LATEST)
    times = pl.select(pl.when(there).then(times).alias(times.name)).to_series()
    return whole_seconds(times, up)


def whole_seconds(times: pl.Series, up: bool = False) -> pl.Series:
    """Truncate times to whole seconds, or round them up if `up` is True.

    Headings and ids have no fractions. Times that differ only in their fractions would be distinct
    in a context and equal for its reader.
    """
    if (times.dt.microsecond() == 0).all():
        return times
    return (times + SECOND - MICROSECOND if up else times).dt.truncate("1s")


def as_moment(column: pl.Series) -> pl.Series:
    """Convert times of MEDS' Parquet files, of events and labels alike, to whole seconds.

    Times with a zone are converted to UTC. Raises a PolarsError for a column that holds no times.
    """
    if isinstance(column.dtype, pl.Datetime) and column.dtype.time_zone is not None:
        column = column.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    return whole_seconds(column.cast(pl.Datetime("us")))


def check_zones(files: Iterable[Path], columns: Collection[str], local: Path | None = None) -> None:
    """Raise UserError if Parquet files have both times with a zone and times without one.

    The difference between them is unknown, so that future hours could enter a context. UTC may be
    combined with either. `local` is a folder of tables whose times have no zone.
    """
    found: dict[str | None, Path] = {} if local is None else {None: local}
    for path in files:
        try:
            schema = pl.scan_parquet(path, glob=False).collect_schema()
        except READ_ERRORS as error:
            raise _broken(path, error) from error
        for name, kind in schema.items():
            if name.strip().lower() in columns and isinstance(kind, pl.Datetime):
                found.setdefault(kind.time_zone, path)
    zones = [zone for zone in found if zone is not None and zone not in UTC]
    if None in found and zones:
        raise UserError(
            f"{found[zones[0]]} has times of the zone {zones[0]}, and {found[None]} has times "
            "without a zone: write all times of events and labels in UTC, or all without a zone"
        )
