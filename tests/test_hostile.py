"""Rows, names and archives that no program of ours would write: refused one by one, by name."""

import gzip
import io
import json
import shlex
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ehrr1.config.schema import check
from ehrr1.engines.base import EngineError
from ehrr1.errors import UserError
from ehrr1.inference.query import Answer, Query
from ehrr1.json_text import BadJsonError, from_json, id_of
from ehrr1.records.release.archives import unpack
from ehrr1.runs import Run, home
from ehrr1.stages import prepare
from ehrr1.stages.infer_batch import read_batch
from ehrr1.sweeps import cli, slurm
from ehrr1.sweeps.control import tell_begun, wide_console
from ehrr1.sweeps.state import RunStatus, Sweep
from ehrr1.tasks.sampling import read_limits, read_subjects
from tests.conftest import CommandLine
from tests.settings import composed
from tests.test_benchmark_file import row, write

DIGITS = "9" * 5_000
DEEP = "[" * 100_000
HALF = '"\\ud800"'

BAD_JSON = {
    "{": "no JSON (character 1)",
    DEEP: "JSON of too many levels",
    DIGITS: "JSON with a number of too many digits",
    HALF: "no UTF-8 text",
    b"\xff": "no UTF-8 text",
    b'"\xed\xa0\x80"': "no UTF-8 text",
}


@pytest.mark.parametrize("text", BAD_JSON)
def test_json_that_no_file_can_hold_is_refused_by_its_reason(text: str | bytes) -> None:
    with pytest.raises(BadJsonError) as error:
        from_json(text)
    assert str(error.value) == BAD_JSON[text]


def test_whole_letters_and_numbers_are_read() -> None:
    assert from_json('["\\ud83d\\ude00", 18446744073709551616]') == ["😀", 2**64]
    assert [id_of(text) for text in ("7", "\uff19", "-1", "", str(2**63), DIGITS)] == [
        7,
        *[None] * 5,
    ]


def asked(**given: object) -> dict[str, object]:
    return {"record": "Fever and cough.", "question": "Which?"} | given


BAD_ROWS: list[tuple[dict[str, Any] | str | bytes, str]] = [
    (json.dumps(asked(id="a", record="half \ud800")), "no UTF-8 text"),
    ('{"id": ' + DIGITS + "}", "too many digits"),
    ('{"id": ' + DEEP, "too many levels"),
    (b'{"id": "\xff"}', "no UTF-8 text"),
    (asked(id="b", task=["x"], question=None), "task is no text"),
    (asked(id="c", task={}, question=None), "task is no text"),
    (asked(id="d", question=7), "question is no text"),
    (asked(id="e", record=["x"]), "record is no text"),
    (asked(id={"x": 1}), "no id"),
    (asked(id="f", record=None, subject_id=2**63), "subject_id is no whole number"),
    (asked(id="g", record=None, subject_id=1, time={"x": 1}), "time is none"),
    (asked(id="h", record=None, subject_id=1, time="9" * 5_000), "time is none"),
    (asked(id="whole"), "line 1 has its id"),
]


def test_a_bad_row_of_questions_is_named_and_the_others_are_asked(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", asked(id="whole"), *(line for line, _ in BAD_ROWS))
    with path.open("ab") as file:
        file.write(json.dumps(asked(id="last")).encode())
    batch = read_batch(path, tmp_path / "out", lambda row: list)
    assert [asking.id for asking in batch.left] == ["whole", "last"]
    assert batch.rows == len(BAD_ROWS) + 2
    assert list(batch.refused) == list(range(2, len(BAD_ROWS) + 2))
    for line, (_, reason) in enumerate(BAD_ROWS, start=2):
        assert reason in batch.refused[line], (line, batch.refused[line][:200])


def test_a_row_that_no_model_can_answer_is_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", *(asked(id=number) for number in range(20)))
    failing, answered = {"3", "4", "11"}, list[str]()

    def ask(left: list[Query]) -> Iterator[tuple[str, Answer]]:
        for one in left:
            if one.id in failing:
                raise error(f"SECRET of {one.id}")
            answered.append(one.id)
            yield one.id, Answer(("yes",))

    error: type[Exception] = ValueError
    for _ in range(2):  # the same command goes on, and fails at the same rows
        batch = read_batch(path, tmp_path / "out", lambda row: list)
        with batch.writing({}):
            list(batch.answer(ask))
        assert batch.refused == dict.fromkeys((4, 5, 12), "it cannot be answered (ValueError)")
    assert sorted(answered) == sorted({str(number) for number in range(20)} - failing)
    failing = set(map(str, range(20)))
    for error, done in ((OSError, "out"), (EngineError, "out"), (ValueError, "nothing")):
        batch = read_batch(path, tmp_path / done, lambda row: list)
        with batch.writing({}), pytest.raises(error):
            list(batch.answer(ask))


def test_a_bad_row_of_a_benchmark_is_counted_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = [
        *('{"idx": ' + DIGITS + "}", '{"idx": ' + DEEP, b'{"idx": "\xff"}'),
        row(1, subject_id=2**64, task_info={"task": "labevents", "target": [[["pH"]]]}, input=7),
        row(2, task_info=["labevents"]),
        row(3, prediction_time=5),
        row(4, reasoning="half \ud800"),
    ]
    path = write(tmp_path / "rows.jsonl", row(0), "", *bad, row(9, subject_id=2**64))
    (tmp_path / "prepare").mkdir()
    cfg = composed("data=benchmark", data={"path": str(path)})
    metrics = prepare.run(cfg, Run(tmp_path / "prepare", "prepare"))
    assert metrics["rows_kept/benchmark"] == 2 and metrics["rows_reported/benchmark"] == len(bad)
    told = capsys.readouterr().err
    for place in ("too_many_digits: rows.jsonl line 3", "too_deep: rows.jsonl line 4"):
        assert place in told
    assert "not_utf8: rows.jsonl line 5, rows.jsonl line 9" in told


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (DEEP, "JSON of too many levels"),
        (DIGITS, "too many digits"),
        (b"\xff", "cannot be read"),
        ('{"labevents": ' + "9" * 4_000 + "}", "labevents: 9999"),
        ('{"labevents": [[1]]}', "labevents: [[1]] is no whole number"),
        ('{"labevents": true}', "labevents: True is no whole number"),
        ('{"' + "x" * 500 + '": 1}', "is no task"),
    ],
)
def test_a_file_of_numbers_is_refused_in_a_short_line(
    content: str | bytes, complaint: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "n.json", content)
    with pytest.raises(UserError) as error:
        read_limits(path)
    assert complaint in str(error.value) and len(str(error.value)) < 400 + len(str(path))


def test_wrong_entries_of_a_list_of_patients_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "ids.txt", "subject_id", "7", DIGITS, str(2**63), "x", "8", *"abcd")
    with pytest.raises(UserError, match=r"7 of 9 entries.* as number 2, 3, 4, 6, 7, \.\.\.:"):
        read_subjects(path)
    with pytest.raises(UserError, match=r"2 of 3 entries.* as number 2, 3:"):
        read_subjects(write(tmp_path / "ids.json", json.dumps([7, [1], 2**63])))
    assert read_subjects(write(tmp_path / "good.json", "[8, 7]")).to_list() == [7, 8]


@pytest.mark.parametrize("value", ["../../x", "a/../../b", "..", "/tmp/x", "a\nb", "a\x1bb"])
@pytest.mark.parametrize("setting", ["name", "variant"])
def test_a_runs_folder_stays_below_output_root(setting: str, value: str) -> None:
    with pytest.raises(UserError, match=f"^{setting}="):
        check(composed(**{setting: value}))


@pytest.mark.parametrize("value", ["a b", "$(touch x)", "it's", 'a"b', "no_graph/both", "a..b"])
def test_other_names_are_folders(value: str, tmp_path: Path) -> None:
    cfg = composed(name="x", variant=value, output_root=str(tmp_path))
    check(cfg)
    assert home(cfg) == tmp_path / "x" / value


@pytest.mark.slow
def test_names_are_printed_as_they_are(tmp_path: Path, command_line: CommandLine) -> None:
    folder = tmp_path / "smoke" / "[/x]" / "prepare"
    words = ["experiment=smoke", "data.subjects=12", f"output_root={tmp_path}"]
    words.append('variant="[/x]"')
    for told in (f"prepare -> {folder}\n", f"prepare: finished already, in {folder}\n"):
        done = command_line("stage=prepare", *words)
        assert done.returncode == 0, done.stderr[-2000:]
        assert told in done.stderr


@pytest.mark.parametrize("name", ["[x]", "[red]x", ":warning:"])
def test_names_of_sweeps_are_printed_as_they_are(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    book = Sweep(tmp_path / "sweeps" / name)
    book.write([], {}, [])
    tell_begun(book, tmp_path)
    told = RunStatus("x=[/x]", [], "failed", None, "", None, f"lost {name}")
    wide_console().print(cli.table([told], name))
    shown = capsys.readouterr()
    assert f"0 runs in {book.folder}\n" in shown.err and f"status {shlex.quote(name)} " in shown.err
    for text in (f"{name}: 1 failed", "x=[/x]", f"lost {name}"):
        assert text in shown.out


def job(**changes: object) -> dict[str, Any]:
    return {"partition": None, "account": None, "qos": None, "sbatch": {}} | changes


@pytest.mark.parametrize(
    "wrong",
    [
        {"account": "me\ntouch /tmp/x"},
        {"qos": "a\rb"},
        {"sbatch": {"comment": "a\n#SBATCH --uid=0"}},
        {"sbatch": {"comment\ntouch x": "a"}},
    ],
)
def test_an_option_of_sbatch_is_one_line(wrong: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="an option of sbatch is a single line"):
        slurm.refuse_unsafe(Sweep(tmp_path / "sweeps" / "x"), job(**wrong))


@pytest.mark.parametrize("name", ["line\nbreak", "50%j"])
def test_a_folder_that_a_batch_script_cannot_name_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="output_root="):
        slurm.refuse_unsafe(Sweep(tmp_path / name / "sweeps" / "x"), job())


def test_blanks_quotes_and_dollars_of_a_folder_are_no_commands(tmp_path: Path) -> None:
    book = Sweep(tmp_path / "a b $(touch x) 'q' \"d\"" / "sweeps" / "x")
    slurm.refuse_unsafe(book, job())
    line = slurm.worker_command(book, "token")
    inner = shlex.split(line)
    assert inner[:2] == ["bash", "-c"] and str(book.folder.resolve()) in shlex.split(inner[2])


def archive(path: Path, *members: tuple[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as file:
        for name, content in members:
            told = tarfile.TarInfo(name)
            told.size = len(content)
            file.addfile(told, io.BytesIO(content))
    return path


def test_archives_that_hold_nothing_or_far_too_much_are_refused(tmp_path: Path) -> None:
    whole = archive(tmp_path / "whole.tar.gz", ("patients_ehr/1.csv", b"a,b\n1,2\n" * 1000))
    unpack(whole, tmp_path / "whole")
    assert (tmp_path / "whole" / "patients_ehr" / "1.csv").stat().st_size == 8000
    bad = {
        "empty": (archive(tmp_path / "empty.tar.gz"), "it holds no file"),
        "bomb": (archive(tmp_path / "bomb.tar.gz", ("x", bytes(100 << 20))), "it holds more than"),
    }
    told = tarfile.TarInfo("sparse")
    told.size = 1 << 40
    (tmp_path / "sparse.tar.gz").write_bytes(gzip.compress(told.tobuf()))
    bad["sparse"] = (tmp_path / "sparse.tar.gz", "it holds more than")
    data = bytearray(whole.read_bytes())
    data[-8] ^= 1  # the CRC
    (tmp_path / "crc.tar.gz").write_bytes(data)
    bad["crc"] = (tmp_path / "crc.tar.gz", "BadGzipFile")
    for name, (path, reason) in bad.items():
        with pytest.raises(UserError, match=reason):
            unpack(path, tmp_path / name)
        assert not (tmp_path / name).exists(), name
    assert not list(tmp_path.glob(".*partial*"))
