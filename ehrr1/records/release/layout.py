"""The release's `patients_ehr`: one Parquet file per patient, one row per event.

The columns are `file_name` (the table), `starttime, endtime, hadm_id, items`, all of them texts;
`items` is a JSON list of rows whose values are all texts, "nan" if missing. Event 0 is the
patient's demographics, without a time. A row has its shown values and the codes that the release's
reader looks up (`itemid`, `icd_code`, `ndc`, `note_id`). Exports of this project add the columns
that the release's rows lack, so that the store can be rebuilt from them: `event_time,
available_time, late_time, stay_id, item`.
"""

from collections.abc import Iterator

import polars as pl

from ehrr1.records.cells import SEPARATOR
from ehrr1.records.release.codes import Codes, note_id
from ehrr1.records.release.order import CODED
from ehrr1.records.schema import MIMIC_TABLES, ORDER, TABLES
from ehrr1.records.store_schema import NO_TIME
from ehrr1.records.table_spec import Classes

FOLDER = "patients_ehr"
COLUMNS = ("file_name", "starttime", "endtime", "hadm_id", "items")
MISSING = "nan"
LISTED = tuple(name for name in MIMIC_TABLES if name != "patients")
MODULES = ("hosp", "ed", "icu", "note")
"""Folders of `index_mapping`."""

MAPS: dict[Classes, str] = {
    "atc": "d_atc_prescriptions",
    "ccs_diagnoses": "d_ccs_diagnoses",
    "ccs_procedures": "d_ccs_procedures",
}
"""Kind of class -> its file in `index_mapping`."""

TIME_FORMAT = "%Y-%m-%d %H:%M:%S"
TIMES = ("event_time", "available_time", "late_time")
IDS = ("hadm_id", "stay_id")


def event_rows(
    rows: pl.DataFrame, patients: pl.DataFrame, visits: pl.DataFrame | None, codes: Codes
) -> Iterator[tuple[int, pl.DataFrame]]:
    """Yield each patient of `patients` with the list of events, from rows of `decode.store_frames`.

    Consecutive rows of one table form one event; an event of discharge codes has no time.
    `patients` has `anchor_age, anchor_year, gender`; `visits` (edstays, or None) provides the
    admission of an ED visit, as in the release. `codes` are those of the store; the codes of notes
    are added to them.
    """
    shown = rows.filter(pl.col("table").is_in([ORDER.index(name) for name in LISTED]))
    begins = pl.any_horizontal(pl.col(c) != pl.col(c).shift() for c in ("subject_id", "table"))
    shown = shown.with_row_index("row").with_columns(
        begins.fill_null(True).cum_sum().alias("number")
    )
    if visits is not None:
        given = visits.select("subject_id", "stay_id", pl.col("hadm_id").alias("given"))
        shown = shown.join(given, on=["subject_id", "stay_id"], how="left", maintain_order="left")
    else:
        shown = shown.with_columns(pl.lit(None, pl.Int64).alias("given"))
    own = pl.when(pl.col("table") == ORDER.index("edstays")).then("given").otherwise("hadm_id")
    tables = shown.group_by("table", maintain_order=True)
    parts = [_as_json(part, ORDER[number], codes) for (number,), part in tables]
    no_time = pl.lit(NO_TIME).cast(pl.Datetime("us"))
    timed = ~pl.col("table").is_in(CODED) & (pl.col("event_time") != no_time)
    coded = pl.concat([shown.clear().with_columns(_nothing()), *parts]).sort("row")
    events = coded.group_by("number", maintain_order=True).agg(
        pl.col("subject_id").first(),
        pl.col("table")
        .first()
        .replace_strict(dict(enumerate(ORDER)), return_dtype=pl.String)
        .alias("file_name"),
        _text(pl.when(timed).then("event_time").first()).alias("starttime"),
        _text(pl.when(timed).then("event_time").max()).alias("endtime"),
        own.first().cast(pl.String).alias("hadm_id"),
        pl.format("[{}]", pl.col("json").str.join(", ")).alias("items"),
    )
    lists = events.drop("number").partition_by("subject_id", as_dict=True, include_key=False)
    for patient in patients.iter_slices(1):
        subject = patient["subject_id"].item()
        parts = [_demographics(patient), *([lists[subject,]] if (subject,) in lists else [])]
        yield subject, pl.concat([part.select(COLUMNS) for part in parts])


def _text(time: pl.Expr) -> pl.Expr:
    return time.dt.to_string(TIME_FORMAT)


def _nothing() -> pl.Expr:
    return pl.lit(None, pl.String).alias("json")


def _with_codes(rows: pl.DataFrame, name: str, codes: Codes) -> tuple[pl.DataFrame, list[str]]:
    """Add the columns of codes of one table, and return their names too."""
    if name == "radiology":
        ids = [note_id(s, n) for s, n in rows.select("subject_id", "row").iter_rows()]
        exams = zip(ids, rows["subject_id"], rows["item"], strict=True)
        codes.files["note", "radiology_detail"] += [
            (one, str(subject), "exam_name", exam, "1") for one, subject, exam in exams if exam
        ]
        return rows.with_columns(pl.Series("note_id", ids, dtype=pl.String)), ["note_id"]
    if name not in codes.of:
        return rows, []
    keys, own = ["item", "class"], codes.of[name]
    joined = rows.join(own, on=keys, how="left", maintain_order="left", nulls_equal=True)
    return joined, [column for column in own.columns if column not in keys]


def _as_json(rows: pl.DataFrame, name: str, codes: Codes) -> pl.DataFrame:
    """Add `json`: each row of one table as an object of texts."""
    columns = rows.columns
    rows, looked_up = _with_codes(rows, name, codes)
    cells = pl.col("values").str.split(SEPARATOR)
    shown = {
        key.lower(): cells.list.get(place, null_on_oob=True)
        for place, (key, columns) in enumerate(TABLES[name].keys.items())
        if columns  # a key without columns is printed as `None`, not as missing
    }
    own = {
        **{column: pl.col(column).dt.to_string("%Y-%m-%d %H:%M:%S%.f") for column in TIMES},
        **{column: pl.col(column).cast(pl.String) for column in ("subject_id", *IDS)},
        **{column: pl.col(column) for column in ("item", *looked_up)},
        "file_name": pl.lit(name),
    }
    texts = [
        pl.when(text != "").then(text).fill_null(MISSING).alias(key)
        for key, text in (shown | own).items()
    ]
    return rows.with_columns(pl.struct(texts).struct.json_encode().alias("json")).select(
        *columns, "json"
    )


def _demographics(patient: pl.DataFrame) -> pl.DataFrame:
    names = ("subject_id", "anchor_age", "gender", "anchor_year")
    texts = [pl.col(name).cast(pl.String).fill_null(MISSING) for name in names]
    return patient.select(
        pl.lit("patients").alias("file_name"),
        *(pl.lit(None, pl.String).alias(name) for name in ("starttime", "endtime", "hadm_id")),
        pl.format("[{}]", pl.struct(texts).struct.json_encode()).alias("items"),
    )
