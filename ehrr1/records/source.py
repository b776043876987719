"""Base class of all inputs: patients by shard, rows by table, and counts of what became of them.

Patients are divided into shards by ranges of `subject_id`. A source reads its tables once and
yields the rows of the wanted shards; it counts every row by shard, table and outcome, so that
shards can be built by different processes and their counts added.
"""

from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from threading import Lock

import polars as pl

from ehrr1.records.table_spec import Classes

Counts = dict[str, Counter[str]]
"""Table -> outcome -> number of rows.

`read` equals `kept` plus all outcomes that begin with `reported/`. `assumed` counts kept rows
without a store time, which are known after the fixed delay of the schema.
"""


@dataclass(frozen=True, slots=True)
class Shards:
    """Ranges of patients: shard k holds the ids from `firsts[k]` up to, excluding, `firsts[k + 1]`.

    Rows without a patient, or with an id below all others, are counted in shard 0.
    """

    firsts: tuple[int, ...]

    @classmethod
    def divide(cls, subjects: pl.Series, patients_per_shard: int) -> "Shards":
        """Return shards of equally many patients (the last may hold fewer)."""
        return cls(tuple(subjects.unique().sort().gather_every(patients_per_shard)))

    def __len__(self) -> int:
        return len(self.firsts)

    def number(self, subjects: pl.Series) -> pl.Series:
        """Return the shard of each `subject_id`."""
        edges = pl.Series(self.firsts[1:], dtype=pl.Int64)
        return edges.search_sorted(subjects.fill_null(self.firsts[0]), side="right").cast(pl.UInt32)


class Source(ABC):
    """An input that is read once: its patients, its parent tables and its rows.

    `parents` holds patients and, where available, admissions, edstays and icustays (ids as
    integers, times as datetimes) of the wanted shards; `subjects` holds all patients.
    """

    subjects: pl.Series
    shards: Shards
    tables: list[str]
    """Available tables except `patients`, in the order of the schema."""

    listed = False
    """Whether the rows come as a list of events, whose order is kept."""

    names: Collection[str] = ()
    """Names of answers that no row may have, for an input that provides its answers."""

    as_released = False
    """Whether the store has the order of the release's list (`records.release.order`)."""

    chosen: pl.Series | None = None
    """The patients to read, if the user selected some."""

    @property
    def missing_maps(self) -> list[Classes]:
        """Return the kinds of classes that have no map."""
        return []

    def __init__(self) -> None:
        self.parents: dict[str, pl.DataFrame] = {}
        self.counts: defaultdict[int, Counts] = defaultdict(lambda: defaultdict(Counter))
        self.wanted: frozenset[int] = frozenset()
        self._lock = Lock()

    @abstractmethod
    def want(self, shards: Collection[int]) -> None:
        """Select the shards to read, and read their `parents`."""

    @property
    def reading_order(self) -> list[str]:
        """Return the tables in the order in which they should be read."""
        return self.tables

    @abstractmethod
    def rows(self, table: str) -> Iterator[pl.DataFrame]:
        """Yield the usable rows of a table in bounded frames: the store's columns and `shard`."""

    def complete(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Return all rows of one shard, with the values that depend on rows of several tables."""
        return rows

    def route(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Add `shard`, and leave out the rows of unwanted shards."""
        frame = frame.with_columns(self.shards.number(frame["subject_id"]).alias("shard"))
        if len(self.wanted) == len(self.shards):
            return frame
        return frame.filter(pl.col("shard").is_in(sorted(self.wanted)))

    def count(self, table: str, outcome: str, shards: pl.Series) -> None:
        """Add one row of `outcome` for each entry of `shards`.

        Several threads may call this method at the same time.
        """
        with self._lock:
            for shard, number in shards.value_counts().iter_rows():
                self.counts[shard][table][outcome] += number
