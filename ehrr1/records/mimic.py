"""Conversion of MIMIC-IV's files to rows of the store: ids, times, shown values, unusable rows.

Every row read is either kept or reported with a reason.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator

import polars as pl

from ehrr1.errors import UserError
from ehrr1.records import hindsight
from ehrr1.records.cells import item_name, shown_values
from ehrr1.records.codes import CODE_COLUMNS, ClassMaps
from ehrr1.records.csv_files import Lost
from ehrr1.records.dictionaries import Dictionaries
from ehrr1.records.reading import Folder, read_batches, read_columns
from ehrr1.records.schema import ORDER, TABLES
from ehrr1.records.source import Shards, Source
from ehrr1.records.store_schema import NEVER
from ehrr1.records.table_spec import At, Classes, Table
from ehrr1.records.typed import typed

PARENTS = ("admissions", "edstays", "icustays")
"""Tables besides `patients` that other tables and the labels refer to."""

NOT_ASKED_FOR = ("not_chosen", "unknown_subject")
"""Reasons to leave out rows of patients who were not selected."""


class MimicFolder(Source):
    """MIMIC-IV's tables in a folder, and the user's class maps.

    If `chosen` is given, only these patients are read, and rows of others are reported. Raises
    UserError if patients or admissions are missing or cannot be read, or if no patient is left.
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
        self.dictionaries = Dictionaries(folder)
        self._lost: defaultdict[str, Lost] = defaultdict(Counter)
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
        """Return the kinds of classes that have no map."""
        return self.maps.missing

    @property
    def reading_order(self) -> list[str]:
        """Return the tables by descending file size, so that no large table is read last."""

        def size(name: str) -> int:
            paths = self.folder.find(TABLES[name].module, name)
            return sum(path.lstat().st_size for path in paths)

        return sorted(self.tables, key=size, reverse=True)

    def want(self, shards: Collection[int]) -> None:
        """Read the parent tables of these shards and select the shards for `rows`."""
        self.wanted = frozenset(shards)
        self._keep_parent("patients", self._patients)
        for name in PARENTS:
            if name in self.tables:
                self._keep_parent(name, self._read_whole(name))
        self.parents["admissions"] = hindsight.stay_ends(
            self.parents["admissions"],
            self._some("transfers", ["hadm_id", "eventtype", "intime", "outtime"]),
            self.parents.get("icustays"),
        )
        self._admit_orders = hindsight.admit_orders(self.folder)

    def _read_whole(self, name: str) -> pl.DataFrame:
        """Read a parent table, sorted, with `repeated`: True if an earlier row has the same id."""
        table = TABLES[name]
        paths = self.folder.require(table.module, name, "every stage")
        cells = read_columns(paths, needed_columns(table), self._lost[name])
        frame = typed(cells, str(paths[0]))
        if name in ("patients", "admissions") and not frame.height:
            raise UserError(f"{paths[0]} has a header but no rows: fetch the file again")
        frame = frame.sort(pl.all())
        return frame.with_columns(
            (~pl.col(str(table.unique)).is_first_distinct()).alias("repeated")
        )

    def _some(self, name: str, columns: list[str]) -> pl.DataFrame | None:
        """Read columns of a table that another table needs; None if there is no such table."""
        paths = self.folder.find(TABLES[name].module, name)
        return typed(read_columns(paths, columns, Counter()), str(paths[0])) if paths else None

    def _keep_parent(self, name: str, frame: pl.DataFrame) -> None:
        frame = self.route(frame)
        self.count(name, "read", frame["shard"])
        self._count_lost(name)
        if name == "patients":
            # The ids of all other tables are checked against the patients.
            self.parents["patients"] = frame
        usable = report(frame, TABLES[name], self)
        self._refuse_if_most_is_lost(name)
        self.parents[name] = usable.drop("repeated")
        if name == "patients":
            self.count(name, "kept", usable["shard"])

    def _count_lost(self, name: str) -> None:
        """Count the rows that do not fit the header of their table.

        Their patients are unknown, so that they are counted in shard 0.
        """
        for reason, number in self._lost.pop(name, Counter()).items():
            first_shard = pl.repeat(0, number, dtype=pl.UInt32, eager=True)
            self.count(name, "read", first_shard)
            self.count(name, f"reported/{reason}", first_shard)

    def _refuse_if_most_is_lost(self, name: str) -> None:
        """Raise UserError if a rule drops most of a table that others refer to.

        Rows of patients who were not selected, or who are not in `patients`, do not count as lost,
        since users may cut that file.
        """
        counts: Counter[str] = Counter()
        for own in self.counts.values():
            counts.update(own[name])
        wanted = counts["read"] - sum(counts[f"reported/{why}"] for why in NOT_ASKED_FOR)
        lost = {
            why.removeprefix("reported/"): number
            for why, number in counts.items()
            if why.startswith("reported/") and why.removeprefix("reported/") not in NOT_ASKED_FOR
        }
        if 2 * sum(lost.values()) > wanted:
            reasons = ", ".join(f"{why} {number:,}" for why, number in sorted(lost.items()))
            path = self.folder.require(TABLES[name].module, name, "every stage")[0]
            raise UserError(
                f"{path}: {sum(lost.values()):,} of {wanted:,} rows cannot be used ({reasons}), "
                "and other tables refer to them: mend the file, or fetch it again"
            )

    def rows(self, table: str) -> Iterator[pl.DataFrame]:
        """Yield the rows of a table in the columns of the store, in batches with their shard."""
        entry = TABLES[table]
        if table in self.parents:
            yield self._as_rows(self.parents[table], entry)
            return
        paths = self.folder.find(entry.module, table)
        for batch in read_batches(paths, needed_columns(entry), self._lost[table]):
            frame = self.route(typed(batch, str(paths[0])))
            self.count(table, "read", frame["shard"])
            yield self._as_rows(frame, entry)
        self._count_lost(table)

    def _as_rows(self, frame: pl.DataFrame, table: Table) -> pl.DataFrame:
        frame = _with_parent_times(frame, table, self)
        frame = frame.with_columns(_first_time(table.event_time).alias("event_time"))
        frame = report(frame, table, self)
        frame = self._with_names(frame, table)
        frame = _with_knowledge(frame, table)
        self.count(table.name, "kept", frame["shard"])
        self.count(table.name, "assumed", frame["shard"].filter(frame["assumed"]))
        return frame.select(*_store_columns(table), shown_values(frame, table), pl.col("shard"))

    def _with_names(self, frame: pl.DataFrame, table: Table) -> pl.DataFrame:
        """Add the dictionaries' names and the classes of the codes."""
        for lookup in table.lookups:
            frame = self.dictionaries.named(frame, lookup, table.name)
            if not lookup.optional:
                unnamed = frame[lookup.name].is_null()
                self.count(table.name, "unnamed", frame["shard"].filter(unnamed))
        if table.classes:
            codes = frame.select(CODE_COLUMNS[table.classes])
            frame = frame.with_columns(self.maps.classes(table.classes, codes))
        return frame

    def complete(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Correct the times that depend on rows of other tables (see `hindsight`)."""
        for name in (name for name in self.tables if TABLES[name].entered):
            rows, unknown = hindsight.entered(rows, name)
            self.count(name, "assumed", self.shards.number(unknown))
        return hindsight.converted(rows, self._admit_orders)


def needed_columns(table: Table) -> list[str]:
    """Return the columns of the file that rows, names and times are built from."""
    own_times = (*table.event_time, *table.known_at, *table.late_known_at)
    made = {lookup.name for lookup in table.lookups} | {"class", hindsight.END}
    shown = [column for columns in table.keys.values() for column in columns]
    columns = [
        "subject_id",
        *(["hadm_id"] if table.hadm else []),
        *(["stay_id"] if table.stay else []),
        *(at.column for at in own_times if at.of is None and at.column not in made),
        *(column for column in (*shown, *table.item) if column not in made),
        *(column for lookup in table.lookups for column in lookup.on),
        *(CODE_COLUMNS[table.classes] if table.classes else ()),
        *([table.order_by] if table.order_by else []),
        *(["poe_id"] if table.entered else []),
        *table.extra,
    ]
    return list(dict.fromkeys(columns))


def report(frame: pl.DataFrame, table: Table, source: MimicFolder) -> pl.DataFrame:
    """Return the usable rows, and count the others by the first reason that applies."""
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
            reasons["no_end_of_stay"] = _first_time(table.known_at).is_null()
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
    """Add the times of the admission or ED stay as `<parent>.<column>`."""
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
        frame = frame.join(theirs, on=["subject_id", key], how="left", maintain_order="left")
    return frame


def _time(at: At) -> pl.Expr:
    time = pl.col(f"{at.of}.{at.column}" if at.of else at.column)
    if at.end_of_day:
        return time.dt.truncate("1d") + pl.duration(days=1)
    return time + at.plus if at.plus else time


def _first_time(times: tuple[At, ...]) -> pl.Expr:
    return pl.coalesce(_time(at) for at in times)


def _with_knowledge(frame: pl.DataFrame, table: Table) -> pl.DataFrame:
    """Add `available_time`, `late_time` (null: nothing is late) and `assumed`."""
    event = pl.col("event_time")
    known = _first_time(table.known_at) if table.known_at else event
    day_over = (_time(at) for at in table.not_before)
    available = pl.max_horizontal(event, known.fill_null(event + table.delay), *day_over)
    frame = frame.with_columns(
        available.alias("available_time"), (known.is_null()).alias("assumed")
    )
    late = pl.lit(None, pl.Datetime("us"))
    if table.late_known_at:
        # Without an end the total cannot be dated and stays hidden permanently.
        end = pl.max_horizontal(_time(at) for at in table.late_known_at)
        open_end = _time(table.late_known_at[0]).is_null()
        late = (
            pl.when(open_end)
            .then(pl.lit(NEVER).cast(pl.Datetime("us")))
            .otherwise(pl.max_horizontal("available_time", end))
        )
    if table.late_items:
        late = pl.when(item_name(table).is_in(table.late_items)).then(late)
    return frame.with_columns(late.alias("late_time"))


def _store_columns(table: Table) -> list[pl.Expr]:
    def id_or_null(there: bool, name: str) -> pl.Expr:
        return (pl.col(name) if there else pl.lit(None, pl.Int64)).alias(name)

    order = pl.col(table.order_by).cast(pl.Int64, strict=False) if table.order_by else pl.lit(0)
    link = pl.lit(None, pl.Int32)  # all rows have this column: Int32 halves its memory
    if table.entered:
        link = pl.col("poe_id").str.extract(r"-(\d+)$").cast(pl.Int32, strict=False)
    # A date replaces the first of the table's times where that is missing.
    dated = pl.lit(False)
    if len(table.event_time) > 1:
        dated = _time(table.event_time[0]).is_null()
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
        link.alias("link"),
        dated.alias("dated"),
    ]
