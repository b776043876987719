"""From a table's file to rows of the store: ids, times, what is shown, and what cannot be used.

Every row read is either kept or reported with a reason; none is lost in silence.
"""

from collections.abc import Collection, Iterator

import polars as pl

from ehrr1.errors import UserError
from ehrr1.records.codes import CODE_COLUMNS, ClassMaps
from ehrr1.records.reading import Folder, as_id, as_text, as_time, read_batches, read_columns
from ehrr1.records.schema import ORDER, TABLES
from ehrr1.records.source import Shards, Source
from ehrr1.records.table import NUMBERS, TEXTS, At, Classes, Lookup, Table

SEPARATOR = "\x1f"
"""Stands between the values of a row in the store."""

PARENTS = ("admissions", "edstays", "icustays")
"""Tables beside patients that other tables and the labels refer to."""

STORE_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    **dict.fromkeys(("subject_id", "hadm_id", "stay_id"), pl.Int64),
    "table": pl.UInt8,
    **dict.fromkeys(("event_time", "available_time", "late_time"), pl.Datetime("us")),
    **dict.fromkeys(("item", "class"), pl.String),
    "order": pl.Int64,
    "values": pl.String,
}
"""A row of the store: whose it is, its table's number in `schema.ORDER`, its times (`late_time`:
when the late columns are known, null where none are late), its names, its place among the rows of
an event, and its shown values joined by `SEPARATOR`."""


class MimicFolder(Source):
    """MIMIC-IV's own tables in a folder, and the users' class maps.

    `chosen` are the only patients to read, where the user chose some; rows of others are reported.
    Raises UserError where patients or admissions are missing or cannot be read.
    """

    def __init__(
        self,
        folder: Folder,
        maps: ClassMaps,
        patients_per_shard: int,
        chosen: pl.Series | None = None,
    ):
        super().__init__()
        self.folder = folder
        self.maps = maps
        self._dictionaries: dict[tuple[str, str], pl.DataFrame] = {}
        self._patients = self._read_whole("patients")
        self.subjects = self._patients["subject_id"].drop_nulls().unique().sort()
        if not len(self.subjects):
            path = folder.require("hosp", "patients", "every stage")[0]
            raise UserError(f"{path} holds no patient: fetch the file again")
        self.chosen = chosen
        if chosen is not None:
            self.subjects = self.subjects.filter(self.subjects.is_in(chosen.implode()))
            if not len(self.subjects):
                raise UserError(
                    f"data.subjects_file: none of its {len(chosen):,} patients is in "
                    f"{folder.root}: are they ids of these tables?"
                )
        self.shards = Shards.divide(self.subjects, patients_per_shard)
        there = [name for name in ORDER if folder.find(TABLES[name].module, name)]
        folder.require("hosp", "admissions", "every stage")
        self.tables = [name for name in there if name != "patients"]

    @property
    def missing_maps(self) -> list[Classes]:
        return self.maps.missing

    def want(self, shards: Collection[int]) -> None:
        self.wanted = frozenset(shards)
        self._keep_parent("patients", self._patients)
        for name in PARENTS:
            if name in self.tables:
                self._keep_parent(name, self._read_whole(name))

    def _read_whole(self, name: str) -> pl.DataFrame:
        """A parent table, sorted, with `repeated`: an earlier row has the same id."""
        table = TABLES[name]
        paths = self.folder.require(table.module, name, "every stage")
        frame = typed(read_columns(paths, needed_columns(table)), str(paths[0]))
        if name in ("patients", "admissions") and not frame.height:
            raise UserError(f"{paths[0]} has a header but no rows: fetch the file again")
        frame = frame.sort(pl.all())
        return frame.with_columns(
            (~pl.col(str(table.unique)).is_first_distinct()).alias("repeated")
        )

    def _keep_parent(self, name: str, frame: pl.DataFrame) -> None:
        frame = self.route(frame)
        self.count(name, "read", frame["shard"])
        if name == "patients":
            # The others are checked against the patients' ids.
            self.parents["patients"] = frame
        frame = report(frame, TABLES[name], self)
        self.parents[name] = frame.drop("repeated")
        if name == "patients":
            self.count(name, "kept", frame["shard"])

    def rows(self, table: str) -> Iterator[pl.DataFrame]:
        entry = TABLES[table]
        if table in self.parents:
            yield self._as_rows(self.parents[table], entry)
            return
        paths = self.folder.find(entry.module, table)
        for batch in read_batches(paths, needed_columns(entry)):
            frame = self.route(typed(batch, str(paths[0])))
            self.count(table, "read", frame["shard"])
            yield self._as_rows(frame, entry)

    def _as_rows(self, frame: pl.DataFrame, table: Table) -> pl.DataFrame:
        frame = _with_parent_times(frame, table, self)
        frame = frame.with_columns(_first_time(table.event_time).alias("event_time"))
        frame = report(frame, table, self)
        frame = _with_names(frame, table, self)
        frame = _with_knowledge(frame, table)
        self.count(table.name, "kept", frame["shard"])
        self.count(table.name, "assumed", frame["shard"].filter(frame["assumed"]))
        return frame.select(*_store_columns(table), shown_values(frame, table), pl.col("shard"))

    def named(self, lookup: Lookup, keys: pl.DataFrame, needed_by: str) -> pl.DataFrame:
        """Distinct `keys` (columns `lookup.on`) with the names that the dictionary has for them."""
        place = lookup.module, lookup.file
        if place not in self._dictionaries:
            self._dictionaries[place] = self._read_dictionary(lookup, needed_by)
        found = self._dictionaries[place].join(keys, on=list(lookup.on), how="semi")
        found = found.with_columns(one_line(pl.col(lookup.name)))
        return found.sort(pl.all()).unique(list(lookup.on), keep="first")

    def _read_dictionary(self, lookup: Lookup, needed_by: str) -> pl.DataFrame:
        if lookup.optional and not self.folder.find(lookup.module, lookup.file):
            return pl.DataFrame(schema=dict.fromkeys([*lookup.on, lookup.name], pl.String))
        paths = self.folder.require(lookup.module, lookup.file, needed_by)
        keys = list(lookup.on.values())
        only = [lookup.only[0]] if lookup.only else []
        frame = read_columns(paths, [*keys, lookup.value, *only])
        frame = frame.select(as_text(column) for column in frame.get_columns())
        frame = frame.with_columns(pl.col(*keys, *only).str.strip_chars())
        if lookup.only:
            frame = frame.filter(pl.col(lookup.only[0]) == lookup.only[1])
        return frame.select(
            *(pl.col(theirs).alias(ours) for ours, theirs in lookup.on.items()),
            pl.col(lookup.value).alias(lookup.name),
        )


def needed_columns(table: Table) -> list[str]:
    """The columns of the file that anything is made of."""
    own_times = (*table.event_time, *table.known_at, *table.late_known_at)
    made = {lookup.name for lookup in table.lookups} | {"class"}
    shown = [column for columns in table.keys.values() for column in columns]
    columns = [
        "subject_id",
        *(["hadm_id"] if table.hadm else []),
        *(["stay_id"] if table.stay else []),
        *(at.column for at in own_times if at.of is None),
        *(column for column in (*shown, *table.item) if column not in made),
        *(column for lookup in table.lookups for column in lookup.on),
        *(CODE_COLUMNS[table.classes] if table.classes else ()),
        *([table.order_by] if table.order_by else []),
        *table.extra,
    ]
    return list(dict.fromkeys(columns))


IDS = frozenset({"subject_id", "hadm_id", "stay_id"})
TIMES = frozenset(
    (
        *("admittime", "dischtime", "deathtime", "intime", "outtime", "transfertime", "charttime"),
        *("storetime", "starttime", "endtime", "ordertime", "entertime", "chartdate", "storedate"),
        "dod",
    )
)


def typed(frame: pl.DataFrame, path: str) -> pl.DataFrame:
    """Ids as numbers, times as times, everything else as text.

    A row with an id or a time that is there but cannot be read is marked in `bad_id` or `bad_time`:
    an unreadable time of death or of storing must not pass for a missing one. Raises UserError
    where a whole column is of that kind: the file is then not what it says.
    """
    columns: list[pl.Series] = []
    no = pl.Series([False]).new_from_index(0, frame.height)
    bad = {"bad_id": no, "bad_time": no}
    for column in frame.get_columns():
        name = column.name
        if name not in IDS and name not in TIMES:
            columns.append(as_text(column))
            continue
        kind, found = ("bad_id", as_id(column)) if name in IDS else ("bad_time", as_time(column))
        if name in IDS and name != "subject_id":
            found = found.set(found < 0, None)  # the store keeps -1 for "none"
        wrong = _unreadable(column, found)
        if wrong.any():
            bad[kind] = bad[kind] | wrong
            if found.null_count() == frame.height:
                raise UserError(f"{path}: the column {name} holds no {_EXPECTED[kind]}")
        columns.append(found)
    return pl.DataFrame([*columns, *(marks.alias(kind) for kind, marks in bad.items())])


_EXPECTED = {
    "bad_id": "whole numbers: are the columns under the right headings?",
    "bad_time": "times such as 2150-07-23 14:00:00: are the columns under the right headings?",
}


def _unreadable(column: pl.Series, found: pl.Series) -> pl.Series:
    """Cells that say something of which nothing was `found`; blank ones say nothing."""
    if found.null_count() == column.null_count():
        return pl.Series([False])
    there = column.fill_nan(None) if column.dtype.is_float() else column
    wrong = found.is_null() & there.is_not_null()
    if column.dtype == pl.String:
        wrong &= column.str.strip_chars().fill_null("") != ""
    return wrong


def report(frame: pl.DataFrame, table: Table, source: MimicFolder) -> pl.DataFrame:
    """The usable rows; the others are counted by reason. The first reason that holds counts."""
    reasons = {
        "no_subject_id": pl.col("subject_id").is_null(),
        "bad_id": pl.col("bad_id"),
    }
    if source.chosen is not None:
        reasons["not_chosen"] = ~pl.col("subject_id").is_in(source.chosen.implode())
    if table.name != "patients":
        subjects = source.parents["patients"]["subject_id"].implode()
        reasons["unknown_subject"] = ~pl.col("subject_id").is_in(subjects)
    if "repeated" in frame.columns:
        reasons["no_id"] = pl.col(str(table.unique)).is_null()
        reasons["repeated_id"] = pl.col("repeated")
    if "event_time" in frame.columns:
        reasons["no_time"] = pl.col("event_time").is_null()
        if any(at.of for at in table.known_at):
            reasons["no_discharge_time"] = _first_time(table.known_at).is_null()
    reasons["bad_time"] = pl.col("bad_time")
    why = frame.select(
        pl.coalesce(pl.when(bad).then(pl.lit(name)) for name, bad in reasons.items()).alias("why")
    )["why"]
    if why.null_count() == frame.height:
        return frame
    for reason in sorted(why.drop_nulls().unique()):
        source.count(table.name, f"reported/{reason}", frame["shard"].filter(why == reason))
    return frame.filter(why.is_null())


def _with_parent_times(frame: pl.DataFrame, table: Table, source: Source) -> pl.DataFrame:
    """Adds the admission's or ED stay's times as `<parent>.<column>`."""
    times = (*table.event_time, *table.known_at, *table.late_known_at)
    for parent in dict.fromkeys(at.of for at in times if at.of):
        columns = list(dict.fromkeys(at.column for at in times if at.of == parent))
        names = [f"{parent}.{column}" for column in columns]
        if parent not in source.parents:
            absent = (pl.lit(None, pl.Datetime("us")).alias(name) for name in names)
            frame = frame.with_columns(absent)
            continue
        key = "hadm_id" if parent == "admissions" else "stay_id"
        theirs = source.parents[parent].select(
            "subject_id", key, *(pl.col(c).alias(n) for c, n in zip(columns, names, strict=True))
        )
        frame = frame.join(theirs, on=["subject_id", key], how="left")
    return frame


def _time(at: At) -> pl.Expr:
    time = pl.col(f"{at.of}.{at.column}" if at.of else at.column)
    if at.end_of_day:
        return time.dt.truncate("1d") + pl.duration(days=1)
    return time + at.plus if at.plus else time


def _first_time(times: tuple[At, ...]) -> pl.Expr:
    return pl.coalesce(_time(at) for at in times)


def _with_knowledge(frame: pl.DataFrame, table: Table) -> pl.DataFrame:
    """Adds `available_time`, `late_time` (null: nothing is late) and `assumed`."""
    event = pl.col("event_time")
    known = _first_time(table.known_at) if table.known_at else event
    day_over = (_time(at) for at in table.not_before)
    available = pl.max_horizontal(event, known.fill_null(event + table.delay), *day_over)
    frame = frame.with_columns(
        available.alias("available_time"), (known.is_null()).alias("assumed")
    )
    late = pl.lit(None, pl.Datetime("us"))
    if table.late_known_at:
        # Without an end the total stays hidden for good: it cannot be dated.
        end = pl.max_horizontal(_time(at) for at in table.late_known_at)
        open_end = _time(table.late_known_at[0]).is_null()
        late = (
            pl.when(open_end)
            .then(pl.lit(NEVER).cast(pl.Datetime("us")))
            .otherwise(pl.max_horizontal("available_time", end))
        )
    return frame.with_columns(late.alias("late_time"))


NEVER = 253_370_764_800_000_000
"""Year 9999 in microseconds since 1970: the late time of a total whose interval has no end."""


def _with_names(frame: pl.DataFrame, table: Table, source: MimicFolder) -> pl.DataFrame:
    """Adds the dictionaries' names and the class of the codes."""
    for lookup in table.lookups:
        keys = list(lookup.on)
        frame = frame.with_columns(pl.col(keys).str.strip_chars())
        named = source.named(lookup, frame.select(keys).unique(), table.name)
        frame = frame.join(named, on=keys, how="left")
    if table.classes:
        codes = frame.select(CODE_COLUMNS[table.classes])
        frame = frame.with_columns(source.maps.classes(table.classes, codes))
    return frame


def _store_columns(table: Table) -> list[pl.Expr]:
    def id_or_null(there: bool, name: str) -> pl.Expr:
        return (pl.col(name) if there else pl.lit(None, pl.Int64)).alias(name)

    order = pl.col(table.order_by).cast(pl.Int64, strict=False) if table.order_by else pl.lit(0)
    return [
        pl.col("subject_id"),
        id_or_null(table.hadm, "hadm_id"),
        id_or_null(table.stay, "stay_id"),
        pl.lit(ORDER.index(table.name), pl.UInt8).alias("table"),
        pl.col("event_time"),
        pl.col("available_time"),
        pl.col("late_time"),
        item_name(table).alias("item"),
        (pl.col("class") if table.classes else pl.lit(None, pl.String)).alias("class"),
        order.cast(pl.Int64).alias("order"),
    ]


def item_name(table: Table) -> pl.Expr:
    """The first of the item's columns that has a value, on one line; null where none has."""
    if not table.item:
        return pl.lit(None, pl.String)
    looked_up = {lookup.name for lookup in table.lookups}
    if looked_up.issuperset(table.item):
        return pl.coalesce(table.item)
    return one_line(pl.coalesce(table.item))


def one_line(text: pl.Expr) -> pl.Expr:
    """A name without line breaks, outer or repeated spaces; null where nothing is left."""
    name = text.str.strip_chars().str.replace_all(r"[\s\x1f]+", " ")
    return pl.when(name != "").then(name)


def shown_values(frame: pl.DataFrame, table: Table) -> pl.Series:
    """The shown values of each row, joined by `SEPARATOR`: one text is read faster than a list."""
    if not table.keys:
        return pl.repeat("", frame.height, dtype=pl.String, eager=True).alias("values")
    shown = frame.select(
        (_first_shown(columns) if columns else pl.lit("")).fill_null("").alias(key)
        for key, columns in table.keys.items()
    )
    joined = shown.select(pl.concat_str(pl.all(), separator=SEPARATOR).alias("values"))["values"]
    separators = joined.str.count_matches(SEPARATOR, literal=True)
    if (separators != len(table.keys) - 1).any():
        clean = shown.select(pl.all().str.replace_all(SEPARATOR, " ", literal=True))
        joined = clean.select(pl.concat_str(pl.all(), separator=SEPARATOR).alias("values"))[
            "values"
        ]
    breaks = r"[\r\n|]" if not TEXTS.intersection(frame.columns) else r"\r"
    if joined.str.contains(breaks).any():
        joined = joined.str.replace_all(r"\r\n?", "\n")
        if breaks != r"\r":
            joined = joined.str.replace_all(r"\s*\n\s*", " ").str.replace_all(
                "|", "/", literal=True
            )
    return joined


def _first_shown(columns: tuple[str, ...]) -> pl.Expr:
    """The first cell that has a value, as it is shown.

    Numbers stand without needless digits, other text but free text without outer spaces.
    """
    text = pl.coalesce(columns)
    if not NUMBERS.issuperset(columns):
        return text if TEXTS.issuperset(columns) else text.str.strip_chars()
    rounded = text.cast(pl.Float64, strict=False).round(4).cast(pl.String)
    short = pl.when(text.str.len_bytes() > 9).then(rounded.fill_null(text)).otherwise(text)
    return short.str.replace(r"^(-?\d+)\.0+$", "$1")
