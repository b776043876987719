"""The list of events of `data.protocol=paper` for many patients, and searches in it.

A patient's record is demographics (position 0), then groups of *consecutive rows of one table* in
the order of the store; see `tasks.paper.context`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from ehrr1.records.release.order import CODED
from ehrr1.records.schema import ORDER
from ehrr1.records.store_schema import NO_ID, NO_TIME

ADMISSIONS, EDSTAYS, ICUSTAYS, DISCHARGE = (
    ORDER.index(name) for name in ("admissions", "edstays", "icustays", "discharge")
)
DAY_SECONDS = 24 * 3600

Frames = Mapping[str, pl.DataFrame]


def record_rows(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the store's rows with `number`, the number of their event (over all patients)."""
    begins = pl.any_horizontal(
        pl.col(name) != pl.col(name).shift() for name in ("subject_id", "table")
    )
    number = begins.fill_null(True).cum_sum().cast(pl.Int64) - 1
    return rows.drop("event", "stay").with_columns(number.alias("number")).with_row_index("at")


def event_list(record: pl.DataFrame, parents: Frames) -> pl.DataFrame:
    """Return one row per event: `number`, `position` in the list, `start`, first row's ids.

    `at` is the index of its first row in `record`. `timed`: the list has a time for it. `begin` is
    the number of the earliest event of the same admission that starts less than 24 h before it (-1
    if there is none); for codes, less than 24 h before the event preceding them. `admissions_id`
    and `last_discharge_id` are the positions of the events that would precede its context.
    """
    first = record["number"] != record["number"].shift(1, fill_value=-1)
    events = record.filter(first).select(
        *("number", "at", "subject_id", "hadm_id", "stay_id", "table"),
        pl.col("event_time").alias("start"),
    )
    if "edstays" in parents:
        visits = parents["edstays"].select("stay_id", pl.col("hadm_id").alias("given"))
        events = events.join(visits, on="stay_id", how="left", maintain_order="left")
        own = pl.when(pl.col("table") == EDSTAYS).then(pl.col("given").fill_null(NO_ID))
        events = events.with_columns(own.otherwise("hadm_id").alias("hadm_id")).drop("given")
    position = pl.int_range(1, pl.len() + 1).over("subject_id")
    length = (pl.len() + 1).over("subject_id")
    events = events.with_columns(position.alias("position"), length.alias("length"))
    events = events.with_columns(_latest("admissions", same=True), _latest("discharge", same=False))
    no_time = pl.col("start") == pl.lit(NO_TIME).cast(pl.Datetime("us"))
    coded = pl.col("table").is_in(CODED)
    events = events.with_columns((~coded & ~no_time).alias("timed"))
    before = pl.col("start").shift().over("subject_id"), pl.col("timed").shift().over("subject_id")
    cut = pl.when(coded).then(pl.when(before[1]).then(before[0])).otherwise("start")
    asked = events.select(cut.alias("cut"), (~no_time).alias("askable"))
    cuts, number = seconds(asked["cut"].fill_null(events["start"])), events["number"].to_numpy()
    begin = Timeline.of(events, "hadm_id").first_after(number, cuts - DAY_SECONDS)
    askable = (asked["askable"] & asked["cut"].is_not_null()).to_numpy()
    return events.with_columns(pl.Series("begin", np.where(askable & (begin < number), begin, -1)))


def _latest(table: str, *, same: bool) -> pl.Expr:
    """Return the position of a table's latest event if its admission is (not) the event's."""
    own = pl.col("table") == ORDER.index(table)
    position, hadm = (
        pl.when(own).then(name).forward_fill().over("subject_id")
        for name in ("position", "hadm_id")
    )
    fits = (hadm == pl.col("hadm_id")) & (hadm != NO_ID) if same else hadm != pl.col("hadm_id")
    name = "admissions_id" if same else "last_discharge_id"
    return pl.when(fits).then(position).cast(pl.Int32).alias(name)


def seconds(times: pl.Series) -> np.ndarray:
    """Return seconds since 1970 as an array."""
    return times.cast(pl.Datetime("us")).cast(pl.Int64).to_numpy() // 1_000_000


@dataclass(frozen=True)
class Timeline:
    """The events of each group (a patient's, or an admission's) by time, for searches.

    The list is not entirely in the order of time (`records.release.order`), and events without a
    time are never found. Arguments and results of the searches are numbers of events, -1 if there
    is none; arrays have shape (events,).
    """

    group: np.ndarray
    """Group of every event."""
    keys: np.ndarray
    """Group times 2**39 plus seconds of the timed events, sorted."""
    first: np.ndarray
    """For each key, the first in its group's list that is as late or later; then -1."""
    latest: np.ndarray
    """For each key, the last in its group's list that is as early or earlier; then -1."""

    @classmethod
    def of(cls, events: pl.DataFrame, within: str | None = None) -> "Timeline":
        """Return the timeline of events grouped by patient and, if given, by column `within`."""
        subject = events["subject_id"].to_numpy()
        second = events[within].to_numpy() if within else np.zeros(len(subject), dtype=np.int64)
        order = np.lexsort((second, subject))
        new = (np.diff(subject[order]) != 0) | (np.diff(second[order]) != 0)
        group = np.empty(len(subject), dtype=np.int64)
        group[order] = np.concatenate([[0], np.cumsum(new)])[: len(order)]
        timed = np.flatnonzero(events["timed"].to_numpy())
        keys = _keys(group[timed], seconds(events["start"])[timed])
        by_time = np.argsort(keys, kind="stable")
        # Groups are consecutive: a running extreme of these stays within its group.
        places = group[timed][by_time] * 2**39 + timed[by_time]
        first = np.minimum.accumulate(places[::-1])[::-1] % 2**39
        latest = np.maximum.accumulate(places) % 2**39
        return cls(group, keys[by_time], np.append(first, -1), np.append(latest, -1))

    def first_after(self, events: np.ndarray, time: np.ndarray) -> np.ndarray:
        """Return the first event in the list of each group that starts later than `time`."""
        place = np.searchsorted(self.keys, _keys(self.group[events], time), "right")
        return self._own(self.first[place], events)

    def last_before(self, events: np.ndarray, time: np.ndarray) -> np.ndarray:
        """Return the last event in the list of each group that starts earlier than `time`."""
        place = np.searchsorted(self.keys, _keys(self.group[events], time), "left") - 1
        return self._own(self.latest[place], events)

    def last(self, events: np.ndarray) -> np.ndarray:
        """Return the last event of each event's group."""
        return self.last_before(events, np.full(len(events), 2**38 - 1))

    def _own(self, found: np.ndarray, events: np.ndarray) -> np.ndarray:
        return np.where((found >= 0) & (self.group[found] == self.group[events]), found, -1)


def _keys(group: np.ndarray, time: np.ndarray) -> np.ndarray:
    """Return groups and times as one number.

    2**39 seconds are sufficient for all years, and leave room for 16 million groups.
    """
    return group * 2**39 + time + 2**38
