"""stage=export export.layout=parquet: each context once, and the questions on it, as Parquet.

dataset/
    README.md                   a card, with which `datasets.load_dataset` opens the folder
    <split>/samples.parquet     a question a row, with the id of its context
    <split>/contexts.parquet    a record as it is shown a row: `context_id, text`

A sample with its context is a row of `export.layout=jsonl`: `input` is the context's text, and
`task_info` holds the columns of `TASK_INFO` and `label`, the value of the JSON in `target`. Several
processes make ranges of the index (`export_parts`), and this one writes them in order. Memory is
bounded: rows are written group by group, and the ids of one patient's contexts are kept.
"""

from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ehrr1.files import replacing, write_text
from ehrr1.progress import in_processes
from ehrr1.stages import export_card
from ehrr1.stages.export_parts import (
    CONTEXTS,
    Part,
    Source,
    made,
    questions_of,
    samples_schema,
    unpacked,
)

PART_ROWS = 2_000
"""Rows of the index that a process reads at a time."""

SAMPLES_AT_ONCE = 20_000
"""Rows of a group of samples.parquet, about."""

BYTES_AT_ONCE = 32_000_000
"""Size of the texts of a group of contexts.parquet, at least."""

PAGE_ROWS, PAGE_BYTES = 64, 16_000_000
"""Rows of contexts.parquet after which the size of a page is checked, and the bytes of a page.

It is compressed as a whole, so that what its contexts have in common is written once."""

LEVEL = 3
"""The level of zstd."""


def write(
    source: Source, limit: int | None, workers: int | None, folder: Path
) -> dict[str, float | int]:
    """Write the dataset of `source`, at most `limit` rows, to `folder`, with so many processes.

    Metrics: `rows`, `contexts`, `too_long/<task>` (answers that no list of candidates holds).
    Raises UserError where there are no samples.
    """
    questions = replace(questions_of(source), limit=limit)
    _, end = questions.extent(source.split)
    ranges = [(first, min(PART_ROWS, end - first)) for first in range(0, end, PART_ROWS)]
    schema, rows = samples_schema(questions.prepared), 0
    splits, too_long = dict[str, _Split](), Counter[str]()
    with replacing(folder) as temporary:
        with ExitStack() as files:
            parts = [Part(source, *one) for one in ranges]
            for part in in_processes(made, parts, "export", workers):
                samples, contexts = _numbered(unpacked(part.samples), rows), unpacked(part.contexts)
                rows += samples.num_rows
                too_long.update(part.too_long)
                for name in pc.unique(samples["split"]).to_pylist():
                    if name not in splits:
                        splits[name] = _opened(temporary / name, schema, files)
                    _add(splits[name], _of(samples, name), _of(contexts, name))
            for split in splits.values():
                split.samples.flush()
                split.contexts.flush()
        counts = {name: (one.samples.rows, one.contexts.rows) for name, one in splits.items()}
        card = export_card.card(questions.prepared, questions.style, counts)
        write_text(temporary / "README.md", card)
    return {
        "rows": rows,
        "contexts": sum(contexts for _, contexts in counts.values()),
        **{f"too_long/{task}": count for task, count in sorted(too_long.items())},
    }


@dataclass
class _File:
    """A Parquet file that is written in groups of at least `least` (rows or bytes)."""

    writer: pq.ParquetWriter
    least: int
    waiting: list[pa.Table] = field(default_factory=list)
    size: int = 0
    rows: int = 0

    def add(self, table: pa.Table, size: int) -> None:
        """Append a table."""
        self.waiting.append(table)
        self.size += size
        if self.size >= self.least:
            self.flush()

    def flush(self) -> None:
        """Write the tables that wait as one group."""
        if self.size:
            table = pa.concat_tables(self.waiting)
            self.writer.write_table(table)
            self.rows += table.num_rows
        self.waiting, self.size = [], 0


@dataclass
class _Split:
    """The files of a split, and of its last patient the ids of the contexts that are written."""

    samples: _File
    contexts: _File
    subject: int | None = None
    ids: set[str] = field(default_factory=set)

    def is_new(self, subject: int | None, context_id: str) -> bool:
        """Return whether a context is not written yet; contexts come patient by patient."""
        if subject != self.subject:
            self.subject, self.ids = subject, set()
        new = context_id not in self.ids
        self.ids.add(context_id)
        return new


def _opened(folder: Path, schema: pa.Schema, files: ExitStack) -> _Split:
    folder.mkdir(parents=True)
    samples = pq.ParquetWriter(
        folder / "samples.parquet", schema, compression="zstd", compression_level=LEVEL
    )
    contexts = pq.ParquetWriter(
        folder / "contexts.parquet",
        pa.schema({name: CONTEXTS[name] for name in ("context_id", "text")}),
        compression="zstd",
        compression_level=LEVEL,
        use_dictionary=False,
        write_statistics=["context_id"],
        write_batch_size=PAGE_ROWS,
        data_page_size=PAGE_BYTES,
    )
    return _Split(
        _File(files.enter_context(samples), SAMPLES_AT_ONCE),
        _File(files.enter_context(contexts), BYTES_AT_ONCE),
    )


def _add(split: _Split, samples: pa.Table, contexts: pa.Table) -> None:
    """Add the samples of a part to their split, and those of their contexts that are new."""
    split.samples.add(samples, samples.num_rows)
    keys = zip(*(contexts[name].to_pylist() for name in ("subject_id", "context_id")), strict=True)
    new = pa.array([split.is_new(*key) for key in keys], pa.bool_())
    found = contexts.filter(new).select(["context_id", "text"])
    split.contexts.add(found, found.nbytes)


def _of(table: pa.Table, split: str) -> pa.Table:
    return table.filter(pc.equal(table["split"], split))


def _numbered(samples: pa.Table, first: int) -> pa.Table:
    """Return samples whose `idx` begins with `first`."""
    numbers = pa.array(range(first, first + samples.num_rows), pa.int64())
    return samples.set_column(0, "idx", numbers)
