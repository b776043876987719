"""Samples, and the output of `stage=prepare` as later stages read it."""

from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass, fields
from datetime import datetime
from functools import cached_property
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from ehrr1.damage import reading
from ehrr1.files import read_json
from ehrr1.records.events import Event
from ehrr1.records.markdown import events_of
from ehrr1.records.reading import READ_ERRORS
from ehrr1.records.store import Store
from ehrr1.tasks.catalog import ALL_TASKS, OWN, telling_time
from ehrr1.tasks.context import context_events, preamble_length
from ehrr1.tasks.paper import context as paper_context

__all__ = ["Prepared", "Sample", "preamble_length"]

STORE, INDEX, SPLIT, NAMES = "store", "index.parquet", "split.parquet", "names.parquet"
QUESTIONS = "questions.json"
TEXTS, SIMILAR, ITEM_SET = "texts.arrow", "similar_item", "item_set"
"""Files and folders that `stage=prepare` writes."""

TRAINS = "trains"
"""Column of the index: the stages that a training sample is for, if the input specifies them."""

TIME_TOLD = "time_told"
"""Column of the index that is true for all samples, present only with `data.tell_time=true`."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One question on one record at one prediction time.

    `context_id` is equal for samples whose context consists of the same events: they share one
    trunk. `target` is the answer: distinct item names in order of record, or ("yes",) / ("no",).
    The fields from `window_start` on define the context (see `tasks.index`), those from
    `period_begin` on define it under `data.protocol=paper` (see `tasks.paper.index`).
    """

    sample_id: str
    subject_id: int
    hadm_id: int | None
    stay_id: int | None
    task: str
    split: str
    prediction_time: datetime
    context_id: str
    target: tuple[str, ...]
    window_start: datetime = datetime.min
    inclusive: bool = False
    current_hadm: int | None = None
    hidden_hadm: int | None = None
    ed_stay: int | None = None
    n_context_rows: int = 0
    instruction: str | None = None
    """Question in the wording of the sample's row; None: the task's own."""
    candidates: tuple[str, ...] = ()
    """Answers to choose from, including the correct ones, for models not trained on the task."""
    text_row: int | None = None
    """Index of the context in `texts.arrow`, for samples that were read with their context."""
    time_told: bool = False
    """Whether `instruction` is the task's own question preceded by the prediction time."""
    balanced: bool = False
    """Whether the sample was drawn for balance, not at natural prevalence (no AUPRC then)."""
    period_begin: int = 0
    period_end: int = 0
    """Positions in the release's list of events; 0: a sample of the strict protocol."""
    admissions_id: int | None = None
    last_discharge_id: int | None = None


class Prepared:
    """The folder of a finished `stage=prepare`: the store and the index of samples."""

    def __init__(self, folder: Path):
        self.folder = folder

    @cached_property
    def store(self) -> Store:
        """Open the store."""
        return Store(self.folder / STORE)

    @cached_property
    def texts(self) -> pa.ChunkedArray:
        """Map the contexts of samples that were read with theirs (`tasks.external.benchmark`)."""
        path = self.folder / TEXTS
        with reading(path, *READ_ERRORS), pa.memory_map(str(path)) as file:
            return pa.ipc.open_file(file).read_all()["text"]

    @cached_property
    def splits(self) -> pl.DataFrame:
        """Read the columns `subject_id, split`."""
        return read_parquet(self.folder / SPLIT)

    @cached_property
    def parents(self) -> dict[str, pl.DataFrame]:
        """Return the available ones of patients, admissions, edstays and icustays.

        Empty for a benchmark, whose records are texts.
        """
        return self.store.parents if (self.folder / STORE).exists() else {}

    @cached_property
    def questions(self) -> dict[str, str]:
        """Return task -> question in the wording of `data.questions`, for tasks that have one."""
        path = self.folder / QUESTIONS
        return dict(read_json(path)) if path.exists() else {}

    @property
    def own_tasks(self) -> tuple[str, ...]:
        """Return the task of the user's own labels, if the folder was prepared with some."""
        return (OWN,) if OWN in self.questions else ()

    @cached_property
    def names(self) -> list[str]:
        """Return the name of each code of the index's column `target`."""
        names: list[str] = read_parquet(self.folder / NAMES)["name"].to_list()
        return names

    def index(self, split: str | None = None, tasks: Sequence[str] | None = None) -> pl.DataFrame:
        """Return the index of samples as a table (columns: see `tasks.index.build_index`)."""
        with reading(self.folder / INDEX, *READ_ERRORS):
            return self.scan(split, tasks).collect()

    def scan(
        self,
        split: str | None = None,
        tasks: Sequence[str] | None = None,
        rows: tuple[int, int] | None = None,
    ) -> pl.LazyFrame:
        """Return the index as a lazy frame, of which `selection.select` reads only a part.

        `rows` are the first row of the file and their number, for a part of it.
        """
        with reading(self.folder / INDEX, *READ_ERRORS):
            index = pl.scan_parquet(self.folder / INDEX, glob=False)
            index.collect_schema()
        if rows is not None:
            index = index.slice(*rows)
        if split is not None:
            index = index.filter(pl.col("split") == split)
        if tasks is not None:
            index = index.filter(pl.col("task").is_in(list(tasks)))
        return index

    def batches(self, size: int) -> Iterator[pl.DataFrame]:
        """Yield the index in tables of at most `size` rows.

        The file is read no further than the caller goes.
        """
        with (
            reading(self.folder / INDEX, *READ_ERRORS),
            pq.ParquetFile(self.folder / INDEX) as file,
        ):
            for batch in file.iter_batches(size):
                index = pl.from_arrow(batch)
                assert isinstance(index, pl.DataFrame)
                yield index

    def scan_training(self, stage: str, tasks: Sequence[str]) -> pl.LazyFrame:
        """Return the training split's index, restricted to the samples for `stage` if any.

        The EHR-R1 release has a file for each stage.
        """
        index = self.scan("train", tasks)
        if TRAINS not in self.index_columns:
            return index
        own = index.filter(pl.col(TRAINS).list.contains(stage))
        return own if own.select(pl.len()).collect().item() else index

    def samples(self, split: str | None = None, tasks: Sequence[str] | None = None) -> list[Sample]:
        """Return the samples of a split ("train", "validation", "test"; None: all), in order."""
        return self.as_samples(self.index(split, tasks))

    def as_samples(self, index: pl.DataFrame) -> list[Sample]:
        """Return rows of the index as samples, in their order."""
        columns = {
            name: index[name].to_list() if name in index.columns else [default] * index.height
            for name, default in _FIELDS.items()
        }
        columns["target"] = self._targets(index)
        columns["candidates"] = list(map(tuple, columns["candidates"]))
        if self.questions:
            columns["instruction"] = [self.questions.get(str(task)) for task in columns["task"]]
        if TIME_TOLD in index.columns:
            columns["instruction"] = [
                telling_time(question or ALL_TASKS[task].instruction, time)
                for question, task, time in zip(
                    *(columns[name] for name in ("instruction", "task", "prediction_time")),
                    strict=True,
                )
            ]
        return list(map(Sample, *(columns[name] for name in _FIELDS)))

    def answers(self, index: pl.DataFrame) -> pl.DataFrame:
        """Return the answers of rows of the index: `sample` (the row's number), `item` (a name)."""
        pairs = index.select("target").with_row_index("sample").explode("target").drop_nulls()
        if pairs.schema["target"] == pl.String:  # rows of files
            return pairs.rename({"target": "item"})
        names = pl.Series("item", self.names, dtype=pl.String)
        return pairs.select("sample", names.gather(pairs["target"]))

    @cached_property
    def index_columns(self) -> list[str]:
        """Return the columns of the index, which differ between protocols."""
        return list(pl.scan_parquet(self.folder / INDEX, glob=False).collect_schema())

    def _targets(self, index: pl.DataFrame) -> list[tuple[str, ...]]:
        if index.schema["target"] == pl.List(pl.String):
            return list(map(tuple, index["target"].to_list()))
        columns = (index[c].to_list() for c in ("subject_id", "target", "target_row"))
        with reading(self.folder / NAMES, IndexError):
            return [self._target(*answer) for answer in zip(*columns, strict=True)]

    def _target(self, subject_id: int, codes: list[int], row: int | None) -> tuple[str, ...]:
        if row is not None:
            return (self.store.find(subject_id)[0].note(row),)
        names = self.names
        return tuple(names[code] for code in codes)

    def context(self, sample: Sample) -> list[Event]:
        """Return the context: demographics, earlier stays, the admission event, then the window.

        Oldest first. The first `preamble_length` events are never cut; later ones are cut oldest
        first if a context is too long (see `prompts`). Under `data.protocol=paper` it is the
        context of the release.
        """
        if sample.text_row is not None:
            return events_of(self.texts[sample.text_row].as_py())
        if not sample.period_end:
            return context_events(self.store, sample)
        rows, patient = self.store.find(sample.subject_id)
        positions = paper_context.shown_positions(rows, patient, sample)
        events = paper_context.shown_events(rows, patient, positions)
        return paper_context.with_silent(events, rows, patient, sample)


def read_parquet(path: Path) -> pl.DataFrame:
    """Read a Parquet file of a run. Raises DamagedError if it is none."""
    with reading(path, *READ_ERRORS):
        return pl.read_parquet(path, glob=False)


def read_through(folder: Path) -> None:
    """Raise DamagedError for the first Parquet file of a run that cannot be read to its end."""
    for path in sorted(folder.rglob("*.parquet")):
        read_parquet(path)


_FIELDS = {
    field.name: None if field.default is MISSING else field.default for field in fields(Sample)
}
"""Fields of `Sample` -> the default for a column that this kind of index does not have."""
