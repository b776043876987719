"""Risk labels as in the release (`data.protocol=paper`), including its known defects.

A death is `dod` at 00:00: a death on the day of discharge, even after it, counts as a death in
hospital. Patients who died count as "not readmitted" and "did not return". Windows of ED tasks
start at the out time. All admissions count as readmissions. Candidates who died or left before the
prediction time are not excluded, except for length of stay: there the last event shown must start
before discharge.
"""

from collections.abc import Collection
from datetime import timedelta

import numpy as np
import polars as pl

from ehrr1.records.release.order import WITHOUT_TIME
from ehrr1.records.store_schema import NO_ID
from ehrr1.tasks import labels
from ehrr1.tasks.paper.events import (
    ADMISSIONS,
    DAY_SECONDS,
    DISCHARGE,
    EDSTAYS,
    ICUSTAYS,
    Frames,
    Timeline,
    seconds,
)

HOUR, DAY = timedelta(hours=1), timedelta(days=1)

_ED_DEATH = pl.col("own_last_start") >= pl.col("dod")
_ED_TO_ICU = pl.col("icu_start") - pl.col("outtime") < 12 * HOUR

LABELS: dict[str, tuple[str, pl.Expr]] = {
    "ED_Hospitalization": ("visit", pl.col("admission_start").is_not_null()),
    "ED_Inpatient_Mortality": ("visit", _ED_DEATH),
    "ED_ICU_Tranfer_12hour": ("visit", _ED_TO_ICU),
    "ED_Critical_Outcomes": ("visit", _ED_DEATH.fill_null(False) | _ED_TO_ICU.fill_null(False)),
    "ED_Reattendance_3day": ("visit", pl.col("visit_start") - pl.col("outtime") < 3 * DAY),
    **{
        f"Readmission_{days}day": (
            "discharge",
            pl.col("admission_start") - pl.col("prediction_time") < days * DAY,
        )
        for days in (30, 60)
    },
    "Inpatient_Mortality": ("admission", pl.col("dod") <= pl.col("dischtime")),
    **{
        f"LengthOfStay_{days}day": (
            "long_stay",
            pl.col("dischtime") - pl.col("start") > days * DAY,
        )
        for days in (3, 7)
    },
    **{
        f"ICU_Mortality_{days}day": ("icu", pl.col("dod") - pl.col("last_start") < days * DAY)
        for days in (1, 2, 3, 7, 14)
    },
    **{
        f"ICU_Stay_{days}day": ("icu", pl.col("outtime") - pl.col("start") >= days * DAY)
        for days in (7, 14)
    },
    "ICU_Readmission": ("icu", pl.col("icu_start").is_not_null()),
}
"""Task -> its kind of anchor event and whether the answer is yes; null means no."""

SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    **{"task": pl.String, "number": pl.Int64, "begin": pl.Int64, "end": pl.Int64},
    **{"prediction_time": pl.Datetime("us"), "inclusive": pl.Boolean, "label": pl.Boolean},
    "why": pl.String,
}


def risk_candidates(
    events: pl.DataFrame, parents: Frames, tasks: Collection[str], *, notes: bool
) -> pl.DataFrame:
    """Return one row per risk task and anchor event (columns: `SCHEMA`).

    `events` are the result of `event_list`. `number` is the anchor, `[begin, end)` the range of
    event numbers (`begin` is -1 if there is none), `why` a reason to leave it out that only this
    module can determine.
    """
    stays = _admissions(events, parents)
    anchors = {
        "admission": stays,
        "long_stay": _still_there(stays),
        "discharge": _notes(events) if notes else _discharges(events, parents),
    }
    if "edstays" in parents:
        anchors["visit"] = _visits(events, parents)
    if "icustays" in parents:
        anchors["icu"] = _icu_stays(events, parents)
    parts = [pl.DataFrame(schema=SCHEMA)]
    for task, (kind, label) in LABELS.items():
        if task not in tasks or any(table not in parents for table in labels.RULES[task].needs):
            continue
        candidates = anchors[kind].with_columns(
            pl.lit(task).alias("task"),
            pl.lit(True).alias("inclusive"),
            label.fill_null(False).alias("label"),
        )
        parts.append(candidates.select(*SCHEMA))
    return pl.concat(parts)


def _anchors(events: pl.DataFrame, table: int) -> pl.DataFrame:
    return events.filter(pl.col("table") == table)


def _with_range(
    anchors: pl.DataFrame, events: pl.DataFrame, begin: np.ndarray, last: np.ndarray, why: pl.Expr
) -> pl.DataFrame:
    """Add the range that ends with the event `last`, and the start of that event."""
    valid = (begin >= 0) & (last >= begin)
    last_start = events["start"].gather(np.where(valid, last, 0))
    return anchors.with_columns(
        pl.Series("begin", np.where(valid, begin, -1)),
        pl.Series("end", last + 1),
        last_start.alias("last_start"),
        why.alias("why"),
    )


def _first_day(anchors: pl.DataFrame, events: pl.DataFrame) -> pl.DataFrame:
    """Add the range from the anchor to the last event of its admission within 24 h, if any."""
    number = anchors["number"].to_numpy()
    day = seconds(anchors["start"]) + DAY_SECONDS
    last = Timeline.of(events, "hadm_id").last_before(number, day)
    time = (pl.col("start") + DAY).alias("prediction_time")
    last = np.where(last > number, last, -1)
    return _with_range(anchors.with_columns(time), events, number, last, NO_REASON)


NO_REASON = pl.lit(None, pl.String)


def _reason(name: str, bad: pl.Expr) -> pl.Expr:
    return pl.when(bad).then(pl.lit(name))


def _admissions(events: pl.DataFrame, parents: Frames) -> pl.DataFrame:
    stays = parents["admissions"].select("hadm_id", "dischtime")
    anchors = _anchors(events, ADMISSIONS).join(stays, on="hadm_id", how="left")
    anchors = _first_day(anchors.sort("number"), events)
    no_discharge = _reason("no_dischtime", pl.col("dischtime").is_null())
    return _with_death(anchors, parents).with_columns(no_discharge.alias("why"))


def _still_there(stays: pl.DataFrame) -> pl.DataFrame:
    """Leave out stays whose last event shown does not start before discharge (length of stay)."""
    left = _reason("left_by_then", pl.col("last_start") >= pl.col("dischtime"))
    return stays.with_columns(pl.coalesce("why", left).alias("why"))


def _icu_stays(events: pl.DataFrame, parents: Frames) -> pl.DataFrame:
    stays = parents["icustays"].select("stay_id", "outtime")
    anchors = _anchors(events, ICUSTAYS).join(stays, on="stay_id", how="left")
    anchors = _first_day(anchors.sort("number"), events)
    anchors = _next(anchors, events, ICUSTAYS, "icu_start", same=True)
    no_end = _reason("no_outtime", pl.col("outtime").is_null())
    return _with_death(anchors, parents).with_columns(no_end.alias("why"))


def _visits(events: pl.DataFrame, parents: Frames) -> pl.DataFrame:
    """Return ED stays, with ranges up to the patient's last event before the out time.

    Events of any admission are included.
    """
    stays = parents["edstays"].select("stay_id", "outtime")
    anchors, number, end = _with_end(_anchors(events, EDSTAYS), stays)
    last = Timeline.of(events).last_before(number, end)
    last = np.where(last > number, last, -1)
    no_end = _reason("no_outtime", pl.col("outtime").is_null())
    time = pl.col("outtime").alias("prediction_time")
    anchors = _with_range(anchors.with_columns(time), events, number, last, no_end)
    anchors = _next(anchors, events, ADMISSIONS, "admission_start", same=True)
    anchors = _next(anchors, events, ICUSTAYS, "icu_start", same=True)
    anchors = _next(anchors, events, EDSTAYS, "visit_start", same=False)
    own_last = Timeline.of(events, "hadm_id").last(number)
    start = events["start"].gather(np.where(own_last > number, own_last, 0))
    anchors = anchors.with_columns(start.alias("own_last_start"))
    known = pl.Series(own_last > number) & (anchors["hadm_id"] != NO_ID)
    own_last_start = pl.when(known).then("own_last_start").alias("own_last_start")
    return _with_death(anchors.with_columns(own_last_start), parents)


def _notes(events: pl.DataFrame) -> pl.DataFrame:
    """Return discharge notes; the note itself is the last event shown."""
    anchors = _anchors(events, DISCHARGE)
    time = pl.col("start").alias("prediction_time")
    begin, number = anchors["begin"].to_numpy(), anchors["number"].to_numpy()
    anchors = _with_range(anchors.with_columns(time), events, begin, number, NO_REASON)
    return _next(anchors, events, ADMISSIONS, "admission_start", same=False)


def _discharges(events: pl.DataFrame, parents: Frames) -> pl.DataFrame:
    """Return discharges without notes: the stay's events in the 24 h up to `dischtime`.

    The release has no samples in this case. Rows without a time are ignored, since they are also at
    the end of the list and would extend a range over the next admission.
    """
    stays = parents["admissions"].select("hadm_id", "dischtime")
    anchors, number, end = _with_end(_anchors(events, ADMISSIONS), stays)
    own = Timeline.of(
        events.with_columns(pl.col("timed") & (pl.col("table") != WITHOUT_TIME)), "hadm_id"
    )
    begin, last = own.first_after(number, end - DAY_SECONDS), own.last_before(number, end + 1)
    no_discharge = _reason("no_dischtime", pl.col("dischtime").is_null())
    time = pl.col("dischtime").alias("prediction_time")
    anchors = _with_range(anchors.with_columns(time), events, begin, last, no_discharge)
    return _next(anchors, events, ADMISSIONS, "admission_start", same=False)


def _with_end(
    anchors: pl.DataFrame, stays: pl.DataFrame
) -> tuple[pl.DataFrame, np.ndarray, np.ndarray]:
    """Return anchors with the ends of their stays, in the order of the event list.

    `stays` has an id and a time. Returns also the numbers of the anchors in the list, and the ends
    in seconds since 1970 (a stay without an end ends at its start).
    """
    key, end = stays.columns
    anchors = anchors.join(stays, on=key, how="left").sort("number")
    ends = seconds(anchors[end].fill_null(anchors["start"]))
    return anchors, anchors["number"].to_numpy(), ends


def _with_death(anchors: pl.DataFrame, parents: Frames) -> pl.DataFrame:
    dead = parents["patients"].select("subject_id", pl.col("dod").dt.truncate("1d"))
    return anchors.join(dead, on="subject_id", how="left", maintain_order="left")


def _next(
    anchors: pl.DataFrame, events: pl.DataFrame, table: int, name: str, *, same: bool
) -> pl.DataFrame:
    """Add `name`: the start of the patient's next event of a table after the anchor's.

    With `same`, the event must be of the same admission, and null is not an admission.
    """
    keys = ["subject_id", "hadm_id"] if same else ["subject_id"]
    others = _anchors(events, table).filter((pl.col("hadm_id") != NO_ID) | (not same))
    return anchors.join_asof(
        others.select(*keys, pl.col("number").alias("later"), pl.col("start").alias(name)),
        left_on="number",
        right_on="later",
        by=keys,
        strategy="forward",
        allow_exact_matches=False,
        check_sortedness=False,
    ).drop("later")
