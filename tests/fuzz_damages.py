"""Ways in which a table's file can be broken, and what must come of each.

`damages(sheet)` enumerates them for one table in a fixed order; nothing is drawn at random.
"""

import gzip
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import date
from itertools import cycle, islice
from pathlib import Path

import polars as pl

from ehrr1.records.csv_files import MISSING
from ehrr1.records.schema import REQUIRED, TABLES
from ehrr1.records.typed import IDS, TIMES
from tests.small_tables import Rows, frame


@dataclass(frozen=True)
class Sheet:
    """A table (or dictionary) as it is written: its columns and rows of text."""

    name: str
    rows: Rows

    @property
    def columns(self) -> list[str]:
        return list(self.rows[0])

    def with_cell(self, number: int, column: str, value: str) -> "Sheet":
        rows = [dict(own) for own in self.rows]
        rows[number][column] = value
        return replace(self, rows=rows)

    def with_column(self, column: str, value: str) -> "Sheet":
        return replace(self, rows=[{**own, column: value} for own in self.rows])

    def frame(self) -> pl.DataFrame:
        return frame(self.rows, self.columns)

    def text(self, **options: str) -> bytes:
        return self.frame().write_csv(**options).encode()  # type: ignore[arg-type]


Write = Callable[[Path, Sheet], None]
"""Writes the broken file; the path has no suffix yet."""


@dataclass(frozen=True)
class Damage:
    """A damage to a file, and the result it must have."""

    name: str
    write: Write
    reported: int | None = None
    """Rows that must be reported; None: the whole file must be refused with a UserError."""
    touched: int = 0
    """Rows whose content may differ from the healthy file's (the reported ones included)."""
    added: int = 0
    """Rows that the broken file has more than the healthy one."""


def to(suffix: str, made: Callable[[Sheet], bytes]) -> Write:
    def write(path: Path, sheet: Sheet) -> None:
        path.with_name(path.name + suffix).write_bytes(made(sheet))

    return write


def csv(made: Callable[[Sheet], bytes]) -> Write:
    return to(".csv", made)


def zipped(change: Callable[[bytes], bytes]) -> Write:
    return to(".csv.gz", lambda sheet: change(gzip.compress(sheet.text(), mtime=0)))


def parquet(change: Callable[[pl.DataFrame], pl.DataFrame]) -> Write:
    def write(path: Path, sheet: Sheet) -> None:
        change(sheet.frame()).write_parquet(path.with_name(path.name + ".parquet"))

    return write


def parquet_bytes(change: Callable[[bytes], bytes]) -> Write:
    def write(path: Path, sheet: Sheet) -> None:
        path = path.with_name(path.name + ".parquet")
        sheet.frame().write_parquet(path)
        path.write_bytes(change(path.read_bytes()))

    return write


def cell(number: int, column: str, value: str, reported: int, touched: int = 1) -> Damage:
    write = csv(lambda sheet: sheet.with_cell(number, column, value).text())
    return Damage(f"{column}={value!r}", write, reported, touched)


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 0xFF]) + content[place:][1:]


# --- cells ------------------------------------------------------------------------------------

BAD_IDS = (
    *("abc", "12.5", "99999999999999999999", "0x1F", "1e5", "10 000", "-", "none", "١٢"),
    *("1\x00", "1;2", "inf", "12.", "2150-01-01"),
)
BAD_TIMES = (
    *("soon", "2150-02-30 10:00:00", "2150-13-01 00:00:00", "2150-01-01 25:00:00"),
    *("01/02/2150 10:00", "0000-01-01 00:00:00", "9999-12-31 23:59:59", "99999-01-01 00:00:00"),
    *("2150-01-01 10:00:00+02:00", "2150-01-01T10:00:00Z", "5680281600", "0214-01-01 10:00:00"),
    *("2150-01-01 10:00 PM", "-2150-01-01", "2150-01-01 10:00:00\x00", "NaT", "+99999-01-01"),
)


def cell_damages(sheet: Sheet, turn: int) -> Iterator[Damage]:
    """A few of the bad ids and times for each column, other ones for each table."""
    table, own = TABLES[sheet.name], sheet.rows[1]
    ids = [column for column in sheet.columns if column in IDS]
    times = [column for column in sheet.columns if column in TIMES]
    for place, column in enumerate(ids):
        for value in islice(cycle(BAD_IDS), 3 * turn + place, 3 * turn + place + 3):
            yield cell(1, column, value, reported=1)
        for value in (f" {own[column]} ", f"{own[column]}.0"):
            yield cell(1, column, value, reported=0, touched=0)
        if column != "subject_id":
            yield cell(1, column, "-1", reported=1)
    yield cell(1, "subject_id", "", reported=1)
    if sheet.name != "patients":
        yield cell(1, "subject_id", "-7", reported=1)
        yield cell(1, "subject_id", "88888888", reported=1)
    for place, column in enumerate(times):
        for value in islice(cycle(BAD_TIMES), 3 * turn + place, 3 * turn + place + 3):
            yield cell(1, column, value, reported=1)
        if own[column]:
            yield cell(1, column, f" {own[column]} ", reported=0, touched=0)
        if " " in own[column]:
            later = column == "storetime"  # rounded up; the others are cut
            yield cell(1, column, f"{own[column]}.999", reported=0, touched=int(later))
    for early in {"storetime", "endtime", "dischtime", "outtime"}.intersection(times):
        yield cell(1, early, "2149-12-01 00:00:00", reported=0)
    event = [at.column for at in table.event_time]
    if len(event) == 1 and event[0] in times:
        yield cell(1, event[0], "", reported=1)
    if table.unique:
        again = replace(sheet, rows=[*sheet.rows, sheet.rows[0]])
        yield Damage("row twice", csv(lambda _: again.text()), 1, 0, added=1)


# --- whole files ------------------------------------------------------------------------------


def as_folder(path: Path, sheet: Sheet) -> None:
    path.with_name(path.name + ".csv.gz").mkdir()


def as_dangling_link(path: Path, sheet: Sheet) -> None:
    path.with_name(path.name + ".csv").symlink_to(path.with_name("nowhere"))


def as_link_to_itself(path: Path, sheet: Sheet) -> None:
    path.with_name(path.name + ".csv").symlink_to(path.with_name(path.name + ".csv"))


def twice(path: Path, sheet: Sheet) -> None:
    path.with_name(path.name + ".csv").write_bytes(sheet.text())
    path.with_name(path.name + ".csv.gz").write_bytes(gzip.compress(sheet.text()))


def with_helpers(path: Path, sheet: Sheet) -> None:
    """A folder of one part, with what an editor, a Mac and a writer that was killed leave there."""
    folder = path.with_name(path.name)
    folder.mkdir()
    (folder / "part-0.csv").write_bytes(sheet.text())
    for name in ("._part-0.csv", ".part-1.csv", "_part-2.csv"):
        (folder / name).write_bytes(b"\x00\x05\x16\x07")
    (folder / ".ipynb_checkpoints").mkdir()
    (folder / ".ipynb_checkpoints" / "part-0.csv").write_bytes(sheet.text())


def line(sheet: Sheet, number: int, change: Callable[[bytes], bytes]) -> bytes:
    """The file with one line (0: the header) changed."""
    lines = sheet.text().splitlines(keepends=True)
    lines[number] = change(lines[number].rstrip(b"\n")) + b"\n"
    return b"".join(lines)


def renamed(sheet: Sheet, names: dict[str, str]) -> bytes:
    return sheet.frame().rename(names).write_csv().encode()


def headed(sheet: Sheet, columns: list[str]) -> bytes:
    """The same cells under other headings."""
    return line(sheet, 0, lambda _: ",".join(columns).encode())


BROKEN_FILES: dict[str, Write] = {
    "gzip cut 1 byte short": zipped(lambda z: z[:-1]),
    "gzip without its checksum": zipped(lambda z: z[:-8]),
    "gzip cut in half": zipped(lambda z: z[: len(z) // 2]),
    "gzip cut in its header": zipped(lambda z: z[:6]),
    "gzip with a flipped checksum": zipped(lambda z: flipped(z, len(z) - 6)),
    "gzip with a flipped byte": zipped(lambda z: flipped(z, len(z) // 2)),
    "garbage after the gzip": zipped(lambda z: z + b"garbage"),
    "text named gzip": to(".csv.gz", lambda sheet: sheet.text()),
    "gzip named text": csv(lambda sheet: gzip.compress(sheet.text(), mtime=0)),
    "no byte": csv(lambda _: b""),
    "no byte in a gzip": to(".csv.gz", lambda _: gzip.compress(b"")),
    "only line breaks": csv(lambda _: b"\n\n\n"),
    "only NUL bytes": csv(lambda _: bytes(200)),
    "UTF-16": csv(lambda sheet: sheet.text().decode().encode("utf-16")),
    "UTF-16 without a mark": csv(lambda sheet: sheet.text().decode().encode("utf-16-le")),
    "Latin-1": csv(lambda sheet: line(sheet, 2, lambda own: own[:-1] + b"\xe9")),
    "Latin-1 in the header": csv(lambda sheet: line(sheet, 0, lambda own: own + b",\xe9")),
    "no header line": csv(lambda sheet: sheet.text().split(b"\n", 1)[1]),
    "semicolons": csv(lambda sheet: sheet.text(separator=";")),
    "tabs": csv(lambda sheet: sheet.text(separator="\t")),
    "old line ends": csv(lambda sheet: sheet.text().replace(b"\n", b"\r")),
    "a quote that is not closed": csv(lambda s: line(s, 2, lambda own: own[:-1] + b',"x')),
    "a quote within a cell": csv(lambda sheet: line(sheet, 2, lambda own: b'"' + own)),
    "too many cells": csv(lambda sheet: line(sheet, 2, lambda own: own + b",1,2,3")),
    "a folder": as_folder,
    "a link to nothing": as_dangling_link,
    "a link to itself": as_link_to_itself,
    "in two files": twice,
    "Parquet cut in half": parquet_bytes(lambda p: p[: len(p) // 2]),
    "Parquet without its end": parquet_bytes(lambda p: p[:-4]),
    "Parquet with a flipped footer": parquet_bytes(lambda p: flipped(p, len(p) - 40)),
    "Parquet with a footer too long": parquet_bytes(lambda p: p[:-8] + b"\xff\xff\xff\x7fPAR1"),
    "no byte in Parquet": to(".parquet", lambda _: b""),
    "text named Parquet": to(".parquet", lambda sheet: sheet.text()),
}

ODD_TYPES: dict[str, Callable[[pl.Series], pl.Series]] = {
    "lists": lambda column: column.reshape((-1, 1)).arr.to_list(),
    "structs": lambda column: column.to_frame("x").to_struct(column.name),
    "bytes": lambda column: column.cast(pl.Binary),
    "durations": lambda column: column.str.len_bytes().fill_null(0).cast(pl.Duration("us")),
}


def file_damages(sheet: Sheet, turn: int) -> Iterator[Damage]:
    """Files that must be refused."""
    for name, write in BROKEN_FILES.items():
        yield Damage(name, write)
    lacking = sheet.columns[turn % len(sheet.columns)]
    yield Damage(f"without {lacking}", csv(lambda s: renamed(s, {lacking: "other"})))
    header = [*sheet.columns[1:], sheet.columns[0]]
    doubled = [*sheet.columns, sheet.columns[-1]]
    yield Damage("a heading twice", csv(lambda s: headed(s, doubled)))
    if header[-1] == "subject_id" and TIMES.intersection(header):
        yield Damage("headings shifted by one", csv(lambda s: headed(s, header)))
    odd = sheet.columns[(turn + 1) % len(sheet.columns)]
    for kind, change in islice(cycle(ODD_TYPES.items()), turn % 4, turn % 4 + 2):
        changed = parquet(lambda f, change=change: f.with_columns(change(f[odd]).alias(odd)))
        yield Damage(f"{odd} in {kind}", changed)


def typed_damages(sheet: Sheet) -> Iterator[Damage]:
    """Whole columns of another kind."""
    ids = [column for column in sheet.columns if column in IDS]
    times = [column for column in sheet.columns if column in TIMES and sheet.rows[0][column]]
    for column in ids:
        yield Damage(f"{column} in words", csv(lambda s, c=column: s.with_column(c, "x").text()))
        day = pl.lit(date(2150, 1, 1)).alias(column)
        yield Damage(f"{column} in days", parquet(lambda f, day=day: f.with_columns(day)))
    numbers = [pl.col(column).cast(pl.Float64) for column in ids]
    yield Damage("ids as floats", parquet(lambda f: f.with_columns(numbers)), 0)
    words = [pl.col(column).cast(pl.Categorical) for column in ids]
    yield Damage("ids as categories", parquet(lambda f: f.with_columns(words)), 0)
    for column in times:
        american = csv(lambda s, c=column: s.with_column(c, "7/23/2150 10:00").text())
        yield Damage(f"{column} in another format", american)
        number = pl.lit(5680281600).alias(column)
        yield Damage(f"{column} in numbers", parquet(lambda f, n=number: f.with_columns(n)))
        far = pl.lit(2**31 - 1, pl.Int32).cast(pl.Date).alias(column)
        yield Damage(f"{column} out of range", parquet(lambda f, far=far: f.with_columns(far)))
    if times:
        zoned = [
            pl.col(column).str.to_datetime(strict=False).dt.replace_time_zone("America/New_York")
            for column in times
            if not column.endswith("date")
        ]
        yield Damage("times in a zone", parquet(lambda f: f.with_columns(zoned)), 0)


def _cut(sheet: Sheet) -> bytes:
    """A file that ends in the middle of its last row."""
    text = sheet.text().rstrip(b"\n")
    return text[: text.rindex(b",")]


def harmless(sheet: Sheet, turn: int) -> Iterator[Damage]:
    """Odd, but readable: not a row may go."""
    other = {name: name.upper() for name in sheet.columns}
    extra = pl.lit("2150").alias("note to self"), pl.lit("x").alias("other")
    two = [*sheet.columns, "other", "other"]
    text = next((c for c in sheet.columns if "#" in sheet.rows[1][c] and c != "note_id"), None)
    yield Damage("BOM", csv(lambda s: b"\xef\xbb\xbf" + s.text()), 0)
    yield Damage("CRLF", csv(lambda s: s.text().replace(b"\n", b"\r\n")), 0)
    yield Damage("no last line break", csv(lambda s: s.text()[:-1]), 0)
    yield Damage("headings in capitals", csv(lambda s: renamed(s, other)), 0)
    yield Damage(
        "more columns", csv(lambda s: s.frame().with_columns(extra).write_csv().encode()), 0
    )
    yield Damage("unread headings twice", csv(lambda s: headed(s, two)), 0)
    reverse = sheet.columns[::-1]
    yield Damage("columns turned round", csv(lambda s: s.frame()[reverse].write_csv().encode()), 0)
    yield Damage("all quoted", csv(lambda s: s.text(quote_style="always")), 0)
    yield Damage("helpers beside it", with_helpers, 0)
    yield Damage("gzip in two parts", zipped(lambda z: _in_two(gzip.decompress(z))), 0)
    blank = csv(lambda s: line(s, 2, lambda own: own + b"\n" + b"," * (len(s.columns) - 1)))
    yield Damage("a line without cells", blank, 1, added=1)
    if text is not None:
        for name, value in {"a line break": "a\nb", "NUL": "a\0b", "a comma": "a,b,c"}.items():
            yield Damage(
                f"{name} in a cell",
                csv(lambda s, value=value: s.with_cell(1, text, value).text()),
                0,
                touched=1,
            )
    yield Damage("too few cells", csv(lambda s: line(s, 2, lambda own: own.split(b",")[0])), 1, 1)
    yield Damage("cut in the last cell but one", csv(_cut), 1, 1)
    for word in islice(cycle(MISSING[1:]), turn % 7, turn % 7 + 2):
        empty = pl.when(pl.all() != "").then(pl.all()).fill_null(word)
        yield Damage(
            f"{word!r} for a missing cell",
            csv(lambda s, e=empty: s.frame().with_columns(e).write_csv().encode()),
            0,
        )
    only_header = csv(lambda s: s.text().split(b"\n")[0] + b"\n")
    count = len(sheet.rows)
    refused = sheet.name in REQUIRED
    yield Damage("a header only", only_header, None if refused else 0, count, added=-count)


def _in_two(text: bytes) -> bytes:
    middle = text.index(b"\n") + 1
    return gzip.compress(text[:middle]) + gzip.compress(text[middle:])


def damages(sheet: Sheet, turn: int) -> list[Damage]:
    """All damages of one table; `turn`, the table's number, chooses among the many cells."""
    found = [*file_damages(sheet, turn), *harmless(sheet, turn)]
    if sheet.name in TABLES:
        found += [*cell_damages(sheet, turn), *typed_damages(sheet)]
    return found
