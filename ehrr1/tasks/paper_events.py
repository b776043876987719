"""The list of events of `data.protocol=paper`, of many patients at once, and searches in it.

A patient's record is demographics (position 0), then groups of *consecutive rows of one table* in
the order of the store: `tasks.paper` says what follows from that.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from ehrr1.records.schema import ORDER
from ehrr1.records.store import NO_ID

ADMISSIONS, EDSTAYS, ICUSTAYS, DISCHARGE = (
    ORDER.index(name) for name in ("admissions", "edstays", "icustays", "discharge")
)
UNTIMED = [ORDER.index(name) for name in ("diagnoses_icd", "drgcodes")]
"""Tables whose events have no time in the release."""
DAY_SECONDS = 24 * 3600

Frames = Mapping[str, pl.DataFrame]


def record_rows(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows of the release's record with `number`, that of their event (over all patients)."""
    begins = pl.any_horizontal(
        pl.col(name) != pl.col(name).shift() for name in ("subject_id", "table")
    )
    number = begins.fill_null(True).cum_sum().cast(pl.Int64) - 1
    return rows.drop("event", "stay").with_columns(number.alias("number")).with_row_index("at")


def event_list(record: pl.DataFrame, parents: Frames) -> pl.DataFrame:
    """A row an event: `number`, `position` in the patient's list, `start`, first row's ids.

    `at` is its first row's place in `record`. `begin` is the number of the earliest event of the
    same admission less than 24 h before it (-1: there is none);
    `admissions_id` and `last_discharge_id` are what would stand before its context.
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
    start, number = seconds(events["start"]), events["number"].to_numpy()
    begin = Timeline.of(events, "hadm_id").first_after(number, start - DAY_SECONDS)
    return events.with_columns(pl.Series("begin", np.where(begin < number, begin, -1)))


def _latest(table: str, *, same: bool) -> pl.Expr:
    """The position of the latest event of a table so far, if its admission is (not) the event's."""
    own = pl.col("table") == ORDER.index(table)
    position, hadm = (
        pl.when(own).then(name).forward_fill().over("subject_id")
        for name in ("position", "hadm_id")
    )
    fits = (hadm == pl.col("hadm_id")) & (hadm != NO_ID) if same else hadm != pl.col("hadm_id")
    name = "admissions_id" if same else "last_discharge_id"
    return pl.when(fits).then(position).cast(pl.Int32).alias(name)


def seconds(times: pl.Series) -> np.ndarray:
    """Seconds since 1970."""
    return times.cast(pl.Datetime("us")).cast(pl.Int64).to_numpy() // 1_000_000


@dataclass(frozen=True)
class Timeline:
    """The events of each group (a patient's, or an admission's) by time, to be searched.

    Events of the tables `UNTIMED` have no time in the release and are not found. Numbers of events
    in and out; -1 where there is none.
    """

    group: np.ndarray
    """The group of every event."""
    found: np.ndarray
    """The timed events by group and time, then -1."""
    keys: np.ndarray
    """Their group times 2**39 plus seconds."""

    @classmethod
    def of(cls, events: pl.DataFrame, within: str | None = None) -> "Timeline":
        """Of each patient's events, or of those that are equal in the column `within` too."""
        subject = events["subject_id"].to_numpy()
        second = events[within].to_numpy() if within else np.zeros(len(subject), dtype=np.int64)
        order = np.lexsort((second, subject))
        new = (np.diff(subject[order]) != 0) | (np.diff(second[order]) != 0)
        group = np.empty(len(subject), dtype=np.int64)
        group[order] = np.concatenate([[0], np.cumsum(new)])[: len(order)]
        timed = order[(~events["table"].is_in(UNTIMED)).to_numpy()[order]]
        keys = _keys(group[timed], seconds(events["start"])[timed])
        return cls(group, np.append(timed, -1), keys)

    def first_after(self, events: np.ndarray, time: np.ndarray) -> np.ndarray:
        """The first event of each event's group that starts later than `time` (seconds)."""
        place = np.searchsorted(self.keys, _keys(self.group[events], time), "right")
        return self._own(place, events)

    def last_before(self, events: np.ndarray, time: np.ndarray) -> np.ndarray:
        """The last event of each event's group that starts earlier than `time` (seconds)."""
        place = np.searchsorted(self.keys, _keys(self.group[events], time), "left") - 1
        return self._own(place, events)

    def last(self, events: np.ndarray) -> np.ndarray:
        """The last event of each event's group."""
        return self.last_before(events, np.full(len(events), 2**38 - 1))

    def _own(self, place: np.ndarray, events: np.ndarray) -> np.ndarray:
        found = self.found[place]
        return np.where((found >= 0) & (self.group[found] == self.group[events]), found, -1)


def _keys(group: np.ndarray, time: np.ndarray) -> np.ndarray:
    """Groups and times as one number: 2**39 seconds hold all years, 16 million groups are left."""
    return group * 2**39 + time + 2**38
