"""Benchmark rows of context, question and answer as JSONL or CSV, which need no records.

A row is `{idx, instruction, input, output, candidates, task_info: {task, ...}}`; a CSV has these as
columns, lists and dictionaries as JSON or Python literals, and may have `task` and `target` instead
of `task_info` and `output`. Every row is checked; an unusable row is reported with its reason.
Missing values have defaults: without `subject_id` (the row's or that of `task_info`) each row is a
patient of its own, and without `prediction_time` it is the time of the last event of its context. A
training row may contain a reasoning chain (`reasoning`).
"""

import csv
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

import polars as pl

from ehrr1.errors import UserError
from ehrr1.json_text import BadJsonError, from_json, id_of, is_id
from ehrr1.records.markdown import events_of
from ehrr1.records.reading import is_data
from ehrr1.tasks.catalog import NAMED_TASKS
from ehrr1.tasks.external.cells import LONGEST, value_of
from ehrr1.tasks.external.texts import Texts, text_file
from ehrr1.tasks.release.rows import chain_of, items_of
from ehrr1.tasks.splits import split_patients

UNKNOWN_TIME = datetime(1970, 1, 1)

SUFFIXES = (".jsonl", ".csv")

SHOTS = "shots.parquet"
"""File beside the index with the samples that a benchmark designates as examples."""

PLACES = 3
"""Unusable rows that are named for each reason; the others are counted."""

POINTS = "period_end"
"""Column of the release's index files, whose rows point into records and contain no input."""

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
"""Columns of `tasks.index.build_index`, with answers as texts, and further columns of the rows."""


class UnusableError(Exception):
    """A row that cannot be used; the message is a short name of the reason."""


@dataclass
class Benchmark:
    """The usable rows of a benchmark as an index, and the counts of the others.

    `shots` are the samples that the benchmark designates as examples (columns `sample_id, k,
    replicate`), or None. `counts` are further counts, by the name of a metric. `chains` maps
    `sample_id` to the chain of a row. `places` names the first unusable rows by reason, as
    `FILE line N`.
    """

    index: pl.DataFrame
    read: int
    reported: Counter[str] = field(default_factory=Counter)
    shots: pl.DataFrame | None = None
    counts: dict[str, float | int] = field(default_factory=dict)
    chains: dict[str, str] = field(default_factory=dict)
    places: dict[str, list[str]] = field(default_factory=dict)


def read_benchmark(
    path: Path | None, texts: Path, train: Path | None = None, validation: float = 0, seed: int = 0
) -> Benchmark:
    """Read the rows of `path` (test) and `train`, each a file or a folder of files.

    Distinct contexts are written to the file `texts`. The share `validation` of the patients of
    `train` is used for validation. A patient of the test set is excluded from training: these rows
    are reported. Raises UserError if there is no such file or no usable row.
    """
    found = _Reading()
    with text_file(texts) as contexts:
        if path is not None:
            found.read_file(path, "data.path", "test", contexts)
        if train is not None:
            found.read_file(train, "data.train", "train", contexts)
    index = pl.DataFrame(list(found.rows.values()), schema=INDEX_SCHEMA)
    learning = index.filter(pl.col("split") == "train")["subject_id"]
    splits = split_patients(learning, validation=validation, test=0, seed=seed)
    index = index.join(splits, on="subject_id", how="left", suffix="_drawn", maintain_order="left")
    drawn = pl.coalesce("split_drawn", "split").alias("split")
    return Benchmark(
        index.with_columns(drawn).select(*INDEX_SCHEMA),
        found.count,
        found.reported,
        chains=found.chains,
        places=found.places,
    )


@dataclass
class _Reading:
    """Rows, counts and chains that have been read so far."""

    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    reported: Counter[str] = field(default_factory=Counter)
    chains: dict[str, str] = field(default_factory=dict)
    places: dict[str, list[str]] = field(default_factory=dict)
    tested: set[int] = field(default_factory=set)
    count: int = 0

    def read_file(self, path: Path, setting: str, split: str, contexts: Texts) -> None:
        """Add the usable rows of a file or folder; raise UserError if there is none."""
        files, before = _files(path, setting), len(self.rows)
        for name, line, given in ((file.name, *row) for file in files for row in rows_of(file)):
            self.count += 1
            try:
                row = _row(given, self.count - 1, split)
                if row["sample_id"] in self.rows:
                    raise UnusableError("repeated_id")
                if split == "train" and row["subject_id"] in self.tested:
                    raise UnusableError("patient_is_tested")
            except UnusableError as reason:
                self._report(str(reason), f"{name} line {line}")
                continue
            if split == "test":
                self.tested.add(row["subject_id"])
            if chain := row.pop("chain"):
                self.chains[row["sample_id"]] = chain
            row["text_row"] = contexts.add(row.pop("input"))
            row["context_id"] = f"text/{row['text_row']}"
            self.rows[row["sample_id"]] = row
        if len(self.rows) == before:
            raise _nothing(path, setting, files, self.reported)

    def _report(self, reason: str, place: str) -> None:
        self.reported[reason] += 1
        places = self.places.setdefault(reason, [])
        if len(places) < PLACES:
            places.append(place)


def _files(path: Path, setting: str) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"{setting}={path}: there is no such file or folder")
    found = sorted(f for f in path.iterdir() if f.suffix in SUFFIXES and is_data(f.name))
    if not found:
        raise UserError(f"{setting}={path}: the folder holds no {', '.join(SUFFIXES)}")
    return found


def _nothing(path: Path, setting: str, files: list[Path], reported: Counter[str]) -> UserError:
    found = ", ".join(f"{why} {n}" for why, n in reported.items()) or "it is empty"
    if any(POINTS in _header(file) for file in files):
        return UserError(
            f"{setting}={path}: its rows bring no input but point into patients_ehr/: read the "
            "release's folder with them, data=release data.root=DIR"
        )
    return UserError(
        f"{setting}={path}: it has no usable row ({found}): JSON objects, one a line, or rows of a "
        "CSV are needed, with instruction, input, output and task_info.task"
    )


def rows_of(file: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Yield the rows of a file with their lines, or the reason in place of an unreadable row.

    The line is that in which a row ends.

    Raises UserError for a malformed CSV.
    """
    if file.suffix != ".csv":
        with file.open("rb") as lines:
            rows = enumerate(lines, start=1)
            yield from ((number, _object(line)) for number, line in rows if line.strip())
        return
    csv.field_size_limit(LONGEST)  # a record is longer than the default
    with _opened(file) as lines:
        reader = csv.DictReader(lines)
        while True:
            try:
                cells = next(reader, None)
            except csv.Error as error:
                raise UserError(
                    f"data.path={file}: it cannot be read ({error}): fetch it again"
                ) from error
            if cells is None:
                return
            yield reader.line_num, _from_cells(cells)


def _opened(file: Path) -> TextIO:
    """Open a CSV as text.

    Bytes that are not UTF-8 become surrogates, and their rows are reported.
    """
    return file.open(encoding="utf-8-sig", errors="surrogateescape", newline="")


def _header(file: Path) -> list[str]:
    """Return the headings of a CSV, and none for other files."""
    if file.suffix != ".csv":
        return []
    with _opened(file) as lines:
        return next(csv.reader(lines), [])


def _from_cells(cells: dict[str | None, Any]) -> dict[str, Any] | str:
    """Convert a row of a CSV to an object as in JSONL; return the reason if it cannot be read."""
    if None in cells or None in cells.values():  # more cells than headings, or fewer
        return "bad_row"
    given: dict[str, Any] = {str(name): cell for name, cell in cells.items() if cell.strip()}
    for name in ("candidates", "task_info", "target"):
        if name in given:
            try:
                given[name] = value_of(given[name])
            except ValueError:
                if name != "target":  # a single item need not be a literal
                    return f"bad_{name}"
                given[name] = [given[name]]
    target = given.get("target")
    if "target" in given and not isinstance(target, list):
        target = [target]
    info = given.setdefault("task_info", {name: given[name] for name in ("task",) if name in given})
    if isinstance(target, list) and isinstance(info, dict):
        info.setdefault("target", target)
        given.setdefault("output", "\n".join(map(str, target)))
    for name in ("subject_id", "idx"):
        if (number := id_of(given.get(name, "").removesuffix(".0"))) is not None:
            given[name] = number
    return given


def _row(given: dict[str, Any] | str, number: int, split: str) -> dict[str, Any]:
    """Return one row of the index, with `input` and `chain`.

    Raises UnusableError.
    """
    if isinstance(given, str):
        raise UnusableError(given)
    info = given.get("task_info")
    task = info.get("task") if isinstance(info, dict) else None
    if not isinstance(info, dict) or not isinstance(task, str):
        raise UnusableError("no_task")
    if task not in NAMED_TASKS:
        raise UnusableError("unknown_task")
    text, question = (_text(given, name) for name in ("input", "instruction"))
    subject = given.get("subject_id", info.get("subject_id"))
    candidates = _candidates(given.get("candidates"))
    sample_id = str(given.get("sample_id") or _name(given, info, number, split))
    chain = chain_of(given.get("reasoning") or info.get("reasoning"))
    _check_letters("".join([sample_id, *candidates, chain or ""]))
    events = events_of(text)
    return {
        "sample_id": sample_id,
        "task": task,
        "split": split,
        "subject_id": subject if is_id(subject) else -1 - number,
        "prediction_time": _time(given, [event.time for event in events]),
        "n_context_rows": len(events),
        "target": _in_order(_answer(_text(given, "output"), task), info.get("target")),
        "instruction": question,
        "candidates": candidates if NAMED_TASKS[task].kind == "decision" else [],
        "input": text,
        "chain": chain,
    }


def _name(given: dict[str, Any], info: dict[str, Any], number: int, split: str) -> str:
    """Return an identifier of a row: the release's position in a record, or the row's number."""
    place = [info.get(name) for name in ("task", "subject_id", "period_begin", "period_end")]
    if None not in place:
        return "{}/{}/{}-{}".format(*place)
    own = f"{info['task']}/{given.get('idx', number)}"
    return own if split == "test" else f"{split}/{own}"


def _candidates(value: Any) -> list[str]:
    """Return the candidates of a list, of a list as text (`"['yes', 'no']"`), or of none.

    None is `null` or `"None"`. Raises UnusableError for other values.
    """
    if isinstance(value, str):
        try:
            value = value_of(value)
        except ValueError:
            raise UnusableError("bad_candidates") from None
    if not isinstance(value or [], list) or not all(isinstance(c, str) for c in value or []):
        raise UnusableError("bad_candidates")
    return value or []


def _object(line: bytes) -> dict[str, Any] | str:
    try:
        given = from_json(line)
    except BadJsonError as error:
        return error.code
    return given if isinstance(given, dict) else "no_object"


def _check_letters(text: str) -> None:
    """Raise UnusableError for surrogates, which cannot be written again.

    They result from JSON's escapes in the cells of a CSV, and from invalid UTF-8.
    """
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise UnusableError("not_utf8")


def _text(given: dict[str, Any], name: str) -> str:
    value = given.get(name)
    if not isinstance(value, str) or not value.strip():
        raise UnusableError(f"no_{name}")
    _check_letters(value)
    return value


def _answer(output: str, task: str) -> list[str]:
    """Return the distinct lines of the answer, yes or no, or a whole text.

    Raises UnusableError for a risk task with another answer.
    """
    if NAMED_TASKS[task].target == "text":
        return [output.strip()]
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    if NAMED_TASKS[task].kind == "decision":
        return list(dict.fromkeys(lines))
    answer = lines[0].lower() if len(lines) == 1 else ""
    if answer not in ("yes", "no"):
        raise UnusableError("answer_not_yes_or_no")
    return [answer]


def _in_order(answer: list[str], target: object) -> list[str]:
    """Return the answer in the order of `task_info.target` if that names the same items.

    `target` is a list, or a list as JSON, as in the release's rows.
    """
    if isinstance(target, str):
        target = items_of(target)
    if isinstance(target, list) and sorted(map(str, target)) == sorted(answer):
        return list(map(str, target))
    return answer


def _time(given: dict[str, Any], times: list[datetime | None]) -> datetime:
    text = given.get("prediction_time")
    if text is not None:
        try:
            time = datetime.fromisoformat(text)
        except (TypeError, ValueError):
            raise UnusableError("bad_prediction_time") from None
        if time.tzinfo is not None:  # the times of the record have no zone
            raise UnusableError("bad_prediction_time")
        return time.replace(microsecond=0)
    return max((time for time in times if time is not None), default=UNKNOWN_TIME)
