"""Which samples prepare keeps: numbers, balance, chosen patients."""

import json
from collections import Counter
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from ehrr1.errors import UserError
from ehrr1.tasks.catalog import TASKS
from ehrr1.tasks.sampling import Limits, draw, read_limits, read_subjects
from tests.test_records import hospital, prepared

__all__ = ["hospital"]  # a fixture

ALL: dict[str, int | None] = dict.fromkeys(TASKS)


def an_index() -> pl.DataFrame:
    """200 samples a task and split: one in ten says yes; next_event has labels of 70, 25 and 5 %;
    an emar sample has two drugs, one of them always the same."""
    rows = []
    for split in ("train", "test"):
        for n in range(200):
            context = f"{split}{n // 2}"
            kind = 2 if n % 20 == 0 else 3 if n % 4 == 1 else 4
            for task, target in (
                ("ICU_Stay_7day", [int(n % 10 == 0)]),
                ("next_event", [kind]),
                ("emar", [5, 6 + n % 3 * (n % 2)]),
                ("labevents", [n % 7]),
            ):
                rows.append((f"{task}/{split}/{n}", task, split, context, target))
    return pl.DataFrame(
        rows, schema=["sample_id", "task", "split", "context_id", "target"], orient="row"
    )


INDEX = an_index()


def of(frame: pl.DataFrame, task: str, split: str = "train") -> pl.DataFrame:
    return frame.filter((pl.col("task") == task) & (pl.col("split") == split))


def test_numbers_hold_in_each_split_and_the_rest_is_counted() -> None:
    limits: Limits = {**ALL, "emar": 30, "labevents": 0}
    drawn = draw(INDEX, limits, "none", seed=0)
    counts = Counter(drawn.select("task", "split").iter_rows())
    for split in ("train", "test"):
        assert counts["emar", split] == 30 and counts["labevents", split] == 0
        assert counts["next_event", split] == 200
    assert not drawn["balanced"].any()
    assert_frame_equal(drawn, draw(INDEX, limits, "none", seed=0))
    assert not drawn.equals(draw(INDEX, limits, "none", seed=1))
    places = INDEX.with_row_index("place").join(drawn, on="sample_id", how="semi")
    assert places["sample_id"].to_list() == drawn["sample_id"].to_list()


def test_a_draw_keeps_contexts_together_and_is_part_of_a_larger_one() -> None:
    some = draw(INDEX, dict.fromkeys(TASKS, 20), "none", seed=0)
    contexts = [set(of(some, task)["context_id"]) for task in ("emar", "labevents", "next_event")]
    assert contexts[0] == contexts[1] == contexts[2] and len(contexts[0]) == 10
    more = draw(INDEX, dict.fromkeys(TASKS, 50), "none", seed=0)
    assert set(some["sample_id"]) < set(more["sample_id"])


def test_without_wishes_everything_stays() -> None:
    assert_frame_equal(draw(INDEX, ALL, "none", seed=0).drop("balanced"), INDEX)


@pytest.mark.parametrize("balance", ["weights", "force"])
def test_only_the_training_split_is_balanced(balance: str) -> None:
    limits = dict.fromkeys(TASKS, 40)
    plain, balanced = draw(INDEX, limits, "none", 0), draw(INDEX, limits, balance, 0)  # type: ignore[arg-type]
    for task in ("ICU_Stay_7day", "next_event", "emar", "labevents"):
        test = of(balanced, task, "test")
        assert_frame_equal(test, of(plain, task, "test"))
        assert not test["balanced"].any()
        assert of(balanced, task)["balanced"].all() == (task != "labevents")
    assert_frame_equal(of(plain, "labevents"), of(balanced, "labevents"))
    assert plain["sample_id"].to_list() != balanced["sample_id"].to_list()
    assert_frame_equal(balanced, draw(INDEX, limits, balance, 0))  # type: ignore[arg-type]


def labels(frame: pl.DataFrame, task: str) -> Counter[int]:
    return Counter(code for target in of(frame, task)["target"] for code in target)


def test_force_takes_equally_many_of_each_label() -> None:
    drawn = draw(INDEX, dict.fromkeys(TASKS, 36), "force", seed=0)
    assert labels(drawn, "ICU_Stay_7day") == {0: 18, 1: 18}
    # only ten samples have the rarest heading: it gives all, the others share what is left
    assert labels(drawn, "next_event") == {2: 10, 3: 13, 4: 13}
    emar = labels(drawn, "emar")
    assert emar[5] == 36 and {emar[6], emar[7], emar[8]} == {12}
    everything = draw(INDEX, ALL, "force", seed=0)
    assert labels(everything, "ICU_Stay_7day") == {0: 20, 1: 20}
    assert len(of(everything, "next_event")) == 200


def test_weights_are_one_over_the_mean_frequency_of_the_labels() -> None:
    """Draws of one: each sample's share of them is its weight's, over many seeds."""
    one = dict.fromkeys(TASKS, 1)
    rows = INDEX.filter((pl.col("split") == "train") & (pl.col("task") == "ICU_Stay_7day"))
    rows = rows.with_columns(pl.col("sample_id").alias("context_id"))
    yes = sum(labels(draw(rows, one, "weights", seed), "ICU_Stay_7day")[1] for seed in range(200))
    # 20 of weight 10 and 180 of weight 1/0.9: one half
    assert 70 < yes < 130
    many = draw(INDEX, dict.fromkeys(TASKS, 60), "weights", seed=0)
    assert 15 < labels(many, "ICU_Stay_7day")[1] <= 20
    assert len(of(many, "next_event")) == 60 and labels(many, "next_event")[2] >= 7


def test_files_of_numbers(tmp_path: Path) -> None:
    path = tmp_path / "numbers.json"
    path.write_text('{"emar": 7, "poe": -1}')
    limits = read_limits(path)
    assert limits["emar"] == 7 and limits["poe"] is limits["labevents"] is None
    for text, message in (
        ('{"labs": 7}', "labs is no task"),
        ('{"emar": -2}', "emar: -2 is no whole number"),
        ('{"emar": true}', "emar: True"),
        ('{"emar": 1.5}', "emar: 1.5"),
        ("[7]", "a JSON object"),
        ("{", "it is no JSON"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            read_limits(path)
    with pytest.raises(UserError, match=r"data\.sampling=.*cannot be read"):
        read_limits(tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "12\n7\n\n12\n"),
        ("a.txt", "subject_id\n7\n12"),
        ("a.csv", "subject_id,why\n7,a\n12,b\n"),
        ("a.csv", "why,Subject_ID\na,12\nb,7\n"),
        ("a.json", "[12, 7]"),
        ("a.json", '["7", 12]'),
    ],
)
def test_files_of_patients(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert read_subjects(tmp_path / name).to_list() == [7, 12]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "", "names no patient"),
        ("a.txt", "7\nx\n-3\n", "2 of 3 entries are no subject_id"),
        ("a.csv", "patient,why\n7,a\n", "several columns"),
        ("a.csv", "why,subject_id\na\n", "1 of 1 entries"),
        ("a.json", '{"subject_id": 7}', "a JSON list"),
        ("a.json", "[7, null]", "1 of 2 entries"),
        ("a.json", "7 12", "it is no JSON"),
    ],
)
def test_broken_files_of_patients(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=f"data.subjects_file=.*{message}"):
        read_subjects(tmp_path / name)


def test_prepare_samples_and_counts(hospital: Path, tmp_path: Path) -> None:
    world, whole = prepared(hospital, tmp_path / "whole")
    settings = {"force_task_num": 5, "balance": "force"}
    some, metrics = prepared(hospital, tmp_path / "some", **settings)
    for task in TASKS:
        kept = metrics[f"samples/{task}"]
        assert kept + metrics.get(f"sampled_out/{task}", 0) == whole[f"samples/{task}"]
        assert kept <= 15
    index = some.index("train", ["Inpatient_Mortality"])
    assert index["label"].sum() * 2 == index.height and index["balanced"].all()
    yes = some.index().filter("label").group_by("task").len()
    assert all(metrics[f"positives/{task}"] == count for task, count in yes.iter_rows())
    assert {s.sample_id for s in some.samples()} < {s.sample_id for s in world.samples()}
    assert any(sample.balanced for sample in some.samples("train"))
    assert not any(sample.balanced for sample in some.samples("test"))
    numbers = tmp_path / "numbers.json"
    numbers.write_text(json.dumps({"emar": 3, "next_event": 0}))
    _, by_file = prepared(hospital, tmp_path / "file", sampling=str(numbers))
    assert by_file["samples/emar"] == 9 and by_file["samples/next_event"] == 0
    assert by_file["samples/poe"] == whole["samples/poe"]


def test_weights_without_numbers_are_refused(hospital: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.balance=weights"):
        prepared(hospital, tmp_path, balance="weights")


def test_chosen_patients_only(hospital: Path, tmp_path: Path) -> None:
    world, _ = prepared(hospital, tmp_path / "whole")
    ids = sorted(world.store.shard(0).patients)[:6]
    chosen = tmp_path / "chosen.txt"
    chosen.write_text("\n".join(map(str, [*ids, 1, 2])))
    few, metrics = prepared(hospital, tmp_path / "few", subjects_file=str(chosen))
    assert sorted(few.store.shard(0).patients) == ids and few.splits["subject_id"].to_list() == ids
    assert metrics["subjects"] == 6 and metrics["unknown_subjects"] == 2
    for name in ("labevents", "patients", "edstays"):
        kept, lost = metrics[f"rows_kept/{name}"], metrics[f"rows_reported/{name}"]
        assert kept + lost == metrics[f"rows/{name}"] and lost > 0
    own = {s.sample_id for s in few.samples()}
    assert own == {s.sample_id for s in world.samples() if s.subject_id in ids}
    chosen.write_text("1\n2\n")
    with pytest.raises(UserError, match="none of its 2 patients"):
        prepared(hospital, tmp_path / "none", subjects_file=str(chosen))
