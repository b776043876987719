"""List the rows that a sample's context shows, with the row of the raw files for each.

Rows of the store are found again in the files by what they say, not by the code that made them:
equal patient, stay, own time, item and shown values. The store's `available_time` is no part of it.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import polars as pl

from ehrr1.records.cells import SEPARATOR
from ehrr1.records.reading import Folder
from ehrr1.records.schema import ORDER, TABLES
from ehrr1.records.store_schema import NO_ID, NO_TIME
from ehrr1.records.table_spec import At, Lookup, Table
from ehrr1.tasks import context
from ehrr1.tasks.paper import context as paper_context
from ehrr1.tasks.samples import Prepared, Sample

SAME = ["subject_id", "hadm_id", "stay_id", "time", "item"]
LATE = [TABLES[name].late_positions for name in ORDER]
UNTIL_THEN = [TABLES[name].until_then for name in ORDER]


def shown(prepared: Prepared, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """Places of the shown rows among the patient's rows, and whether each shows a total.

    A total is shown where the context, as it is written, has a value in a column that is one, and
    not what stands there until it is known.
    """
    rows, patient = prepared.store.find(sample.subject_id)
    protocol = paper_context if sample.period_end else context
    positions = protocol.shown_positions(rows, patient, sample)
    cells = [row for event in prepared.context(sample)[1:] for row in event.rows]
    tables = rows.table[positions].tolist()
    shows = [
        any(row[place] not in ("", UNTIL_THEN[table]) for place in LATE[table])
        for table, row in zip(tables, cells, strict=True)
    ]  # fmt: skip
    total = np.array(shows, dtype=bool) & (rows.late_time[positions] != NO_TIME)
    return positions - patient.first, total


def stored_rows(prepared: Prepared, subjects: list[int]) -> pl.DataFrame:
    """All rows of some patients: `SAME`, `table, place, event_time, available_time, late_time,
    values`; times in microseconds, `place` among the patient's rows."""
    parts = []
    for subject in subjects:
        rows, patient = prepared.store.find(subject)
        here = slice(patient.first, patient.last)
        parts.append(
            pl.DataFrame(
                {
                    "subject_id": np.full(patient.last - patient.first, subject),
                    "place": np.arange(patient.last - patient.first),
                    "table": rows.table[here],
                    "hadm_id": rows.hadm_id[here],
                    "stay_id": rows.stay_id[here],
                    "event_time": rows.event_time[here],
                    "available_time": rows.available_time[here],
                    "late_time": rows.late_time[here],
                    "item": [rows.names[code] for code in rows.item[here].tolist()],
                    "values": rows.values(np.arange(patient.first, patient.last)),
                }
            )
        )
    frame = pl.concat(parts)
    return frame.with_columns(
        _same_text(pl.col("item")), time=pl.col("event_time").cast(pl.Datetime("us"))
    )


@dataclass
class Found:
    """One table: `rows` (`subject_id, place, row`), its raw cells, and how they were found."""

    rows: pl.DataFrame
    raw: pl.DataFrame
    by_values: int
    without_values: int
    """Found by patient, stay, time and item only, in the order in which they were stored."""
    alike: int
    """Rows that others equal in all this while their raw times of storing or ending differ: the
    one first known in the store is taken for the one first stored."""


def find_raw(stored: pl.DataFrame, table: Table, folder: Folder) -> Found:
    """Find a table's rows in its file. SystemExit where one is not there."""
    raw = read(folder, table.module, table.name).with_row_index("row")
    raw = raw.with_columns(pl.col("row").cast(pl.Int64))
    keyed = _keyed(raw, table, folder)
    keyed = keyed.filter(pl.col("subject_id").is_in(stored["subject_id"].unique().implode()))
    ours = stored.filter(pl.col("table") == ORDER.index(table.name))
    ours = ours.with_columns(_content_of_values(table))
    first = _pair(ours, keyed, [*SAME, "content"])
    left = ours.join(first, on=["subject_id", "place"], how="anti")
    rest = keyed.join(first, on="row", how="anti")
    second = _pair(left, rest, SAME)
    if second.height < left.height:
        lost = left.height - second.height
        raise SystemExit(f"{table.name}: {lost} rows of the store are not in its file")
    rivals = keyed.filter(pl.struct("known", "end").n_unique().over(*SAME, "content") > 1)
    alike = first.join(rivals, on="row", how="semi").height
    return Found(pl.concat([first, second]), raw, first.height, second.height, alike)


def _pair(ours: pl.DataFrame, raw: pl.DataFrame, keys: list[str]) -> pl.DataFrame:
    """`subject_id, place, row`: rows of equal keys, in the order in which they became known."""
    nth = pl.int_range(pl.len()).over(keys).alias("nth")
    one = ours.sort("available_time", "place").with_columns(nth)
    other = raw.sort("known", "end", "row", nulls_last=False).with_columns(nth)
    return one.join(other, on=[*keys, "nth"]).select("subject_id", "place", "row")


def read(folder: Folder, module: str, name: str) -> pl.DataFrame:
    """A whole file, every cell as text."""
    return pl.read_csv(folder.require(module, name, "this benchmark"), infer_schema_length=0)


def _keyed(raw: pl.DataFrame, table: Table, folder: Folder) -> pl.DataFrame:
    """`row`, what a row is told by, and its raw times of storing and ending (null: none)."""
    frame = raw
    for lookup in table.lookups:
        frame = frame.join(_names(lookup, folder), on=list(lookup.on), how="left")
    frame = with_parents(frame, table, folder)
    if table.name == "admissions":
        frame = frame.join(_ends(folder), on="hadm_id", how="left")
    known = [pl.col(at.column) for at in table.known_at if at.of is None]
    end = [pl.col(at.column) for at in table.late_known_at if at.of is None]
    none = pl.lit(None, pl.String)
    return frame.select(
        "row",
        pl.col("subject_id").cast(pl.Int64),
        _id("hadm_id", table.hadm),
        _id("stay_id", table.stay),
        pl.coalesce(_time(at) for at in table.event_time).alias("time"),
        (pl.coalesce(table.item) if table.item else none).alias("item"),
        _content(table),
        pl.coalesce(known or [none]).alias("known"),
        pl.coalesce(end or [none]).alias("end"),
    ).with_columns(_same_text(pl.col("item")))


def with_parents(frame: pl.DataFrame, table: Table, folder: Folder) -> pl.DataFrame:
    """Adds the times that a row takes from its admission or ED stay, as `<parent>.<column>`."""
    for at in table.event_time:
        if at.of is None:
            continue
        module, key = ("hosp", "hadm_id") if at.of == "admissions" else ("ed", "stay_id")
        parent = read(folder, module, at.of)
        if at.of == "admissions":
            parent = parent.join(_ends(folder), on=key, how="left")
        times = parent.select(key, pl.col(at.column).alias(f"{at.of}.{at.column}"))
        frame = frame.join(times, on=key, how="left")
    return frame


def _ends(folder: Folder) -> pl.DataFrame:
    """`hadm_id, end_of_stay` (text) of the raw files: the latest of discharge, death, the discharge
    as a transfer, and the end of the last transfer or ICU stay. Null where it lies before the
    admission; such a stay has no end."""
    stays = read(folder, "hosp", "admissions")
    times = [stays.select("hadm_id", time=name) for name in ("dischtime", "deathtime")]
    moves = read(folder, "hosp", "transfers")
    gone = moves.filter(pl.col("eventtype") == "discharge")
    times += [gone.select("hadm_id", time="intime"), moves.select("hadm_id", time="outtime")]
    if folder.find("icu", "icustays"):
        times.append(read(folder, "icu", "icustays").select("hadm_id", time="outtime"))
    # The files' times are as long as each other: the greatest text is the latest time.
    latest = pl.concat(times).group_by("hadm_id").agg(pl.col("time").max())
    believed = pl.when(pl.col("time") >= pl.col("admittime")).then("time")
    return latest.join(stays, on="hadm_id").select("hadm_id", end_of_stay=believed)


def event_time_text(table: Table) -> pl.Expr:
    """The raw text of the event's time, without anything that we add to it."""
    return pl.coalesce(_column(at) for at in table.event_time)


def _column(at: At) -> pl.Expr:
    return pl.col(f"{at.of}.{at.column}" if at.of else at.column)


def _time(at: At) -> pl.Expr:
    text = _column(at)
    return text.str.to_datetime("%Y-%m-%d %H:%M:%S", strict=False, time_unit="us").fill_null(
        text.str.to_datetime("%Y-%m-%d", strict=False, time_unit="us")
    ) + pl.lit(at.plus)


def _id(name: str, there: bool) -> pl.Expr:
    number = pl.col(name).cast(pl.Int64).fill_null(NO_ID) if there else pl.lit(NO_ID, pl.Int64)
    return number.alias(name)


def _names(lookup: Lookup, folder: Folder) -> pl.DataFrame:
    paths = folder.find(lookup.module, lookup.file)
    if not paths:
        return pl.DataFrame(schema=dict.fromkeys([*lookup.on, lookup.name], pl.String))
    frame = pl.read_csv(paths, infer_schema_length=0)
    if lookup.only:
        frame = frame.filter(pl.col(lookup.only[0]) == lookup.only[1])
    names = frame.select(
        *(pl.col(theirs).alias(ours) for ours, theirs in lookup.on.items()),
        pl.col(lookup.value).alias(lookup.name),
    )
    return names.unique(list(lookup.on), keep="first", maintain_order=True)


def _same_text(cell: pl.Expr) -> pl.Expr:
    """Text without differences of spaces, line breaks and bars, which are not shown alike."""
    return cell.fill_null("").str.replace_all(r"[\s|/]+", " ").str.strip_chars()


def _same_cell(cell: pl.Expr) -> pl.Expr:
    """Numbers to four decimals, below 1 to four significant digits before that, as the record
    rounds them; other cells as text."""
    text = _same_text(cell)
    number = text.cast(pl.Float64, strict=False)
    small = number.abs() < 1
    number = pl.when(small).then(number.round_sig_figs(4)).otherwise(number).round(4)
    return pl.coalesce(number.cast(pl.String), text)


def _first_cell(columns: tuple[str, ...]) -> pl.Expr:
    """The first of the columns that is not blank."""
    cells = (pl.when(_same_text(pl.col(c)) != "").then(_same_cell(pl.col(c))) for c in columns)
    return pl.coalesce(*cells, pl.lit(""))


def _content(table: Table) -> pl.Expr:
    """The shown values of a raw row, classes (which no file holds) left out."""
    return _joined(_first_cell(columns) for columns in table.keys.values() if _in_file(columns))


def _content_of_values(table: Table) -> pl.Expr:
    """The same of the store's joined values."""
    parts = pl.col("values").str.split(SEPARATOR)
    return _joined(
        _same_cell(parts.list.get(place))
        for place, columns in enumerate(table.keys.values())
        if _in_file(columns)
    )


def _in_file(columns: tuple[str, ...]) -> bool:
    return bool(columns) and columns != ("class",)


def _joined(cells: Iterable[pl.Expr]) -> pl.Expr:
    return pl.concat_str([pl.lit(""), *cells], separator=SEPARATOR).alias("content")
