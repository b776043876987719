"""The index of samples: one row per question, with its prediction time, window and answer.

A decision sample predicts one event (the rows of one table, stay and event time) from what was
known *before* its event time; a risk sample predicts an outcome from what was known *by* its
prediction time. Whether a sample exists never depends on data after the prediction time.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import timedelta

import numpy as np
import polars as pl

from ehrr1.records.hindsight import END
from ehrr1.records.schema import ORDER, TABLES
from ehrr1.records.store_schema import NO_CODE, NO_ID
from ehrr1.tasks.catalog import TASKS, Task
from ehrr1.tasks.labels import DEFAULT, SAMPLE_SCHEMA, LabelOptions, risk_samples
from ehrr1.tasks.stays import stays_in_turn

WINDOW_TABLES = [n for n, name in enumerate(ORDER) if TABLES[name].context == "yes"]
"""Numbers of the tables whose rows are shown in a window."""


@dataclass
class Index:
    """The samples, and counts of what was left out."""

    frame: pl.DataFrame
    excluded: dict[str, int] = field(default_factory=dict)
    """`<task>/<reason>` -> number of samples left out."""
    noted: dict[str, int] = field(default_factory=dict)
    """`<condition>/<task>` -> number of samples that meet the condition (`labels.Rule.noted`)."""

    @property
    def counts(self) -> dict[str, int]:
        """Return the counts by the name of their metric; those of several shards can be added."""
        left_out = {f"excluded/{reason}": count for reason, count in self.excluded.items()}
        return left_out | self.noted


def joined(one: Index, other: Index) -> Index:
    """Return the samples of two indexes of the same patients that have no task in common."""
    frame = pl.concat([one.frame, other.frame.select(one.frame.columns)])
    frame = frame.sort("subject_id", "prediction_time", "task", "sample_id")
    return Index(frame, one.excluded | other.excluded, one.noted | other.noted)


def build_index(
    store_rows: pl.DataFrame,
    names: pl.Series,
    parents: Mapping[str, pl.DataFrame],
    splits: pl.DataFrame,
    window: timedelta,
    tasks: Collection[str],
    options: LabelOptions = DEFAULT,
) -> Index:
    """Return all samples of the tasks on a shard's patients, sorted by patient, time and task.

    `store_rows` and `names` are the shard's, as `records.store.write_shard` returns them.

    Columns: `sample_id, task, split, subject_id, hadm_id, stay_id, prediction_time, window_start,
    inclusive` (the cut includes what became known at the prediction time itself), `current_hadm`
    (the hospital stay in progress), `hidden_hadm` (an admission that must not be shown), `ed_stay`,
    `n_context_rows`, `context_id, target` (codes of names), `target_row` (the note to write),
    `label` (of risk tasks: whether the answer is yes).
    """
    rows = numbered_events(store_rows)
    codes = dict(zip(names.to_list(), range(len(names)), strict=True))
    decision = _decision_samples(rows, codes, tasks)
    risk = risk_samples(parents, tasks, options)
    excluded = dict(decision.excluded) | risk.excluded
    answers = pl.when(pl.col("label")).then(codes["yes"]).otherwise(codes["no"])
    questions = risk.frame.with_columns(
        answers.cast(pl.Int32).reshape((-1, 1)).arr.to_list().alias("target"),
        pl.lit(True).alias("inclusive"),
    )
    frame = pl.concat([decision.frame, questions], how="diagonal").with_columns(
        pl.col("window_start").fill_null(pl.col("prediction_time") - window)
    )
    frame, without_context = completed(frame, rows, parents["admissions"], splits)
    excluded |= without_context
    return Index(frame, excluded, risk.noted)


def completed(
    frame: pl.DataFrame, rows: pl.DataFrame, admissions: pl.DataFrame, splits: pl.DataFrame
) -> tuple[pl.DataFrame, dict[str, int]]:
    """Add to samples what follows from the record: context rows, the admission in progress, ids.

    Samples without any row in their window are left out; their counts are returned too.
    """
    frame = _with_context_rows(frame, rows)
    empty = frame.filter(pl.col("n_context_rows") == 0)["task"].value_counts()
    excluded = {f"{task}/no_context": count for task, count in empty.iter_rows()}
    frame = frame.filter(pl.col("n_context_rows") > 0)
    frame = _with_current_admission(frame, admissions)
    frame = _with_ids(frame).join(splits, on="subject_id", how="left")
    return frame.sort("subject_id", "prediction_time", "task", "sample_id"), excluded


def numbered_events(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the store's columns that the index needs, with the number of each row's event."""
    columns = ["subject_id", "stay_id", "hadm_id", "table", "event_time", "available_time"]
    rows = rows.select(*columns, "item", "class").with_row_index("row")
    stay = pl.when(pl.col("stay_id") != NO_ID).then("stay_id").otherwise("hadm_id")
    keys = ["subject_id", "event_time", "table", "stay"]
    rows = rows.with_columns(stay.alias("stay"))
    first = pl.any_horizontal(pl.col(key) != pl.col(key).shift() for key in keys)
    return rows.with_columns(first.fill_null(True).cum_sum().alias("event"))


def _decision_samples(
    rows: pl.DataFrame, codes: Mapping[str, int], tasks: Collection[str]
) -> Index:
    excluded: dict[str, int] = {}
    empty = {name: kind for name, kind in SAMPLE_SCHEMA.items() if name in _DECISION_COLUMNS}
    empty |= {"target": pl.List(pl.Int32), "target_row": pl.Int64}
    parts = [pl.DataFrame(schema=empty)]
    for task in TASKS.values():
        if task.kind == "risk" or task.key not in tasks:
            continue
        next_event = task.target == "heading"
        targets = _next_events(rows, codes) if next_event else _events(rows, task)
        for reason, keep in _filters(task).items():
            kept = targets.filter(keep)
            if kept.height < targets.height:
                excluded[f"{task.key}/{reason}"] = targets.height - kept.height
            targets = kept
        parts.append(targets.with_columns(pl.lit(task.key).alias("task")))
    own = pl.col("task").is_in(["diagnoses_icd", "diagnoses_ccs"])
    frame = pl.concat(parts, how="diagonal").with_columns(
        pl.lit(False).alias("inclusive"),
        # Discharge diagnoses are coded at the end of the stay, which is still the current one.
        pl.when(own).then(pl.col("hadm_id")).alias("current_hadm"),
    )
    return Index(frame, excluded)


_DECISION_COLUMNS = ("subject_id", "hadm_id", "stay_id", "prediction_time", "task")


def _filters(task: Task) -> dict[str, pl.Expr]:
    """Return reason to leave an event out -> the expression that keeps the others."""
    if task.target == "text":
        return {}
    filters = {"no_target": pl.col("target").list.len() > 0}
    if task.most_items is not None:
        limit = task.most_items
        filters[f"more_than_{limit}_items"] = pl.col("target").list.len() <= limit
    return filters


def _events(rows: pl.DataFrame, task: Task) -> pl.DataFrame:
    """Return the events of the task's table with their distinct items or classes, in order."""
    own = rows.filter(pl.col("table") == ORDER.index(task.anchor_table))
    name = pl.col("class" if task.target == "class" else "item")
    target = name.filter(name != NO_CODE).unique(maintain_order=True)
    if task.target == "text":
        target, note = pl.lit([], pl.List(pl.Int32)), pl.col("row").first().cast(pl.Int64)
    else:
        note = pl.lit(None, pl.Int64)
    return (
        own.group_by("event", maintain_order=True)
        .agg(*_sample_columns(), target.alias("target"), note.alias("target_row"))
        .drop("event")
    )


def _next_events(rows: pl.DataFrame, codes: Mapping[str, int]) -> pl.DataFrame:
    """Return the kind of the first event at each time of each patient."""
    headings = {n: codes[TABLES[name].heading] for n, name in enumerate(ORDER)}
    shown = rows.filter(pl.col("table").is_in(WINDOW_TABLES))
    firsts = shown.unique(["subject_id", "event_time"], keep="first", maintain_order=True)
    code = pl.col("table").replace_strict(headings, return_dtype=pl.Int32)
    return firsts.select(
        *_sample_columns(first=False),
        code.reshape((-1, 1)).arr.to_list().alias("target"),
        pl.lit(None, pl.Int64).alias("target_row"),
    )


def _sample_columns(first: bool = True) -> list[pl.Expr]:
    columns = [
        pl.col("subject_id"),
        pl.col("hadm_id").replace(NO_ID, None),
        pl.col("stay_id").replace(NO_ID, None),
        pl.col("event_time").alias("prediction_time"),
    ]
    return [column.first() for column in columns] if first else columns


def _with_context_rows(frame: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    """Add the number of rows that became known in each sample's window.

    Counts by one binary search in a sorted array of (patient, time) keys: patient number times
    2**39 plus seconds, which is sufficient for 16 million patients and all years.
    """
    subjects = rows["subject_id"].unique().sort()

    def keys(subject: pl.Series, time: pl.Series) -> np.ndarray:
        number = subjects.search_sorted(subject).cast(pl.Int64).to_numpy()
        seconds = time.cast(pl.Int64).to_numpy() // 1_000_000
        return number * 2**39 + seconds + 2**38

    shown = rows.filter(pl.col("table").is_in(WINDOW_TABLES))
    known = np.sort(keys(shown["subject_id"], shown["available_time"]))
    first = np.searchsorted(known, keys(frame["subject_id"], frame["window_start"]), "left")
    cut = keys(frame["subject_id"], frame["prediction_time"])
    last = np.searchsorted(known, cut + frame["inclusive"].to_numpy(), "left")
    count = pl.Series("n_context_rows", np.maximum(last - first, 0), dtype=pl.Int32)
    return frame.with_columns(count)


def _with_current_admission(frame: pl.DataFrame, admissions: pl.DataFrame) -> pl.DataFrame:
    """Fill in `current_hadm`: the stay that began before the cut and was not over by then, if any.

    It is determined by time and not by the row's own `hadm_id`, which some rows receive only later.
    Also adds `own_over`: the row's own stay is over by then, so that its codes are known, and must
    be hidden.
    """
    stays = stays_in_turn(admissions)
    cuts = frame.select("subject_id", "prediction_time", "inclusive").with_row_index("place")
    parts = []
    for inclusive, begin in ((False, "after"), (True, "by")):
        part = cuts.filter(pl.col("inclusive") == inclusive).sort("prediction_time")
        parts.append(
            part.join_asof(
                stays.select(
                    "subject_id", "in_progress", "over", pl.col(begin).alias("begin")
                ).sort("begin"),
                left_on="prediction_time",
                right_on="begin",
                by="subject_id",
                allow_exact_matches=inclusive,
                check_sortedness=False,
            )
        )
    stay = pl.concat(parts).sort("place").select("in_progress", "over")
    own_end = admissions.select("hadm_id", pl.col(END).alias("own_end")).unique("hadm_id")
    found = frame.hstack(stay).join(own_end, on="hadm_id", how="left", maintain_order="left")
    over = pl.col("over") < pl.col("prediction_time")
    open_stay = pl.when(~over.fill_null(False)).then("in_progress")
    found = found.with_columns(pl.col("current_hadm").fill_null(open_stay))
    own_over = (pl.col("own_end") <= pl.col("prediction_time")) & pl.col("hadm_id").ne_missing(
        pl.col("current_hadm")
    )
    found = found.with_columns(own_over.fill_null(False).alias("own_over"))
    return found.drop("over", "in_progress", "own_end")


def _with_ids(frame: pl.DataFrame) -> pl.DataFrame:
    """Add `sample_id` and `context_id`; the latter identifies all that determines the context."""
    time = pl.col("prediction_time").dt.strftime("%Y%m%dT%H%M%S")
    frame = frame.with_columns(time.alias("time"))
    stay = pl.coalesce("stay_id", "hadm_id").fill_null(0)
    sample_id = pl.format("{}/{}/{}/{}", "task", "subject_id", stay, "time")
    window = (
        pl.when(pl.col("ed_stay").is_not_null())
        .then(pl.format("ed{}", "ed_stay"))
        .when(pl.col("inclusive"))
        .then(pl.lit("by"))
        .otherwise(pl.lit("before"))
    )
    current = pl.col("current_hadm").fill_null(0)
    hidden = pl.when("own_over").then(pl.format("/not{}", "hadm_id")).otherwise(pl.lit(""))
    context_id = pl.format("{}/{}/{}/{}{}", "subject_id", "time", window, current, hidden)
    return frame.with_columns(sample_id.alias("sample_id"), context_id.alias("context_id")).drop(
        "time", "own_over"
    )
