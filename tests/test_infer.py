"""stage=infer and `from ehrr1 import EHRModel`: one record, one question; many; wrong ones."""

import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ehrr1 import EHRModel
from ehrr1.config.schema import Config
from ehrr1.engines.streaming import Pieces
from ehrr1.errors import UserError
from ehrr1.inference.query import NOTHING_FITS, CountingBuilder, Query, asks_yes_or_no, read_row
from ehrr1.prompts.tokenizer import train_tokenizer
from ehrr1.records.markdown import record_markdown
from ehrr1.scoring.answers import read_answer
from ehrr1.stages import export_meds
from ehrr1.stages.infer import run_infer
from ehrr1.stages.infer_batch import finished
from ehrr1.tasks.catalog import ALL_TASKS
from ehrr1.tasks.one_record import meds_events, patient_events, text_events
from ehrr1.tasks.samples import Prepared, Sample
from tests.conftest import ROOT, CommandLine
from tests.settings import composed

TASK = "Readmission_30day"
WORDS = "Which laboratory tests are taken next?"
SHORT = {"think_tokens": 24, "direct_tokens": 24}
SHORTLY = ["infer.max_new_tokens.think=24", "infer.max_new_tokens.direct=24"]


@pytest.fixture(scope="module")
def prepared(smoke: Path) -> Prepared:
    return Prepared(smoke / "prepare")


@pytest.fixture(scope="module")
def sample(prepared: Prepared) -> Sample:
    return prepared.samples("test", [TASK])[0]


@pytest.fixture(scope="module")
def record(prepared: Prepared, sample: Sample) -> str:
    return record_markdown(prepared.context(sample))


@pytest.fixture(scope="module")
def model(smoke: Path) -> Iterator[EHRModel]:
    with EHRModel(smoke / "rl" / "hf", max_prompt_tokens=900, **SHORT) as model:
        yield model


@pytest.mark.parametrize(("stage", "tokens"), [("adapt", 384), ("reason", 448), ("rl", 384)])
def test_a_prompt_is_no_longer_than_those_of_training(
    smoke: Path, tmp_path: Path, record: str, stage: str, tokens: int
) -> None:
    folder = smoke / stage / "hf"
    with EHRModel(folder, **SHORT) as model:
        assert model.max_prompt_tokens == tokens < 4096 <= model.positions
        assert model.ask(record * 3, task=TASK).cut_events
    shutil.copytree(folder, tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    del config["trained_tokens"]
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    with EHRModel(tmp_path / "hf", **SHORT) as model:
        assert model.max_prompt_tokens == 32_000


def configured(smoke: Path, *overrides: str) -> Config:
    given = ["experiment=smoke", "stage=infer", f"output_root={smoke.parent}", *SHORTLY]
    return composed(*given, *overrides)


def test_a_patient_is_shown_as_in_evaluation(prepared: Prepared) -> None:
    tasks = [TASK, "Inpatient_Mortality", "ICU_Mortality_7day", "labevents"]
    samples = [one for task in tasks for one in prepared.samples("test", [task])[:8]]
    for one in samples:
        found = patient_events(
            prepared.store, one.subject_id, one.prediction_time, 24, one.inclusive
        )
        # what decisions are asked about may reach back further than the window
        if one.window_start == one.prediction_time - (
            samples[0].prediction_time - samples[0].window_start
        ):
            assert found == prepared.context(one), one.sample_id
    everything = patient_events(prepared.store, samples[0].subject_id, None, 24)
    assert len(everything) > len(found)


def test_text_and_meds_say_the_same(
    prepared: Prepared, sample: Sample, record: str, tmp_path: Path
) -> None:
    shown = text_events(record + "\n")
    assert record_markdown(shown) == record and len(shown) == len(prepared.context(sample))
    assert text_events(record.replace("\n\n## ", "\n## ")) == shown
    export_meds.write(prepared, tmp_path / "meds")
    found = meds_events(tmp_path / "meds", sample.subject_id, sample.prediction_time, 24)
    assert found == prepared.context(sample)


def test_meds_of_others_is_a_list_of_medical_events(tmp_path: Path) -> None:
    rows = {
        "subject_id": [7, 7, 7, 8],
        "time": [datetime(1950, 1, 1), *[datetime(2020, 1, day) for day in (1, 2, 2)]],
        "code": ["MEDS_BIRTH", "LAB//Potassium", "DX//I50", "LAB//Sodium"],
        "numeric_value": [None, 4.5, None, 140.0],
    }
    pl.DataFrame(rows).write_parquet(tmp_path / "some.parquet")
    text = record_markdown(meds_events(tmp_path / "some.parquet", 7, None, 24))
    assert "## Medical Events [2020-01-01 00:00:00]\n- Item: LAB//Potassium\n- Value: 4.5" in text
    assert "DX//I50" in text and "Sodium" not in text and "70" in text
    only = record_markdown(meds_events(tmp_path / "some.parquet", 7, datetime(2020, 1, 1, 9), 24))
    assert "Potassium" in only and "DX//I50" not in only
    with pytest.raises(UserError, match="no such patient"):
        meds_events(tmp_path / "some.parquet", 9, None, 24)
    (tmp_path / "no.parquet").write_text("subject_id,time,code\n")
    with pytest.raises(UserError, match="cannot be read as MEDS"):
        meds_events(tmp_path / "no.parquet", 9, None, 24)


def test_other_text_loses_its_first_paragraphs(model: EHRModel) -> None:
    text = "\n\n".join(f"Day {day}: potassium {day % 7}, the patient is well." for day in range(99))
    assert [event.text for event in text_events(text)] == text.split("\n\n")
    answer = model.ask(text, "Will the patient die?")
    assert 0 < answer.cut_events < 99 and answer.problem is None
    alone = model.ask(text.replace("\n\n", " "), "Will the patient die?")
    assert alone.problem == NOTHING_FITS


def test_probabilities_are_those_of_evaluation(smoke: Path, prepared: Prepared) -> None:
    rows = pl.read_parquet(smoke / "eval" / "predictions.parquet").filter(
        pl.col("model") == "rl", pl.col("task") == TASK, pl.col("split") == "test"
    )
    samples = {one.sample_id: one for one in prepared.samples("test", [TASK])}
    assert rows.height
    with EHRModel(smoke / "rl" / "hf", max_prompt_tokens=512) as same:
        for row in rows.iter_rows(named=True):
            answer = same.ask(prepared.context(samples[row["sample_id"]]), task=TASK)
            assert answer.probability == pytest.approx(row["probability"], abs=1e-5)
            assert answer.items == (row["prediction"],) and answer.chain is None


def test_questions_on_a_record_are_answered_together(model: EHRModel, record: str) -> None:
    questions = ["Will the patient die?", "Is the patient diabetic?", "Sepsis or not"]
    together = model.probabilities(record, questions)
    alone = [model.ask(record, question, yes_no=True).probability for question in questions]
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert len(set(together)) == 3


def test_yes_or_no_is_read_from_the_words(model: EHRModel, record: str) -> None:
    yes_no = ["Will he die?", "is it sepsis", "One day in: will she stay? Answer yes or no."]
    assert all(map(asks_yes_or_no, yes_no))
    yes_no += ["Please predict whether he dies.", "A day in. Tell me whether it is sepsis"]
    assert all(map(asks_yes_or_no, yes_no))
    others = [WORDS, "Name the diagnosis.", "Yes or no drugs?", "?"]
    others += ["Which drugs decide whether he lives?", "List what tells whether it is sepsis"]
    assert not any(map(asks_yes_or_no, others))
    asked, told = (
        model.ask(record, question).probability
        for question in ("Will he die?", "Will he die? Answer yes or no.")
    )
    assert asked == told is not None
    assert model.ask(record, WORDS).probability is None
    assert model.ask(record, "Will he die?", yes_no=False).probability is None


def test_released_questions_are_of_their_tasks_kind(released: Path) -> None:
    lines = (released / "ehr_bench.jsonl").read_text().splitlines()
    rows = [(row["task_info"]["task"], row["instruction"]) for row in map(json.loads, lines)]
    assert len(rows) == 108
    for task, question in rows:
        asking = Query("", "", list, question)
        assert asking.has_label == (ALL_TASKS[task].kind == "risk"), question
        assert asking.words == question  # as its models were trained


@pytest.mark.parametrize("question", [WORDS, "Will the patient die?"])
@pytest.mark.parametrize("how", ["direct", "think", "both"])
def test_what_streams_is_the_answer(model: EHRModel, record: str, question: str, how: str) -> None:
    stream = model.stream(record, question, answer=how)
    pieces = []
    try:
        while True:
            pieces.append(next(stream))
    except StopIteration as end:
        answer = end.value
    assert answer == model.ask(record, question, answer=how)
    text = "".join(pieces)
    if question == WORDS:
        read = read_answer(text, "decision")
        assert read.items == answer.items
        assert answer.problem or read.think == answer.chain
    else:
        assert text.endswith(answer.text) and answer.text in ("yes", "no")
        assert (answer.chain or "") in text, answer.problem
        assert (answer.chain is None) == (how == "direct")
    if how != "both" and question == WORDS and len(answer.items) > 1:
        assert len(pieces) > 1


def test_who_stops_reading_stops_the_writing(model: EHRModel, record: str) -> None:
    stream = model.stream(record, WORDS, answer="think")
    next(stream)
    stream.close()
    assert model.ask(record, WORDS) == model.ask(record, WORDS)


def test_pieces_are_the_whole_text() -> None:
    texts = ["Fieber 38,9 °C — 患者 🫀🩺 stabil\n\n", "a  b\tc", "é" * 5, "plain words only"]
    tokenizer = train_tokenizer({"plain words": 3, "患": 2}, 300)
    for text in texts:
        ids = tokenizer(text + "<|im_end|>", add_special_tokens=False)["input_ids"]
        pieces = Pieces(tokenizer)
        parts = [pieces.add(token) for token in ids]
        assert "".join(parts) + pieces.rest() == text
        assert not any("\N{REPLACEMENT CHARACTER}" in part for part in parts)


def test_what_cannot_be_read_is_shown() -> None:
    prompt_builder = CountingBuilder(train_tokenizer({"a": 2}, 300), 10, cut={"x": (2, 3, False)})
    row = {"sample_id": "x", "completion": "<think>a</think>b</think>", "prediction": ""}
    answer = read_row(
        row | {"probability": None, "problem": "more than one think block"}, prompt_builder
    )
    assert answer.items == () and answer.chain == row["completion"]
    assert (answer.cut_events, answer.cut_tokens) == (2, 3)


def test_a_question_needs_room_for_a_record(model: EHRModel) -> None:
    with pytest.raises(UserError, match="question: it has"):
        model.ask("Fever.", "Will the patient, " + "who is very ill, " * 900 + "die?")
    with pytest.raises(UserError, match="it is empty"):
        model.ask(" \n", WORDS)
    with pytest.raises(UserError, match="one of the two"):
        model.ask("Fever.", WORDS, task=TASK)


def test_settings_of_engines_are_checked(smoke: Path) -> None:
    with pytest.raises(UserError, match="tensor_parallel"):
        EHRModel(smoke / "rl" / "hf", tensor_parallel=2)
    with pytest.raises(UserError, match="can be read there"):
        EHRModel(smoke / "rl")
    with pytest.raises(UserError, match="start the server"):
        EHRModel(engine="server", url="http://127.0.0.1:9/v1")
    with pytest.raises(UserError, match="needs a model"):
        EHRModel(engine="vllm")


def test_import_is_light() -> None:
    code = "import ehrr1, sys; assert not {'torch', 'transformers'} & set(sys.modules); ehrr1.x"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "has no attribute 'x'" in done.stderr, done.stderr


@pytest.fixture
def file(tmp_path: Path, record: str) -> Path:
    path = tmp_path / "record.md"
    path.write_text(record + "\n")
    return path


def test_a_question_as_users_type_it(
    smoke: Path, file: Path, model: EHRModel, record: str, command_line: CommandLine
) -> None:
    question = "Will the patient, once home, come back (soon)?"
    done = command_line(
        "experiment=smoke", "stage=infer", f"model={smoke / 'rl' / 'hf'}", f"record={file}",
        f"question={question}", "answer=think", "infer.max_prompt_tokens=900", *SHORTLY,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer = model.ask(record, question, answer="think")
    said = f"{answer}\nprobability of yes: {answer.probability:.4g}\n"
    assert done.stdout == said and said.startswith("<think>\n")
    assert f"its {answer.cut_events} oldest events" in done.stderr and answer.cut_events
    assert not (smoke / "infer").exists()


def test_a_terminal_shows_words_as_they_come(smoke: Path, file: Path) -> None:
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as terminal, redirect_stdout(terminal):
        run_infer(configured(smoke, f"record={file}", f"question='{WORDS}'", "answer=think"))
    shown = os.read(master, 2**16).decode().replace("\r\n", "\n")
    with EHRModel(smoke / "rl" / "hf", **SHORT) as model:
        answer = model.ask(file, WORDS, answer="think")
    read = read_answer(shown, "decision")
    assert read.items == answer.items
    assert answer.problem or read.think == answer.chain


def test_a_patient_of_the_store(
    smoke: Path, sample: Sample, prepared: Prepared, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [f"infer.subject={sample.subject_id}", f"infer.time='{sample.prediction_time}'"]
    run_infer(configured(smoke, *asked, f"infer.task={TASK}"))
    said = capsys.readouterr()
    with EHRModel(smoke / "rl" / "hf") as model:
        answer = model.ask(prepared.context(sample), task=TASK)
    assert said.out == f"{answer}\nprobability of yes: {answer.probability:.4g}\n"
    assert f"model: {smoke / 'rl' / 'hf'}" in said.err


def test_candidates_are_the_tasks_most_frequent_answers(
    smoke: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["infer.task=labevents", "candidates=list", "infer.max_prompt_tokens=2000"]
    run_infer(configured(smoke, f"record={file}", *asked))
    assert "probability" not in capsys.readouterr().out


WRONG = {
    "no record": ([f"infer.task={TASK}"], "record=null: name a record"),
    "no file": ([f"infer.task={TASK}", "record=no.md"], "record=no.md: No such file"),
    "no question": (["record={file}"], "neither is set"),
    "two questions": (["record={file}", f"infer.task={TASK}", "question=Who"], "both are set"),
    "unknown task": (["record={file}", "infer.task=Sepsis"], "infer.task=Sepsis: no such task"),
    "unknown subject": ([f"infer.task={TASK}", "infer.subject=1"], "subject_id: there is no such"),
    "no time": (
        [f"infer.task={TASK}", "infer.subject=1", "infer.time=noon"],
        "infer.time=noon: write it as",
    ),
    "time alone": (
        [f"infer.task={TASK}", "record={file}", "infer.time=2180-01-01"],
        "infer.time=2180-01-01: it needs a patient",
    ),
    "two records": (
        [f"infer.task={TASK}", "record={file}", "infer.subject=1"],
        "a text is the record of one patient",
    ),
    "file and batch": (["infer.path=x.jsonl", "record={file}"], "each row of the file brings"),
    "output alone": (
        ["record={file}", "question=Who", "infer.output=x"],
        "where the answers of",
    ),
    "no batch": (["infer.path=no.jsonl"], "infer.path=no.jsonl: No such file"),
    "two modes": (["record={file}", "question=Who", "answer=[direct,think]"], "asks in one way"),
    "candidates": (["record={file}", "question=Who", "candidates=list"], "candidates are those"),
    "engine": (
        ["record={file}", "question=Who", "engine=anthropic", "engine.model=x"],
        "engine=anthropic: stage=infer asks by",
    ),
    "no weights": (
        ["record={file}", "question=Who", "name=never"],
        "it starts from nothing, and",
    ),
    "no model": (
        ["record={file}", "question=Who", "model.path={file}"],
        "can be read there",
    ),
    "no prepare": (
        [f"infer.task={TASK}", "infer.subject=1", "name=never", "seed=9"],
        "'prepare' (not in",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_line(smoke: Path, file: Path, case: str) -> None:
    overrides, complaint = WRONG[case]
    given = [override.replace("{file}", str(file)) for override in overrides]
    with pytest.raises(UserError) as error:
        run_infer(configured(smoke, *given))
    assert complaint in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "complaint"), [(b" \n", "it is empty"), (b"\xff\xfe\x00", "it is no UTF-8")]
)
def test_a_file_that_is_no_record(
    smoke: Path, tmp_path: Path, content: bytes, complaint: str
) -> None:
    (tmp_path / "r.md").write_bytes(content)
    with pytest.raises(UserError, match=complaint):
        run_infer(configured(smoke, f"record={tmp_path / 'r.md'}", "question=Who"))


def rows(sample: Sample, record: str) -> list[dict[str, object]]:
    patient = {"subject_id": sample.subject_id, "time": str(sample.prediction_time)}
    return [
        {"id": "a", "record": record, "question": "Will the patient die?"},
        {"id": 2, "record": record, "task": TASK},
        {"id": "c", **patient, "task": TASK},
        {"id": "d", **patient, "question": WORDS},
        {"id": "e", "record": "Fever and cough.", "question": WORDS},
    ]


BAD: list[tuple[object, str]] = [
    ("no json", "line 6: no JSON"),
    ([1], "line 7: no JSON object"),
    ({"record": "x", "question": "y"}, "line 8: no id"),
    ({"id": "f", "question": "y"}, "line 9: it needs a record or a subject_id"),
    ({"id": "g", "record": "SECRET"}, "line 10: it needs a question or a task"),
    ({"id": "h", "record": "SECRET", "task": "Sepsis"}, "line 11: task Sepsis is unknown"),
    ({"id": "i", "subject_id": 1, "question": "y"}, "line 12: subject_id: there is no such"),
    ({"id": "j", "subject_id": 1, "time": "noon", "question": "y"}, "line 13: time is none"),
    ({"id": "k", "record": " ", "question": "y"}, "line 14: record: it is empty"),
    ({"id": "l", "record": "SECRET", "question": "y" * 200_000}, "line 15: question: it has"),
]


def test_a_batch_answers_what_it_can_and_goes_on(
    smoke: Path,
    sample: Sample,
    record: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, output = tmp_path / "many.jsonl", tmp_path / "many.answers.jsonl"
    lines = [json.dumps(row) for row in rows(sample, record)]
    lines += [bad if isinstance(bad, str) else json.dumps(bad) for bad, _ in BAD]
    path.write_text("\n".join(lines) + "\n")
    asked = configured(smoke, f"infer.path={path}")
    run_infer(asked)
    said = capsys.readouterr()
    assert said.out == ""
    for _, complaint in BAD:
        assert complaint in said.err
    assert "SECRET" not in said.err and "5 rows are answered, 10 cannot be asked" in said.err
    first = {row["id"]: row for row in map(json.loads, output.open())}
    assert list(first["a"]) == ["id", "answer", "probability", "chain", "problem"]
    assert first.keys() == {"a", 2, "c", "d", "e"}
    assert first[2]["probability"] == pytest.approx(first["c"]["probability"], abs=1e-5)
    assert first["d"]["probability"] is None and first["a"]["answer"] in ("yes", "no")

    # stopped in the middle of a line
    kept = output.read_bytes().splitlines(keepends=True)
    output.write_bytes(b"".join(kept[:3]) + kept[3][:9])
    run_infer(asked)
    assert output.read_bytes().startswith(b"".join(kept[:3]))
    again = {row["id"]: row for row in map(json.loads, output.open())}
    assert again.keys() == first.keys() and len(output.read_bytes().splitlines()) == 5
    assert all(again[name]["answer"] == first[name]["answer"] for name in first)
    assert "2 of 15 rows to answer" in capsys.readouterr().err

    before = output.read_bytes()
    run_infer(asked)
    assert output.read_bytes() == before
    with pytest.raises(UserError, match="answer: direct there, think now"):
        run_infer(configured(smoke, f"infer.path={path}", "answer=think"))


def test_another_file_is_no_output(tmp_path: Path) -> None:
    (tmp_path / "x").write_text('{"id": 1}\nsomething else\n')
    with pytest.raises(UserError, match="line 2 is no answer"):
        finished(tmp_path / "x")
