"""The release's index of samples (`data.protocol=paper`), for comparison with published results.

It reproduces the release's rules, including their leaks: `docs/paper.md` describes them and the
remaining differences.

A patient's record is a list of events: demographics (0), then groups of *consecutive rows of one
table* in the order of the store, which is the release's (`records.release.order`). An event starts
with its first row, has that row's admission, and ends before the next row of another table. A
sample is a range `[period_begin, period_end)` of the list; everything in it is shown. "Same
admission" compares `hadm_id`, null being equal to null; an ED visit has the `hadm_id` that was
assigned to it later.

Decision: the event at `period_end` is the target; the range begins with the first event of the list
that has the same admission and starts less than 24 h before it. Risk: from the anchor event (ED
stay, admission, ICU stay) to the last event of the list that starts before the ED out time, or
within 24 h and in the same admission; readmission: from the first event of the stay that starts in
the 24 h before its discharge note to that note, which is shown.

Filters, each counted under `excluded/<task>/<reason>` (the first that applies): see `_reasons`.

Decisions where the facts are ambiguous:
- Codes of a stay have no time in the list and never begin or end a range; the 24 h before a
  question on them are counted from the event preceding them. They are known at the end of the stay,
  which is their prediction time. Cultures without a time are not used as targets.
- Without a `note` module (no discharge note in the rows) the readmission tasks are posed at
  `dischtime`, about the last 24 h up to it; the range ends with the last event of the stay that is
  not a coded diagnosis. If there are notes, a stay without one is left out.
- The limit of "at most 1,200 events" applies to the list's length including demographics.
- For tasks on ICD and CCS codes of hospital stays, the admission event must come after the range's
  first event. A target that comes before its admission event (a procedure dated to 00:00 of the day
  of admission) has none and is kept, as in the release.
- The last discharge note precedes the context only if the latest note so far is of another
  admission, as in the release: once a stay has its own note, no earlier note is shown.
- `prediction_time` is the target's start (decision), the ED out time, 24 h after the start of the
  stay, or the discharge note's start (otherwise `dischtime`): the latest time at which the
  question's data are nominally known.
- `target` holds codes of names as in the strict index; those of next_event are tables
  (`labevents`), as in the release.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import polars as pl

from ehrr1.records.schema import ORDER
from ehrr1.records.store_schema import NO_CODE, NO_ID
from ehrr1.tasks.catalog import TASKS, Task
from ehrr1.tasks.index import Index, numbered_events
from ehrr1.tasks.paper.context import ADMISSION_HIDDEN, NOTE_HIDDEN, SILENT
from ehrr1.tasks.paper.events import Frames, event_list, record_rows
from ehrr1.tasks.paper.labels import risk_candidates

WINDOW_HOURS = 24
CODED = ("procedures_icd", "procedures_ccs", "diagnoses_icd", "diagnoses_ccs")
"""Tasks whose range must contain the admission event."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on the number of events of a context and of a patient (`data.paper`).

    The defaults are those of the release.
    """

    more_than: int = 10
    fewer_than: int = 100
    """A context has more events than `more_than` and fewer than `fewer_than`."""
    patient_events: int | None = 1200
    """Maximum number of events of a patient with samples; None: no limit.

    The limit depends on the patient's future.
    """


RELEASED = Limits()

COLUMNS = (
    *("sample_id", "task", "split", "subject_id", "hadm_id", "stay_id", "event"),
    *("period_begin", "period_end", "admissions_id", "last_discharge_id", "prediction_time"),
    *("inclusive", "n_context_rows", "context_id", "target", "target_row", "label"),
)
"""The release's columns and those that later stages need."""


def paper_index(
    store_rows: pl.DataFrame,
    names: pl.Series,
    parents: Frames,
    splits: pl.DataFrame,
    tasks: Collection[str],
    limits: Limits = RELEASED,
    *,
    notes: bool,
) -> Index:
    """Return the samples of a shard's patients, sorted by patient, time and task (see `COLUMNS`).

    `store_rows`, `names` and `parents` are as in `build_index`; `notes` is True if the files have
    discharge notes. `inclusive` is true for risk samples, as in the strict index: known *by* the
    prediction time.
    """
    codes = dict(zip(names.to_list(), range(len(names)), strict=True))
    record = record_rows(numbered_events(store_rows))
    events = event_list(record, parents)
    risk = risk_candidates(events, parents, tasks, notes=notes)
    candidates = pl.concat([_decision_candidates(events, tasks), risk], how="diagonal_relaxed")
    candidates, excluded = _kept(_placed(candidates, events, record.height), _reasons(limits))
    candidates, without_target = _kept(_with_targets(candidates, record, codes), _target_reasons())
    frame = with_ids(candidates).join(splits, on="subject_id", how="left")
    frame = frame.sort("subject_id", "prediction_time", "task", "sample_id")
    return Index(frame.select(COLUMNS), excluded | without_target)


def _decision_candidates(events: pl.DataFrame, tasks: Collection[str]) -> pl.DataFrame:
    """Return one row per decision task and possible target event; the range precedes the event."""
    parts = []
    for task in TASKS.values():
        if task.kind == "decision" and task.key in tasks:
            own = events.filter(~pl.col("table").is_in(SILENT))
            if task.anchor_table in ORDER:
                own = events.filter(pl.col("table") == ORDER.index(task.anchor_table))
            parts.append(own.select(pl.lit(task.key).alias("task"), "number", "begin", "start"))
    empty = events.select(pl.lit("").alias("task"), "number", "begin", "start").clear()
    return pl.concat([empty, *parts]).select(
        *("task", "number", "begin"),
        pl.col("number").alias("end"),
        pl.col("start").alias("prediction_time"),
        pl.lit(False).alias("inclusive"),
        pl.lit(None, pl.Boolean).alias("label"),
        pl.lit(None, pl.String).alias("why"),
    )


def _placed(candidates: pl.DataFrame, events: pl.DataFrame, height: int) -> pl.DataFrame:
    """Add the columns of the release's index that follow from the event and its range."""
    columns = ["subject_id", "hadm_id", "stay_id", "table", "length"]
    own = events.select(*columns, "admissions_id", "last_discharge_id")[candidates["number"]]
    there = candidates["begin"] >= 0
    begin = candidates["begin"].clip(lower_bound=0)
    end = pl.select(pl.when(there).then(candidates["end"]).otherwise(begin)).to_series()
    position, first_row = events["position"][begin], events["at"].extend_constant(height, 1)
    return pl.concat([candidates, own], how="horizontal").with_columns(
        position.cast(pl.Int32).alias("period_begin"),
        (position + end - begin).cast(pl.Int32).alias("period_end"),
        (first_row[end] - first_row[begin]).cast(pl.Int32).alias("n_context_rows"),
    )


def _reasons(limits: Limits) -> dict[str, pl.Expr]:
    """Return reason to leave a candidate out -> whether it applies; the first one counts."""
    length = pl.col("period_end") - pl.col("period_begin")
    outside = pl.col("admissions_id") <= pl.col("period_begin")
    most = limits.patient_events
    too_long = {} if most is None else {f"patient_over_{most}_events": pl.col("length") > most}
    return too_long | {
        "no_outtime": pl.col("why") == "no_outtime",
        "no_dischtime": pl.col("why") == "no_dischtime",
        "no_context": pl.col("begin") < 0,
        "left_by_then": pl.col("why") == "left_by_then",
        f"at_most_{limits.more_than}_events": length <= limits.more_than,
        f"at_least_{limits.fewer_than}_events": length >= limits.fewer_than,
        "admission_not_in_window": pl.col("task").is_in(CODED) & outside,
    }


def _target_reasons() -> dict[str, pl.Expr]:
    items = pl.col("target").list.len()
    limits = {task.key: task.most_items for task in TASKS.values() if task.most_items is not None}
    too_many = {
        f"more_than_{limit}_items": (pl.col("task") == task) & (items > limit)
        for task, limit in limits.items()
    }
    return {"no_target": (items == 0) & pl.col("target_row").is_null(), **too_many}


def _kept(
    frame: pl.DataFrame, reasons: Mapping[str, pl.Expr]
) -> tuple[pl.DataFrame, dict[str, int]]:
    """Return the rows to which no reason applies, and the counts of the others.

    The counts are by `<task>/<reason>`.
    """
    first = pl.coalesce(
        pl.when(holds.fill_null(False)).then(pl.lit(name)) for name, holds in reasons.items()
    )
    checked = frame.with_columns(first.alias("left_out"))
    counts = checked.filter(pl.col("left_out").is_not_null()).group_by("task", "left_out").len()
    excluded = {
        f"{task}/{reason}": count for task, reason, count in counts.sort(pl.all()).iter_rows()
    }
    return checked.filter(pl.col("left_out").is_null()).drop("left_out"), excluded


def _with_targets(
    candidates: pl.DataFrame, record: pl.DataFrame, codes: Mapping[str, int]
) -> pl.DataFrame:
    """Add `target` (distinct codes, in order of record) and `target_row` (the note to write)."""
    answer = pl.when(pl.col("label")).then(codes["yes"]).otherwise(codes["no"])
    parts = [
        candidates.filter(pl.col("label").is_not_null()).with_columns(
            _one(answer).alias("target"), pl.lit(None, pl.Int64).alias("target_row")
        )
    ]
    for task in candidates.filter(pl.col("label").is_null())["task"].unique().sort():
        own = candidates.filter(pl.col("task") == task)
        parts.append(_with_target(own, TASKS[task], record, codes))
    return pl.concat(parts)


def _one(code: pl.Expr) -> pl.Expr:
    return code.cast(pl.Int32).reshape((-1, 1)).arr.to_list()


def _with_target(
    own: pl.DataFrame, task: Task, record: pl.DataFrame, codes: Mapping[str, int]
) -> pl.DataFrame:
    if task.target == "heading":
        tables = {n: codes[name] for n, name in enumerate(ORDER)}
        code = pl.col("table").replace_strict(tables, return_dtype=pl.Int32)
        return own.with_columns(
            _one(code).alias("target"), pl.lit(None, pl.Int64).alias("target_row")
        )
    rows = record.filter(pl.col("table") == ORDER.index(task.anchor_table))
    name = pl.col("class" if task.target == "class" else "item")
    target, note = name.filter(name != NO_CODE).unique(maintain_order=True), pl.lit(None, pl.Int64)
    if task.target == "text":
        # Events of several notes are not used as targets.
        target = pl.lit([], pl.List(pl.Int32))
        note = pl.when(pl.len() == 1).then(pl.col("row").first()).cast(pl.Int64)
    targets = (
        rows.join(own.select("number"), on="number", how="semi", maintain_order="left")
        .group_by("number")
        .agg(target.alias("target"), note.alias("target_row"))
    )
    return own.join(targets, on="number", how="left", maintain_order="left")


def with_ids(candidates: pl.DataFrame) -> pl.DataFrame:
    """Add `sample_id`, `context_id` (equal for equal contexts) and the release's `event`."""
    names = dict(enumerate(ORDER))
    period = pl.format("{}-{}", "period_begin", "period_end")
    shown = pl.col("admissions_id").fill_null(0)
    admission = pl.when(pl.col("task") == ADMISSION_HIDDEN).then(0).otherwise(shown)
    notes = pl.when(pl.col("task").is_in(list(NOTE_HIDDEN))).then(pl.lit("/no-note"))
    context = pl.concat_str(
        pl.format(
            "{}/{}/{}/{}", "subject_id", period, admission, pl.col("last_discharge_id").fill_null(0)
        ),
        notes.otherwise(pl.lit("")),
    )
    return candidates.with_columns(
        pl.format("{}/{}/{}", "task", "subject_id", period).alias("sample_id"),
        context.alias("context_id"),
        pl.col("table").replace_strict(names, return_dtype=pl.String).alias("event"),
        pl.col("hadm_id", "stay_id").replace(NO_ID, None),
    )
