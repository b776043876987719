"""A file of questions: read, checked row by row, answered line by line, resumed."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from hashlib import blake2b
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from ehrr1 import runs
from ehrr1.engines.base import EngineError
from ehrr1.errors import UserError
from ehrr1.files import read_json, write_json
from ehrr1.inference.query import Answer, Query, events
from ehrr1.json_text import BadJsonError, from_json, is_id
from ehrr1.records.events import Event
from ehrr1.tasks.catalog import ALL_TASKS, NAMED_TASKS

SHOWN = 20
"""Lines that cannot be asked and are named; the others are counted."""

SHOWN_CHARS = 60
"""Characters of an unknown task's name that are shown."""

OF_ROWS = (
    *(ArithmeticError, AssertionError, LookupError, MemoryError, RuntimeError, TypeError),
    ValueError,
)
"""Errors that what stands in a row can cause; those of files, servers and settings meet all."""

NONE_ANSWERED = 8
"""As many rows that fail, and no answer to any, mean that the rows are not the cause."""

TEXT = "text/"
"""Prefix of the `context_id` of a record that its row brings as text."""

Ask = Callable[[list[Query]], Iterator[tuple[str, Answer]]]
"""Queries -> the id of each and its answer, as they are finished."""

Records = Callable[[dict[str, Any]], Callable[[], list[Event]]]
"""A row that names a patient -> what reads the record."""


class RowError(ValueError):
    """An error in one row; its message contains no patient's text."""


@dataclass
class Batch:
    """The rows of a file of questions.

    `left` are those to answer, `refused` those that cannot be asked, by their line, and `done` the
    ids that are answered, as text, of the file's `rows`.
    """

    path: Path
    output: Path
    rows: int
    left: list[Query]
    ids: dict[str, Any]
    """id as text -> as the file has it"""
    lines: dict[str, int]
    refused: dict[int, str]
    done: set[str] = field(default_factory=set)
    _file: TextIOWrapper | None = None

    @contextmanager
    def writing(self, settings: dict[str, Any]) -> Iterator[None]:
        """Take up the output where it was left; nobody else writes to it meanwhile.

        Raises UserError for an output that was made with other settings.
        """
        self.output.parent.mkdir(parents=True, exist_ok=True)
        with runs.held(self.output):
            self._same(settings)
            self.done = finished(self.output) & self.ids.keys()
            self.left = [asking for asking in self.left if asking.id not in self.done]
            with self.output.open("a", encoding="utf-8") as self._file:
                yield

    def _same(self, settings: dict[str, Any]) -> None:
        """Remember what the answers are made with, beside them."""
        path = self.output.with_name(f"{self.output.name}.settings.json")
        there = read_json(path) if path.exists() and self.output.exists() else settings
        changed = [
            f"{key}: {there.get(key)} there, {value} now"
            for key, value in settings.items()
            if there.get(key) != value
        ]
        if changed:
            raise UserError(
                f"infer.output={self.output} was made with other settings ({'; '.join(changed)}): "
                "name another by infer.output=FILE, or remove it"
            )
        write_json(path, settings)

    def refuse(self, problem: Callable[[Query], str | None]) -> None:
        """Leave out the rows with a problem, and those whose record cannot be read."""
        kept = []
        for asking in self.left:
            reason = problem(asking) or unreadable(asking)
            if reason:
                self.refused[self.lines[asking.id]] = reason
            else:
                kept.append(asking)
        self.left = kept

    def answer(self, ask: Ask) -> Iterator[Answer]:
        """Ask what is left; write and yield the answers.

        Where an error ends several rows, halves of them are asked again, until the row that causes
        it is alone; it is left out. Raises the error if rows fail and none is answered.
        """
        waiting, failed = [self.left], 0
        while waiting:
            some = {asking.id: asking for asking in waiting.pop()}
            try:
                for name, answer in ask(list(some.values())):
                    del some[name]
                    self.write(name, answer)
                    yield answer
            except OF_ROWS as error:
                if isinstance(error, EngineError) or not some:
                    raise
                if len(some) > 1:
                    left, half = list(some.values()), len(some) // 2
                    waiting += [left[half:], left[:half]]
                    continue
                failed += 1
                if not self.done and (failed == NONE_ANSWERED or not waiting):
                    raise
                self.refused[self.lines[next(iter(some))]] = (
                    f"it cannot be answered ({type(error).__name__})"
                )

    def report(self) -> list[str]:
        """Return a line for each row that is left out."""
        shown = sorted(self.refused.items())[:SHOWN]
        lines = [f"{self.path} line {line}: {reason}; left out" for line, reason in shown]
        more = len(self.refused) - len(shown)
        return [*lines, f"and {more:,} more rows"] if more else lines

    def write(self, name: str, answer: Answer) -> None:
        """Append an answer to the output."""
        assert self._file is not None
        row = {
            "id": self.ids[name],
            "answer": answer.text,
            "probability": answer.probability,
            "chain": answer.chain,
            "problem": answer.problem,
        }
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._file.flush()
        self.done.add(name)


def read_batch(path: Path, output: Path, records: Records, tell_time: bool = False) -> Batch:
    """Read and check all rows; with `tell_time` their questions say their times.

    A row that cannot be asked, or whose id another one has, is left out by its line. Raises
    UserError for a file that cannot be read.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(
            f"infer.path={path}: {error.strerror}; name a file with a JSON object a line"
        ) from error
    batch = Batch(path, output, 0, [], {}, {}, {})
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        batch.rows += 1
        try:
            asking, own = read_row(line, records, tell_time)
            if asking.id in batch.ids:
                raise RowError(f"line {batch.lines[asking.id]} has its id; give each row its own")
        except RowError as error:
            batch.refused[number] = str(error)
            continue
        batch.ids[asking.id], batch.lines[asking.id] = own, number
        batch.left.append(asking)
    if not batch.rows:
        raise UserError(f"infer.path={path}: it is empty; give a JSON object a line")
    return batch


def read_row(line: str | bytes, records: Records, tell_time: bool) -> tuple[Query, Any]:
    """Read a row as a question, with its id as it stands there. Raises RowError for other lines."""
    try:
        row = from_json(line)
    except BadJsonError as error:
        raise RowError(str(error)) from error
    if not isinstance(row, dict):
        raise RowError("no JSON object")
    name = row.get("id")
    if isinstance(name, bool) or not isinstance(name, str | int) or name == "":
        raise RowError("no id (a text or a whole number)")
    question, task = row.get("question"), row.get("task")
    if (question is None) == (task is None):
        raise RowError("it needs a question or a task, one of the two")
    if question is not None and not isinstance(question, str):
        raise RowError("question is no text")
    if task is not None and not isinstance(task, str):
        raise RowError("task is no text")
    if task is not None and task not in NAMED_TASKS:
        raise RowError(f"task {task[:SHOWN_CHARS]} is unknown")
    context_id, record = read_record(row, records)
    time = row_time(row) if tell_time else None
    if tell_time and time is None:
        raise RowError("no time, which data.tell_time=true says in its question")
    return Query(str(name), context_id, record, question, task, time=time), name


def read_record(row: dict[str, Any], records: Records) -> tuple[str, Callable[[], list[Event]]]:
    """Return what identifies the record of a row, and a function that reads it."""
    text, subject = row.get("record"), row.get("subject_id")
    if (text is None) == (subject is None):
        raise RowError("it needs a record or a subject_id, one of the two")
    if text is not None:
        if not isinstance(text, str):
            raise RowError("record is no text")
        return TEXT + blake2b(text.encode(), digest_size=16).hexdigest(), partial(events, text)
    if not is_id(subject):
        raise RowError("subject_id is no whole number of at least 0 that fits 64 bits")
    time = row_time(row)
    return f"{subject}/{time}/{shows_the_moment(row.get('task'))}", records(row)


def row_time(row: dict[str, Any]) -> datetime | None:
    """Return the time in a row, None if it has none; raise RowError if it cannot be read."""
    try:
        return time_of(row.get("time"))
    except UserError as error:
        raise RowError("time is none; write it as 'YYYY-MM-DD HH:MM:SS'") from error


def shows_the_moment(task: str | None) -> bool:
    """Return whether a record shows what became known at its very time.

    A question about what came then must not see it.
    """
    return task is None or ALL_TASKS[task].kind == "risk"


def unreadable(asking: Query) -> str | None:
    """Return why a record cannot be read; None where it can."""
    try:
        asking.record()
    except UserError as error:
        return str(error)
    except OF_ROWS as error:
        return f"its record cannot be read ({type(error).__name__})"
    return None


def stored(asking: Query) -> bool:
    """Return whether a record is a patient's of the prepared store, and not its row's own text."""
    return not asking.context_id.startswith(TEXT)


def finished(output: Path) -> set[str]:
    """Return the ids that are answered; a last line that was only half written is cut off.

    Raises UserError for a file that holds something else.
    """
    if not output.exists():
        return set()
    content = output.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    done = set()
    for number, line in enumerate(whole.decode(errors="replace").split("\n")[:-1], start=1):
        try:
            done.add(str(from_json(line)["id"]))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"infer.output={output}: line {number} is no answer; name another file"
            ) from error
    if len(whole) < len(content):
        with output.open("r+b") as file:
            file.truncate(len(whole))
    return done


def time_of(value: Any) -> datetime | None:
    """Read `infer.time` or a row's `time`; None stays None. Raises UserError for other texts."""
    if value is None:
        return None
    try:
        time = datetime.fromisoformat(str(value))
    except ValueError:
        time = None
    if time is None or time.tzinfo is not None:
        raise UserError(
            f"infer.time={value}: write it as 'YYYY-MM-DD HH:MM:SS', without a time zone"
        )
    return time
