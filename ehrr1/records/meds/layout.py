"""Layout of the record as MEDS (Medical Event Data Standard, schema 0.4).

Each row of the store is one MEDS row, with the columns that the store is rebuilt from, so that
nothing is lost by export and import. Additional rows repeat known facts in the form that other
tools expect (birth, death, sex, ends of stays, each vital sign by itself): their `order` is null,
and the import skips them.

Codes are `<table>//<item>//<unit>`; parts that a row does not have are left out.
"""

from collections.abc import Mapping
from datetime import timedelta

import polars as pl
import pyarrow as pa

from ehrr1.records.cells import SEPARATOR
from ehrr1.records.hindsight import END
from ehrr1.records.schema import ORDER, TABLES
from ehrr1.records.store_schema import NO_TIME
from ehrr1.records.table_spec import TEXTS, Table

VERSION = "0.4.1"
"""Version of the standard's schemas that the files follow."""

BIRTH, DEATH = "MEDS_BIRTH", "MEDS_DEATH"
"""Codes of the standard for birth and death."""

SPLITS = {"train": "train", "validation": "tuning", "test": "held_out"}
"""Split name in this project -> split name of the standard."""

EXTRA = pa.schema(
    [
        ("hadm_id", pa.int64()),
        ("stay_id", pa.int64()),
        ("table", pa.string()),
        ("available_time", pa.timestamp("us")),
        ("late_time", pa.timestamp("us")),
        ("item", pa.string()),
        ("class", pa.string()),
        ("order", pa.int64()),
        ("values", pa.list_(pa.string())),
    ]
)
"""Columns of a store row that are not columns of the standard."""

DATA = pa.schema(
    [
        pa.field("subject_id", pa.int64(), nullable=False),
        ("time", pa.timestamp("us")),
        pa.field("code", pa.string(), nullable=False),
        ("numeric_value", pa.float32()),
        ("text_value", pa.large_string()),
        *EXTRA,
    ]
)

CODES = pa.schema(
    [
        pa.field("code", pa.string(), nullable=False),
        ("description", pa.string()),
        ("parent_codes", pa.list_(pa.string())),
    ]
)

SUBJECT_SPLITS = pa.schema(
    [
        pa.field("subject_id", pa.int64(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
    ]
)

_LABEL = [
    pa.field("subject_id", pa.int64(), nullable=False),
    pa.field("prediction_time", pa.timestamp("us"), nullable=False),
]
RISK_LABELS = pa.schema([*_LABEL, pa.field("boolean_value", pa.bool_(), nullable=False)])
ITEM_LABELS = pa.schema([*_LABEL, pa.field("categorical_value", pa.string(), nullable=False)])

QUANTITIES: dict[str, tuple[str, str | None]] = {
    "omr": ("Result_Value", None),
    "prescriptions": ("Dose_Val_Rx", "Dose_Unit_Rx"),
    "labevents": ("Valuenum", "Valueuom"),
    "chartevents": ("Valuenum", "Valueuom"),
    "inputevents": ("Rate", "Rateuom"),
    "ingredientevents": ("Rate", "Rateuom"),
    "outputevents": ("Value", "Valueuom"),
}
"""Table -> the keys of `numeric_value` and of its unit.

Totals that become known late are never used.
"""

SIGNS = {
    name: ("Temperature", "Heartrate", "Resprate", "O2Sat", "Sbp", "Dbp", "Pain", *more)
    for name, more in {"vitalsign": (), "triage": ("Acuity",)}.items()
}
"""Tables without an item -> their numeric keys, each of which also gets a row of its own."""

END_OF_STAY = {"admissions": END, "edstays": "outtime", "icustays": "outtime"}


def meds_events(rows: pl.DataFrame) -> pl.DataFrame:
    """Return rows of `decode.store_frames` as MEDS rows, followed by the rows of `SIGNS`.

    The result has the columns of `DATA`. `text_value` holds what is shown of the row besides item,
    number and unit (`Key: value; ...`), or the text of a note. Values that become known only later
    appear in `values` alone (a stay's final type in `item`, too).
    """
    rows = rows.with_columns(pl.col("values").str.split(SEPARATOR))
    parts = [
        _described(part, TABLES[ORDER[number]])
        for (number,), part in rows.group_by("table", maintain_order=True)
    ]
    # Rows of the paper protocol's list may lack a time.
    no_time = pl.lit(NO_TIME).cast(pl.Datetime("us"))
    time = pl.when(pl.col("event_time") != no_time).then("event_time").alias("time")
    events = pl.concat(parts).with_columns(time).drop("event_time")
    signs = [_signs(events.filter(pl.col("table") == name), name) for name in SIGNS]
    return pl.concat([events, *signs]).select(DATA.names)


def _described(rows: pl.DataFrame, table: Table) -> pl.DataFrame:
    """Add `code`, `numeric_value` and `text_value` to rows of one table."""
    number, unit = QUANTITIES.get(table.name, (None, None))
    item = next((key for key, columns in table.keys.items() if columns[:1] == table.item[:1]), None)
    cells = {key: _cell(table, key) for key in table.keys}
    value = cells[number].cast(pl.Float32, strict=False) if number else pl.lit(None, pl.Float32)
    name = pl.col("item")
    if table.late_items:
        undecided = pl.col("late_time").is_not_null()
        name = pl.when(undecided).then(pl.lit(table.until_then)).otherwise(name)
    parts = [pl.lit(table.name), name, cells[unit] if unit else pl.lit(None, pl.String)]
    said = {
        key: cell
        for key, cell in cells.items()
        if key not in (item, unit, *table.late) and table.keys[key] != ("class",)
    }
    return rows.with_columns(
        pl.lit(table.name).alias("table"),
        pl.concat_str(parts, separator="//", ignore_nulls=True).alias("code"),
        value.alias("numeric_value"),
        _said(table, said, number, value).alias("text_value"),
    )


def _said(table: Table, said: Mapping[str, pl.Expr], number: str | None, value: pl.Expr) -> pl.Expr:
    notes = [cell for key, cell in said.items() if TEXTS.intersection(table.keys[key])]
    if notes:
        return notes[0]
    texts = []
    for key, cell in said.items():
        shown = pl.when(value.is_null()).then(cell) if key == number else cell
        texts.append(pl.format("{}: {}", pl.lit(key), shown))
    if not texts:
        return pl.lit(None, pl.String)
    joined = pl.concat_str(texts, separator="; ", ignore_nulls=True)
    return pl.when(joined != "").then(joined)


def _cell(table: Table, key: str) -> pl.Expr:
    """Return an expression for the shown value of a key, null if it is missing."""
    cell = pl.col("values").list.get(list(table.keys).index(key), null_on_oob=True)
    return pl.when(cell != "").then(cell)


def _signs(events: pl.DataFrame, name: str) -> pl.DataFrame:
    """Return one additional row per number of a set of vital signs (`vitalsign//Heartrate`)."""
    number = pl.col("numeric_value")
    return pl.concat(
        events.with_columns(
            pl.lit(f"{name}//{key}").alias("code"),
            _cell(TABLES[name], key).cast(pl.Float32, strict=False).alias("numeric_value"),
            *(pl.lit(None, events.schema[c]).alias(c) for c in ("text_value", "order", "values")),
        ).filter(number.is_not_null())
        for key in SIGNS[name]
    )


def subject_events(parents: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    """Return sex (without a time), birth, death and ends of stays, in the columns of `DATA`.

    Birth is January 1 of `anchor_year - anchor_age`. Death is `deathtime` of an admission,
    otherwise the end of the day of `dod`.
    """
    patients = parents["patients"]
    year = pl.col("anchor_year").cast(pl.Int32, strict=False)
    age = pl.col("anchor_age").cast(pl.Int32, strict=False)
    died = parents["admissions"].group_by("subject_id").agg(pl.col("deathtime").min())
    people = patients.join(died, on="subject_id", how="left", maintain_order="left")
    death = pl.coalesce("deathtime", pl.col("dod").dt.truncate("1d") + timedelta(days=1))
    code = pl.concat_str([pl.lit("GENDER"), "gender"], separator="//")
    parts = [
        patients.filter(pl.col("gender").is_not_null()).select("subject_id", code.alias("code")),
        people.select(
            "subject_id", pl.lit(BIRTH).alias("code"), pl.datetime(year - age, 1, 1).alias("time")
        ).drop_nulls(),
        people.select("subject_id", pl.lit(DEATH).alias("code"), death.alias("time")).drop_nulls(),
    ]
    for name, end in END_OF_STAY.items():
        if name not in parents:
            continue
        stays = parents[name].filter(pl.col(end).is_not_null())
        ids = [column for column in ("hadm_id", "stay_id") if column in stays.columns]
        if name == "edstays":
            ids = ["stay_id"]  # its admission becomes known only later
        parts.append(
            stays.select(
                *("subject_id", *ids),
                pl.lit(f"{name}//{end}").alias("code"),
                pl.col(end).alias("time"),
                pl.lit(name).alias("table"),
            )
        )
    empty = pl.DataFrame(pa.Table.from_pylist([], schema=DATA))
    typed = [
        part.with_columns(pl.col("time").cast(pl.Datetime("us")))
        if "time" in part.columns
        else part
        for part in parts
    ]
    found = pl.concat([empty, *typed], how="diagonal_relaxed").select(DATA.names)
    return found.with_columns(pl.col("time").alias("available_time"))


def in_order(events: pl.DataFrame) -> pl.DataFrame:
    """Sort events by subject and time, events without a time first, as MEDS requires."""
    return events.sort(
        *("subject_id", "time", "order", "code", "stay_id", "hadm_id"), nulls_last=False
    )


def described_codes(events: pl.DataFrame) -> pl.DataFrame:
    """Return the distinct codes with a description of heading, item and unit."""
    headings = {name: table.heading for name, table in TABLES.items()}
    codes = events.select("code", "table").unique()
    rest = pl.col("code").str.split("//").list.slice(1).list.join(", ")
    heading = pl.col("table").replace(headings)
    text = pl.when(rest != "").then(pl.format("{}: {}", heading, rest)).otherwise(heading)
    return codes.select("code", pl.coalesce(text, "code").alias("description")).sort("code")


def as_arrow(frame: pl.DataFrame, schema: pa.Schema) -> pa.Table:
    """Convert a frame to the exact types of the standard."""
    missing = [name for name in schema.names if name not in frame.columns]
    table = frame.with_columns(pl.lit(None).alias(name) for name in missing).to_arrow()
    return table.select(schema.names).cast(schema)
