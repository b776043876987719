"""Candidate lists: similar items by the answers of the training split, or by the user's files."""

import json
import random
import time
from itertools import combinations
from pathlib import Path

import polars as pl
import pytest

from ehrr1.errors import UserError
from ehrr1.tasks.candidates import (
    SIMILAR,
    Candidates,
    Similar,
    by_frequency,
    neighbours_of,
    read_similar,
)
from ehrr1.tasks.catalog import TASKS
from ehrr1.tasks.samples import Prepared
from tests.test_records import hospital, prepared

__all__ = ["hospital"]  # a fixture


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
    assert neighbours_of(answers()) == {} and by_frequency(answers()) == []


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


def test_an_answer_of_several_items_takes_of_each_in_turn_and_is_filled_up() -> None:
    similar = Similar({"a": ["b", "c", "d"], "x": ["y", "b"]}, ["z", "a", "b"])
    assert similar.around(("a", "x")) == ["b", "y", "c", "d", "z"]
    assert similar.around(("a", "b")) == ["c", "d", "z"]
    assert similar.around(("never seen",)) == ["z", "a", "b"]
    many = Similar({"a": [str(number) for number in range(150)]}, [])
    assert many.around(("a",)) == [str(number) for number in range(SIMILAR)]


def test_every_decision_hides_its_answer_among_others(world: Prepared) -> None:
    candidates, again = Candidates(world, seed=0), Candidates(world, seed=0)
    other_seed = Candidates(world, seed=1)
    orders = set()
    for task, entry in TASKS.items():
        for sample in world.samples("test", [task])[:5]:
            found = candidates(sample)
            if entry.kind == "risk" or entry.target == "text":
                assert found == []
                continue
            assert set(sample.target) <= set(found) and len(set(found)) == len(found)
            assert len(found) <= SIMILAR + len(sample.target)
            assert found == again(sample)
            assert set(found) == set(other_seed(sample))
            orders.add(found == other_seed(sample))
            train = world.answers(world.index("train", [task]))["item"]
            assert set(found) - set(sample.target) <= set(train)
            # an answer that holds every item there is has none beside it
            assert set(sample.target) < set(found) or set(sample.target) >= set(train)
    assert False in orders


def test_only_the_training_split_counts(world: Prepared) -> None:
    """An item of a test answer only is a candidate of that answer and of no other."""
    names = {
        split: set(world.answers(world.index(split, ["emar"]))["item"])
        for split in ("train", "test")
    }
    candidates = Candidates(world, seed=0)
    for sample in world.samples("test", ["emar"])[:200]:
        new = set(candidates(sample)) - names["train"]
        assert new <= set(sample.target)


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
    sample = world.samples("test", ["emar"])[0]
    item = sample.target[0]
    (tmp_path / "poe.csv").write_text("item,similar_item\nA,B\n")
    for heading, rows in (
        ("item,similar_item", [(item, "First"), (item, "Second")]),
        ("rank,Item_Name,Similar", [("1", item, "First"), ("2", item, "Second")]),
        ("item,similar_items", [(item, json.dumps(["First", "Second"]))]),
    ):
        frame = pl.DataFrame(rows, schema=heading.split(","), orient="row")
        frame.write_csv(tmp_path / "emar.csv")
        assert read_similar(tmp_path)["emar"] == {item: ["First", "Second"]}
        found = Candidates(world, seed=0, folder=tmp_path)(sample)
        assert {"First", "Second", item} <= set(found)
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
