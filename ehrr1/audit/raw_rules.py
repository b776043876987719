"""Independent rules for when MIMIC-IV's rows were known, from the raw files.

Of `ehrr1.records` only the names of its tables are used, since the audit of contexts must not rely
on the code and the times that produced them. Each rule names its source. If a file does not record
when a row became known, its event time is used (no stronger objection to a context is possible).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

MIMIC = "https://mimic.mit.edu/docs/iv/modules"
DAY = pl.duration(days=1)


@dataclass(frozen=True, slots=True)
class RawRule:
    """When rows of a table happened and were known.

    Both are expressions of the file's own columns (times as datetimes) and of those that `joins`
    adds from other files. `source` documents the rule.
    """

    table: str
    module: str
    happened: pl.Expr
    known: pl.Expr
    source: str
    joins: tuple[str, ...] = ()
    total: tuple[str, ...] = ()
    """Keys of a context that show a total over `starttime` to `endtime`."""


def _at(name: str, module: str, time: str, source: str = "the event itself") -> RawRule:
    return RawRule(name, module, pl.col(time), pl.col(time), source)


def _stored(name: str, module: str, time: str, total: tuple[str, ...] = ()) -> RawRule:
    source = f"{MIMIC}/{module}/{name}: storetime, when the value was validated or made available"
    return RawRule(name, module, pl.col(time), pl.col("storetime"), source, total=total)


_DATE = pl.col("chartdate")
_ENTRY = pl.min_horizontal("entertime", "ordertime")
_END = pl.col("end_of_stay")
_CODED = f"{MIMIC}/hosp/diagnoses_icd: billed codes, determined by trained persons after the stay"

RULES = (
    _at("admissions", "hosp", "admittime"),
    _at("transfers", "hosp", "intime"),
    _at("services", "hosp", "transfertime"),
    _at("poe", "hosp", "ordertime"),
    _at("edstays", "ed", "intime"),
    _at("medrecon", "ed", "charttime"),
    _at("pyxis", "ed", "charttime"),
    _at("vitalsign", "ed", "charttime"),
    _at("icustays", "icu", "intime"),
    RawRule(
        "triage",
        "ed",
        pl.col("ed_intime") + pl.duration(seconds=1),
        pl.col("ed_intime"),
        f"{MIMIC}/ed/triage: collected at the first contact",
        ("edstays",),
    ),
    RawRule(
        "diagnosis",
        "ed",
        pl.col("ed_outtime"),
        pl.col("ed_outtime"),
        f"{MIMIC}/ed/diagnosis: billed for the stay, so not before it is over",
        ("edstays",),
    ),
    RawRule("omr", "hosp", _DATE, _DATE + DAY, f"{MIMIC}/hosp/omr: a date; over when the day is"),
    RawRule(
        "prescriptions",
        "hosp",
        pl.col("starttime"),
        _ENTRY,
        f"{MIMIC}/hosp/pharmacy: entertime, when the prescription was entered; poe: ordertime",
        ("pharmacy", "poe"),
    ),
    _stored("emar", "hosp", "charttime"),
    _stored("labevents", "hosp", "charttime"),
    RawRule(
        "microbiologyevents",
        "hosp",
        pl.coalesce("charttime", "chartdate"),
        pl.coalesce("storetime", pl.col("storedate") + DAY),
        f"{MIMIC}/hosp/microbiologyevents: storetime or storedate of the last change of the result",
    ),
    RawRule(
        "procedures_icd",
        "hosp",
        _DATE,
        pl.max_horizontal(_END, _DATE + DAY),
        _CODED,
        ("admissions",),
    ),
    RawRule("diagnoses_icd", "hosp", _END, _END, _CODED, ("admissions",)),
    _stored("chartevents", "icu", "charttime"),
    _stored("datetimeevents", "icu", "charttime"),
    _stored("outputevents", "icu", "charttime"),
    _stored("inputevents", "icu", "starttime", ("Amount", "Amountuom")),
    _stored("ingredientevents", "icu", "starttime", ("Amount", "Amountuom")),
    _stored("procedureevents", "icu", "starttime", ("Value", "Valueuom")),
    _stored("radiology", "note", "charttime"),
    _stored("discharge", "note", "charttime"),
)

INPATIENT = (
    *("admissions", "services", "poe", "prescriptions", "icustays", "chartevents"),
    *("datetimeevents", "inputevents", "ingredientevents", "procedureevents", "outputevents"),
)
"""Tables written for admitted patients only, whose rows reveal a future admission."""

OWN_CODES = ("diagnoses_icd", "procedures_icd", "hcpcsevents", "drgcodes")
"""Codes that are assigned at the end of a stay and never shown for a question on that stay."""

NEVER_TABLES = ("pharmacy", "hcpcsevents", "drgcodes")
"""Tables that repeat an answer or its billing."""

NEVER_KEYS = frozenset(
    (
        *("dischtime", "deathtime", "discharge_location", "hospital_expire_flag", "dod"),
        *("edregtime", "edouttime", "outtime", "los", "last_careunit", "disposition", "hadm_id"),
        *("stoptime", "endtime", "statusdescription", "order_status", "discontinued_by_poe_id"),
        *("transaction_type", "drg_code", "drg_severity", "drg_mortality", "label"),
    )
)
"""Columns that reveal a later outcome, as keys of an event."""


class Raw:
    """The files of some patients, read as text by Polars alone."""

    def __init__(self, root: Path, subjects: Sequence[int]):
        self.root = root
        self.subjects = [str(subject) for subject in subjects]
        self._read: dict[str, pl.DataFrame | None] = {}

    def table(self, module: str, name: str) -> pl.DataFrame | None:
        """Return all columns of a table, times as datetimes; None if there is no such file."""
        if name not in self._read:
            scans = [self._scan(path) for path in self._files(module, name)]
            found = pl.concat(scans, how="diagonal").collect() if scans else None
            self._read[name] = found
        return self._read[name]

    def _files(self, module: str, name: str) -> list[Path]:
        folders = [path for path in self.root.iterdir() if path.name.lower() == module]
        ends = (".csv.gz", ".csv", ".parquet")
        found = [p for folder in folders for p in folder.iterdir() if not p.name.startswith(".")]
        own = [path for path in found if path.name.lower() in [name + end for end in ends]]
        parts = [p for path in found if path.is_dir() and path.name == name for p in path.iterdir()]
        return own + [p for p in parts if p.name.endswith(ends) and not p.name.startswith(".")]

    def _scan(self, path: Path) -> pl.LazyFrame:
        parquet = path.suffix == ".parquet"
        frame = (
            pl.scan_parquet(path, glob=False)
            if parquet
            else pl.scan_csv(path, infer_schema_length=0, glob=False)
        )
        names = frame.collect_schema().names()
        frame = frame.rename({name: name.strip().lower() for name in names})
        frame = frame.with_columns(pl.all().cast(pl.String))
        frame = frame.filter(pl.col("subject_id").str.strip_suffix(".0").is_in(self.subjects))
        lower = frame.collect_schema().names()
        times = [name for name in lower if name.endswith("time") or name in DATES]
        ids = [name for name in lower if name.endswith("_id") or name == "poe_seq"]
        return frame.with_columns(
            *(_as_time(name) for name in times if name not in CLOCK_FREE),
            *(pl.col(name).str.strip_chars().str.strip_suffix(".0") for name in ids),
        )


DATES = ("chartdate", "storedate", "dod")
CLOCK_FREE = ("verifiedtime", "scheduletime")
"""Times that no rule uses."""


def _as_time(name: str) -> pl.Expr:
    """Return times in whole seconds, store times rounded up; a date becomes its midnight."""
    text = pl.col(name).str.strip_chars()
    clock = text.str.slice(0, 19).str.replace("T", " ", literal=True)
    whole = clock.str.to_datetime("%Y-%m-%d %H:%M:%S", strict=False, time_unit="us")
    day = text.str.slice(0, 10).str.to_datetime("%Y-%m-%d", strict=False, time_unit="us")
    if name == "storetime":
        part = pl.when(text.str.contains(r"^.{19}\.0*[1-9]")).then(pl.duration(seconds=1))
        whole = whole + part.otherwise(pl.duration(seconds=0))
    return pl.coalesce(whole, day).alias(name)


def stay_ends(raw: Raw) -> pl.DataFrame:
    """Return `hadm_id, admittime, end_of_stay`: the latest time of a stay in any table."""
    admissions = raw.table("hosp", "admissions")
    assert admissions is not None, "nothing is prepared without admissions"
    ends = [admissions.select("hadm_id", pl.max_horizontal("dischtime", "deathtime").alias("end"))]
    transfers = raw.table("hosp", "transfers")
    if transfers is not None:
        gone = pl.col("eventtype").str.to_lowercase() == "discharge"
        ends.append(transfers.filter(gone).select("hadm_id", pl.col("intime").alias("end")))
        ends.append(transfers.select("hadm_id", pl.col("outtime").alias("end")))
    icustays = raw.table("icu", "icustays")
    if icustays is not None:
        ends.append(icustays.select("hadm_id", pl.col("outtime").alias("end")))
    latest = pl.concat(ends).group_by("hadm_id").agg(pl.col("end").max().alias("end_of_stay"))
    return admissions.select("hadm_id", "admittime").join(latest, on="hadm_id", how="left")


def known_rows(raw: Raw, rule: RawRule) -> pl.DataFrame | None:
    """Return `subject_id, hadm_id, happened, known, total_known` (null: none) of each row.

    Returns None if there is no such table.
    """
    rows = raw.table(rule.module, rule.table)
    if rows is None:
        return None
    if "edstays" in rule.joins:
        stays = raw.table("ed", "edstays")
        assert stays is not None, f"{rule.table} has no time without edstays"
        times = stays.select("stay_id", ed_intime="intime", ed_outtime="outtime")
        rows = rows.join(times, on="stay_id", how="left")
    if "admissions" in rule.joins:
        rows = rows.join(stay_ends(raw).drop("admittime"), on="hadm_id", how="left")
    if "pharmacy" in rule.joins:
        rows = _with_entries(raw, rows)
    hadm = pl.col("hadm_id") if "hadm_id" in rows.columns else pl.lit(None, pl.String)
    total: pl.Expr = pl.lit(None)
    if rule.total:
        ended = pl.col("endtime").is_not_null()
        total = pl.when(ended).then(pl.max_horizontal("endtime", "storetime")).otherwise(None)
    return rows.select(
        pl.col("subject_id").cast(pl.Int64, strict=False),
        hadm.cast(pl.Int64, strict=False).alias("hadm_id"),
        rule.happened.alias("happened"),
        pl.max_horizontal(rule.happened, rule.known).alias("known"),
        total.cast(pl.Datetime("us")).alias("total_known"),
    ).drop_nulls("happened")


def _with_entries(raw: Raw, rows: pl.DataFrame) -> pl.DataFrame:
    for module, name, key, time in (
        ("hosp", "pharmacy", "pharmacy_id", "entertime"),
        ("hosp", "poe", "poe_id", "ordertime"),
    ):
        theirs = raw.table(module, name)
        if theirs is None or key not in rows.columns:
            rows = rows.with_columns(pl.lit(None, pl.Datetime("us")).alias(time))
            continue
        first = theirs.drop_nulls(key).group_by(key).agg(pl.col(time).min())
        rows = rows.join(first, on=key, how="left")
    return rows
