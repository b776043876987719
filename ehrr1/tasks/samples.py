"""Samples: what `stage=prepare` leaves behind, and how later stages read it."""

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from datetime import datetime
from functools import cached_property
from pathlib import Path

import polars as pl
import pyarrow as pa

from ehrr1.files import read_json
from ehrr1.records.events import Event
from ehrr1.records.markdown import events_of
from ehrr1.records.store import Store
from ehrr1.tasks.catalog import ALL_TASKS, telling_time
from ehrr1.tasks.context import context_events, preamble_length
from ehrr1.tasks.paper import context as paper_context

__all__ = ["Prepared", "Sample", "preamble_length"]

STORE, INDEX, SPLIT, NAMES = "store", "index.parquet", "split.parquet", "names.parquet"
QUESTIONS = "questions.json"
TEXTS, SIMILAR, ITEM_SET = "texts.arrow", "similar_item", "item_set"
"""What `stage=prepare` writes into its folder."""

TRAINS = "trains"
"""Column of the index: the stages that a training sample is for, where the input says that."""

TIME_TOLD = "time_told"
"""Column of the index, true for all samples; only there with `data.tell_time=true`."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One question on one record at one prediction time.

    `context_id` is equal for samples whose context is the same events: they share one trunk.
    `target` is the answer: distinct item names in order of record, or ("yes",) / ("no",).
    The fields from `window_start` on say what the context holds (see `tasks.index`), those from
    `period_begin` on what it holds under `data.protocol=paper` (see `tasks.paper`).
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
    """The question in the words that the sample came with; None: the task's own."""
    candidates: tuple[str, ...] = ()
    """Answers to choose from, the right ones among them, for models not trained on the task."""
    text_row: int | None = None
    """Where the context stands in `texts.arrow`, for samples that came with one."""
    time_told: bool = False
    """Tell whether `instruction` is the task's own question behind the prediction time."""
    balanced: bool = False
    """Drawn for balance, not at natural prevalence: tells no AUPRC."""
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
        return Store(self.folder / STORE)

    @cached_property
    def texts(self) -> pa.ChunkedArray:
        """The contexts of samples that came with theirs (`tasks.benchmark`), mapped into memory."""
        with pa.memory_map(str(self.folder / TEXTS)) as file:
            return pa.ipc.open_file(file).read_all()["text"]

    @cached_property
    def splits(self) -> pl.DataFrame:
        """Columns `subject_id, split`."""
        return pl.read_parquet(self.folder / SPLIT)

    @cached_property
    def parents(self) -> dict[str, pl.DataFrame]:
        """patients, admissions, edstays, icustays (those that were there); none of records that a
        benchmark brings."""
        return self.store.parents if (self.folder / STORE).exists() else {}

    @cached_property
    def questions(self) -> dict[str, str]:
        """Task -> its question in others' words (`tasks.questions`); the task's own elsewhere."""
        path = self.folder / QUESTIONS
        return dict(read_json(path)) if path.exists() else {}

    @cached_property
    def names(self) -> list[str]:
        """The name behind each code of the index's column `target`."""
        names: list[str] = pl.read_parquet(self.folder / NAMES)["name"].to_list()
        return names

    def index(self, split: str | None = None, tasks: Sequence[str] | None = None) -> pl.DataFrame:
        """The index of samples as a table (columns: see `tasks.index.build_index`)."""
        return self.scan(split, tasks).collect()

    def scan(self, split: str | None = None, tasks: Sequence[str] | None = None) -> pl.LazyFrame:
        """The index, not read yet: what `selection.select` does not choose stays on the disk."""
        index = pl.scan_parquet(self.folder / INDEX)
        if split is not None:
            index = index.filter(pl.col("split") == split)
        if tasks is not None:
            index = index.filter(pl.col("task").is_in(list(tasks)))
        return index

    def scan_training(self, stage: str, tasks: Sequence[str]) -> pl.LazyFrame:
        """The training split's index: the samples that the input has for `stage`, where it has
        some (the EHR-R1 release has a file for each stage)."""
        index = self.scan("train", tasks)
        if TRAINS not in self.index_columns:
            return index
        own = index.filter(pl.col(TRAINS).list.contains(stage))
        return own if own.select(pl.len()).collect().item() else index

    def samples(self, split: str | None = None, tasks: Sequence[str] | None = None) -> list[Sample]:
        """The samples of a split ("train", "validation", "test"; None: all), in a fixed order."""
        return self.as_samples(self.index(split, tasks))

    def as_samples(self, index: pl.DataFrame) -> list[Sample]:
        """Rows of the index as samples, in their order."""
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
        """The answers of these rows of the index: `sample` (the row's number), `item` (a name)."""
        pairs = index.select("target").with_row_index("sample").explode("target").drop_nulls()
        names = pl.Series("item", self.names, dtype=pl.String)
        return pairs.select("sample", names.gather(pairs["target"]))

    @cached_property
    def index_columns(self) -> list[str]:
        """What the index says of each sample; the protocols differ in it."""
        return list(pl.read_parquet_schema(self.folder / INDEX))

    def _targets(self, index: pl.DataFrame) -> list[tuple[str, ...]]:
        if index.schema["target"] == pl.List(pl.String):
            return list(map(tuple, index["target"].to_list()))
        columns = (index[c].to_list() for c in ("subject_id", "target", "target_row"))
        return [self._target(*answer) for answer in zip(*columns, strict=True)]

    def _target(self, subject_id: int, codes: list[int], row: int | None) -> tuple[str, ...]:
        if row is not None:
            return (self.store.find(subject_id)[0].note(row),)
        names = self.names
        return tuple(names[code] for code in codes)

    def context(self, sample: Sample) -> list[Event]:
        """What was known: demographics, earlier stays' summary, admission event, then the window.

        Oldest first. The first `preamble_length` events are never cut; later ones are cut oldest
        first when a context is too long (see `prompts`). Under `data.protocol=paper` it is what
        the release shows.
        """
        if sample.text_row is not None:
            return events_of(self.texts[sample.text_row].as_py())
        if not sample.period_end:
            return context_events(self.store, sample)
        rows, patient = self.store.find(sample.subject_id)
        positions = paper_context.shown_positions(rows, patient, sample)
        events = paper_context.shown_events(rows, patient, positions)
        return paper_context.with_silent(events, rows, patient, sample)


_FIELDS = {
    field.name: None if field.default is MISSING else field.default for field in fields(Sample)
}
"""Fields of `Sample` -> what stands for a column that an index of this kind does not have."""
