"""Reading of the release's folder: its lists of events become the store, in their order.

The shown values of a row are read by the keys that the record prints (`item_name`, `valuenum`,
...); names and classes that a row lacks are looked up in `index_mapping` by its codes. Exports of
this project contain the times of each row. The authors' rows do not: they happen at the start of
their event, and become known at the time in the column that `schema` names, if the row has it,
otherwise after the table's delay (counted). An event without a time, such as coded discharge
diagnoses, gets the time of the event before it.

Events that cannot be stored (unknown tables, unreadable items) are reported; `positions` then holds
the new positions of the others.
"""

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ehrr1.errors import UserError
from ehrr1.records.cells import item_name, listed_values
from ehrr1.records.codes import CODE_COLUMNS, ClassMaps
from ehrr1.records.reading import as_id, as_text, as_time, read_columns
from ehrr1.records.release import layout
from ehrr1.records.schema import FOREIGN, MIMIC_TABLES, ORDER, TABLES
from ehrr1.records.source import Shards, Source
from ehrr1.records.table_spec import Classes, Table

FILES_AT_ONCE = 20
EVENT = 2**24
"""Factor of the event's position in `order` of a row, to which the place in the event is added."""

NOTHING = ("", "nan")
"""Spellings of a missing value."""


class ReleaseFolder(Source):
    """The release's folder `root` and the folder `patients` of its lists of events.

    `patients` may lie elsewhere if the lists were unpacked. All rows are yielded with the first of
    `tables`. `positions` maps each patient whose list changed to the new position of each old one.
    """

    listed = True

    def __init__(self, root: Path, patients: Path, patients_per_shard: int):
        super().__init__()
        self.root = root
        files = sorted(patients.glob("*.parquet"))
        self.files = {int(path.stem): path for path in files if path.stem.isdigit()}
        if not self.files:
            raise UserError(
                f"data.root={root}: there is no {layout.FOLDER}/<subject_id>.parquet and no "
                f"{layout.FOLDER}.tar.gz; give the release's folder, or its .tar.gz"
            )
        self.subjects = pl.Series("subject_id", sorted(self.files), dtype=pl.Int64)
        self.shards = Shards.divide(self.subjects, patients_per_shard)
        self.tables = list(layout.LISTED)
        self.positions: dict[int, np.ndarray] = {}
        self.mappings = root / "index_mapping"
        paths: dict[str, Path | None] = {
            kind: self._mapping(name) for kind, name in layout.MAPS.items()
        }
        self.maps = ClassMaps(paths, ndc_as_number=True)

    @property
    def missing_maps(self) -> list[Classes]:
        """Return the kinds of classes that have no map."""
        return self.maps.missing

    def want(self, shards: Collection[int]) -> None:
        """Select the shards for `rows`, which reads their `parents` along with their rows."""
        self.wanted = frozenset(shards)

    def rows(self, table: str) -> Iterator[pl.DataFrame]:
        """Yield the rows of all tables with the first table, and nothing with the others."""
        if table != self.tables[0]:
            return
        own = self.subjects.filter(self.shards.number(self.subjects).is_in(sorted(self.wanted)))
        people = []
        for first in range(0, len(own), FILES_AT_ONCE):
            subjects = own[first : first + FILES_AT_ONCE].to_list()
            events = pl.concat(self._events(subject) for subject in subjects)
            parts = list(self._tables(events))
            people.append(self._patients(events, subjects))
            yield from parts
        self.parents["patients"] = self.route(pl.concat(people))
        for outcome in ("read", "kept"):
            self.count("patients", outcome, self.parents["patients"]["shard"])

    def _events(self, subject: int) -> pl.DataFrame:
        """Read the list of one patient.

        Columns: `subject_id, old, file_name, starttime, hadm_id, items, table`.
        """
        path = self.files[subject]
        frame = read_columns([path], ["file_name", "starttime", "hadm_id", "items"])
        name = pl.col("file_name").str.to_lowercase().str.replace(r"^.*/", "")
        return frame.select(
            pl.lit(subject, pl.Int64).alias("subject_id"),
            pl.int_range(pl.len(), dtype=pl.Int64).alias("old"),
            as_text(frame["file_name"]).alias("file_name"),
            as_time(frame["starttime"]).alias("starttime"),
            as_id(frame["hadm_id"]).alias("hadm_id"),
            as_text(frame["items"]).alias("items"),
        ).with_columns(
            name.str.replace(r"\..*$", "").alias("table"),
            pl.col("starttime").forward_fill().backward_fill(),
        )

    def _tables(self, events: pl.DataFrame) -> Iterator[pl.DataFrame]:
        decoded = self._decoded(events.filter(pl.col("table") != "patients"))
        self._keep_positions(events, decoded)
        for (name,), part in decoded.group_by("table", maintain_order=True):
            yield self._as_rows(part, TABLES[str(name)])

    def _decoded(self, events: pl.DataFrame) -> pl.DataFrame:
        """Return the usable events, and keep their rows in `_lists` as dicts of texts.

        All rows are counted by table and outcome.
        """
        lists = [_list(text) for text in events["items"]]
        why = [
            "unknown_table"
            if table not in MIMIC_TABLES
            else "no_time"
            if time is None
            else "bad_items"
            if rows is None
            else None
            for table, time, rows in zip(events["table"], events["starttime"], lists, strict=True)
        ]
        sizes = [1 if rows is None else len(rows) for rows in lists]
        known = pl.col("table").is_in(MIMIC_TABLES)
        counted = self.route(
            events.select(
                "subject_id",
                pl.when(known).then("table").otherwise(pl.lit(FOREIGN.name)).alias("table"),
                pl.Series("why", why, dtype=pl.String),
                pl.Series("rows", sizes, dtype=pl.Int64),
            )
        )
        counts = counted.group_by("shard", "table", "why").agg(pl.col("rows").sum())
        for shard, table, reason, number in counts.iter_rows():
            self.counts[shard][table]["read"] += number
            self.counts[shard][table][f"reported/{reason}" if reason else "kept"] += number
        kept = [not reason and bool(rows) for reason, rows in zip(why, lists, strict=True)]
        places = events.select("subject_id", "old").iter_rows()
        self._lists = {
            place: rows or [] for place, rows, keep in zip(places, lists, kept, strict=True) if keep
        }
        return events.filter(pl.Series(kept, dtype=pl.Boolean))

    def _keep_positions(self, events: pl.DataFrame, kept: pl.DataFrame) -> None:
        """Record the new position of each old one, for the patients whose positions changed."""
        used: dict[int, dict[int, str]] = {}
        for subject, old, table in kept.select("subject_id", "old", "table").iter_rows():
            used.setdefault(subject, {})[old] = table
        for subject, length in events.group_by("subject_id").len().iter_rows():
            new = new_positions(used.get(subject, {}), length)
            if (new != np.arange(length + 1)).any():
                self.positions[subject] = new

    def _as_rows(self, events: pl.DataFrame, table: Table) -> pl.DataFrame:
        names = _columns_of(table)
        records: dict[str, list[Any]] = {name: [] for name in (*names, "event", "place")}
        for event, key in enumerate(events.select("subject_id", "old").iter_rows()):
            for place, row in enumerate(self._lists[key]):
                records["event"].append(event)
                records["place"].append(place)
                for name, keys in names.items():
                    records[name].append(next((row[key] for key in keys if key in row), None))
        types = {name: pl.String for name in names} | {"event": pl.UInt32, "place": pl.Int64}
        frame = pl.DataFrame(records, schema=types)
        own = events.drop("items", "table", "file_name")[frame["event"]]
        frame = pl.concat([frame.rename({"hadm_id": "own_hadm_id"}), own], how="horizontal")
        return self._stored(self._named(frame, table), table)

    def _named(self, frame: pl.DataFrame, table: Table) -> pl.DataFrame:
        """Add missing names and classes, looked up in `index_mapping` by the codes of the rows."""
        for lookup in table.lookups:
            path = self._mapping(lookup.file, table.module)
            if path is None or not frame[lookup.name].null_count():
                continue
            theirs = list(lookup.on.values())
            found = read_columns([path], [*theirs, lookup.value])
            found = found.select(
                *(as_text(found[c]).str.strip_chars().alias(o) for o, c in lookup.on.items()),
                as_text(found[lookup.value]).str.strip_chars().alias("found"),
            ).unique(list(lookup.on), keep="first", maintain_order=True)
            frame = frame.join(found, on=list(lookup.on), how="left", maintain_order="left")
            frame = frame.with_columns(pl.coalesce(lookup.name, "found").alias(lookup.name))
            frame = frame.drop("found")
        if table.classes and frame["class"].null_count() == frame.height:
            codes = frame.select(CODE_COLUMNS[table.classes])
            frame = frame.with_columns(self.maps.classes(table.classes, codes))
        return frame

    def _stored(self, frame: pl.DataFrame, table: Table) -> pl.DataFrame:
        # Exports of this project have exact times; a total that never becomes known has year 9999.
        times = [
            pl.col(name)
            .str.to_datetime("%Y-%m-%d %H:%M:%S%.f", strict=False, time_unit="us")
            .dt.truncate("1s")
            for name in layout.TIMES
        ]
        stored = [as_time(frame[at.column], up=True) for at in table.known_at if at.of is None]
        frame = frame.with_columns(
            *times,
            *stored,
            as_id(frame["own_hadm_id"]).alias("own_hadm_id"),
            as_id(frame["stay_id"]).alias("stay_id"),
        )
        told = pl.col("available_time").is_not_null()
        event = pl.coalesce("event_time", "starttime")
        known = (
            pl.coalesce(pl.col(at.column) for at in table.known_at if at.of is None)
            if any(at.of is None for at in table.known_at)
            else event
        )
        assumed = frame.select(~told & known.is_null())
        frame = frame.with_columns(
            event.alias("event_time"),
            # A null id is deliberate in exports of this project; rows of the authors take their
            # event's.
            pl.when(told)
            .then("own_hadm_id")
            .otherwise(pl.coalesce("own_hadm_id", "hadm_id"))
            .alias("hadm_id"),
            pl.coalesce(
                "available_time", pl.max_horizontal(event, known.fill_null(event + table.delay))
            ).alias("available_time"),
            (pl.col("old") * EVENT + pl.col("place")).alias("order"),
        )
        frame = self.route(frame)
        self.count(table.name, "assumed", frame["shard"].filter(assumed.to_series()))
        return frame.select(
            *("subject_id", "hadm_id", "stay_id"),
            pl.lit(ORDER.index(table.name), pl.UInt8).alias("table"),
            *layout.TIMES,
            pl.coalesce("item", item_name(table)).alias("item"),
            (pl.col("class") if table.classes else pl.lit(None, pl.String)).alias("class"),
            "order",
            listed_values(frame, table),
            "shard",
        )

    def _patients(self, events: pl.DataFrame, subjects: list[int]) -> pl.DataFrame:
        """Return demographics from the event of the table `patients` in each list."""
        rows = {}
        own = events.filter(pl.col("table") == "patients")
        for subject, text in own.select("subject_id", "items").iter_rows():
            rows[subject] = (_list(text) or [{}])[0]
        names = ("gender", "anchor_age", "anchor_year")
        return pl.DataFrame(
            {"subject_id": subjects}
            | {name: [rows.get(subject, {}).get(name) for subject in subjects] for name in names},
            schema={"subject_id": pl.Int64} | dict.fromkeys(names, pl.String),
        ).with_columns(pl.lit(None, pl.Datetime("us")).alias("dod"))

    def _mapping(self, name: str, module: str = "hosp") -> Path | None:
        """Return the file of that name in `index_mapping`, preferably that of `module`."""
        places = [self.mappings / folder for folder in dict.fromkeys((module, *layout.MODULES))]
        paths = (folder / f"{name}.csv" for folder in (*places, self.mappings))
        return next((path for path in paths if path.is_file()), None)


def new_positions(kept: dict[int, str], length: int) -> np.ndarray:
    """Return the position of each old event in the list of the kept events.

    `kept` maps old position -> table. Adjacent kept events of one table become one event, and
    positions inside it are -1. An event that is not kept gets the position of the next one. The
    result has the shape (`length` + 1,), since there is one more position than there are events.
    """
    new = np.zeros(length + 1, dtype=np.int64)
    number, last = 0, ""
    for old, table in sorted(kept.items()):
        number += table != last
        new[old] = number if table != last else -1
        last = table
    following = number + 1
    for old in range(length, 0 if 0 in kept else -1, -1):
        following = new[old] if old in kept else following
        new[old] = following
    if 0 not in kept:
        new[0] = 0  # demographics
    return new


def _columns_of(table: Table) -> dict[str, tuple[str, ...]]:
    """Return column -> the keys of a row that may hold it, as shown and as in the file."""
    keys = {columns[0]: key for key, columns in table.keys.items() if columns}
    shown = {name: (_key(key), name) for name, key in keys.items()}
    others = [
        *(column for columns in table.keys.values() for column in columns[1:]),
        *table.item,
        *(column for lookup in table.lookups for column in (*lookup.on, lookup.name)),
        *(("class", *CODE_COLUMNS[table.classes]) if table.classes else ()),
        *(at.column for at in table.known_at if at.of is None),
        *(*layout.TIMES, *layout.IDS, "item"),
    ]
    plain: dict[str, tuple[str, ...]] = {name: (name,) for name in others}
    return plain | shown


def _key(key: str) -> str:
    return key.lower().replace(" ", "_")


def _list(text: str | None) -> list[dict[str, str]] | None:
    """Return the rows of a cell of `items`, without missing values and with keys in lower case.

    Returns None if the cell is not a JSON list of objects.
    """
    try:
        rows = json.loads(text or "")
    except (ValueError, RecursionError):
        return None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        return None
    return [
        {
            _key(key): str(value)
            for key, value in row.items()
            if value is not None and str(value) not in NOTHING
        }
        for row in rows
    ]
