"""Reading MIMIC-IV's files: formats, bad input, nothing lost, one order, Markdown."""

import gzip
import random
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from omegaconf import OmegaConf
from polars.testing import assert_frame_equal

from ehrr1.config.schema import Config, check
from ehrr1.errors import UserError
from ehrr1.records.codes import ClassMaps
from ehrr1.records.events import Event
from ehrr1.records.markdown import record_markdown
from ehrr1.records.mimic import needed_columns
from ehrr1.records.release.layout import MAPS
from ehrr1.records.schema import MIMIC_TABLES, TABLES
from ehrr1.runs import Run
from ehrr1.stages import prepare
from ehrr1.synthetic.hospital import write_hospital
from ehrr1.tasks.samples import Prepared
from tests.metrics_page import not_on_the_page
from tests.settings import composed

Metrics = dict[str, float | int]


@pytest.fixture(scope="session")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small synthetic hospital. Read only: `copied` makes one to change."""
    root = tmp_path_factory.mktemp("hospital") / "hospital"
    write_hospital(root, 40, 3, progress=False)
    return root


def configured(root: Path, name: str = "mimic", **settings: Any) -> Config:
    """The configuration of `stage=prepare` on `root`, with the maps that lie there."""
    maps = {
        kind: str(path)
        for kind, file in MAPS.items()
        if (path := root / "maps" / f"{file}.csv").exists()
    }
    data = OmegaConf.merge({"root": str(root), "maps": maps}, settings)
    cfg = composed(f"data={name}", "experiment=demo", data=data)
    check(cfg)
    return cfg


def prepared(root: Path, folder: Path, **settings: Any) -> tuple[Prepared, Metrics]:
    """`stage=prepare` on `root`, in this process."""
    folder.mkdir(parents=True, exist_ok=True)
    metrics = prepare.run(configured(root, **settings), Run(folder, "prepare"))
    assert not not_on_the_page("prepare", metrics)
    return Prepared(folder), metrics


def read_text(path: Path) -> pl.DataFrame:
    return pl.read_csv(path, infer_schema_length=0)


def copied(root: Path, target: Path, change: Callable[[str, pl.DataFrame], pl.DataFrame]) -> Path:
    """A copy of all tables below `root`, each passed through `change(module/name, rows)`."""
    for path in sorted(root.glob("*/*.csv*")):
        name = f"{path.parent.name}/{path.name.split('.')[0]}"
        text = change(name, read_text(path)).write_csv().encode()
        out = target / path.parent.name / path.name
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(gzip.compress(text, 1) if path.suffix == ".gz" else text)
    return target


def write_tables(root: Path, tables: dict[str, Sequence[dict[str, object]]]) -> Path:
    """A hand-made hospital: `module/name` -> rows; columns that are not given are empty."""
    for name, rows in tables.items():
        module, table = name.split("/")
        columns = list(rows[0]) if table.startswith(("d_", "radiology_", "poe_")) else []
        if table in TABLES:
            columns = needed_columns(TABLES[table])
        frame = pl.DataFrame(
            [[None if row.get(c) is None else str(row[c]) for c in columns] for row in rows],
            schema=dict.fromkeys(columns, pl.String),
            orient="row",
        )
        path = root / module / f"{table}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        frame.write_csv(path)
    return root


def store_rows(folder: Path) -> pl.DataFrame:
    """All rows of a prepared folder's store, with their names in place of codes."""
    parts = []
    for shard in sorted((folder / "store").glob("0*")):
        names = pl.read_ipc(shard / "names.arrow")["name"]
        code = pl.col("item", "class")
        named = pl.read_ipc(shard / "rows.arrow").with_columns(
            pl.when(code >= 0).then(code).replace_strict(range(len(names)), names, default=None)
        )
        parts.append(named)
    return pl.concat(parts)


def same_records(one: Path, other: Path) -> None:
    assert_frame_equal(store_rows(one), store_rows(other))
    assert_frame_equal(*(pl.read_parquet(folder / "names.parquet") for folder in (one, other)))
    indices = (pl.read_parquet(folder / "index.parquet") for folder in (one, other))
    assert_frame_equal(*indices)


def test_every_row_is_kept_or_reported(hospital: Path, tmp_path: Path) -> None:
    _, metrics = prepared(hospital, tmp_path)
    assert metrics["subjects"] == 40
    for name, table in ((name, TABLES[name]) for name in MIMIC_TABLES):
        height = read_text(hospital / table.module / f"{name}.csv.gz").height
        assert metrics[f"rows/{name}"] == height > 0, name
        kept_and_reported = metrics[f"rows_kept/{name}"] + metrics[f"rows_reported/{name}"]
        assert kept_and_reported == height, name
    assert store_rows(tmp_path).height == sum(
        int(metrics[f"rows_kept/{name}"]) for name in MIMIC_TABLES if name != "patients"
    )


def test_unusable_rows_are_reported_with_their_reason(hospital: Path, tmp_path: Path) -> None:
    def damage(name: str, frame: pl.DataFrame) -> pl.DataFrame:
        row = pl.int_range(pl.len())
        if name == "hosp/labevents":
            return frame.with_columns(
                pl.when(row == 0).then(None).otherwise("subject_id").alias("subject_id"),
                pl.when(row == 1).then(pl.lit("soon")).otherwise("charttime").alias("charttime"),
                pl.when(row == 2).then(pl.lit("7x")).otherwise("hadm_id").alias("hadm_id"),
                pl.when(row == 4).then(pl.lit("high")).otherwise("valuenum").alias("valuenum"),
            ).with_columns(
                pl.when(row == 3).then(pl.lit("99")).otherwise("subject_id").alias("subject_id")
            )
        return pl.concat([frame, frame.head(1)]) if name == "icu/icustays" else frame

    root = copied(hospital, tmp_path / "hospital", damage)
    _, metrics = prepared(root, tmp_path / "run")
    assert metrics["rows_reported/labevents"] == 4
    assert metrics["rows_reported/icustays"] == 1
    for name in MIMIC_TABLES:
        kept = metrics[f"rows_kept/{name}"] + metrics[f"rows_reported/{name}"]
        assert kept == metrics[f"rows/{name}"], name
    reported = OmegaConf.load(tmp_path / "run" / "reported.json")
    assert reported.labevents == {
        "no_subject_id": 1,
        "no_time": 1,
        "bad_id": 1,
        "unknown_subject": 1,
    }
    assert reported.icustays == {"repeated_id": 1}
    values = store_rows(tmp_path / "run")["values"]
    assert values.str.contains("\x1fhigh\x1f", literal=True).any()


def test_the_order_of_rows_in_the_files_changes_nothing(hospital: Path, tmp_path: Path) -> None:
    prepared(hospital, tmp_path / "one")
    shuffled = copied(
        hospital,
        tmp_path / "hospital",
        lambda _, frame: frame.sample(fraction=1, shuffle=True, seed=5),
    )
    prepared(shuffled, tmp_path / "other")
    same_records(tmp_path / "one", tmp_path / "other")


def typed_parquet(frame: pl.DataFrame) -> pl.DataFrame:
    """As a user's converter would have it: numbers and times by their looks, ids as floats."""
    columns = []
    for column in frame.get_columns():
        filled = column.drop_nulls()
        numbers = filled.cast(pl.Float64, strict=False)
        if column.name.endswith("time"):
            column = column.str.to_datetime("%Y-%m-%d %H:%M:%S")
        elif column.name in ("icd_code", "ndc", "gsn", "result_value", "comments"):
            pass
        elif (
            len(filled) and not numbers.null_count() and (filled == filled.str.strip_chars()).all()
        ):
            column = column.cast(pl.Float64)
        columns.append(column)
    return pl.DataFrame(columns)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_all_formats_give_the_same_store(hospital: Path, tmp_path: Path, suffix: str) -> None:
    small = copied(hospital, tmp_path / "gz", lambda name, frame: frame)
    other = tmp_path / "other"
    for path in small.glob("*/*.csv.gz"):
        module = other / path.parent.name.upper()
        module.mkdir(parents=True, exist_ok=True)
        frame = read_text(path)
        if suffix == ".csv":
            frame.write_csv(module / path.name.removesuffix(".gz"))
        else:
            typed_parquet(frame).write_parquet(module / path.name.replace(".csv.gz", suffix))
    maps = configured(hospital).data.maps.plain()
    prepared(small, tmp_path / "one", maps=maps)
    prepared(other, tmp_path / "two", maps=maps)
    same_records(tmp_path / "one", tmp_path / "two")


def drop(path: Path, column: str) -> None:
    path.write_bytes(gzip.compress(read_text(path).drop(column).write_csv().encode()))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path, keep: int) -> None:
    lines = gzip.decompress(path.read_bytes()).splitlines(keepends=True)[:keep]
    path.write_bytes(gzip.compress(b"".join(lines)))


def replace(path: Path, column: str, value: str) -> None:
    frame = read_text(path).with_columns(pl.lit(value).alias(column))
    path.write_bytes(gzip.compress(frame.write_csv().encode()))


BAD_INPUT: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "table": (lambda r: (r / "hosp/admissions.csv.gz").unlink(), ("hosp/admissions", "missing")),
    "dictionary": (lambda r: (r / "icu/d_items.csv.gz").unlink(), ("icu/d_items", "missing")),
    "column": (
        lambda r: drop(r / "hosp/labevents.csv.gz", "storetime"),
        ("labevents", "storetime"),
    ),
    "truncated": (lambda r: truncate(r / "icu/chartevents.csv.gz"), ("chartevents", "fetch")),
    "no gzip": (lambda r: (r / "ed/triage.csv.gz").write_bytes(b"a,b\n"), ("triage", "gzip")),
    "no header": (lambda r: empty(r / "hosp/poe.csv.gz", 0), ("poe", "empty")),
    "no rows": (lambda r: empty(r / "hosp/patients.csv.gz", 1), ("patients", "no rows")),
    "ids": (lambda r: replace(r / "hosp/emar.csv.gz", "subject_id", "x"), ("emar", "subject_id")),
    "encoding": (
        lambda r: (r / "hosp/services.csv.gz").write_bytes(
            gzip.compress(
                "subject_id,hadm_id,transfertime,curr_service\n1,2,3,é\n".encode("utf-16")
            )
        ),
        ("services", "fetch"),
    ),
    "quote": (
        lambda r: (r / "hosp/services.csv.gz").write_bytes(
            gzip.compress(b'subject_id,hadm_id,transfertime,curr_service\n1,2,3,"Smith\n1,2,3,4\n')
        ),
        ("services", "fetch"),
    ),
    "twice": (
        lambda r: (r / "hosp/services.csv.gz").write_bytes(
            gzip.compress(b"subject_id,hadm_id,hadm_id,transfertime,curr_service\n1,2,2,3,4\n")
        ),
        ("services", "hadm_id", "more than once"),
    ),
}


@pytest.mark.parametrize("kind", BAD_INPUT)
def test_bad_input_is_one_line_and_leaves_nothing(
    hospital: Path, tmp_path: Path, kind: str
) -> None:
    damage, words = BAD_INPUT[kind]
    root = tmp_path / "hospital"
    for path in hospital.glob("*/*.csv.gz"):
        out = root / path.parent.name / path.name
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(path.read_bytes())
    damage(root)
    with pytest.raises(UserError) as caught:
        prepared(root, tmp_path / "run")
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message
    assert "Smith" not in message  # no patient text in messages
    assert list((tmp_path / "run").iterdir()) == []


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.root=.*no such folder"):
        prepared(tmp_path / "nowhere", tmp_path / "run")


def test_wrong_settings_are_reported_together(tmp_path: Path) -> None:
    settings = {"window_hours": 0, "split": {"validation": 0.5, "test": 6}}
    with pytest.raises(UserError, match=r"data.window_hours=0: .*data.split.test=6: .*<= 1"):
        prepared(tmp_path, tmp_path / "run", **settings)
    with pytest.raises(UserError, match=r"data.split=.*nothing is left to train on"):
        prepared(tmp_path, tmp_path / "run", split={"validation": 0.5, "test": 0.6})
    with pytest.raises(UserError, match=r"data.tasks: sepsis is no task"):
        prepared(tmp_path, tmp_path / "run", tasks=["sepsis"])
    with pytest.raises(UserError, match=r"data.suite=all"):
        prepared(tmp_path, tmp_path / "run", suite="all")


def test_missing_modules_and_maps_are_reported(hospital: Path, tmp_path: Path) -> None:
    (tmp_path / "hospital").mkdir()
    (tmp_path / "hospital" / "hosp").symlink_to(hospital / "hosp")
    _, metrics = prepared(tmp_path / "hospital", tmp_path / "run")
    assert metrics["missing_tables/chartevents"] == 1
    assert metrics["missing_maps/atc"] == 1
    assert metrics["samples/labevents"] > 0 and metrics["samples/Inpatient_Mortality"] > 0
    gone = ("ED_Hospitalization", "ICU_Stay_7day", "prescriptions_atc", "procedures_ccs", "pyxis")
    assert [metrics[f"samples/{task}"] for task in gone] == [0] * len(gone)


def test_classes_of_both_code_versions_and_of_float_codes(tmp_path: Path) -> None:
    codes = pl.DataFrame(
        {"icd_code": ["4019", "I10", "E78.00", "nonsense"], "icd_version": ["9", "10", "10", "9"]}
    )
    assert ClassMaps({}).classes("ccs_diagnoses", codes).to_list() == [
        "Essential hypertension",
        "Essential hypertension",
        "Disorders of lipid metabolism",
        None,
    ]
    assert ClassMaps({}, ccsr=True).classes("ccs_diagnoses", codes).to_list() == [
        "CIR007",
        "CIR007",
        "END010",
        None,
    ]
    (tmp_path / "atc.csv").write_text("ndc_code,atc_name\n2821501.0,INSULINS\n")
    drugs = pl.DataFrame({"ndc": ["00002821501", "2821501.0", "0", None]})
    classes = ClassMaps({"atc": tmp_path / "atc.csv"}).classes("atc", drugs)
    assert classes.to_list() == ["INSULINS", "INSULINS", None, None]


def test_one_patient_is_read_without_the_others(hospital: Path, tmp_path: Path) -> None:
    built = prepared(hospital, tmp_path, patients_per_shard=15)[0].store
    rows = store_rows(tmp_path)
    for subject in random.Random(0).sample(sorted(set(rows["subject_id"])), 5):
        shard, patient = built.find(subject)
        own = pl.read_ipc(shard.folder / "rows.arrow")[patient.first : patient.last]
        assert set(own["subject_id"]) <= {subject}
        assert own.height == rows.filter(subject_id=subject).height
        assert own["event_time"].is_sorted()
        assert (own["available_time"] >= own["event_time"]).all()


def test_markdown_is_ehr_r1s() -> None:
    time = datetime(2180, 7, 23, 14)
    events = [
        Event("patients", None, None, (("52", "F"),), ("",)),
        Event("icustays", time, time, ((),), ("",)),
        Event("pyxis", time, time, (("Aspirin",), ("Heparin",)), ("Aspirin", "Heparin")),
        Event("radiology", time, time, (("RR", "CHEST", "One.\n\nTwo."),), ("CHEST",)),
        Event("radiology", time, time, (("RR", "CHEST", "a\nb"), ("RR", "", "c|d")), ("", "")),
    ]
    assert record_markdown(events).split("\n\n## ") == [
        "## Patient Demographics [None]\n- Anchor_Age: 52\n- Gender: F",
        "ICUstays [2180-07-23 14:00:00]",
        "Pyxis [2180-07-23 14:00:00]\n| Name |\n| ------ |\n| Aspirin |\n| Heparin |",
        "Radiology Examinations [2180-07-23 14:00:00]\n- Note_Type: RR\n- Exam_Name: CHEST\n"
        "- Text: One.\n\nTwo.",
        "Radiology Examinations [2180-07-23 14:00:00]\n| Note_Type | Exam_Name | Text |\n"
        "| ------ | ------ | ------ |\n| RR | CHEST | a b |\n| RR |  | c\\|d |",
    ]
