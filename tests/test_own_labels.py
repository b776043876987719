"""Labels of the user's own, beside the other tasks: `data.own_labels`."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from ehrr1.config.together import conflicts
from ehrr1.errors import UserError
from ehrr1.prompts.wording import style_of
from ehrr1.stages.export_rows import event_of
from ehrr1.tasks.catalog import ALL_TASKS, OWN, TASKS
from ehrr1.tasks.label_files import read_label_file
from tests.settings import composed
from tests.test_records import hospital, prepared

__all__ = ["hospital"]  # a fixture

QUESTION = "Will it happen?"
ICU = "ICU_Mortality_7day"


@pytest.fixture(scope="module")
def plain(hospital: Path, tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    return prepared(hospital, tmp_path_factory.mktemp("plain"), tasks=[ICU])[0].index()


@pytest.fixture
def labels(plain: pl.DataFrame) -> pl.DataFrame:
    """A label an hour after each sample of the ICU, every third of them yes."""
    moments = plain.select("subject_id", pl.col("prediction_time") + timedelta(hours=1))
    answers = pl.int_range(pl.len()) % 3 == 0
    return moments.with_columns(answers.alias("boolean_value"))


def written(labels: pl.DataFrame, path: Path) -> dict[str, Any]:
    path.parent.mkdir(parents=True, exist_ok=True)
    labels.write_parquet(path)
    return {"own_labels": str(path), "own_question": QUESTION}


def test_other_tasks_are_as_without_them(
    hospital: Path, plain: pl.DataFrame, labels: pl.DataFrame, tmp_path: Path
) -> None:
    bad = labels.head(3).with_columns(pl.lit(None, pl.Boolean).alias("boolean_value"))
    empty = labels.head(1).with_columns(pl.lit(datetime(1900, 1, 1)).alias("prediction_time"))
    stranger = labels.head(1).with_columns(pl.lit(5, pl.Int64).alias("subject_id"))
    written(pl.concat([labels, stranger]), tmp_path / "labels" / "a.parquet")
    written(pl.concat([bad, empty]), tmp_path / "labels" / "deeper" / "b.parquet")
    own = {"own_labels": str(tmp_path / "labels"), "own_question": QUESTION}
    world, counts = prepared(hospital, tmp_path / "prepare", tasks=[ICU], **own)
    assert_frame_equal(world.index(tasks=[ICU]), plain)
    assert counts["samples/own"] == world.index(tasks=[OWN]).height == labels.height
    assert counts["positives/own"] == labels["boolean_value"].sum()
    assert counts["excluded/own/empty_or_repeated_label"] == 3
    assert counts["excluded/own/no_context"] == 1
    whole = world.index()
    assert_frame_equal(whole, whole.sort("subject_id", "prediction_time", "task", "sample_id"))
    assert world.own_tasks == (OWN,) and OWN not in TASKS and OWN in ALL_TASKS


@pytest.mark.parametrize("told", [False, True])
def test_its_question_is_asked_in_every_wording(
    hospital: Path, labels: pl.DataFrame, tmp_path: Path, told: bool
) -> None:
    own = written(labels, tmp_path / "labels.parquet")
    world, _ = prepared(hospital, tmp_path / "prepare", tasks=[OWN, ICU], tell_time=told, **own)
    samples = {sample.task: sample for sample in world.samples()}
    for name in ("file", "ours", "release"):
        asked = style_of(name, "adapt").own(samples[OWN])
        assert asked is not None and asked.endswith(f"{QUESTION} Answer yes or no.")
        assert asked.startswith("It is ") == told
    assert (samples[ICU].instruction is None) != told
    assert event_of(samples[OWN]) == "own"


def test_what_cannot_be_used_is_refused(
    hospital: Path, labels: pl.DataFrame, tmp_path: Path
) -> None:
    def refused(match: str, frame: pl.DataFrame) -> None:
        own = written(frame, tmp_path / "labels.parquet")
        with pytest.raises(UserError, match=match):
            prepared(hospital, tmp_path / "prepare", tasks=[OWN], **own)

    refused("lacks boolean_value", labels.drop("boolean_value"))
    refused("none of its .* labels", labels.with_columns(pl.lit(5).alias("subject_id")))
    zone = pl.col("prediction_time").dt.replace_time_zone("America/New_York")
    refused("America/New_York, and data.root has times without a zone", labels.with_columns(zone))
    with pytest.raises(UserError, match=r"data\.own_labels=.*there is no \.parquet file"):
        nowhere = {"own_labels": str(tmp_path / "none"), "own_question": QUESTION}
        prepared(hospital, tmp_path / "prepare", tasks=[OWN], **nowhere)
    with pytest.raises(UserError, match="own is no task"):
        prepared(hospital, tmp_path / "prepare", tasks=[OWN])


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["data.own_labels=a.parquet"], "go together; set both"),
        (["data.own_question=why"], "go together; set both"),
        (["data.own_labels=a", "data.own_question=b", "data.protocol=paper"], "strict"),
        (["data=release", "data.root=x", "data.own_labels=a", "data.own_question=b"], "release"),
    ],
)
def test_settings_that_contradict_are_refused(words: list[str], match: str) -> None:
    problems = conflicts(composed("experiment=demo", "stage=prepare", *words))
    assert any("own_labels" in problem and match in problem for problem in problems)


def test_utc_is_taken_as_the_time_of_the_records(
    hospital: Path, labels: pl.DataFrame, tmp_path: Path
) -> None:
    utc = labels.with_columns(pl.col("prediction_time").dt.replace_time_zone("UTC"))
    own = written(utc, tmp_path / "labels.parquet")
    world, _ = prepared(hospital, tmp_path / "prepare", tasks=[OWN], **own)
    assert set(world.index()["prediction_time"]) == set(labels["prediction_time"])


def test_a_flipped_byte_anywhere_in_a_file_of_labels_is_one_message(
    labels: pl.DataFrame, tmp_path: Path
) -> None:
    """Also where the reader panics, which is no `Exception`."""
    path, refused = tmp_path / "labels.parquet", 0
    written(labels.head(100), path)
    whole = path.read_bytes()
    for place in range(0, len(whole), 2):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x40]) + whole[place + 1 :])
        try:
            read_label_file(path)
        except UserError as error:
            refused += 1
            assert str(path) in str(error) and "\n" not in str(error)
    assert refused > 100
