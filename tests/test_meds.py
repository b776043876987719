"""MEDS out: the standard's schemas, nothing lost, nothing told early. MEDS in: nothing changed."""

import json
import shutil
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from polars.testing import assert_frame_equal

from ehrr1.errors import UserError
from ehrr1.files import write_json
from ehrr1.records.cells import SEPARATOR
from ehrr1.records.decode import store_frames
from ehrr1.records.markdown import record_markdown
from ehrr1.records.meds import layout
from ehrr1.records.schema import MIMIC_TABLES, ORDER
from ehrr1.runs import Run
from ehrr1.stages import export, export_meds
from ehrr1.tasks.catalog import TASKS
from ehrr1.tasks.samples import Prepared
from tests.metrics_page import not_on_the_page
from tests.settings import composed
from tests.test_records import hospital, prepared, same_records

__all__ = ["hospital"]  # a fixture

STANDARD = {
    "data": {
        "subject_id": pa.int64(),
        "time": pa.timestamp("us"),
        "code": pa.string(),
        "numeric_value": pa.float32(),
        "text_value": pa.large_string(),
    },
    "codes": {
        "code": pa.string(),
        "description": pa.string(),
        "parent_codes": pa.list_(pa.string()),
    },
    "splits": {"subject_id": pa.int64(), "split": pa.string()},
    "risk": {
        "subject_id": pa.int64(),
        "prediction_time": pa.timestamp("us"),
        "boolean_value": pa.bool_(),
    },
    "item": {
        "subject_id": pa.int64(),
        "prediction_time": pa.timestamp("us"),
        "categorical_value": pa.string(),
    },
}
"""The columns and types of MEDS 0.4."""


@pytest.fixture(scope="module")
def world(hospital: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    world, metrics = prepared(hospital, tmp_path_factory.mktemp("prepare"))
    write_json(world.folder / "metrics.json", metrics)
    return world


@pytest.fixture(scope="module")
def exported(world: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export in many small files."""
    out = tmp_path_factory.mktemp("export")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_meds, "ROWS_AT_ONCE", 5_000)
        metrics = export.write(
            composed("export.layout=meds"), Run(out, "export", {"prepare": world.folder})
        )
    assert not not_on_the_page("export", metrics)
    events = pl.read_parquet(out / "meds" / "data" / "**" / "*.parquet")
    assert metrics["rows"] == events.height and metrics["subjects"] == 40
    assert metrics["files"] == len(list(out.glob("meds/data/*/*.parquet"))) > 6
    return out / "meds"


def columns(path: Path) -> dict[str, Any]:
    return {field.name: field.type for field in pq.read_schema(path)}


def test_files_have_the_types_of_the_standard(exported: Path) -> None:
    for path in exported.glob("data/*/*.parquet"):
        assert list(columns(path).items())[:5] == list(STANDARD["data"].items())
    assert columns(exported / "metadata" / "codes.parquet") == STANDARD["codes"]
    assert columns(exported / "metadata" / "subject_splits.parquet") == STANDARD["splits"]
    for path in exported.glob("task_labels/*/*.parquet"):
        kind = "risk" if TASKS[path.parent.name].kind == "risk" else "item"
        assert columns(path) == STANDARD[kind]
    about = json.loads((exported / "metadata" / "dataset.json").read_text())
    assert set(about["raw_source_id_columns"] + about["other_extension_columns"]) == set(
        layout.EXTRA.names
    )


def test_the_packages_own_schemas_agree(exported: Path) -> None:
    package = pytest.importorskip("meds", reason="the package meds is not installed")
    for path in exported.glob("data/*/*.parquet"):
        package.DataSchema.validate(pq.read_table(path))
    for path in exported.glob("task_labels/*/*.parquet"):
        package.LabelSchema.validate(pq.read_table(path))
    metadata = exported / "metadata"
    package.CodeMetadataSchema.validate(pq.read_table(metadata / "codes.parquet"))
    package.SubjectSplitSchema.validate(pq.read_table(metadata / "subject_splits.parquet"))
    about = json.loads((metadata / "dataset.json").read_text())
    package.DatasetMetadataSchema.validate(about)


def test_a_subject_stands_in_one_file_by_time_and_split(exported: Path, world: Prepared) -> None:
    splits = dict(world.splits.iter_rows())
    seen: set[int] = set()
    for path in exported.glob("data/*/*.parquet"):
        events = pl.read_parquet(path)
        subjects = events["subject_id"].rle().struct.field("value").to_list()
        assert len(set(subjects)) == len(subjects) and not seen & set(subjects)
        seen |= set(subjects)
        assert {layout.SPLITS[splits[subject]] for subject in subjects} == {path.parent.name}
        assert_frame_equal(
            events.select("subject_id", "time"),
            events.select("subject_id", "time").sort("subject_id", "time", nulls_last=False),
        )
    assert seen == splits.keys()


def test_every_row_of_the_store_is_there_once(exported: Path, world: Prepared) -> None:
    events = pl.read_parquet(exported / "data" / "**" / "*.parquet")
    rows = events.filter(pl.col("order").is_not_null()).sort("subject_id", "order")
    numbers = {name: number for number, name in enumerate(ORDER)}
    back = rows.select(
        *("subject_id", "hadm_id", "stay_id"),
        pl.col("table").replace_strict(numbers, return_dtype=pl.UInt8),
        pl.col("time").alias("event_time"),
        *("available_time", "late_time", "item", "class", "order"),
        pl.col("values").list.join(SEPARATOR),
    )
    assert_frame_equal(back, pl.concat(store_frames(world.store)))


def test_values_are_those_shown_and_none_of_the_future(exported: Path) -> None:
    events = pl.read_parquet(exported / "data" / "**" / "*.parquet")
    labs = events.filter(pl.col("table") == "labevents", pl.col("numeric_value").is_not_null())
    for row in labs.head(200).iter_rows(named=True):
        item, value, unit = row["values"][:3]
        parts = ["labevents", item, *([unit] if unit else [])]
        assert row["code"] == "//".join(parts) and row["item"] == item
        assert row["numeric_value"] == pytest.approx(float(value), rel=1e-6)
    late = events.filter(pl.col("table").is_in(["inputevents", "procedureevents"]))
    assert late["values"].list.get(1).replace("", None).drop_nulls().len() > 0
    assert not late["text_value"].drop_nulls().str.contains("Amount|Value").any()
    durations = late.filter(pl.col("table") == "procedureevents")
    assert durations["numeric_value"].null_count() == durations.height
    notes = events.filter(pl.col("table") == "discharge")
    assert (notes["text_value"].str.len_chars() > 100).all()
    signs = events.filter(pl.col("code") == "vitalsign//Heartrate")
    assert signs.height > 0 and signs["order"].null_count() == signs.height
    codes = set(pl.read_parquet(exported / "metadata" / "codes.parquet")["code"])
    assert codes == set(events["code"])


def test_subjects_are_born_die_and_leave(exported: Path, world: Prepared) -> None:
    events = pl.read_parquet(exported / "data" / "**" / "*.parquet")
    births = events.filter(pl.col("code") == layout.BIRTH)
    assert births.height == 40
    age = world.parents["patients"].select("subject_id", "anchor_age", "anchor_year")
    for subject, years, year in age.iter_rows():
        born = births.filter(pl.col("subject_id") == subject)["time"].item()
        assert born == datetime(int(year) - int(years), 1, 1)
    assert events.filter(pl.col("code") == "admissions//end_of_stay").height == 65
    assert events.filter(pl.col("time").is_null())["code"].str.starts_with("GENDER//").all()


def test_labels_are_the_samples(exported: Path, world: Prepared) -> None:
    for task in ("ICU_Mortality_7day", "ED_Hospitalization", "transfers"):
        labels = pl.read_parquet(exported / "task_labels" / task / "*.parquet")
        samples = world.samples(tasks=[task])
        assert labels["subject_id"].to_list() == [sample.subject_id for sample in samples]
        before = timedelta(microseconds=0 if TASKS[task].kind == "risk" else 1)
        times = [sample.prediction_time - before for sample in samples]
        assert labels["prediction_time"].to_list() == times
        answers = labels[:, 2].to_list()
        said = ["yes" if a is True else "no" if a is False else a for a in answers]
        assert said == [sample.target[0] for sample in samples]
    assert not (exported / "task_labels" / "labevents").exists()


# --- in ----------------------------------------------------------------------------------------


def test_our_export_comes_back_as_it_was(exported: Path, world: Prepared, tmp_path: Path) -> None:
    back, metrics = prepared(exported, tmp_path, name="meds", split={"validation": 0, "test": 0.5})
    same_records(world.folder, back.folder)
    assert back.samples() == world.samples()
    for sample in back.samples()[::500]:
        assert back.context(sample) == world.context(sample)
    was = json.loads((world.folder / "metrics.json").read_text())
    for name in MIMIC_TABLES:
        assert metrics[f"rows_kept/{name}"] == metrics[f"rows/{name}"] == was[f"rows/{name}"]


def test_shards_of_meds_change_nothing(exported: Path, world: Prepared, tmp_path: Path) -> None:
    back, _ = prepared(exported, tmp_path, name="meds", patients_per_shard=7)
    assert len(back.store.shards) == 6
    assert back.samples() == world.samples()


T = datetime(2150, 1, 1, 12)
EVENTS = [
    (1, None, "GENDER//F", None, None, None),
    (1, datetime(2090, 5, 5), "MEDS_BIRTH", None, None, None),
    (1, T - timedelta(hours=2), "LAB//50912//mg/dL", 1.25, None, 22),
    (1, T - timedelta(hours=1), "NOTE", None, "calm |\nawake", 22),
    (1, T, "LAB//50912//mg/dL", 2.0, None, 22),
    (1, T + timedelta(hours=1), "MEDS_DEATH", None, None, None),
    (2, T - timedelta(days=3), "LAB//1", 7.0, None, None),
    (2, None, "RACE//X", None, None, None),
    (2, T, "", None, None, None),
]


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A small MEDS dataset as another tool would write it."""
    root = tmp_path / "foreign"
    names = ["subject_id", "time", "code", "numeric_value", "text_value", "hadm_id"]
    types = [pl.Int64, pl.Datetime("us"), pl.String, pl.Float32, pl.String, pl.Int64]
    events = pl.DataFrame(EVENTS, dict(zip(names, types, strict=True)), orient="row")
    write_parquet(events.filter(pl.col("subject_id") == 1), root / "data" / "train" / "0.parquet")
    write_parquet(
        events.filter(pl.col("subject_id") == 2), root / "data" / "held_out" / "0.parquet"
    )
    codes = pl.DataFrame({"code": ["LAB//50912//mg/dL", "NOTE"], "description": ["Creatinine", ""]})
    write_parquet(codes, root / "metadata" / "codes.parquet")
    splits = pl.DataFrame({"subject_id": [1, 2], "split": ["train", "held_out"]})
    write_parquet(splits, root / "metadata" / "subject_splits.parquet")
    labels = pl.DataFrame({"subject_id": [1, 2, 9], "prediction_time": [T, T, T]})
    labels = labels.with_columns(pl.Series("boolean_value", [True, False, True]))
    write_parquet(labels, root / "task_labels" / "ICU_Mortality_7day" / "0.parquet")
    write_parquet(labels, root / "task_labels" / "their_own.parquet")
    return root


def write_parquet(frame: pl.DataFrame, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.write_parquet(path)


def test_others_meds_is_one_table_with_their_labels(foreign: Path, tmp_path: Path) -> None:
    world, metrics = prepared(foreign, tmp_path / "prepare", name="meds")
    assert metrics["rows/meds"] == 9 and metrics["rows_kept/meds"] == 5
    reported = json.loads((tmp_path / "prepare" / "reported.json").read_text())["meds"]
    assert reported == {"age_and_sex": 2, "no_time": 1, "no_code": 1}
    (sample,) = world.samples()  # of the other patient nothing is known in the window
    assert metrics["excluded/ICU_Mortality_7day/no_context"] == 1
    assert sample.split == "train" and sample.target == ("yes",) and sample.inclusive
    assert record_markdown(world.context(sample)) == (
        "## Patient Demographics [None]\n- Anchor_Age: 60\n- Gender: F\n\n"
        "## Medical Events [2150-01-01 10:00:00]\n- Item: Creatinine\n- Value: 1.25\n\n"
        "## Medical Events [2150-01-01 11:00:00]\n- Item: NOTE\n- Value: calm | awake\n\n"
        "## Medical Events [2150-01-01 12:00:00]\n- Item: Creatinine\n- Value: 2"
    )


def test_wrong_folders_are_named(foreign: Path, tmp_path: Path) -> None:
    def refused(match: str) -> None:
        with pytest.raises(UserError, match=match):
            prepared(foreign, tmp_path / "prepare", name="meds")

    labels = foreign / "task_labels" / "ICU_Mortality_7day" / "0.parquet"
    whole = pl.read_parquet(labels)
    write_parquet(whole.drop("boolean_value"), labels)
    refused("lacks boolean_value")
    write_parquet(whole, labels)
    splits = foreign / "metadata" / "subject_splits.parquet"
    write_parquet(pl.DataFrame({"subject_id": [1], "split": ["dev"]}), splits)
    refused(r"unknown: dev; patients without one: 1")
    splits.unlink()
    data = foreign / "data" / "train" / "0.parquet"
    write_parquet(pl.read_parquet(data).drop("code"), data)
    refused("lacks the column code")
    data.write_bytes(b"no parquet")
    refused("cannot be read")
    shutil.rmtree(foreign / "data")
    refused(r"no data/\*\*/\*.parquet")
