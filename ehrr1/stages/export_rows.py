"""stage=export export.layout=jsonl, jsonl.zst, rows: questions in the benchmark's rows, one a line.

samples.jsonl[.zst] holds the benchmark's row (`idx, instruction, input, output, candidates,
task_info`) with `sample_id, subject_id, prediction_time, available_until`. `candidates` of a
decision task are its answer among others' answers, for models that were not trained on the task.
layout=rows adds `messages`, the chat of each row, which repeats its `input`.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from ehrr1.errors import UserError
from ehrr1.files import replacing
from ehrr1.progress import track
from ehrr1.prompts.messages import answer_text
from ehrr1.prompts.record_texts import RecordText, RecordTexts
from ehrr1.prompts.wording import Wording
from ehrr1.records.schema import TABLES
from ehrr1.stages.export_release import label_of
from ehrr1.tasks.candidates import Candidates
from ehrr1.tasks.catalog import ALL_TASKS
from ehrr1.tasks.release.task_info import task_info
from ehrr1.tasks.samples import Prepared, Sample

PLACES = ("period_begin", "period_end", "admissions_id", "last_discharge_id")
"""Fields of a sample of the paper's protocol: positions in the patient's list of events."""

TABLE_OF = {table.heading: name for name, table in TABLES.items()}

CHUNK = 10_000
"""The number of samples that are held in memory at a time."""


@dataclass(frozen=True, slots=True)
class Question:
    """A sample with its number in the export, its record as shown, and its candidates."""

    number: int
    sample: Sample
    record: RecordText
    candidates: list[str]


@dataclass(frozen=True)
class Questions:
    """The questions of an export, in the order of the index.

    tasks: only these (None: all); limit: at most so many (None: all). No caps by task: what a stage
    trains on is its own matter.
    """

    prepared: Prepared
    style: Wording
    candidates: Candidates
    tasks: Sequence[str] | None = None
    limit: int | None = None

    def of(self, split: str) -> Iterator[Question]:
        """Yield the questions of a split ("all": of every split); no more is read than is asked.

        Raises UserError where there is none.
        """
        total, _ = self.extent(split)
        yield from self._asked(track(self._samples(split), "export", total=total))

    def part(self, split: str, first: int, rows: int) -> Iterator[Question]:
        """Yield the questions among some rows of the index, numbered from 0."""
        index = self.prepared.scan(rows=(first, rows))
        return self._asked(self.prepared.as_samples(index.filter(self._wanted(split)).collect()))

    def extent(self, split: str) -> tuple[int, int]:
        """Return the number of questions, and of the rows of the index among which they are.

        Raises UserError where there is none.
        """
        index = self.prepared.scan().with_row_index("row").filter(self._wanted(split))
        if self.limit is not None:
            index = index.head(self.limit)
        count, last = index.select(pl.len(), pl.col("row").max().alias("last")).collect().row(0)
        if not count:
            raise no_samples(split, self.tasks, self.prepared.folder)
        return count, last + 1

    def _asked(self, samples: Iterable[Sample]) -> Iterator[Question]:
        texts = RecordTexts(self.prepared, self.style)
        last_id, record = "", RecordText("", None)
        for number, sample in enumerate(samples):
            if sample.context_id != last_id:
                last_id, record = sample.context_id, texts(sample)
            yield Question(number, sample, record, self.candidates(sample))

    def _wanted(self, split: str) -> pl.Expr:
        of_split = pl.lit(True) if split == "all" else pl.col("split") == split
        of_tasks = pl.lit(True) if self.tasks is None else pl.col("task").is_in(list(self.tasks))
        return of_split & of_tasks

    def _samples(self, split: str) -> Iterator[Sample]:
        left = self.limit
        for index in self.prepared.batches(CHUNK):
            found = index.filter(self._wanted(split))
            yield from self.prepared.as_samples(found if left is None else found.head(left))
            left = None if left is None else left - found.height
            if left is not None and left <= 0:
                return


def no_samples(split: str, tasks: Sequence[str] | None, prepared: Path) -> UserError:
    """Return the error for a split without samples, or without any of the tasks."""
    if tasks is not None:
        return UserError(
            f"data.tasks=[{','.join(tasks)}]: the split {split} has no samples of them in "
            f"{prepared}; name other tasks, or leave data.tasks out"
        )
    return UserError(
        f"split={split}: it has no samples; prepare more patients or give the split a larger "
        "share (data.split)"
    )


def write(questions: Iterable[Question], style: Wording, path: Path, *, messages: bool) -> int:
    """Write the rows as JSON lines and return their number; `.zst` in the name compresses them."""
    count = 0
    with replacing(path) as temporary, temporary.open("wb") as file, ExitStack() as stack:
        out: Any = file
        if path.suffix == ".zst":
            out = stack.enter_context(pa.CompressedOutputStream(file, "zstd"))
        for question in questions:
            found = row(question, style)
            if messages:
                found |= messages_of(question, style)
            out.write((json.dumps(found, ensure_ascii=False) + "\n").encode())
            count += 1
    return count


def row(question: Question, style: Wording) -> dict[str, Any]:
    """Return a question as a row of the benchmark, with the fields that the release's reader needs.

    Times are written as ISO 8601.
    """
    sample = question.sample
    task, until = ALL_TASKS[sample.task], question.record.available_until
    instruction = style.own(sample) or task.instruction
    label = label_of(sample)
    places = {name: getattr(sample, name) for name in PLACES} if sample.period_end else {}
    return {
        "idx": question.number,
        "sample_id": sample.sample_id,
        "subject_id": sample.subject_id,
        "prediction_time": sample.prediction_time.isoformat(),
        "available_until": until.isoformat() if until is not None else None,
        "instruction": instruction,
        "input": question.record.text,
        "output": answer_text(sample.target),
        "candidates": ["yes", "no"] if task.kind == "risk" else question.candidates or None,
        "task_info": {
            **task_info(sample.task),
            "instruction": instruction,
            "subject_id": sample.subject_id,
            "hadm_id": sample.hadm_id,
            "task": sample.task,
            "event": event_of(sample),
            **places,
            "target": json.dumps(label, ensure_ascii=False),
            "label": label,
        },
    }


def messages_of(question: Question, style: Wording) -> dict[str, Any]:
    """Return `messages`: the chat of a question."""
    sample = question.sample
    think = ALL_TASKS[sample.task].kind == "decision"
    chat = style.chat(sample.task, question.record.text, think=think, own=style.own(sample))
    return {"messages": chat}


def event_of(sample: Sample) -> str:
    """Return the table that a sample asks about; for `next_event` that of the event itself.

    Tasks that ask about none have their own names: the user's own task, and those of benchmarks.
    """
    anchor = ALL_TASKS[sample.task].anchor_table
    if anchor in TABLES:
        return anchor
    if sample.task != "next_event":
        return sample.task
    [answer] = sample.target
    return TABLE_OF.get(answer, answer)
