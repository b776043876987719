"""Candidate lists: one length a task, whole answers, nothing that tells which is the right one."""

import json
import random
import time
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ehrr1.errors import UserError
from ehrr1.tasks.candidates import LENGTH, Candidates, Lists, Pool
from ehrr1.tasks.catalog import TASKS
from ehrr1.tasks.samples import Prepared
from ehrr1.tasks.similar import neighbours_of, read_similar
from tests.test_records import hospital, prepared

__all__ = ["hospital"]  # a fixture

LISTED = [key for key, task in TASKS.items() if task.kind == "decision" and task.target != "text"]


@pytest.fixture(scope="module")
def world(hospital: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepared(hospital, tmp_path_factory.mktemp("candidates"))[0]


def answers(*targets: str) -> pl.DataFrame:
    """One answer a word: its letters are its items."""
    rows = [(number, item) for number, target in enumerate(targets) for item in target]
    return pl.DataFrame(rows, schema={"sample": pl.UInt32, "item": pl.String}, orient="row")


def test_neighbours_are_ordered_by_cosine_then_name() -> None:
    found = neighbours_of(answers("ab", "ab", "ac", "cd", "x", "ae", "aa"))
    # a: b 2/sqrt(2) = 1.41, e 1/sqrt(1) = 1, c 1/sqrt(2) = 0.71
    assert found == {"a": ["b", "e", "c"], "b": ["a"], "c": ["d", "a"], "d": ["c"], "e": ["a"]}
    assert neighbours_of(answers()) == {}


@pytest.mark.parametrize("seed", range(5))
def test_neighbours_equal_a_count_by_hand(seed: int) -> None:
    generator = random.Random(seed)
    letters = "abcdefghij"
    words = ["".join(generator.sample(letters, generator.randint(1, 4))) for _ in range(40)]
    found = neighbours_of(answers(*words))
    n = {item: sum(item in word for word in words) for item in letters}
    for item in letters:
        scores = {
            other: sum(item in word and other in word for word in words) / n[other] ** 0.5
            for other in letters
            if other != item and n[other]
        }
        expected = sorted((o for o, s in scores.items() if s), key=lambda o: (-scores[o], o))
        assert found.get(item, []) == expected


def test_a_step_is_as_likely_forth_as_back() -> None:
    """So an answer and those around its hub are exchangeable."""
    words = ["a", "ab", "abc", "cd", "cde", "e", "x", "abcde"]
    pool = Pool(answers(*words), pl.Series(sorted(set("".join(words)))))
    n, each = len(words), 40_000
    rng = np.random.default_rng(0)
    counted = np.zeros((n, n))
    for start in range(n):
        reached = pool.step(np.full(each, start), rng)
        counted[start] = np.bincount(reached, minlength=n) / each
    assert np.abs(counted - counted.T).max() < 0.015
    assert np.abs(counted.sum(axis=0) - 1).max() < 0.03  # all answers are reached alike
    assert counted[6, 6] > 0.85  # nobody shares its item: but for jumps it stays


def test_every_list_of_a_task_is_equally_long_and_hides_its_answer(world: Prepared) -> None:
    candidates, again = Candidates(world, seed=0), Candidates(world, seed=0)
    other_seed = Candidates(world, seed=1)
    orders = set()
    for task, entry in TASKS.items():
        index = world.index(None, [task])
        lengths = set()
        for sample in world.as_samples(index)[:: max(1, index.height // 12)]:
            found = candidates(sample)
            if task not in LISTED:
                assert entry.kind == "risk" or entry.target == "text"
                assert found == []
                continue
            assert set(sample.target) <= set(found) and len(set(found)) == len(found)
            assert found == again(sample)
            orders.add(found == other_seed(sample))
            lengths.add(len(found))
        if lengths:
            longest = max(len(sample.target) for sample in world.samples("train", [task]))
            items = world.answers(index)["item"].n_unique()
            assert lengths == {min(items, max(LENGTH, 2 * longest))}
    assert False in orders and not candidates.too_long


def test_items_that_are_new_to_the_training_split_stand_beside_others(world: Prepared) -> None:
    """Where a test answer has such items, other test answers' lists hold them as well."""
    task = "emar"
    train = set(world.answers(world.index("train", [task]))["item"])
    candidates = Candidates(world, seed=0)
    samples = world.samples("test", [task])
    new = {item for sample in samples for item in sample.target} - train
    assert new
    beside = {i for s in samples[:300] for i in set(candidates(s)) - set(s.target)}
    assert len(new & beside) > len(new) / 2


def test_an_answer_that_is_too_long_has_no_list_and_is_counted(world: Prepared) -> None:
    candidates = Candidates(world, seed=0)
    sample = world.samples("test", ["emar"])[0]
    assert candidates(replace(sample, target=tuple(map(str, range(1000))))) == []
    assert candidates.too_long == {"emar": 1}


def test_a_question_whose_answer_nobody_knows_has_the_most_frequent_items() -> None:
    table = answers("ab", "b", "bc", "c", "d")
    test = answers("x", "dx")
    lists = Lists(pl.Series(list("abcdx")), {"train": table, "test": test}, {})
    assert lists.most_frequent() == ["b", "c", "a", "d"]


def test_counting_is_fast() -> None:
    generator = random.Random(0)
    rows = [
        (sample, f"item {generator.randrange(5000)}") for sample in range(30_000) for _ in range(12)
    ]
    table = pl.DataFrame(rows, schema={"sample": pl.UInt32, "item": pl.String}, orient="row")
    begin = time.monotonic()
    assert len(neighbours_of(table)) == 5000
    assert time.monotonic() - begin < 20


def test_lists_of_the_users_own(world: Prepared, tmp_path: Path) -> None:
    samples = world.samples("test", ["emar"])
    sample, item = samples[0], samples[0].target[0]
    items = set(world.answers(world.index(None, ["emar"]))["item"])
    (tmp_path / "poe.csv").write_text("item,similar_item\nA,B\n")
    for heading, rows in (
        ("item,similar_item", [(item, "First"), (item, "Second")]),
        ("rank,Item_Name,Similar", [("1", item, "First"), ("2", item, "Second")]),
        ("item,similar_items", [(item, json.dumps(["First", "Second"]))]),
    ):
        frame = pl.DataFrame(rows, schema=heading.split(","), orient="row")
        frame.write_csv(tmp_path / "emar.csv")
        assert read_similar(tmp_path)["emar"] == {item: ["First", "Second"]}
        candidates = Candidates(world, seed=0, folder=tmp_path)
        found = candidates(sample)
        assert {"First", item} <= set(found) and len(found) == len(candidates(samples[1]))
        assert len(found) == min(len(items) + 2, LENGTH)
    other = world.samples("test", ["labevents"])[0]
    assert Candidates(world, 0, tmp_path)(other) == Candidates(world, 0)(other)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("code,title\n1,2\n", "has the columns code, title: give item and similar_item"),
        ("item,similar_items\nA,B\n", "line 2: no JSON list"),
        ('item,similar_items\nA,"[1]"\n', "line 2: no JSON list"),
        ("item,similar_item\nA,\n", "line 2: an empty cell"),
        ("", "is empty"),
    ],
)
def test_broken_lists(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "emar.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        read_similar(tmp_path)


def test_a_folder_without_lists(tmp_path: Path) -> None:
    (tmp_path / "notes.csv").write_text("item\n")
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=r"similar_items=.*no file <task>\.csv"):
            read_similar(folder)


def test_all_pairs_of_an_answer_are_neighbours() -> None:
    found = neighbours_of(answers("abc"))
    assert all(other in found[item] for item, other in combinations("abc", 2))
