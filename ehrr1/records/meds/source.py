"""Reading of MEDS datasets (`data=meds`): exports of this project and datasets of others.

Exports of this project contain the store's columns (`meds.layout.EXTRA`) and the tables that labels
are built from (metadata/parents); store, index and contexts are reproduced exactly. Other datasets
have only codes, times and values: each event becomes a row of the table `meds`, known at its time
and named by the description of its code; age and sex come from `MEDS_BIRTH` and `GENDER//...`.
"""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from ehrr1.errors import UserError
from ehrr1.records.cells import SEPARATOR, one_line
from ehrr1.records.hindsight import END
from ehrr1.records.meds.layout import BIRTH, EXTRA, SPLITS
from ehrr1.records.mimic import PARENTS
from ehrr1.records.reading import READ_ERRORS, as_id, as_moment, check_zones, data_files
from ehrr1.records.schema import FOREIGN, MIMIC_TABLES, ORDER, TABLES
from ehrr1.records.source import Shards, Source
from ehrr1.records.store_schema import STORE_SCHEMA
from ehrr1.records.typed import TIMES

ROWS_AT_ONCE = 500_000
SEX = "GENDER//"

Types = Mapping[str, pl.DataType | type[pl.DataType]]

REQUIRED: Types = {
    "subject_id": pl.Int64,
    "time": pl.Datetime("us"),
    "code": pl.String,
}
OPTIONAL: Types = {"numeric_value": pl.Float64, "text_value": pl.String, "hadm_id": pl.Int64}
OWN: Types = {
    **REQUIRED,
    **{name: STORE_SCHEMA.get(name, pl.String) for name in EXTRA.names},
    "table": pl.String,
    "values": pl.List(pl.String),
}

NO_ADMISSIONS: Types = {
    **dict.fromkeys(("subject_id", "hadm_id"), pl.Int64),
    **dict.fromkeys(("admittime", "dischtime", "deathtime", END), pl.Datetime("us")),
    "hospital_expire_flag": pl.String,
}


class MedsFolder(Source):
    """A MEDS folder: data/**/*.parquet and metadata/.

    `own` is True for an export of this project. `splits` holds subject_splits.parquet with the
    split names of this project, or None if there is no such file. All rows are yielded with the
    first of `tables`, because a file holds all tables of a patient and is read once. Raises
    UserError for a folder that is not a MEDS dataset.
    """

    def __init__(self, root: Path, patients_per_shard: int):
        super().__init__()
        self.root = root
        self.files = data_files(root / "data")
        if not self.files:
            raise UserError(
                f"data.root={root}: there is no data/**/*.parquet; give the folder of a MEDS "
                "dataset, which holds data/ and metadata/"
            )
        self._parents = root / "metadata" / "parents"
        self.own = self._parents.is_dir()
        for file in self.files:
            _require(file, REQUIRED)
            if self.own:
                _require_own(file)
        parents = data_files(self._parents) if self.own else []
        check_zones([*self.files, *parents], {*OWN, *TIMES})
        patients = self._own_parent("patients") if self.own else self._foreign_patients()
        if patients is None or not patients.height:
            raise UserError(f"data.root={root}: there is no patient in it")
        self._patients = patients
        self.subjects = patients["subject_id"].unique().sort()
        self.shards = Shards.divide(self.subjects, patients_per_shard)
        self.splits = self._read_splits()
        self.tables = self._own_tables() if self.own else [FOREIGN.name]

    def want(self, shards: Collection[int]) -> None:
        """Read the parent tables of these shards and select the shards for `rows`.

        Raises UserError for an export of an earlier version.
        """
        self.wanted = frozenset(shards)
        parents = {name: self._own_parent(name) for name in PARENTS} if self.own else {}
        if not self.own:
            parents["admissions"] = pl.DataFrame(schema=NO_ADMISSIONS)
        admissions = parents["admissions"]
        if admissions is None or END not in admissions.columns:
            raise UserError(
                f"data.root={self.root}: it was exported by an earlier version, which took ends of "
                "stays from dischtime: export it again"
            )
        for name, frame in ({"patients": self._patients} | parents).items():
            if frame is not None:
                self.parents[name] = self.route(frame)
        for outcome in ("read", "kept"):
            self.count("patients", outcome, self.parents["patients"]["shard"])

    def rows(self, table: str) -> Iterator[pl.DataFrame]:
        """Yield the rows of all tables with the first table, and nothing with the others."""
        if table != self.tables[0]:
            return
        types = OWN if self.own else {**REQUIRED, **OPTIONAL}
        for file in self.files:
            for frame in _batches(file, types):
                if self.own:
                    # rows without values repeat facts of other rows
                    frame = self.route(frame.filter(pl.col("values").is_not_null()))
                    yield self._own_rows(frame, file)
                else:
                    yield self._foreign_rows(self.route(frame))

    def _own_rows(self, frame: pl.DataFrame, file: Path) -> pl.DataFrame:
        unknown = set(frame["table"].unique()) - set(MIMIC_TABLES)
        if unknown:
            raise UserError(f"{file}: unknown table {', '.join(sorted(map(str, unknown)))}")
        # a table without keys has one empty value
        lengths = {name: max(len(TABLES[name].keys), 1) for name in MIMIC_TABLES}
        length = pl.col("table").replace_strict(lengths, return_dtype=pl.UInt32)
        reasons = {
            "unknown_subject": ~pl.col("subject_id").is_in(self.subjects.implode()),
            "no_time": pl.any_horizontal(pl.col("time", "available_time").is_null()),
            "no_order": pl.col("order").is_null(),
            "bad_values": (pl.col("values").list.len() != length).fill_null(True),
        }
        kept = self._report(frame, reasons, pl.col("table"))
        numbers = {name: number for number, name in enumerate(ORDER)}
        return kept.with_columns(
            pl.col("table").replace_strict(numbers, return_dtype=pl.UInt8),
            pl.col("time").alias("event_time"),
            pl.col("values").list.join(SEPARATOR),
        ).select(*STORE_SCHEMA, "shard")

    def _foreign_rows(self, frame: pl.DataFrame) -> pl.DataFrame:
        code = pl.col("code")
        reasons = {
            "no_subject_id": pl.col("subject_id").is_null(),
            "no_code": code.is_null() | (code == ""),
            "age_and_sex": (code == BIRTH) | code.str.starts_with(SEX),
            "no_time": pl.col("time").is_null(),
        }
        kept = self._report(frame, reasons, pl.lit(FOREIGN.name))
        number = pl.col("numeric_value").fill_nan(None).cast(pl.Float32).cast(pl.String)
        value = pl.coalesce(number.str.strip_suffix(".0"), "text_value").fill_null("")
        kept = kept.join(self._descriptions(), on="code", how="left", maintain_order="left")
        item = one_line(pl.coalesce("description", "code"))
        return kept.select(
            *("subject_id", "hadm_id"),
            pl.lit(None, pl.Int64).alias("stay_id"),
            pl.lit(ORDER.index(FOREIGN.name), pl.UInt8).alias("table"),
            pl.col("time").alias("event_time"),
            pl.col("time").alias("available_time"),
            pl.lit(None, pl.Datetime("us")).alias("late_time"),
            item.alias("item"),
            pl.lit(None, pl.String).alias("class"),
            pl.lit(0, pl.Int64).alias("order"),
            pl.concat_str(item, one_line(value).fill_null(""), separator=SEPARATOR).alias("values"),
            "shard",
        )

    def _report(
        self, frame: pl.DataFrame, reasons: dict[str, pl.Expr], table: pl.Expr
    ) -> pl.DataFrame:
        """Return the usable rows, and count all rows by table and outcome."""
        why = pl.coalesce(pl.when(bad).then(pl.lit(name)) for name, bad in reasons.items())
        checked = frame.with_columns(why.alias("why"), table.alias("counted_for"))
        for (name, reason), part in checked.group_by("counted_for", "why"):
            self.count(str(name), "read", part["shard"])
            self.count(str(name), f"reported/{reason}" if reason else "kept", part["shard"])
        return checked.filter(pl.col("why").is_null()).drop("why", "counted_for")

    def _own_parent(self, name: str) -> pl.DataFrame | None:
        path = self._parents / f"{name}.parquet"
        if not path.is_file():
            return None
        parent = _read(path)
        _refuse_nulls(path, parent)
        return parent.with_columns(
            as_moment(column) for column in parent if column.dtype == pl.Datetime
        )

    def _own_tables(self) -> list[str]:
        found: set[str] = set()
        for file in self.files:
            for frame in _batches(file, {"table": pl.String}):
                found |= set(frame["table"].unique())
        return [name for name in MIMIC_TABLES if name in found]

    def _foreign_patients(self) -> pl.DataFrame:
        """Return the patients with sex from `GENDER//...` and the year of birth as the anchor year.

        Values that a patient lacks are null.
        """
        parts = []
        for file in self.files:
            for frame in _batches(file, REQUIRED):
                code = pl.col("code")
                sex = code.filter(code.str.starts_with(SEX)).first().str.strip_prefix(SEX)
                born = pl.col("time").filter(code == BIRTH).first()
                own = frame.filter(pl.col("subject_id").is_not_null()).group_by("subject_id")
                parts.append(own.agg(sex.alias("gender"), born.alias("born")))
        first = pl.all().exclude("subject_id").drop_nulls().first()
        patients = pl.concat(parts).group_by("subject_id").agg(first).sort("subject_id")
        year = pl.col("born").dt.year().cast(pl.Int64)
        return patients.select(
            *("subject_id", "gender"),
            pl.when(year.is_not_null()).then(pl.lit("0")).alias("anchor_age"),
            year.cast(pl.String).alias("anchor_year"),
            pl.lit(None, pl.Datetime("us")).alias("dod"),
        )

    def _descriptions(self) -> pl.DataFrame:
        """Return the columns `code, description`, with one row per described code."""
        path = self.root / "metadata" / "codes.parquet"
        if not path.is_file():
            return pl.DataFrame(schema={"code": pl.String, "description": pl.String})
        _require(path, {"code": pl.String, "description": pl.String})
        codes = pl.concat(_batches(path, {"code": pl.String, "description": pl.String}))
        there = codes.filter(pl.col("description").str.strip_chars() != "")
        return there.sort(pl.all()).unique("code", keep="first")

    def _read_splits(self) -> pl.DataFrame | None:
        path = self.root / "metadata" / "subject_splits.parquet"
        if not path.is_file():
            return None
        types = {"subject_id": pl.Int64, "split": pl.String}
        _require(path, types)
        splits = pl.concat(_batches(path, types)).unique()
        _refuse_nulls(path, splits)
        ours = {theirs: name for name, theirs in SPLITS.items()}
        unknown = set(splits["split"].unique()) - ours.keys()
        absent = self.subjects.filter(~self.subjects.is_in(splits["subject_id"].implode()))
        if unknown or len(absent):
            raise UserError(
                f"{path}: every patient of data/ needs one of the splits {', '.join(ours)} "
                f"(unknown: {', '.join(map(str, unknown)) or 'none'}; patients without one: "
                f"{len(absent):,}); mend it, or remove it to have the patients drawn by data.split"
            )
        if twice := splits.height - splits["subject_id"].n_unique():
            raise UserError(
                f"{path}: {twice:,} patients are in two splits, and would be trained on and "
                "tested; leave each in one, or remove the file to have them drawn by data.split"
            )
        splits = splits.filter(pl.col("subject_id").is_in(self.subjects.implode()))
        return splits.with_columns(pl.col("split").replace(ours)).sort("subject_id")


def _columns(path: Path) -> list[str]:
    try:
        names: list[str] = pq.read_schema(path).names
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error
    return names


def _require(path: Path, types: Types) -> None:
    missing = [name for name in types if name not in _columns(path)]
    if missing:
        raise UserError(
            f"{path} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}: is the "
            "folder a MEDS dataset (schema 0.3 or 0.4)?"
        )


def _require_own(path: Path) -> None:
    missing = [name for name in OWN if name not in _columns(path)]
    if missing:
        raise UserError(
            f"{path} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}, which our "
            "export writes: export again, or remove metadata/parents to read the folder as MEDS "
            "that others made"
        )


def _refuse_nulls(path: Path, frame: pl.DataFrame) -> None:
    if nameless := frame["subject_id"].null_count():
        raise UserError(f"{path}: {nameless:,} rows have no subject_id; mend or remove them")


def _batches(path: Path, types: Types) -> Iterator[pl.DataFrame]:
    """Yield the columns of a file in their types, at most `ROWS_AT_ONCE` rows at a time.

    Columns that the file does not have are null. Raises UserError for a file that cannot be read.
    """
    columns = [name for name in types if name in _columns(path)]
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, columns=columns):
                yield _typed(pl.DataFrame(pa.Table.from_batches([batch])), types)
            if not file.metadata.num_rows:
                yield pl.DataFrame(schema=types)
    except READ_ERRORS as error:
        raise _unreadable(path, error) from error


def _typed(frame: pl.DataFrame, types: Types) -> pl.DataFrame:
    cells: list[pl.Expr | pl.Series] = []
    for name, kind in types.items():
        if name not in frame.columns:
            cells.append(pl.lit(None, kind).alias(name))
        elif kind == pl.Datetime("us") and isinstance(frame.schema[name], pl.Datetime):
            cells.append(as_moment(frame[name]))
        elif kind == pl.Int64 and name not in REQUIRED:
            # other hospitals may use text ids: they are left out
            cells.append(as_id(frame[name]))
        else:
            cells.append(pl.col(name).cast(kind, strict=name in REQUIRED or name in ("values",)))
    return frame.select(cells)


def _read(path: Path) -> pl.DataFrame:
    try:
        return pl.read_parquet(path, glob=False)
    except READ_ERRORS as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: BaseException) -> UserError:
    return UserError(f"{path} cannot be read ({type(error).__name__}): write or fetch it again")
