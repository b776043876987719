"""MEDS that is not as the standard has it: one clock for all times, one split a patient, no rows
that go in silence, no files that are no data."""

import json
import shutil
from datetime import datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from ehrr1.errors import UserError
from ehrr1.records.markdown import record_markdown
from ehrr1.tasks.one_record import meds_events
from ehrr1.tasks.samples import Prepared
from tests.test_ehrshot import assets
from tests.test_ehrshot import meds as ehrshot_meds
from tests.test_ehrshot import prepared as ehrshot
from tests.test_meds import exported, foreign, world, write_parquet
from tests.test_records import hospital, prepared, same_records

__all__ = ["exported", "foreign", "hospital", "world"]  # fixtures

TEHRAN = "Asia/Tehran"


def zoned(path: Path, column: str, zone: str) -> None:
    """The same moments, told in `zone`."""
    time = pl.col(column).dt.replace_time_zone("UTC").dt.convert_time_zone(zone)
    write_parquet(pl.read_parquet(path).with_columns(time), path)


def data(root: Path) -> list[Path]:
    return sorted((root / "data").rglob("*.parquet"))


def label_file(root: Path) -> Path:
    return root / "task_labels" / "ICU_Mortality_7day" / "0.parquet"


def records(root: Path, run: Path) -> list[str]:
    world, _ = prepared(root, run, name="meds")
    samples = world.samples()
    assert samples
    return [
        f"{s.sample_id} {s.prediction_time} {record_markdown(world.context(s))}" for s in samples
    ]


@pytest.mark.parametrize("zones", [(TEHRAN, TEHRAN), (TEHRAN, "UTC"), ("UTC", None), (None, "UTC")])
def test_zoned_times_of_events_and_labels_are_utc(
    foreign: Path, tmp_path: Path, zones: tuple[str | None, str | None]
) -> None:
    naive = records(foreign, tmp_path / "naive")
    for file in data(foreign) if zones[0] else ():
        zoned(file, "time", zones[0] or "")
    if zones[1]:
        zoned(label_file(foreign), "prediction_time", zones[1])
    assert records(foreign, tmp_path / "zoned") == naive


def test_zoned_and_other_times_do_not_go_together(foreign: Path, tmp_path: Path) -> None:
    def refused() -> None:
        with pytest.raises(UserError, match=rf"times of the zone {TEHRAN}.*without a zone"):
            prepared(foreign, tmp_path / "prepare", name="meds")

    first, second = data(foreign)
    zoned(label_file(foreign), "prediction_time", TEHRAN)
    refused()
    zoned(first, "time", TEHRAN)
    refused()  # one file of events is not as the other
    zoned(second, "time", TEHRAN)
    assert records(foreign, tmp_path / "all")


def test_ehrshots_times_are_read_by_the_same_rule(tmp_path: Path) -> None:
    plain = ehrshot(assets(tmp_path / "a"), tmp_path / "plain")[0]
    root = ehrshot_meds(tmp_path / "b")
    labels = sorted((root / "labels").rglob("*.parquet"))
    for file in data(root):
        zoned(file, "time", TEHRAN)
    with pytest.raises(UserError, match="without a zone"):
        ehrshot(root, tmp_path / "mixed")
    for file in labels:
        zoned(file, "prediction_time", "America/New_York")
    told = ehrshot(root, tmp_path / "zoned")[0]
    assert told.index().equals(plain.index())
    for one, same in zip(plain.samples(), told.samples(), strict=True):
        assert plain.context(one) == told.context(same)


def test_fractions_of_a_second_are_cut_everywhere(foreign: Path, tmp_path: Path) -> None:
    plain = records(foreign, tmp_path / "plain")
    for file, column in [
        *((file, "time") for file in data(foreign)),
        (label_file(foreign), "prediction_time"),
    ]:
        later = pl.col(column) + pl.duration(milliseconds=250)
        write_parquet(pl.read_parquet(file).with_columns(later), file)
    assert records(foreign, tmp_path / "fractions") == plain
    labels = pl.read_parquet(label_file(foreign))
    twin = labels.with_columns(pl.col("prediction_time") + timedelta(milliseconds=300))
    write_parquet(pl.concat([labels, twin]), label_file(foreign))
    twins, metrics = prepared(foreign, tmp_path / "twins", name="meds")
    assert len(twins.samples()) == 1
    assert metrics["excluded/ICU_Mortality_7day/empty_or_repeated_label"] == 2


def test_patients_stand_in_one_split_and_have_a_name(foreign: Path, tmp_path: Path) -> None:
    def refused(match: str) -> None:
        with pytest.raises(UserError, match=match):
            prepared(foreign, tmp_path / "prepare", name="meds")

    splits = foreign / "metadata" / "subject_splits.parquet"
    whole = pl.read_parquet(splits)
    again = pl.DataFrame({"subject_id": [1, 1], "split": ["held_out", "held_out"]})
    write_parquet(pl.concat([whole, again]), splits)
    refused("1 patients are in two splits")
    nobody = pl.DataFrame({"subject_id": [None], "split": ["train"]}, schema=whole.schema)
    write_parquet(pl.concat([whole, nobody]), splits)
    refused("subject_splits.parquet: 1 rows have no subject_id")
    write_parquet(pl.concat([whole, whole]), splits)
    labels = pl.read_parquet(label_file(foreign))
    nameless = labels.with_columns(pl.lit(None, pl.Int64).alias("subject_id"))
    write_parquet(pl.concat([labels, nameless]), label_file(foreign))
    refused("0.parquet: 3 labels have no subject_id")


def test_helpers_are_no_data(foreign: Path, tmp_path: Path) -> None:
    plain = records(foreign, tmp_path / "plain")
    first = data(foreign)[0]
    for folder in (first.parent, label_file(foreign).parent):
        for name in ("._0.parquet", ".part-1.parquet", "_2.parquet"):
            (folder / name).write_bytes(b"no parquet")
        own = next(folder.glob("0.parquet"))
        for hidden in (".ipynb_checkpoints", "_temporary"):
            write_parquet(pl.read_parquet(own), folder / hidden / "0-checkpoint.parquet")
    assert records(foreign, tmp_path / "beside") == plain
    assert len(meds_events(foreign, 1, datetime.max.replace(year=2200), 1e6)) == 5
    shutil.rmtree(foreign / "data" / "train")
    shutil.rmtree(foreign / "data" / "held_out")
    (foreign / "data" / ".part-0.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match=r"no data/\*\*/\*.parquet"):
        prepared(foreign, tmp_path / "empty", name="meds")


# --- our own export, damaged ---------------------------------------------------------------------


@pytest.fixture
def own(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "own"))


def test_rows_of_ours_without_an_order_are_counted(own: Path, tmp_path: Path) -> None:
    file = data(own)[0]
    events = pl.read_parquet(file)
    lost = (pl.col("table") == "labevents") & pl.col("values").is_not_null()
    count = events.filter(lost).height
    assert count
    order = pl.when(lost).then(None).otherwise(pl.col("order"))
    for number, odd in enumerate((order, pl.when(lost).then(pl.lit("first")).otherwise(order))):
        write_parquet(events.with_columns(odd.alias("order")), file)
        folder = tmp_path / str(number)
        _, metrics = prepared(own, folder, name="meds")
        reported = json.loads((folder / "reported.json").read_text())
        assert reported["labevents"] == {"no_order": count}
        kept = metrics["rows_kept/labevents"]
        assert metrics["rows/labevents"] == kept + metrics["rows_reported/labevents"]


def test_an_order_as_text_is_as_good(own: Path, world: Prepared, tmp_path: Path) -> None:
    for file in data(own):
        order = pl.col("order").cast(pl.String)
        write_parquet(pl.read_parquet(file).with_columns(order), file)
    back, _ = prepared(own, tmp_path / "back", name="meds")
    same_records(world.folder, back.folder)


@pytest.mark.parametrize("column", ["order", "late_time", "values", "table"])
def test_a_file_that_lacks_a_column_of_ours_is_named(
    own: Path, tmp_path: Path, column: str
) -> None:
    file = data(own)[-1]
    write_parquet(pl.read_parquet(file).drop(column), file)
    with pytest.raises(
        UserError, match=rf"{file.name} lacks the column {column}, which our export"
    ):
        prepared(own, tmp_path / "prepare", name="meds")


def test_parents_without_a_patient_are_refused(own: Path, tmp_path: Path) -> None:
    file = own / "metadata" / "parents" / "admissions.parquet"
    parents = pl.read_parquet(file)
    nobody = parents.head(2).with_columns(pl.lit(None, pl.Int64).alias("subject_id"))
    write_parquet(pl.concat([parents, nobody]), file)
    with pytest.raises(UserError, match=r"admissions.parquet: 2 rows have no subject_id"):
        prepared(own, tmp_path / "prepare", name="meds")


def test_our_own_times_may_have_a_zone_too(own: Path, world: Prepared, tmp_path: Path) -> None:
    parents = sorted((own / "metadata" / "parents").glob("*.parquet"))
    for file in data(own):
        zoned(file, "time", TEHRAN)
    with pytest.raises(UserError, match="without a zone"):
        prepared(own, tmp_path / "mixed", name="meds")
    for file in (*data(own), *parents):
        schema = pl.read_parquet_schema(file)
        for column, kind in schema.items():
            if isinstance(kind, pl.Datetime) and kind.time_zone is None:
                zoned(file, column, TEHRAN)
    back, _ = prepared(own, tmp_path / "back", name="meds")
    same_records(world.folder, back.folder)
