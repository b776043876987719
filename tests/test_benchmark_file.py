"""data=benchmark: rows that are ready to use, and rows that are not."""

import csv
import json
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from ehrr1.errors import UserError
from ehrr1.evaluation.list_only import list_baselines
from ehrr1.prompts.wording import OURS
from ehrr1.records.markdown import events_of, record_markdown
from ehrr1.runs import Run
from ehrr1.stages import export, prepare
from ehrr1.stages.reason import kept_chains
from ehrr1.tasks.candidates import Candidates
from ehrr1.tasks.catalog import TASKS
from ehrr1.tasks.questions import read_questions
from ehrr1.tasks.release.rows import items_of
from ehrr1.tasks.samples import Prepared, preamble_length
from tests.conftest import CommandLine
from tests.settings import composed
from tests.test_records import hospital
from tests.test_records import prepared as tables

__all__ = ["hospital"]  # a fixture

RECORD = """## Patient Demographics [None]
- Anchor_Age: 61
- Gender: F

## Admissions [2150-01-01 08:00:00]
- Admission_Type: URGENT
- Admission_Location: nan

## Labotary Test Events [2150-01-01 09:30:00]
| Item_Name | Valuenum |
| ------ | ------ |
| Creatinine | 1.0 |
| Sodium | None |

## Something of the authors' own [2150-01-01 25:00:00]
- Key: a

b"""


def row(idx: int, **changes: Any) -> dict[str, Any]:
    info = {
        **{"task": "labevents", "event": "Labotary Test Events", "metric": "f1"},
        **{"target_key": "item_name", "target": ["Lactate", "pH"], "label": ["Lactate", "pH"]},
    }
    whole = {
        "idx": idx,
        "instruction": "Which tests does the authors' sentence ask for?",
        "input": RECORD,
        "output": "Lactate\npH",
        "candidates": ["Lactate", "pH", "Glucose"],
        "task_info": info,
    }
    return whole | changes


def risk(idx: int, answer: str, **changes: Any) -> dict[str, Any]:
    info = {"task": "ICU_Mortality_7day", "target": [answer], "label": answer}
    return row(idx, output=answer, task_info=info, candidates=["yes", "no"], **changes)


def write(path: Path, *rows: dict[str, Any] | str | bytes) -> Path:
    with path.open("wb") as file:
        for item in rows:
            line = json.dumps(item) if isinstance(item, dict) else item
            file.write((line.encode() if isinstance(line, str) else line) + b"\n")
    return path


def prepared(
    path: Path, folder: Path, balanced: bool = False
) -> tuple[Prepared, dict[str, float | int]]:
    folder.mkdir()
    cfg = composed("data=benchmark", data={"path": str(path), "balanced": balanced})
    return Prepared(folder), prepare.run(cfg, Run(folder, "prepare"))


def test_a_record_as_text_is_cut_into_events_and_back() -> None:
    events = events_of(RECORD)
    assert record_markdown(events) == RECORD
    assert [event.table for event in events] == ["patients", "admissions", "labevents", ""]
    assert preamble_length(events) == 2
    times = [None, datetime(2150, 1, 1, 8), datetime(2150, 1, 1, 9, 30), None]
    assert [event.time for event in events] == times
    assert record_markdown(events_of("no heading\n\nat all")) == "no heading\n\nat all"


def test_rows_become_samples(tmp_path: Path) -> None:
    rows = [row(0), risk(1, "Yes"), risk(2, "no", subject_id=7, prediction_time="2150-01-02")]
    world, metrics = prepared(write(tmp_path / "b.jsonl", *rows), tmp_path / "prepare")
    assert metrics["rows/benchmark"] == metrics["rows_kept/benchmark"] == 3
    assert metrics["samples/ICU_Mortality_7day"] == 2 and metrics["subjects"] == 3
    decision, yes, no = world.samples("test")
    assert decision.target == ("Lactate", "pH") and yes.target == ("yes",) and no.target == ("no",)
    assert decision.candidates == ("Lactate", "pH", "Glucose") and no.candidates == ()
    assert decision.context_id == yes.context_id == no.context_id
    assert len({sample.subject_id for sample in (decision, yes, no)}) == 3 and no.subject_id == 7
    assert decision.prediction_time == datetime(2150, 1, 1, 9, 30)
    assert no.prediction_time == datetime(2150, 1, 2)
    assert record_markdown(world.context(decision)) == RECORD
    assert world.samples("train") == [] and not no.balanced
    drawn, _ = prepared(tmp_path / "b.jsonl", tmp_path / "balanced", balanced=True)
    assert all(sample.balanced for sample in drawn.samples())


def test_export_gives_the_rows_again_with_their_own_question(tmp_path: Path) -> None:
    given = [row(0), risk(1, "yes")]
    world, _ = prepared(write(tmp_path / "b.jsonl", *given), tmp_path / "prepare")
    (tmp_path / "export").mkdir()
    export.write(composed(), Run(tmp_path / "export", "export", {"prepare": world.folder}))
    lines = (tmp_path / "export" / "samples.jsonl").read_text().splitlines()
    for back, row_ in zip(map(json.loads, lines), given, strict=True):
        for name in ("instruction", "input", "output", "candidates"):
            assert back[name] == row_[name], name
        for name in ("task", "label"):
            assert back["task_info"][name] == row_["task_info"][name], name
        assert items_of(back["task_info"]["target"]) == row_["task_info"]["target"]
        assert back["messages"] == OURS.chat(
            row_["task_info"]["task"],
            RECORD,
            think=row_["output"] != "yes",
            own=row_["instruction"],
        )
    again, _ = prepared(tmp_path / "export" / "samples.jsonl", tmp_path / "again")
    columns = ["sample_id", "task", "subject_id", "prediction_time", "target", "instruction"]
    assert again.index()[columns].equals(world.index()[columns])


UNUSABLE: dict[str, dict[str, Any] | str | bytes] = {
    "not_json": "{",
    "not_utf8": b'{"idx": "\xff"}',
    "no_object": "[]",
    "no_task": row(1, task_info={}),
    "unknown_task": row(1, task_info={"task": "Readmission_31day"}),
    "no_input": row(1, input=" "),
    "no_instruction": row(1, instruction=None),
    "no_output": row(1, output=""),
    "answer_not_yes_or_no": risk(1, "maybe"),
    "bad_candidates": row(1, candidates=[1]),
    "bad_prediction_time": row(1, prediction_time="soon"),
    "repeated_id": row(0),
}


def test_every_row_is_kept_or_reported(tmp_path: Path) -> None:
    zoned = row(3, prediction_time="2150-01-01 10:00:00+02:00")
    lines = (*UNUSABLE.values(), row(2, input="\ud800"), zoned)
    path = write(tmp_path / "b.jsonl", row(0), "", *lines)
    world, metrics = prepared(path, tmp_path / "prepare")
    reported = json.loads((world.folder / "reported.json").read_text())["benchmark"]
    assert reported == dict.fromkeys(UNUSABLE, 1) | {"not_utf8": 2, "bad_prediction_time": 2}
    assert metrics["rows/benchmark"] == 3 + len(UNUSABLE)
    assert metrics["rows_reported/benchmark"] == 2 + len(UNUSABLE)
    assert metrics["rows_kept/benchmark"] == 1 == len(world.samples())


CSV_COLUMNS = ("idx", "instruction", "input", "output", "candidates", "task_info", "subject_id")


def write_csv(path: Path, columns: tuple[str, ...], *rows: tuple[Any, ...]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


def as_cells(given: dict[str, Any], literal: bool) -> tuple[Any, ...]:
    """A row of JSONL as pandas or a JSON writer puts it into a CSV."""
    cells = [given.get(name, "") for name in CSV_COLUMNS]
    return tuple(
        (repr(cell) if literal else json.dumps(cell)) if isinstance(cell, list | dict) else cell
        for cell in cells
    )


@pytest.mark.parametrize("literal", [True, False])
def test_a_csv_gives_what_the_jsonl_gives(tmp_path: Path, literal: bool) -> None:
    given = [row(0, input=RECORD + "\n\n" + "x" * 200_000), risk(1, "yes", subject_id=7)]
    lines, _ = prepared(write(tmp_path / "b.jsonl", *given), tmp_path / "lines")
    path = write_csv(tmp_path / "b.csv", CSV_COLUMNS, *(as_cells(one, literal) for one in given))
    table, metrics = prepared(path, tmp_path / "table")
    assert table.index().equals(lines.index()) and metrics["rows_kept/benchmark"] == 2
    for one, same in zip(lines.samples(), table.samples(), strict=True):
        assert lines.context(one) == table.context(same)


def test_columns_may_stand_for_task_info_and_output(tmp_path: Path) -> None:
    columns = ("instruction", "input", "task", "target", "subject_id")
    rows = [
        ("Which?", RECORD, "labevents", "['Lactate', 'pH']", "7.0"),
        ("Will?", RECORD, "ICU_Mortality_7day", "no", 8),
    ]
    world, _ = prepared(write_csv(tmp_path / "b.csv", columns, *rows), tmp_path / "prepare")
    decision, no = world.samples()
    assert decision.target == ("Lactate", "pH") and no.target == ("no",)
    assert (decision.subject_id, no.subject_id) == (7, 8)


def test_every_row_of_a_csv_is_kept_or_reported(tmp_path: Path) -> None:
    good = as_cells(row(0), literal=True)
    bad = {
        "bad_row": [(*good, "more"), good[:3]],
        "bad_candidates": [(1, *good[1:4], "__import__('os')", *good[5:])],
        "bad_task_info": [(1, *good[1:5], "{", "")],
        "no_input": [(1, good[1], "", *good[3:])],
        "repeated_id": [good],
    }
    path = write_csv(
        tmp_path / "b.csv", CSV_COLUMNS, good, *(r for rows in bad.values() for r in rows)
    )
    with path.open("ab") as file:
        file.write(b"2,\"\xff\",a,b,[],\"{'task': 'labevents'}\",\r\n")
    world, metrics = prepared(path, tmp_path / "prepare")
    reported = json.loads((world.folder / "reported.json").read_text())["benchmark"]
    assert reported == {why: len(rows) for why, rows in bad.items()} | {"not_utf8": 1}
    assert metrics["rows/benchmark"] == 1 + metrics["rows_reported/benchmark"] == 8


def test_a_folder_is_read_file_by_file(tmp_path: Path) -> None:
    folder = tmp_path / "ehr_bench"
    folder.mkdir()
    write(folder / "a.jsonl", row(0), risk(1, "yes"))
    write_csv(folder / "b.csv", CSV_COLUMNS, as_cells(row(2), literal=False))
    (folder / "readme.txt").write_text("not read")
    world, metrics = prepared(folder, tmp_path / "prepare")
    assert metrics["rows/benchmark"] == 3 == len({s.subject_id for s in world.samples()})
    with pytest.raises(UserError, match=r"holds no .jsonl, .csv"):
        prepared(world.folder, tmp_path / "other")


def test_rows_that_point_into_records_are_another_format_s(tmp_path: Path) -> None:
    columns = ("subject_id", "hadm_id", "task", "event", "period_begin", "period_end", "target")
    index = write_csv(tmp_path / "b.csv", columns, (1, 2, "labevents", "x", 0, 3, "['pH']"))
    with pytest.raises(UserError, match=r"point into patients_ehr/.*data=release data.root=DIR"):
        prepared(index, tmp_path / "prepare")


def test_half_letters_are_reported_wherever_they_stand(tmp_path: Path) -> None:
    rows = [row(0), row(1, candidates=["\ud800"]), row(2, sample_id="\udfff")]
    world, _ = prepared(write(tmp_path / "b.jsonl", *rows), tmp_path / "prepare")
    assert len(world.samples()) == 1


@pytest.mark.parametrize("content", ["", "{}", "\n"])
def test_a_file_without_usable_rows_is_refused(tmp_path: Path, content: str) -> None:
    path = write(tmp_path / "b.jsonl", content)
    with pytest.raises(UserError, match=r"data.path=.*no usable row"):
        prepared(path, tmp_path / "prepare")
    assert list((tmp_path / "prepare").iterdir()) == []
    with pytest.raises(UserError, match="no such file"):
        prepared(tmp_path / "none.jsonl", tmp_path / "other")


def test_the_command_line_asks_for_the_file(command_line: CommandLine, tmp_path: Path) -> None:
    done = command_line("stage=prepare", "data=benchmark", f"output_root={tmp_path}")
    assert done.returncode == 2 and "data.path=FILE.jsonl" in done.stderr
    for name in ("meds", "release"):
        done = command_line("stage=prepare", f"data={name}", f"output_root={tmp_path}")
        assert done.returncode == 2 and f"data={name} needs its folder" in done.stderr


def test_a_trained_model_is_scored_on_a_file(
    smoke: Path, command_line: CommandLine, tmp_path: Path
) -> None:
    rows = [row(i, output="Lactate") for i in range(3)]
    rows += [risk(10 + i, "yes" if i % 2 else "no") for i in range(4)]
    path = write(tmp_path / "b.jsonl", *rows)
    shutil.copytree(smoke / "adapt", tmp_path / "smoke" / "adapt")
    common = ["experiment=smoke", "data=benchmark", f"data.path={path}", f"output_root={tmp_path}"]
    done = command_line("stage=eval", *common)
    assert done.returncode == 0, done.stderr[-2000:]
    predictions = pl.read_parquet(tmp_path / "smoke" / "benchmark" / "eval" / "predictions.parquet")
    assert set(predictions["model"]) == {"untrained:release", "adapt:release"}
    assert predictions.filter(pl.col("model") == "adapt:release").height == 7
    assert "adapt was trained with wording=file" in done.stderr
    # a variant of any name reads the records and the models that it has in common with others
    done = command_line("stage=eval", *common, "variant=lists", "candidates=list")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "prepare is read from" in done.stderr and "adapt is read from" in done.stderr
    assert not (tmp_path / "smoke" / "lists" / "prepare").exists()
    listed = pl.read_parquet(tmp_path / "smoke" / "lists" / "eval" / "predictions.parquet")
    assert set(listed["model"]) == {"untrained:list-release", "adapt:list-release"}
    assert set(listed["candidates"]) == {"list"}


# --- rows to learn from ---------------------------------------------------------------------------


def learn(folder: Path, train: Path, **settings: Any) -> tuple[Prepared, dict[str, float | int]]:
    folder.mkdir()
    cfg = composed("data=benchmark", data={"train": str(train), **settings})
    return Prepared(folder), prepare.run(cfg, Run(folder, "prepare"))


def of_patient(idx: int, subject: int, **more: Any) -> dict[str, Any]:
    given = row(idx)
    return given | {"task_info": given["task_info"] | {"subject_id": subject, **more}}


def test_rows_train_and_no_tested_patient_does(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", *(of_patient(i, i) for i in range(20)))
    test = write(tmp_path / "test.jsonl", of_patient(0, 3), of_patient(1, 99))
    split = {"validation": 0.25}
    world, metrics = learn(tmp_path / "x", train, path=str(test), split=split)
    splits = {sample.subject_id: sample.split for sample in world.samples()}
    assert {s for s, split in splits.items() if split == "test"} == {3, 99}
    assert list(splits.values()).count("validation") == 5
    assert list(splits.values()).count("train") == 14
    assert metrics["rows/benchmark"] == 22 and metrics["rows_kept/benchmark"] == 21
    reported = json.loads((world.folder / "reported.json").read_text())
    assert reported == {"benchmark": {"patient_is_tested": 1}}


def test_lists_of_rows_are_answered_without_the_record(tmp_path: Path) -> None:
    """The baselines of candidates=list learn from the lists that training rows bring."""
    listed = ["Lactate", "pH", *(f"other {n}" for n in range(8))]
    rows = [of_patient(n, n) | {"candidates": listed} for n in range(30)]
    train = write(tmp_path / "train.jsonl", *rows)
    test = write(tmp_path / "test.jsonl", of_patient(0, 99) | {"candidates": listed})
    world, _ = learn(tmp_path / "x", train, path=str(test))
    asked = world.samples("test")
    found = list_baselines(world, Candidates.of(world, 0), asked, "test", 0)
    said = dict(found.select("model", "prediction").iter_rows())
    assert set(said) == {"list_only", "list_frequency"}
    assert all(set(text.split("\n")) == {"Lactate", "pH"} for text in said.values())
    untrained, _ = prepared(test, tmp_path / "y")
    none = list_baselines(untrained, Candidates.of(untrained, 0), asked, "test", 0)
    assert none.is_empty()


def test_rows_bring_chains(tmp_path: Path) -> None:
    chat = {"choices": [{"message": {"content": "said"}}]}
    rows = [of_patient(0, 1, reasoning="thought"), of_patient(1, 2, reasoning=str(chat))]
    train = write(tmp_path / "train.jsonl", *rows, of_patient(2, 3))
    world, _ = learn(tmp_path / "x", train, split={"validation": 0.0})
    chains = kept_chains(world.folder / "chains.jsonl")
    assert chains == {
        "train/labevents/0": ("thought", "Lactate\npH"),
        "train/labevents/1": ("said", "Lactate\npH"),
    }


def test_the_releases_ready_rows_can_be_trained_on(released: Path, tmp_path: Path) -> None:
    world, metrics = learn(tmp_path / "x", released / "ehr_bench.jsonl", split={"validation": 0.0})
    assert metrics["rows_kept/benchmark"] == 108 and len(world.samples("train")) == 108
    kinds = [TASKS[sample.task].kind for sample in world.samples("train")]
    assert kinds.count("risk") == 48 and kinds.count("decision") == 60
    assert {sample.subject_id for sample in world.samples()} <= set(range(10_000_000, 11_000_000))


def test_questions_of_a_file_of_rows(released: Path, hospital: Path, tmp_path: Path) -> None:
    rows = released / "ehr_bench.jsonl"
    found = read_questions(rows)
    assert len(found) == 38 and found["labevents"].startswith("Given the sequence of events")
    world, _ = tables(hospital, tmp_path / "x", questions=str(rows), tasks=["labevents", "poe"])
    asked = {sample.task: sample.instruction for sample in world.samples()}
    assert asked == {task: found[task] for task in ("labevents", "poe")}
    two = write(tmp_path / "two.jsonl", row(0), row(1, instruction="Another?"))
    with pytest.raises(UserError, match="labevents has two questions"):
        read_questions(two)
    none = write(tmp_path / "none.jsonl", {"a": 1})
    with pytest.raises(UserError, match="no row has an instruction"):
        read_questions(none)
