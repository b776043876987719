"""Samples that prepare keeps: numbers, balance, chosen patients."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from ehrr1.errors import UserError
from ehrr1.tasks.catalog import TASKS
from ehrr1.tasks.sampling import Limits, draw, read_limits, read_subjects
from ehrr1.tasks.selection import rank
from ehrr1.tasks.splits import split_patients
from tests.test_records import configured, hospital, prepared

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


def test_force_takes_as_many_yes_as_no_and_decisions_by_weight() -> None:
    drawn = draw(INDEX, dict.fromkeys(TASKS, 36), "force", seed=0)
    assert labels(drawn, "ICU_Stay_7day") == {0: 18, 1: 18}
    weighted = draw(INDEX, dict.fromkeys(TASKS, 36), "weights", seed=0)
    for task in ("next_event", "emar"):
        assert len(of(drawn, task)) == 36
        assert_frame_equal(of(drawn, task), of(weighted, task))
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


@pytest.mark.parametrize("task", ["emar", "next_event", "ICU_Stay_7day"])
def test_weights_draw_the_lowest_keys(task: str) -> None:
    """Efraimidis and Spirakis: the n lowest of -log(u) times the mean frequency of the labels."""
    rows = of(INDEX, task)
    uniform = rows.select((rank(7).cast(pl.Float64) + 0.5) / 2.0**64).to_series().to_list()
    counts = labels(INDEX, task)
    keys = sorted(
        (-math.log(u) * sum(counts[code] / 200 for code in target) / len(target), name)
        for u, target, name in zip(uniform, rows["target"], rows["sample_id"], strict=True)
    )
    drawn = draw(INDEX, {**ALL, task: 20}, "weights", seed=7)
    assert set(of(drawn, task)["sample_id"]) == {name for _, name in keys[:20]}


def test_files_of_numbers(tmp_path: Path) -> None:
    path = tmp_path / "numbers.json"
    path.write_text('{"emar": 7, "poe": -1}')
    limits = read_limits(path)
    assert limits["emar"] == 7 and limits["poe"] is None
    assert all(limits[task] == 0 for task in TASKS if task not in ("emar", "poe"))
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
    numbers.write_text(json.dumps({"emar": 3, "poe": -1, "next_event": 0}))
    _, by_file = prepared(hospital, tmp_path / "file", sampling=str(numbers))
    assert by_file["samples/emar"] == 9 and by_file["samples/next_event"] == 0
    assert by_file["samples/poe"] == whole["samples/poe"] > 0


def test_a_file_names_all_tasks_that_stay(
    hospital: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, whole = prepared(hospital, tmp_path / "whole")
    numbers = tmp_path / "numbers.json"
    numbers.write_text(json.dumps({"emar": 3, "poe": -1}))
    capsys.readouterr()
    _, kept = prepared(hospital, tmp_path / "file", sampling=str(numbers))
    assert {task for task in TASKS if kept[f"samples/{task}"]} == {"emar", "poe"}
    for task in TASKS:
        lost = kept.get(f"sampled_out/{task}", 0)
        assert kept[f"samples/{task}"] + lost == whole[f"samples/{task}"]
    others = sum(whole[f"samples/{task}"] for task in TASKS if task not in ("emar", "poe"))
    told = " ".join(capsys.readouterr().err.split())
    assert f"no samples of {len(TASKS) - 2} tasks, {others:,} samples are left out: " in told
    # a number for all takes the place of the file's numbers, not of its tasks
    _, forced = prepared(hospital, tmp_path / "forced", sampling=str(numbers), force_task_num=2)
    assert forced["samples/emar"] == forced["samples/poe"] == 6
    assert sum(forced[f"samples/{task}"] for task in TASKS) == 12


def test_a_share_of_each_task(hospital: Path, tmp_path: Path) -> None:
    drawn = draw(INDEX, {**ALL, "emar": 0}, "none", seed=0, share=0.125)
    counts = Counter(drawn.select("task", "split").iter_rows())
    shares = {("ICU_Stay_7day", s): 25 for s in ("train", "test")}
    shares |= {(task, s): 25 for task in ("next_event", "labevents") for s in ("train", "test")}
    assert counts == shares
    few = draw(INDEX.head(8), ALL, "none", seed=0, share=0.01)
    assert Counter(few["task"]) == dict.fromkeys(few["task"], 1) and few.height == 4
    of_numbers = draw(INDEX, {**dict.fromkeys(TASKS, 40), "emar": 1}, "none", seed=0, share=0.5)
    assert len(of(of_numbers, "labevents")) == 20 and len(of(of_numbers, "emar")) == 1
    forced = draw(INDEX, ALL, "force", seed=0, share=0.1)
    assert labels(forced, "ICU_Stay_7day") == {0: 10, 1: 10}
    # shards of 7 patients: the share is of the whole split, not of each shard's part
    world, _ = prepared(hospital, tmp_path / "whole")
    some, metrics = prepared(hospital, tmp_path / "some", force_task_num=0.5, patients_per_shard=7)
    for (task, split), rows in world.index().group_by("task", "split"):
        kept = some.index(str(split), [str(task)]).height
        assert kept == max(1, round(0.5 * rows.height))
    assert (
        metrics["samples/emar"] + metrics["sampled_out/emar"] == world.index(tasks=["emar"]).height
    )


@pytest.mark.parametrize("value", [0, 1.0, 1.5, -0.5, 0.0])
def test_what_is_no_number_and_no_share(hospital: Path, value: float) -> None:
    message = r"data\.force_task_num=.*whole number >= 1 or a number > 0 and < 1"
    with pytest.raises(UserError, match=message):
        configured(hospital, force_task_num=value)


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


def test_named_patients_are_tested_and_the_others_drawn() -> None:
    ids = pl.Series("subject_id", range(100, 200))
    shares = {"validation": 0.1, "test": 0.2, "seed": 0}
    plain = split_patients(ids, **shares)  # type: ignore[arg-type]
    assert Counter(plain["split"]) == {"train": 70, "validation": 10, "test": 20}
    test = pl.Series([103, 107, 555], dtype=pl.Int64)
    one = split_patients(ids, **shares, named={"test": test})  # type: ignore[arg-type]
    assert Counter(one["split"]) == {"train": 88, "validation": 10, "test": 2}
    assert one.filter(pl.col("split") == "test")["subject_id"].to_list() == [103, 107]
    assert one["subject_id"].to_list() == ids.to_list()
    both = {"test": test, "validation": pl.Series([100], dtype=pl.Int64)}
    given = split_patients(ids, **shares, named=both)  # type: ignore[arg-type]
    assert Counter(given["split"]) == {"train": 97, "validation": 1, "test": 2}


def written(path: Path, ids: list[int]) -> str:
    path.write_text("subject_id\n" + "\n".join(map(str, ids)))
    return str(path)


def test_a_published_split_is_rebuilt(hospital: Path, tmp_path: Path) -> None:
    world, _ = prepared(hospital, tmp_path / "whole")
    ids = world.splits["subject_id"].to_list()
    files = {
        "test_subjects": written(tmp_path / "test.csv", [*ids[:5], 1, 2]),
        "validation_subjects": written(tmp_path / "validation.csv", ids[5:8]),
    }
    named, metrics = prepared(hospital, tmp_path / "named", split=files)
    splits = {
        split: rows["subject_id"].to_list() for (split,), rows in named.splits.group_by("split")
    }
    assert splits == {"test": ids[:5], "validation": ids[5:8], "train": ids[8:]}
    assert metrics["unknown_subjects/test"] == 2 and metrics["unknown_subjects/validation"] == 0
    assert {s.subject_id for s in named.samples("test")} <= set(ids[:5])
    assert {s.sample_id for s in named.samples()} == {s.sample_id for s in world.samples()}


def test_splits_that_cannot_be(hospital: Path, tmp_path: Path) -> None:
    world, _ = prepared(hospital, tmp_path / "whole")
    ids = world.splits["subject_id"].to_list()
    a, b = written(tmp_path / "a.csv", ids[:9]), written(tmp_path / "b.csv", ids[8:])
    for split, message in (
        ({"test_subjects": a, "validation_subjects": b}, f"1 patients stand in both .*{ids[8]}"),
        ({"test_subjects": written(tmp_path / "all.csv", ids)}, "none is left for train"),
        ({"test_subjects": written(tmp_path / "no.csv", [1])}, "none is left for test"),
        ({"validation_subjects": str(tmp_path / "x")}, "it cannot be read"),
    ):
        settings: dict[str, Any] = {"split": {"validation": 0.0} | split}
        with pytest.raises(
            UserError, match=rf"data\.split\.(test|validation)_subjects=.*{message}"
        ):
            prepared(hospital, tmp_path / "none", **settings)
    with pytest.raises(UserError, match=r"data\.split\.test_subjects=.*data=release"):
        configured(hospital, "release", split={"test_subjects": a})
