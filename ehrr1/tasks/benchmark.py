"""The benchmark's JSONL: rows that bring context, question and answer and need no records.

A row is `{idx, instruction, input, output, candidates, task_info: {task, ...}}`. Every row is
checked; one that cannot be used is reported by its reason, none is lost in silence. What a row does
not say is filled: without `subject_id` each row is a patient of its own, without `prediction_time`
it is asked at the time of the last event of its context.
"""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from ehrr1.errors import UserError
from ehrr1.files import replacing
from ehrr1.records.markdown import events_of
from ehrr1.tasks.catalog import TASKS

TEXTS_AT_ONCE = 1_000
UNKNOWN_TIME = datetime(1970, 1, 1)

INDEX_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "sample_id": pl.String,
    "task": pl.String,
    "split": pl.String,
    "subject_id": pl.Int64,
    "hadm_id": pl.Int64,
    "stay_id": pl.Int64,
    "prediction_time": pl.Datetime("us"),
    "n_context_rows": pl.Int32,
    "context_id": pl.String,
    "target": pl.List(pl.String),
    "instruction": pl.String,
    "candidates": pl.List(pl.String),
    "text_row": pl.Int64,
}
"""As `tasks.index.build_index`, with the answers themselves and what the rows brought."""


class UnusableError(Exception):
    """A row that cannot be used; the message is the reason in one word."""


@dataclass
class Benchmark:
    """The usable rows of a file as an index, and what became of the others."""

    index: pl.DataFrame
    read: int
    reported: Counter[str] = field(default_factory=Counter)


def read_benchmark(path: Path, texts: Path) -> Benchmark:
    """Read the rows of `path`; their contexts go to the file `texts`, equal ones once.

    Raises UserError where there is no such file or no usable row.
    """
    if not path.is_file():
        raise UserError(f"data.path={path}: there is no such file")
    rows: dict[str, dict[str, Any]] = {}
    reported: Counter[str] = Counter()
    read = 0
    with (
        path.open("rb") as lines,
        replacing(texts) as temporary,
        pa.ipc.new_file(str(temporary), _Texts.SCHEMA) as file,
    ):
        contexts = _Texts(file)
        for number, line in enumerate(lines):
            if not line.strip():
                continue
            read += 1
            try:
                row = _row(line, number)
                if row["sample_id"] in rows:
                    raise UnusableError("repeated_id")
            except UnusableError as reason:
                reported[str(reason)] += 1
                continue
            row["text_row"] = contexts.add(row.pop("input"))
            row["context_id"] = f"text/{row['text_row']}"
            rows[row["sample_id"]] = row
        contexts.write()
        if not rows:
            found = ", ".join(f"{why} {n}" for why, n in reported.items()) or "it is empty"
            raise UserError(
                f"data.path={path}: it has no usable row ({found}): a JSON object a line is "
                "needed, with instruction, input, output and task_info.task"
            )
    return Benchmark(pl.DataFrame(list(rows.values()), schema=INDEX_SCHEMA), read, reported)


def _row(line: bytes, number: int) -> dict[str, Any]:
    """One row of the index, with `input`; raises UnusableError."""
    given = _object(line)
    info = given.get("task_info")
    task = info.get("task") if isinstance(info, dict) else None
    if not isinstance(info, dict) or not isinstance(task, str):
        raise UnusableError("no_task")
    if task not in TASKS:
        raise UnusableError("unknown_task")
    text, question = (_text(given, name) for name in ("input", "instruction"))
    subject, idx = given.get("subject_id"), given.get("idx", number)
    candidates = given.get("candidates") or []
    if not isinstance(candidates, list) or not all(isinstance(c, str) for c in candidates):
        raise UnusableError("bad_candidates")
    events = events_of(text)
    return {
        "sample_id": str(given.get("sample_id") or f"{task}/{idx}"),
        "task": task,
        "split": "test",
        "subject_id": subject if _is_id(subject) else -1 - number,
        "prediction_time": _time(given, [event.time for event in events]),
        "n_context_rows": len(events),
        "target": _in_order(_answer(_text(given, "output"), task), info.get("target")),
        "instruction": question,
        "candidates": candidates,
        "input": text,
    }


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _object(line: bytes) -> dict[str, Any]:
    try:
        given = json.loads(line)
    except UnicodeDecodeError:
        raise UnusableError("not_utf8") from None
    except (json.JSONDecodeError, RecursionError):
        raise UnusableError("not_json") from None
    if not isinstance(given, dict):
        raise UnusableError("no_object")
    return given


def _text(given: dict[str, Any], name: str) -> str:
    value = given.get(name)
    if not isinstance(value, str) or not value.strip():
        raise UnusableError(f"no_{name}")
    if any("\ud800" <= letter <= "\udfff" for letter in value):  # half a letter, by JSON's escapes
        raise UnusableError("not_utf8")
    return value


def _answer(output: str, task: str) -> list[str]:
    """The distinct lines of the answer, yes or no, or a whole text."""
    if TASKS[task].target == "text":
        return [output.strip()]
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    if TASKS[task].kind == "decision":
        return list(dict.fromkeys(lines))
    answer = lines[0].lower() if len(lines) == 1 else ""
    if answer not in ("yes", "no"):
        raise UnusableError("answer_not_yes_or_no")
    return [answer]


def _in_order(answer: list[str], target: object) -> list[str]:
    """The answer in the order of `task_info.target`, where that names the same items."""
    if isinstance(target, list) and sorted(map(str, target)) == sorted(answer):
        return list(map(str, target))
    return answer


def _time(given: dict[str, Any], times: list[datetime | None]) -> datetime:
    said = given.get("prediction_time")
    if said is not None:
        try:
            return datetime.fromisoformat(said).replace(tzinfo=None)
        except (TypeError, ValueError):
            raise UnusableError("bad_prediction_time") from None
    return max((time for time in times if time is not None), default=UNKNOWN_TIME)


class _Texts:
    """Distinct texts on their way into an Arrow file of one column, a few at a time."""

    SCHEMA = pa.schema([("text", pa.large_string())])

    def __init__(self, file: pa.RecordBatchFileWriter):
        self.file = file
        self.places: dict[bytes, int] = {}
        self.waiting: list[str] = []

    def add(self, text: str) -> int:
        """The place of the text in the file."""
        key = hashlib.sha256(text.encode()).digest()
        if key not in self.places:
            self.places[key] = len(self.places)
            self.waiting.append(text)
            if len(self.waiting) == TEXTS_AT_ONCE:
                self.write()
        return self.places[key]

    def write(self) -> None:
        column = pa.array(self.waiting, pa.large_string())
        self.file.write_batch(pa.record_batch([column], schema=self.SCHEMA))
        self.waiting = []
