"""Where rows come from, and what became of them: the bookkeeping that all inputs share.

Patients are divided into shards by ranges of `subject_id`. A source reads its tables once and gives
the rows of the shards that are wanted; it counts every row by shard, table and outcome, so that
shards can be built by different processes and their counts added up.
"""

from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from threading import Lock

import polars as pl

from ehrr1.records.table_spec import Classes

Counts = dict[str, Counter[str]]
"""Table -> outcome -> rows. `read` = `kept` + all that begin with `reported/`; `assumed`: kept rows
whose time of knowledge is the schema's fixed delay, for want of a store time."""


@dataclass(frozen=True, slots=True)
class Shards:
    """Ranges of patients: shard k holds the ids from `firsts[k]` up to, not with, `firsts[k + 1]`.

    Rows without a patient, or with an id below all others, are counted in shard 0.
    """

    firsts: tuple[int, ...]

    @classmethod
    def divide(cls, subjects: pl.Series, patients_per_shard: int) -> "Shards":
        """Shards of equally many patients (the last may hold fewer)."""
        return cls(tuple(subjects.unique().sort().gather_every(patients_per_shard)))

    def __len__(self) -> int:
        return len(self.firsts)

    def number(self, subjects: pl.Series) -> pl.Series:
        """The shard of each `subject_id`."""
        edges = pl.Series(self.firsts[1:], dtype=pl.Int64)
        return edges.search_sorted(subjects.fill_null(self.firsts[0]), side="right").cast(pl.UInt32)


class Source(ABC):
    """One input, read once: its patients, the tables that others refer to, and its rows.

    `parents` holds patients and, where they are there, admissions, edstays and icustays (ids as
    numbers, times as times) of the wanted shards; `subjects` all patients.
    """

    subjects: pl.Series
    shards: Shards
    tables: list[str]
    """The tables that are there, but patients, in the order of the schema."""

    listed = False
    """Whether the rows come as a list of events, whose order they keep."""

    names: Collection[str] = ()
    """Names of answers that no row may have, for an input that brings its answers."""

    as_released = False
    """Whether the store has the order of the release's list (`records.release_order`)."""

    chosen: pl.Series | None = None
    """The only patients to read, where the user chose some."""

    @property
    def missing_maps(self) -> list[Classes]:
        """The classes of codes that nothing maps."""
        return []

    def __init__(self) -> None:
        self.parents: dict[str, pl.DataFrame] = {}
        self.counts: defaultdict[int, Counts] = defaultdict(lambda: defaultdict(Counter))
        self.wanted: frozenset[int] = frozenset()
        self._lock = Lock()

    @abstractmethod
    def want(self, shards: Collection[int]) -> None:
        """Choose the shards that are read; reads their `parents`."""

    @property
    def reading_order(self) -> list[str]:
        """The tables in the order in which they are best read."""
        return self.tables

    @abstractmethod
    def rows(self, table: str) -> Iterator[pl.DataFrame]:
        """The usable rows of a table in bounded frames: the store's columns and `shard`."""

    def complete(self, rows: pl.DataFrame) -> pl.DataFrame:
        """All rows of one shard, with what only the rows of several tables tell together."""
        return rows

    def route(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Adds `shard`; rows of unwanted shards are left out."""
        frame = frame.with_columns(self.shards.number(frame["subject_id"]).alias("shard"))
        if len(self.wanted) == len(self.shards):
            return frame
        return frame.filter(pl.col("shard").is_in(sorted(self.wanted)))

    def count(self, table: str, outcome: str, shards: pl.Series) -> None:
        """Add one row of `outcome` for each entry of `shards`; threads may count at one time."""
        with self._lock:
            for shard, number in shards.value_counts().iter_rows():
                self.counts[shard][table][outcome] += number
