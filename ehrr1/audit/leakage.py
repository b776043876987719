"""Temporal-leakage audit of contexts, independent of the code that builds them.

A protocol determines which rows a context shows and what their cells contain (`View`). Whether a
row was known is decided here, from the store's `available_time` and `late_time` alone: by the
prediction time for a risk sample, strictly before it for a decision sample. A total that is shown
before its interval is over leaks as well, even if the rest of its row does not.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl

from ehrr1.audit.raw_rules import OWN_CODES
from ehrr1.progress import track
from ehrr1.records.events import Event
from ehrr1.records.schema import ORDER, TABLES
from ehrr1.records.store import Patient, Shard, Store
from ehrr1.records.store_schema import NEVER
from ehrr1.tasks import context
from ehrr1.tasks.catalog import ALL_TASKS
from ehrr1.tasks.paper import context as paper_context
from ehrr1.tasks.samples import Prepared, Sample

Cells = list[tuple[str, ...]]
"""Values of each row in the order of its table's keys."""

HOUR = 3_600_000_000
"""One hour in microseconds, the unit of the store's times."""

CHUNK = 10_000
"""Number of contexts that are held at a time."""


@dataclass(frozen=True)
class View:
    """The rows that one protocol shows of a patient, by two functions of the code under audit."""

    positions: Callable[[Shard, Patient, Sample], np.ndarray]
    """Positions of all rows that the sample's context shows."""
    events: Callable[[Shard, Patient, Sample, np.ndarray], list[Event]]
    """The rows at these positions as that context shows them, in their order, with demographics."""

    def cells(self, rows: Shard, patient: Patient, sample: Sample, positions: np.ndarray) -> Cells:
        """Return the values of each of these rows."""
        events = self.events(rows, patient, sample, positions)
        return [row for event in events if event.table != "patients" for row in event.rows]


def _paper_events(
    rows: Shard, patient: Patient, sample: Sample, positions: np.ndarray
) -> list[Event]:
    return paper_context.shown_events(rows, patient, positions)


VIEWS = {
    "strict": View(context.shown_positions, context.shown_events),
    "paper": View(paper_context.shown_positions, _paper_events),
}
"""View of each `data.protocol`."""


@dataclass(frozen=True)
class Leaks:
    """The leaking contexts of an index.

    `samples` is the index with the number of each sample's context (`context`). `found` has one row
    per leaking context and table: `context, table, rows` (known later), `ahead` (hours from the
    prediction time until the latest of them was known; null if that time is unknown), `undated`
    (rows that are never known: totals of intervals without an end, codes of the stay of the
    question itself).
    """

    samples: pl.DataFrame
    found: pl.DataFrame

    @property
    def contexts(self) -> int:
        """Return the number of distinct contexts."""
        return self.samples["context"].n_unique()


FOUND: dict[str, type[pl.DataType]] = {
    "context": pl.UInt32,
    "table": pl.String,
    "rows": pl.Int64,
    "ahead": pl.Float64,
    "undated": pl.Int64,
}


def find_leaks(prepared: Prepared, index: pl.DataFrame, view: View) -> Leaks:
    """Judge every context of the index; those of one stay and prediction time are judged once."""
    kind = pl.col("task").replace_strict({key: task.kind for key, task in ALL_TASKS.items()})
    same = pl.struct("context_id", "prediction_time", "hadm_id", kind.alias("kind"))
    samples = index.with_columns(same.rank("dense").alias("context"))
    firsts = samples.unique("context", keep="first", maintain_order=True)
    numbers = iter(firsts["context"].to_list())
    found: list[tuple[int, str, int, float | None, int]] = []
    for sample in track(in_chunks(prepared, firsts), "judging contexts", total=firsts.height):
        number = next(numbers)
        found += ((number, *row) for row in sample_leaks(prepared.store, sample, view))
    frame = pl.DataFrame(found, schema=FOUND, orient="row")
    return Leaks(samples, frame.with_columns(pl.col("context").cast(samples["context"].dtype)))


def in_chunks(prepared: Prepared, index: pl.DataFrame) -> Iterator[Sample]:
    """Return an iterator of an index's samples that holds `CHUNK` of them in memory at a time."""
    slices = index.iter_slices(CHUNK)
    return (sample for part in slices for sample in prepared.as_samples(part))


def sample_leaks(
    store: Store, sample: Sample, view: View
) -> list[tuple[str, int, float | None, int]]:
    """Return the leaks by table.

    Each is the table, the number of rows known too late, the hours until the latest was known, and
    the number of undated rows.
    """
    rows, patient = store.find(sample.subject_id)
    positions = view.positions(rows, patient, sample)
    now = int(np.datetime64(sample.prediction_time, "us").astype(np.int64))
    limit = now + (ALL_TASKS[sample.task].kind == "risk")
    later, known = known_later(
        rows,
        positions,
        limit,
        lambda some: view.cells(rows, patient, sample, some),
        sample.hadm_id,
    )
    if not len(later):
        return []
    tables = rows.table[later]
    leaks = []
    for number in np.unique(tables).tolist():
        own = known[tables == number]
        dated = own[own < NEVER]
        ahead = float(dated.max() - now) / HOUR if len(dated) else None
        leaks.append((ORDER[number], len(own), ahead, len(own) - len(dated)))
    return leaks


def known_later(
    rows: Shard,
    positions: np.ndarray,
    limit: int,
    cells: Callable[[np.ndarray], Cells],
    hadm: int | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows that show something known at `limit` or later, and when it was known.

    `limit` and the returned times are in microseconds since 1970. The codes of `hadm`, the stay of
    the question, are never known. `cells` is called only for rows of an unfinished interval: the
    time of its total applies if any of the row's late columns shows a value.
    """
    known = rows.available_time[positions]
    late = rows.late_time[positions]
    running = np.flatnonzero(late >= limit)
    if len(running):
        own = positions[running]
        shown = _shows_late(rows.table[own], cells(own))
        total = running[shown]
        known[total] = np.maximum(known[total], late[total])
    if hadm is not None:
        known[np.isin(rows.table[positions], CODES) & (rows.hadm_id[positions] == hadm)] = NEVER
    too_late = np.flatnonzero(known >= limit)
    return positions[too_late], known[too_late]


CODES = [ORDER.index(name) for name in OWN_CODES]
_TABLES = [TABLES[name] for name in ORDER]


def _shows_late(tables: np.ndarray, cells: Cells) -> np.ndarray:
    """Return which rows show in a late key a value other than the text shown until it is known."""
    pairs = zip((_TABLES[number] for number in tables.tolist()), cells, strict=True)
    shown = [
        any(row[place] != table.until_then for place in table.late_positions)
        for table, row in pairs
    ]
    return np.array(shown, dtype=bool)


def by_task(leaks: Leaks) -> pl.DataFrame:
    """Return one row for each task that has samples, in the order of the catalogue.

    Columns: `task, samples, leaking, rows` (shown too early, summed over samples), `undated`, and
    `median` and `most` of the hours from the prediction time until all that a leaking sample shows
    was known.
    """
    latest = leaks.found.group_by("context").agg(
        pl.col("rows", "undated").sum(), pl.col("ahead").max()
    )
    samples = leaks.samples.select("task", "context").join(latest, on="context", how="left")
    return in_order(
        samples.group_by("task").agg(
            pl.len().alias("samples"),
            pl.col("rows").is_not_null().sum().alias("leaking"),
            pl.col("rows", "undated").sum(),
            pl.col("ahead").median().alias("median"),
            pl.col("ahead").max().alias("most"),
        )
    )


def by_table(leaks: Leaks) -> pl.DataFrame:
    """Return the leaks of each task by table, tables with most samples first.

    Columns: `task, table, leaking` (samples that show rows of the table too early), `rows, undated,
    most` (hours).
    """
    samples = leaks.samples.select("task", "context").join(leaks.found, on="context")
    tables = samples.group_by("task", "table").agg(
        pl.len().alias("leaking"),
        pl.col("rows", "undated").sum(),
        pl.col("ahead").max().alias("most"),
    )
    return in_order(tables, "leaking", "table")


def leaking_without(leaks: Leaks, tables: Collection[str]) -> int:
    """Return the number of samples that leak by other tables than these."""
    found = leaks.found.filter(~pl.col("table").is_in(list(tables)))
    return leaks.samples.filter(pl.col("context").is_in(found["context"].implode())).height


def examples(leaks: Leaks, most: int) -> dict[str, list[str]]:
    """Return the ids of the first leaking samples of each task, at most `most`, for inspection."""
    leaking = leaks.samples.filter(pl.col("context").is_in(leaks.found["context"].implode()))
    firsts = leaking.group_by("task", maintain_order=True).agg(pl.col("sample_id").head(most))
    return dict(firsts.iter_rows())


def in_order(frame: pl.DataFrame, largest_first: str | None = None, *then: str) -> pl.DataFrame:
    """Sort rows by the catalogue's order of tasks, then by the other columns."""
    place = pl.col("task").replace_strict({key: n for n, key in enumerate(ALL_TASKS)})
    others = [largest_first, *then] if largest_first else []
    return frame.sort(
        place, *others, descending=[False, *(name == largest_first for name in others)]
    )
