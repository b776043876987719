"""`candidates=list` with the release's own lists, and rows that bring none."""

import json
from pathlib import Path

import numpy as np
import pytest

from ehrr1.errors import UserError
from ehrr1.evaluation.prompt_mode import PromptMode
from ehrr1.runs import Run
from ehrr1.stages import infer, prepare
from ehrr1.stages.eval_samples import check_candidates, choose_samples, suite_tasks
from ehrr1.tasks.candidates import Candidates
from ehrr1.tasks.release.lists import ReleaseLists
from ehrr1.tasks.samples import Prepared
from tests.settings import composed
from tests.test_benchmark_file import row, write


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def released_folder(root: Path, **lists: str) -> Path:
    """`cache/` with `<kind>__<task>` -> the text of a file."""
    for name, text in lists.items():
        kind, task = name.split("__")
        (root / "cache" / kind).mkdir(parents=True, exist_ok=True)
        (root / "cache" / kind / f"{task}.csv").write_text(text)
    return root


def read(path: Path, folder: Path) -> Prepared:
    folder.mkdir(parents=True)
    prepare.run(composed("data=benchmark", data={"path": str(path)}), Run(folder, "prepare"))
    return Prepared(folder)


def test_a_small_list_is_shown_whole_with_the_answer() -> None:
    lists = ReleaseLists({"emar": {"a": ["x"], "b": ["a"]}}, {})
    found = lists.candidates("emar", ["c", "a"], rng())
    assert sorted(found) == ["a", "b", "c"]


def test_of_a_large_list_a_hundred_similar_items_stand_beside_the_answer() -> None:
    near = {f"i{n}": [f"near {n}/{k}" for k in range(80)] for n in range(101)}
    lists = ReleaseLists({"emar": near}, {"poe": [f"p{n}" for n in range(150)]})
    one = lists.candidates("emar", ["i0"], rng())
    assert sorted(one) == sorted(["i0", *near["i0"]])
    two = lists.candidates("emar", ["i0", "i1"], rng())
    assert len(two) == 102 and {"i0", "i1"} < set(two)
    assert set(two) - {"i0", "i1"} < {*near["i0"], *near["i1"]}
    assert two != sorted(two) and two == lists.candidates("emar", ["i0", "i1"], rng())
    nobody_knows = lists.candidates("emar", [], rng())
    assert len(nobody_knows) == 100 and set(nobody_knows) < set(near)
    of_the_set = lists.candidates("poe", ["p3"], rng())
    assert "p3" in of_the_set and 100 <= len(of_the_set) <= 101
    assert "emar" in lists and "poe" in lists and "labevents" not in lists


def test_lists_beside_a_file_serve_rows_that_bring_none(tmp_path: Path) -> None:
    root = released_folder(
        tmp_path / "release",
        similar_item__labevents="item,0,1\nLactate,pH,Glucose\nSodium,Lactate,\n",
        item_set__emar="item,count\nHeparin,3\nInsulin,2\n",
    )
    (root / "ehr_bench").mkdir()
    rows = [
        row(0, candidates=None),
        row(1, candidates="None"),
        row(2, candidates="['Lactate', 'pH', 'CO2']"),
        row(3, candidates=None, output="Heparin", task_info={"task": "emar"}),
    ]
    for number, place in enumerate((root, root / "ehr_bench")):
        path = write(place / "bench.jsonl", *rows)
        world = read(path, tmp_path / f"prepared{number}")
        lists = Candidates.of(world, seed=0)
        bare, text, own, emar = world.samples("test")
        for sample in (bare, text):
            assert sorted(lists(sample)) == ["Lactate", "Sodium", "pH"]  # the answer is Lactate, pH
        assert lists(own) == ["Lactate", "pH", "CO2"]
        assert sorted(lists(emar)) == ["Heparin", "Insulin"]
        asked = PromptMode("direct", "list").words(emar, lists)
        assert asked is not None and "Insulin" in asked
        cfg = composed("data=benchmark", "candidates=list")
        check_candidates(cfg, world, world.index())


def test_rows_without_any_list_are_told_in_one_line(released: Path, tmp_path: Path) -> None:
    world = read(released / "ehr_bench.jsonl", tmp_path / "benchmark" / "prepare")
    cfg = composed("data=benchmark", "candidates=list")
    index = choose_samples(cfg, world, suite_tasks(cfg), {})
    with pytest.raises(UserError) as told:
        check_candidates(cfg, world, index)
    message = str(told.value)
    assert message.startswith("candidates=list: 57 samples bring no candidates (admissions, ")
    assert "labevents" not in message.split(")")[0] and "\n" not in message
    lists = Candidates.of(world, seed=0)
    sample = world.samples("test", ["labevents"])[0]
    assert {"Creatinine", "Sodium", *sample.target} == set(lists(sample))


def test_a_question_on_rows_of_a_file_needs_a_list(released: Path, tmp_path: Path) -> None:
    world = read(released / "ehr_bench.jsonl", tmp_path / "prepare")
    (world.folder / "metrics.json").write_text("{}")
    how = {"inputs": {"prepare": str(world.folder)}}
    cfg = composed("stage=infer", "data=benchmark", "candidates=list", **how)
    with pytest.raises(UserError, match=r"no list of emar; name records"):
        infer.candidates(cfg, ["labevents", "emar", None])
    lists = infer.candidates(cfg, ["labevents"])
    assert lists is not None and lists.lacking(["labevents", "Readmission_30day"]) == []


@pytest.mark.parametrize("text", ["[1]", "Lactate", "{'a': 1}", "__import__('os')"])
def test_texts_that_are_no_candidates(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "b.jsonl", row(0), row(1, candidates=text))
    world = read(path, tmp_path / "prepare")
    reported = json.loads((world.folder / "reported.json").read_text())
    assert reported == {"benchmark": {"bad_candidates": 1}}
