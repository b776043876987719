"""stage=export export.layout=parquet: each context once, and the questions on it, as Parquet.

dataset/
    README.md                   a card, with which `datasets.load_dataset` opens the folder
    <split>/samples.parquet     a question a row, with the id of its context
    <split>/contexts.parquet    a record as it is shown a row: `context_id, text`

A sample with its context is a row of `export.layout=jsonl`: `input` is the context's text, and
`task_info` holds the columns of `TASK_INFO` and `label`, the value of the JSON in `target`. Memory
is bounded: rows are written group by group, and the ids of one patient are kept.
"""

import hashlib
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ehrr1.files import replacing, write_text
from ehrr1.prompts.record_texts import RecordText
from ehrr1.stages import export_card
from ehrr1.stages.export_rows import PLACES, Question, Questions, row
from ehrr1.tasks.catalog import TASKS

CONTEXTS = pa.schema({"context_id": pa.string(), "text": pa.string()})

TASK_INFO = {
    "hadm_id": pa.int64(),
    "task": pa.string(),
    "event": pa.string(),
    "target": pa.string(),
    "target_key": pa.string(),
    "metric": pa.string(),
    "bid_event": pa.list_(pa.string()),
    "task_type": pa.string(),
}
"""Columns from `task_info` of the benchmark's row."""

SAMPLES = {
    "idx": pa.int64(),
    "sample_id": pa.string(),
    "context_id": pa.string(),
    "subject_id": pa.int64(),
    "split": pa.string(),
    "prediction_time": pa.timestamp("us"),
    "available_until": pa.timestamp("us"),
    "instruction": pa.string(),
    "question": pa.string(),
    "output": pa.string(),
    "candidates": pa.list_(pa.string()),
    **TASK_INFO,
}

SAMPLES_AT_ONCE = 20_000
"""Rows of a group of samples.parquet."""

BYTES_AT_ONCE = 32_000_000
"""Size of the texts of a group of contexts.parquet."""

PAGE_ROWS, PAGE_BYTES = 64, 16_000_000
"""Of contexts.parquet: the size of a page is looked at every so many rows; a page of so many bytes
is compressed as a whole, so that what its contexts have in common is written once."""

LEVEL = 3
"""The level of zstd."""


def write(questions: Questions, split: str, folder: Path) -> dict[str, float | int]:
    """Write the dataset of a split ("all": of every split) to `folder`.

    Metrics: `rows`, `contexts`. Raises UserError where there are no samples.
    """
    places = [name for name in PLACES if name in questions.prepared.index_columns]
    schema = pa.schema(SAMPLES | dict.fromkeys(places, pa.int64()))
    parts: dict[str, _Split] = {}
    with replacing(folder) as temporary:
        with ExitStack() as files:
            for question in questions.of(split):
                name = question.sample.split
                if name not in parts:
                    parts[name] = _opened(temporary / name, schema, files)
                _add(parts[name], question, questions)
            for part in parts.values():
                part.samples.flush()
                part.contexts.flush()
        counts = {name: (part.samples.rows, part.contexts.rows) for name, part in parts.items()}
        card = export_card.card(questions.prepared, questions.style, counts)
        write_text(temporary / "README.md", card)
    rows, contexts = (sum(numbers) for numbers in zip(*counts.values(), strict=True))
    return {"rows": rows, "contexts": contexts}


@dataclass
class _Table:
    """A Parquet file that is written group by group."""

    writer: pq.ParquetWriter
    waiting: list[tuple[Any, ...]] = field(default_factory=list)
    rows: int = 0

    def flush(self) -> None:
        """Write the rows that wait as one group."""
        if self.waiting:
            columns = zip(*self.waiting, strict=True)
            kinds = self.writer.schema.types
            arrays = [pa.array(column, kind) for column, kind in zip(columns, kinds, strict=True)]
            self.writer.write_table(pa.Table.from_arrays(arrays, schema=self.writer.schema))
            self.rows += len(self.waiting)
            self.waiting.clear()


@dataclass
class _Split:
    """The files of a split, and of the last patient the ids of the contexts that are written."""

    samples: _Table
    contexts: _Table
    ids: set[str] = field(default_factory=set)
    subject: int | None = None
    bytes: int = 0
    record: RecordText | None = None
    context_id: str = ""
    """Of `record`, the last one."""


def _opened(folder: Path, schema: pa.Schema, files: ExitStack) -> _Split:
    folder.mkdir(parents=True)
    samples = pq.ParquetWriter(
        folder / "samples.parquet", schema, compression="zstd", compression_level=LEVEL
    )
    contexts = pq.ParquetWriter(
        folder / "contexts.parquet",
        CONTEXTS,
        compression="zstd",
        compression_level=LEVEL,
        use_dictionary=False,
        write_statistics=["context_id"],
        write_batch_size=PAGE_ROWS,
        data_page_size=PAGE_BYTES,
    )
    return _Split(_Table(files.enter_context(samples)), _Table(files.enter_context(contexts)))


def _add(part: _Split, question: Question, questions: Questions) -> None:
    """Add a question to the tables of its split, and its context where it is new."""
    if question.record is not part.record:
        _add_context(part, question)
    found = sample_row(question, questions) | {"context_id": part.context_id}
    part.samples.waiting.append(tuple(map(found.get, part.samples.writer.schema.names)))
    if len(part.samples.waiting) >= SAMPLES_AT_ONCE:
        part.samples.flush()


def _add_context(part: _Split, question: Question) -> None:
    """Take the context of a question for the last one, and add it if it is new.

    Its id is 32 hexadecimal digits of a SHA-256 of the text, and of the patient if the record is in
    the store, so that the ids of one patient tell what is new.
    """
    sample, text = question.sample, question.record.text.encode()
    in_store = sample.text_row is None
    if in_store and sample.subject_id != part.subject:
        part.ids.clear()
        part.subject = sample.subject_id
    digest = hashlib.sha256(f"{sample.subject_id}\n".encode() if in_store else b"")
    digest.update(text)
    part.record, part.context_id = question.record, digest.hexdigest()[:32]
    if part.context_id in part.ids:
        return
    part.ids.add(part.context_id)
    part.contexts.waiting.append((part.context_id, text))
    part.bytes += len(text)
    if part.bytes >= BYTES_AT_ONCE:
        part.contexts.flush()
        part.bytes = 0


def sample_row(question: Question, questions: Questions) -> dict[str, Any]:
    """Return a row of samples.parquet without the id of the context."""
    sample, style = question.sample, questions.style
    found = row(question, style)
    info = found["task_info"]
    think = TASKS[sample.task].kind == "decision"
    return {
        **{name: found[name] for name in SAMPLES if name in found},
        **{name: info[name] for name in (*TASK_INFO, *PLACES) if name in info},
        "split": sample.split,
        "prediction_time": sample.prediction_time,
        "available_until": question.record.available_until,
        "question": style.asked(sample.task, think=think, own=style.own(sample)),
    }
