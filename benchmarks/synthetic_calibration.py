"""Show how hard the synthetic hospital is. Per risk task: share of yes, best single sign, models.

    python benchmarks/synthetic_calibration.py DIR [--folds 3]

An independent computation, straight from the CSV files: contexts hold the rows that were known in
the 24 hours before the prediction time, labels follow `docs/tasks.md`. Columns of the output:
`item`, `flag`, `count`: the best AUROC of one item's number, of one item with its flag, of one
table's number of rows; `boosting`: gradient boosting on all of them, `hidden`: on the hidden state.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from scipy.stats import rankdata
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold
from threadpoolctl import threadpool_limits

DAY = pl.duration(days=1)
# table: (event time, known time or None, item columns)
_ITEMS = {
    "hosp/admissions": ("admittime", None, ["admission_type"]),
    "hosp/services": ("transfertime", None, ["curr_service"]),
    "ed/medrecon": ("charttime", None, ["name"]),
    "ed/pyxis": ("charttime", None, ["name"]),
    "ed/vitalsign": ("charttime", None, ["rhythm"]),
    "hosp/poe": ("ordertime", None, ["order_type", "order_subtype"]),
    "hosp/prescriptions": ("starttime", None, ["drug"]),
    "hosp/emar": ("charttime", "storetime", ["medication"]),
    "hosp/microbiologyevents": ("charttime", "storetime", ["test_name", "ab_name"]),
    "icu/icustays": ("intime", None, []),
}
_ICU = {
    "icu/chartevents": "charttime",
    "icu/datetimeevents": "charttime",
    "icu/inputevents": "starttime",
    "icu/ingredientevents": "starttime",
    "icu/procedureevents": "starttime",
    "icu/outputevents": "charttime",
}


@dataclass
class Question:
    """One task: a cohort's prediction times, labels, and hidden state."""

    task: str
    kind: str
    frame: pl.DataFrame  # subject_id, time, label


def _read(folder: Path, table: str, columns: list[str]) -> pl.DataFrame:
    names = list(dict.fromkeys(["subject_id", *columns]))
    frame = pl.read_csv(folder / f"{table}.csv.gz", columns=names, infer_schema_length=0)
    times = [c for c in names if c.endswith("time") or c == "dod"]
    return frame.with_columns(
        pl.col("subject_id").cast(pl.Int64),
        *[pl.col(c).str.to_datetime(strict=False) for c in times if c != "dod"],
        *[pl.col(c).str.to_date(strict=False) for c in times if c == "dod"],
    )


def _rows(
    frame: pl.DataFrame, table: str, known: pl.Expr, item: pl.Expr, flag: pl.Expr
) -> pl.DataFrame:
    return frame.select(
        "subject_id",
        known.alias("known"),
        pl.lit(table).alias("table"),
        (pl.lit(table + ":") + item).alias("item"),
        flag.alias("flag"),
    )


def known_rows(folder: Path) -> pl.DataFrame:
    """All rows that can stand in a context: subject_id, known, table, item, flag."""
    parts = []
    no = pl.lit(None, pl.String)
    for table, (event, stored, items) in _ITEMS.items():
        frame = _read(folder, table, [event, *([stored] if stored else []), *items])
        known = pl.max_horizontal(event, stored) if stored else pl.col(event)
        name = pl.concat_str(*items, separator=":", ignore_nulls=True) if items else pl.lit("")
        parts.append(_rows(frame, table, known, name, no))
    moves = _read(folder, "hosp/transfers", ["intime", "careunit", "eventtype"])
    unit = pl.coalesce("careunit", "eventtype")
    parts.append(_rows(moves, "hosp/transfers", pl.col("intime"), unit, no))
    labels = pl.read_csv(folder / "hosp/d_labitems.csv.gz", infer_schema_length=0)
    labs = _read(folder, "hosp/labevents", ["charttime", "storetime", "itemid", "flag"])
    labs = labs.join(labels, on="itemid")
    known = pl.coalesce(pl.max_horizontal("charttime", "storetime"), "charttime")
    parts.append(_rows(labs, "hosp/labevents", known, pl.col("label"), pl.col("flag")))
    labels = pl.read_csv(folder / "icu/d_items.csv.gz", infer_schema_length=0)
    for table, event in _ICU.items():
        frame = _read(folder, table, [event, "storetime", "itemid"]).join(labels, on="itemid")
        known = pl.max_horizontal(event, "storetime")
        parts.append(_rows(frame, table, known, pl.col("label"), no))
    exams = _read(folder, "note/radiology_detail", ["note_id", "field_value"])
    notes = _read(folder, "note/radiology", ["note_id", "storetime"])
    notes = notes.join(exams.drop("subject_id"), on="note_id")
    parts.append(_rows(notes, "note/radiology", pl.col("storetime"), pl.col("field_value"), no))
    return pl.concat(parts).drop_nulls("known")


def questions(folder: Path) -> list[Question]:
    """Cohorts, prediction times and labels of the 18 risk tasks."""
    admissions = _read(
        folder,
        "hosp/admissions",
        ["hadm_id", "admittime", "dischtime", "deathtime", "hospital_expire_flag"],
    )
    patients = _read(folder, "hosp/patients", ["dod"])
    emergency = _read(folder, "ed/edstays", ["hadm_id", "intime", "outtime", "disposition"])
    intensive = _read(folder, "icu/icustays", ["hadm_id", "stay_id", "intime", "outtime"])
    return [
        *_emergency(admissions, emergency, intensive),
        *_admission(admissions),
        *_discharge(admissions, patients),
        *_intensive(admissions, patients, intensive),
    ]


def _ask(task: str, kind: str, frame: pl.DataFrame, label: str) -> Question:
    return Question(task, kind, frame.select("subject_id", "time", pl.col(label).alias("label")))


def _emergency(
    admissions: pl.DataFrame, emergency: pl.DataFrame, intensive: pl.DataFrame
) -> list[Question]:
    first = intensive.group_by("hadm_id").agg(icu=pl.col("intime").min())
    expired = admissions.select("hadm_id", died=pl.col("hospital_expire_flag") == "1")
    stays = (
        emergency.join(first, on="hadm_id", how="left")
        .join(expired, on="hadm_id", how="left")
        .with_columns(
            time=pl.col("intime") + pl.duration(hours=1),
            admitted=pl.col("hadm_id").is_not_null(),
            died=pl.col("died").fill_null(False),
            icu=(pl.col("icu") <= pl.col("outtime") + pl.duration(hours=12)).fill_null(False),
        )
        .with_columns(critical=pl.col("died") | pl.col("icu"))
        .sort("subject_id", "intime")
        .with_columns(next=pl.col("intime").shift(-1).over("subject_id"))
    )
    home = stays.filter(~pl.col("admitted")).with_columns(
        time=pl.col("outtime"),
        again=(pl.col("next") <= pl.col("outtime") + 3 * DAY).fill_null(False),
    )
    return [
        _ask("ED_Hospitalization", "ed", stays, "admitted"),
        _ask("ED_Inpatient_Mortality", "ed", stays, "died"),
        _ask("ED_ICU_Tranfer_12hour", "ed", stays, "icu"),
        _ask("ED_Critical_Outcomes", "ed", stays, "critical"),
        _ask("ED_Reattendance_3day", "ed_out", home, "again"),
    ]


def _admission(admissions: pl.DataFrame) -> list[Question]:
    stays = admissions.with_columns(
        time=pl.col("admittime") + DAY,
        died=pl.col("hospital_expire_flag") == "1",
        los=pl.col("dischtime") - pl.col("admittime"),
    ).filter(pl.col("dischtime") > pl.col("time"))
    stays = stays.with_columns(los3=pl.col("los") > 3 * DAY, los7=pl.col("los") > 7 * DAY)
    return [
        _ask("Inpatient_Mortality", "admission", stays, "died"),
        _ask("LengthOfStay_3day", "admission", stays, "los3"),
        _ask("LengthOfStay_7day", "admission", stays, "los7"),
    ]


def _discharge(admissions: pl.DataFrame, patients: pl.DataFrame) -> list[Question]:
    stays = (
        admissions.sort("subject_id", "admittime")
        .with_columns(next=pl.col("admittime").shift(-1).over("subject_id"))
        .join(patients, on="subject_id", how="left")
        .filter(pl.col("hospital_expire_flag") == "0")
        .with_columns(time=pl.col("dischtime"))
    )
    found = []
    for days in (30, 60):
        end = pl.col("dischtime") + days * DAY
        back = (pl.col("next") <= end).fill_null(False)
        dead = (pl.col("dod").cast(pl.Datetime) <= end).fill_null(False)
        frame = stays.with_columns(label=back).filter(~dead | back)
        found.append(_ask(f"Readmission_{days}day", "discharge", frame, "label"))
    return found


def _intensive(
    admissions: pl.DataFrame, patients: pl.DataFrame, intensive: pl.DataFrame
) -> list[Question]:
    deaths = admissions.select("hadm_id", "deathtime", "dischtime")
    stays = (
        intensive.join(deaths, on="hadm_id")
        .join(patients, on="subject_id", how="left")
        .sort("subject_id", "intime")
        .with_columns(
            time=pl.col("intime") + DAY,
            days=pl.col("outtime") - pl.col("intime"),
            back=pl.col("intime").shift(-1).over("hadm_id").is_not_null(),
            dead=pl.coalesce("deathtime", pl.col("dod").cast(pl.Datetime) + DAY),
        )
        .filter(pl.col("days") >= DAY, pl.col("dead").is_null() | (pl.col("dead") > pl.col("time")))
    )
    found = []
    for days in (1, 2, 3, 7, 14):
        label = (pl.col("dead") <= pl.col("time") + days * DAY).fill_null(False)
        found.append(_ask(f"ICU_Mortality_{days}day", "icu", stays.with_columns(y=label), "y"))
    for days in (7, 14):
        label = pl.col("days") >= days * DAY
        found.append(_ask(f"ICU_Stay_{days}day", "icu", stays.with_columns(y=label), "y"))
    left = stays.filter(pl.col("deathtime").is_null() | (pl.col("deathtime") > pl.col("outtime")))
    found.append(_ask("ICU_Readmission", "icu", left, "back"))
    return found


@dataclass
class Features:
    """Counts per context: one row for each of `keys` (subject_id, time)."""

    keys: pl.DataFrame
    items: np.ndarray
    flags: np.ndarray
    tables: np.ndarray
    names: dict[str, list[str]]


def features(rows: pl.DataFrame, keys: pl.DataFrame) -> Features:
    """Count items, items with a flag, and rows per table known in the 24 h before each time."""
    keys = keys.unique().sort("subject_id", "time").with_row_index("context")
    inside = rows.join(keys, on="subject_id").filter(
        pl.col("known") <= pl.col("time"), pl.col("known") >= pl.col("time") - DAY
    )
    found, names = {}, {}
    total = inside.with_columns(item=pl.lit("all"))
    for name, frame in (
        ("items", inside),
        ("flags", inside.filter(pl.col("flag").is_not_null())),
        ("tables", pl.concat([inside.with_columns(item=pl.col("table")), total])),
    ):
        counted = frame.group_by("context", "item").len()
        labels = sorted(counted["item"].unique().to_list())
        codes = counted["item"].cast(pl.Enum(labels)).to_physical().to_numpy()
        matrix = np.zeros((len(keys), len(labels)), np.float32)
        matrix[counted["context"].to_numpy(), codes] = counted["len"].to_numpy()
        found[name], names[name] = matrix, labels
    return Features(keys, **found, names=names)


def best_single(matrix: np.ndarray, label: np.ndarray) -> tuple[float, int]:
    """The best AUROC, in either direction, of a column's number or presence."""
    best, where = 0.5, 0
    positive = label.astype(np.float64)
    for values in (matrix, matrix > 0):
        ranks = rankdata(values, axis=0)
        n1, n0 = positive.sum(), (1 - positive).sum()
        auroc = (positive @ ranks - n1 * (n1 + 1) / 2) / (n1 * n0)
        strength = np.maximum(auroc, 1 - auroc)
        if strength.max() > best:
            best, where = float(strength.max()), int(strength.argmax())
    return best, where


def boosted(matrix: np.ndarray, label: np.ndarray, groups: np.ndarray, folds: int) -> float:
    """Cross-validated AUROC (mean over folds by patient) of gradient boosting; rare columns go."""
    scores = []
    matrix = matrix[:, (matrix != 0).mean(0) >= 0.01]
    for train, test in GroupKFold(folds).split(matrix, label, groups):
        model = HistGradientBoostingClassifier(
            max_iter=60,
            learning_rate=0.15,
            max_leaf_nodes=6,
            min_samples_leaf=8,
            l2_regularization=2.0,
            max_features=0.2,
            early_stopping=False,
            random_state=0,
        )
        model.fit(matrix[train], label[train])
        scores.append(roc_auc_score(label[test], model.predict_proba(matrix[test])[:, 1]))
    return float(np.mean(scores))


def _hidden(folder: Path, asked: Question) -> np.ndarray:
    """The hidden state of the visit to which each prediction time belongs."""
    truth = pl.read_parquet(folder / "synthetic" / "truth.parquet").sort("subject_id", "start")
    frame = asked.frame.with_row_index("row").sort("subject_id", "time")
    frame = frame.join_asof(
        truth, left_on="time", right_on="start", by="subject_id", check_sortedness=False
    ).sort("row")
    return frame.select(pl.col("^latent_.*$")).to_numpy()


def calibrate(folder: Path, folds: int = 3) -> pl.DataFrame:
    """One row a risk task; see the module's first lines."""
    rows, asked = known_rows(folder), questions(folder)
    with threadpool_limits(1):  # its threads wait by spinning, which is slow beside other work
        return _calibrate(folder, rows, asked, folds)


def _calibrate(folder: Path, rows: pl.DataFrame, asked: list[Question], folds: int) -> pl.DataFrame:
    by_kind: dict[str, Features] = {}
    for kind in dict.fromkeys(question.kind for question in asked):
        keys = pl.concat([q.frame.select("subject_id", "time") for q in asked if q.kind == kind])
        by_kind[kind] = features(rows, keys)
    return pl.DataFrame(
        [_row(folder, question, by_kind[question.kind], folds) for question in asked]
    )


def _row(folder: Path, question: Question, found: Features, folds: int) -> dict[str, object]:
    at = question.frame.join(
        found.keys, on=["subject_id", "time"], how="left", maintain_order="left"
    )
    index = at["context"].to_numpy()
    label = question.frame["label"].to_numpy()
    groups = question.frame["subject_id"].to_numpy()
    item, item_at = best_single(found.items[index], label)
    flag, _ = best_single(found.flags[index], label)
    count, count_at = best_single(found.tables[index], label)
    everything = np.hstack([found.items, found.flags, found.tables])[index]
    return {
        "task": question.task,
        "n": len(label),
        "yes": float(label.mean()),
        "item": item,
        "flag": flag,
        "count": count,
        "boosting": boosted(everything, label, groups, folds),
        "hidden": boosted(_hidden(folder, question), label, groups, folds),
        "best_item": found.names["items"][item_at],
        "best_count": found.names["tables"][count_at],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--folds", type=int, default=3)
    arguments = parser.parse_args()
    table = calibrate(arguments.folder, arguments.folds)
    with pl.Config(
        tbl_rows=40, tbl_cols=20, fmt_str_lengths=60, float_precision=3, tbl_width_chars=180
    ):
        print(table)
    means = table.select(pl.col("yes", "item", "flag", "count", "boosting", "hidden").mean())
    print("mean  " + "  ".join(f"{name} {means[name][0]:.3f}" for name in means.columns))


if __name__ == "__main__":
    main()
