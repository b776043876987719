"""The work of one process of `export.layout=parquet`: a range of the index as two tables."""

import hashlib
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from ehrr1.config.names import WordingName
from ehrr1.prompts.wording import style_of
from ehrr1.stages.export_rows import PLACES, Question, Questions, row
from ehrr1.tasks.candidates import Candidates
from ehrr1.tasks.catalog import ALL_TASKS
from ehrr1.tasks.samples import Prepared

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

CONTEXTS = {
    "split": pa.string(),
    "subject_id": pa.int64(),
    "context_id": pa.string(),
    "text": pa.string(),
}
"""`subject_id` is null for a record that was read as a text, which several patients may share."""


class Source(NamedTuple):
    """The input of an export, in a form that can be sent to other processes."""

    prepared: Path
    wording: WordingName
    seed: int
    similar_items: Path | None
    tasks: tuple[str, ...] | None
    split: str


class Part(NamedTuple):
    """A range of the rows of the index."""

    source: Source
    first: int
    rows: int


class Made(NamedTuple):
    """The tables of a part (`packed`), and the answers that no list of candidates holds by task."""

    samples: bytes
    contexts: bytes
    too_long: Counter[str]


@lru_cache(maxsize=1)
def questions_of(source: Source) -> Questions:
    """Open what an export reads; a process does it once."""
    prepared = Prepared(source.prepared)
    candidates = Candidates(prepared, source.seed, source.similar_items)
    return Questions(prepared, style_of(source.wording, "eval"), candidates, source.tasks)


def samples_schema(prepared: Prepared) -> pa.Schema:
    """Return the columns of samples; those of the paper's protocol have positions too."""
    places = [name for name in PLACES if name in prepared.index_columns]
    return pa.schema(SAMPLES | dict.fromkeys(places, pa.int64()))


def made(part: Part) -> Made:
    """Return the samples of a part, numbered from 0, and their contexts, each once."""
    questions = questions_of(part.source)
    questions.candidates.too_long.clear()
    schema = samples_schema(questions.prepared)
    samples, contexts = list[tuple[Any, ...]](), dict[tuple[Any, ...], bytes]()
    record, context_id = None, ""
    for question in questions.part(part.source.split, part.first, part.rows):
        if question.record is not record:
            record, text = question.record, question.record.text.encode()
            whose = None if question.sample.text_row is not None else question.sample.subject_id
            context_id = context_id_of(text, whose)
            contexts.setdefault((question.sample.split, whose, context_id), text)
        found = sample_row(question, questions) | {"context_id": context_id}
        samples.append(tuple(map(found.get, schema.names)))
    return Made(
        packed(samples, schema),
        packed([(*key, text) for key, text in contexts.items()], pa.schema(CONTEXTS)),
        Counter(questions.candidates.too_long),
    )


def context_id_of(text: bytes, subject: int | None) -> str:
    """Return the id of a context: 32 hexadecimal digits of a SHA-256.

    It is that of the text, and of the patient if the record is in the store: the ids of one patient
    then tell what is new.
    """
    digest = hashlib.sha256(b"" if subject is None else f"{subject}\n".encode())
    digest.update(text)
    return digest.hexdigest()[:32]


def sample_row(question: Question, questions: Questions) -> dict[str, Any]:
    """Return a row of samples without the id of the context."""
    sample, style = question.sample, questions.style
    found = row(question, style)
    info = found["task_info"]
    think = ALL_TASKS[sample.task].kind == "decision"
    return {
        **{name: found[name] for name in SAMPLES if name in found},
        **{name: info[name] for name in (*TASK_INFO, *PLACES) if name in info},
        "split": sample.split,
        "prediction_time": sample.prediction_time,
        "available_until": question.record.available_until,
        "question": style.asked(sample.task, think=think, own=style.own(sample)),
    }


def packed(rows: list[tuple[Any, ...]], schema: pa.Schema) -> bytes:
    """Return rows as a compressed Arrow stream: contexts that wait to be written take no space."""
    columns = zip(*rows, strict=True) if rows else [()] * len(schema)
    arrays = [pa.array(column, kind) for column, kind in zip(columns, schema.types, strict=True)]
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(sink, schema, options=options) as stream:
        stream.write_table(pa.Table.from_arrays(arrays, schema=schema))
    return bytes(sink.getvalue())


def unpacked(stream: bytes) -> pa.Table:
    """Return the table that `packed` has packed."""
    with pa.ipc.open_stream(stream) as reader:
        return reader.read_all()
