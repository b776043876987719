"""The synthetic hospital looks like MIMIC-IV, and is neither trivial nor hopeless to predict."""

import hashlib
from pathlib import Path

import polars as pl
import pytest

from benchmarks.synthetic_calibration import calibrate
from ehrr1.synthetic.columns import COLUMNS
from ehrr1.synthetic.hospital import write_hospital
from ehrr1.tasks.catalog import TASKS

_NOT_ROWS = ("/d_", "provider", "caregiver")


def _read(folder: Path, table: str) -> pl.DataFrame:
    suffix = "csv" if table.startswith("maps/") else "csv.gz"
    return pl.read_csv(folder / f"{table}.{suffix}", infer_schema_length=0)


def _hashes(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "hospital"
    write_hospital(folder, 60, 3, progress=False)
    return folder


@pytest.fixture(scope="module")
def tables(hospital: Path) -> dict[str, pl.DataFrame]:
    return {name: _read(hospital, name) for name in COLUMNS}


def test_all_tables_have_mimics_columns_in_their_order(tables: dict[str, pl.DataFrame]) -> None:
    for name, frame in tables.items():
        assert frame.columns == COLUMNS[name], name
        if name != "note/discharge_detail":
            assert len(frame), f"{name} is empty"


def test_columns_equal_those_of_the_open_demo(mimic_demo: Path) -> None:
    for path in sorted(mimic_demo.glob("*/*.csv.gz")):
        name = f"{path.parent.name}/{path.name.removesuffix('.csv.gz')}"
        real = pl.read_csv(path, n_rows=0, infer_schema_length=0).columns
        assert COLUMNS[name] == real, name


def test_same_seed_same_bytes(hospital: Path, tmp_path: Path) -> None:
    write_hospital(tmp_path / "again", 60, 3, progress=False)
    write_hospital(tmp_path / "other", 60, 4, progress=False)
    first, again, other = (
        _hashes(hospital),
        _hashes(tmp_path / "again"),
        _hashes(tmp_path / "other"),
    )
    assert first == again
    assert first["hosp/labevents.csv.gz"] != other["hosp/labevents.csv.gz"]


def test_ids_refer_to_each_other(tables: dict[str, pl.DataFrame]) -> None:
    subjects = set(tables["hosp/patients"]["subject_id"])
    owners = {
        "hadm_id": tables["hosp/admissions"],
        "stay_id": pl.concat(
            [
                tables["ed/edstays"].select("subject_id", "stay_id"),
                tables["icu/icustays"].select("subject_id", "stay_id"),
            ]
        ),
    }
    for name, frame in tables.items():
        if "subject_id" in frame.columns:
            assert set(frame["subject_id"]) <= subjects, name
        for key, owner in owners.items():
            if key in frame.columns and frame is not owner:
                pairs = frame.select("subject_id", key).drop_nulls().unique()
                assert pairs.join(owner, on=["subject_id", key], how="anti").is_empty(), (name, key)
    for name, dictionary, key in (
        ("hosp/labevents", "hosp/d_labitems", ["itemid"]),
        ("icu/chartevents", "icu/d_items", ["itemid"]),
        ("icu/inputevents", "icu/d_items", ["itemid"]),
        ("hosp/diagnoses_icd", "hosp/d_icd_diagnoses", ["icd_code", "icd_version"]),
        ("hosp/procedures_icd", "hosp/d_icd_procedures", ["icd_code", "icd_version"]),
        ("hosp/diagnoses_icd", "maps/d_ccs_diagnoses", ["icd_code", "icd_version"]),
    ):
        assert tables[name].join(tables[dictionary], on=key, how="anti").is_empty(), name
    for name, key in (
        ("hosp/admissions", "hadm_id"),
        ("ed/edstays", "stay_id"),
        ("icu/icustays", "stay_id"),
        ("hosp/labevents", "labevent_id"),
        ("hosp/emar", "emar_id"),
        ("hosp/poe", "poe_id"),
        ("hosp/transfers", "transfer_id"),
        ("note/radiology", "note_id"),
    ):
        assert tables[name][key].is_unique().all(), name


def test_nothing_is_stored_before_it_happens(tables: dict[str, pl.DataFrame]) -> None:
    for name, frame in tables.items():
        if "storetime" not in frame.columns:
            continue
        event = "charttime" if "charttime" in frame.columns else "starttime"
        early = frame.drop_nulls(["storetime", event]).filter(pl.col("storetime") < pl.col(event))
        assert early.is_empty(), name


def test_stays_follow_each_other_in_time(tables: dict[str, pl.DataFrame]) -> None:
    admissions = tables["hosp/admissions"]
    assert (admissions["dischtime"] > admissions["admittime"]).all()
    died = admissions.filter(pl.col("hospital_expire_flag") == "1")
    by_date = died.filter(pl.col("dischtime") < pl.col("deathtime"))
    assert 0 < len(by_date) < len(died) and (died["dischtime"] <= died["deathtime"]).all()
    assert by_date["dischtime"].str.ends_with("00:00:00").all()
    assert admissions.filter(pl.col("hospital_expire_flag") == "0")["deathtime"].is_null().all()
    ordered = admissions.sort("subject_id", "admittime")
    after = ordered.with_columns(next=pl.col("admittime").shift(-1).over("subject_id"))
    assert (after["next"].drop_nulls() > after.drop_nulls("next")["dischtime"]).all()
    dates = died.join(tables["hosp/patients"], on="subject_id")
    assert (dates["dod"] == dates["deathtime"].str.slice(0, 10)).all()
    assert len(died) == died["subject_id"].n_unique()
    icu = tables["icu/icustays"].join(admissions.drop("subject_id"), on="hadm_id")
    end = pl.max_horizontal("dischtime", pl.col("deathtime").fill_null(""))
    assert (
        icu.select((pl.col("intime") >= pl.col("admittime")) & (pl.col("outtime") <= end))
        .to_series()
        .all()
    )
    emergency = tables["ed/edstays"].join(admissions.drop("subject_id"), on="hadm_id")
    hour_later = emergency["intime"].str.to_datetime() + pl.duration(hours=1)
    assert (emergency.select(pl.col("admittime").str.to_datetime() > hour_later)).to_series().all()


def test_what_real_records_are_like(tables: dict[str, pl.DataFrame]) -> None:
    rows = sum(
        len(frame)
        for name, frame in tables.items()
        if not name.startswith("maps/") and not any(part in name for part in _NOT_ROWS)
    )
    assert rows / len(tables["hosp/admissions"]) >= 300
    assert set(tables["hosp/diagnoses_icd"]["icd_version"]) == {"9", "10"}
    for name in ("hosp/labevents", "hosp/microbiologyevents", "hosp/emar", "hosp/poe"):
        share = tables[name]["hadm_id"].is_null().mean()
        assert 0 < share < 0.5, (name, share)
    for name in ("hosp/omr", "hosp/procedures_icd"):
        assert tables[name]["chartdate"].str.contains(r"^\d{4}-\d\d-\d\d$").all()
    assert tables["hosp/microbiologyevents"]["charttime"].is_null().any()
    assert tables["hosp/labevents"]["storetime"].is_null().any()
    assert tables["ed/triage"]["temperature"].is_null().any()
    assert tables["maps/d_atc_prescriptions"]["ndc_code"].str.contains(r"^\d{11}$").all()
    words = tables["note/discharge"]["text"].str.split(" ").list.len()
    assert 50 <= words.mean() <= 200


def test_the_truth_is_kept(hospital: Path, tables: dict[str, pl.DataFrame]) -> None:
    truth = pl.read_parquet(hospital / "synthetic" / "truth.parquet")
    assert set(truth["hadm_id"].drop_nulls().cast(pl.String)) == set(
        tables["hosp/admissions"]["hadm_id"]
    )
    links = pl.read_parquet(hospital / "synthetic" / "links.parquet")
    written = set(tables["hosp/prescriptions"]["drug"])
    planted = links.filter(pl.col("table") == "hosp/prescriptions")["sign"]
    assert len(set(planted) - written) <= 2


def test_no_sign_decides_and_models_learn(tmp_path: Path) -> None:
    """Prints the table of `docs/synthetic.md`: run with -s to see it."""
    write_hospital(tmp_path / "hospital", 1500, 0, progress=False)
    table = calibrate(tmp_path / "hospital", folds=2)
    with pl.Config(tbl_rows=20, tbl_cols=12, float_precision=3, tbl_width_chars=150):
        print(table)
    assert len(table) == 18
    assert set(table["task"]) == {key for key, task in TASKS.items() if task.kind == "risk"}
    assert table["yes"].is_between(0.03, 0.40).all()
    assert table.select(pl.max_horizontal("item", "flag", "count").max()).item() < 0.75
    assert 0.80 <= table["boosting"].mean() <= 0.92
    assert table["boosting"].min() >= 0.72
    assert table["hidden"].min() >= 0.88
    assert table["hidden"].mean() >= 0.90


def test_the_register_knows_some_things_afterwards(tables: dict[str, pl.DataFrame]) -> None:
    """As in MIMIC-IV beds are left behind the discharge, orders are dated back, and stays under
    observation become inpatient stays by an order of their own."""
    admissions, moves = tables["hosp/admissions"], tables["hosp/transfers"]
    gone = moves.filter(pl.col("eventtype") == "discharge").join(admissions, on="hadm_id")
    assert len(gone) == len(admissions) and (gone["intime"] > gone["dischtime"]).all()
    orders = tables["hosp/pharmacy"]
    assert 0.02 < (orders["entertime"] > orders["starttime"]).mean() < 0.2
    stays = admissions.select("hadm_id", "admission_type")
    orders = tables["hosp/poe"].select("poe_id", "hadm_id").join(stays, on="hadm_id")
    counts = tables["hosp/poe_detail"].join(orders, on="poe_id")
    there = set(counts.select("admission_type", "field_value").iter_rows())
    assert ("OBSERVATION ADMIT", "Place in observation") in there
    assert ("OBSERVATION ADMIT", "Admit to inpatient") in there
    assert ("EU OBSERVATION", "Admit to inpatient") not in there
