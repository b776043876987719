"""The release's index files as an index: samples by position in a patient's list of events.

`ehr_ins/*.csv` are for training, each for one stage (`tasks.release.rows`), and `ehr_bench/*.csv`
for testing. A share of the patients who are not tested is used for validation, unless
`ehr_ins/ehr_ins_validation.csv` (of this project's exports) lists them. An answer is that of the
file; if the file has none, it is taken from the target event.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import polars as pl

from ehrr1.records.schema import ORDER, TABLES
from ehrr1.records.store_schema import NO_CODE
from ehrr1.tasks.catalog import TASKS
from ehrr1.tasks.index import Index
from ehrr1.tasks.paper.index import COLUMNS, with_ids
from ehrr1.tasks.release.rows import PLACES, items_of
from ehrr1.tasks.samples import TRAINS

ANSWERS = {"yes": "yes", "no": "no", "1": "yes", "0": "no", "true": "yes", "false": "no"}


def release_splits(index: pl.DataFrame, subjects: pl.Series, drawn: pl.DataFrame) -> pl.DataFrame:
    """Return `subject_id, split`: test and validation patients by file, others as `drawn`."""
    named = {
        split: index.filter(pl.col("split") == split)["subject_id"].drop_nulls().unique()
        for split in ("test", "validation")
    }
    subject = pl.col("subject_id")
    other = pl.col("split") if named["validation"].is_empty() else pl.lit("train")
    return drawn.filter(subject.is_in(subjects.implode())).with_columns(
        pl.when(subject.is_in(named["test"].implode()))
        .then(pl.lit("test"))
        .when(subject.is_in(named["validation"].implode()))
        .then(pl.lit("validation"))
        .otherwise(other)
        .alias("split")
    )


def release_index(
    rows: pl.DataFrame,
    names: pl.Series,
    asked: pl.DataFrame,
    splits: pl.DataFrame,
    positions: Mapping[int, np.ndarray],
    tasks: Collection[str],
) -> Index:
    """Return the samples of a shard's patients, with the columns of `tasks.paper.index`.

    `rows` and `names` are the shard's, `asked` the shard's rows of `read_release_index`, and
    `positions` maps old positions of a patient to new ones. `trains` lists the stages whose files
    contain a training sample. Unusable rows are counted; a sample that occurs in several files is
    counted in each.
    """
    excluded: Counter[str] = Counter()

    def keep(frame: pl.DataFrame, reason: str, usable: pl.Expr) -> pl.DataFrame:
        lost = frame.filter(~usable.fill_null(False))
        for task, count in lost["task"].value_counts().iter_rows():
            excluded[f"{task if task in TASKS else 'unknown_task'}/{reason}"] += count
        return frame.filter(usable.fill_null(False))

    events = _event_list(rows)
    frame = keep(asked, "no_such_task", pl.col("task").is_in(list(TASKS)))
    frame = keep(frame, "not_asked_for", pl.col("task").is_in(list(tasks)))
    there = splits.select("subject_id", pl.col("split").alias("patient_split"))
    frame = frame.join(there, on="subject_id", how="left", maintain_order="left")
    frame = keep(frame, "unknown_subject", pl.col("patient_split").is_not_null())
    tested = (pl.col("patient_split") == "test") & (pl.col("split") == "train")
    frame = keep(frame, "patient_is_tested", ~tested)
    frame = _moved(frame.with_columns(written_id()), positions)
    ends = pl.col("period_begin", "period_end", *PLACES)
    frame = keep(frame, "split_event", pl.all_horizontal((ends >= 0).fill_null(True)))
    frame = _with_events(frame, events)
    inside = pl.col("period_begin") < pl.col("period_end")
    frame = keep(frame, "no_period", inside & (pl.col("period_end") <= pl.col("length")))
    frame = _with_answers(frame, names)
    frame = keep(
        frame, "no_target", (pl.col("target").list.len() > 0) | pl.col("target_row").is_not_null()
    )
    frame = with_ids(frame).with_columns(pl.col("written").alias("sample_id"))
    stages = pl.col("stage").drop_nulls().unique().sort().implode().over("sample_id")
    frame = frame.with_columns(stages.alias(TRAINS))
    frame = keep(frame, "in_another_row_too", pl.col("sample_id").is_first_distinct())
    frame = frame.sort("subject_id", "prediction_time", "task", "sample_id")
    yes = pl.col("target").list.first() == names.search_sorted("yes")
    frame = frame.with_columns(pl.when(pl.col("inclusive")).then(yes).alias("label"))
    return Index(frame.select(*COLUMNS, TRAINS), dict(excluded))


def written_id() -> pl.Expr:
    """Return the `sample_id` of a row of an index file, with the positions of the file."""
    parts = ("task", "subject_id", "period_begin", "period_end")
    return pl.format("{}/{}/{}-{}", *parts).alias("written")


def _event_list(rows: pl.DataFrame) -> pl.DataFrame:
    """Return one row per event.

    Columns: `subject_id, position, table, start, row, n` (its rows), `items, classes` (their
    distinct names), `before` (rows before it).
    """
    begins = (pl.col("table") != pl.col("table").shift()).over("subject_id").fill_null(True)
    numbered = rows.with_row_index("row").with_columns(
        begins.cast(pl.Int64).cum_sum().over("subject_id").alias("position")
    )
    named = {
        name: pl.col(column).filter(pl.col(column) != NO_CODE).unique(maintain_order=True)
        for name, column in (("items", "item"), ("classes", "class"))
    }
    events = numbered.group_by("subject_id", "position", maintain_order=True).agg(
        pl.col("table").first(),
        pl.col("event_time").first().alias("start"),
        pl.col("row").first().cast(pl.Int64),
        pl.len().cast(pl.Int64).alias("n"),
        *(names.alias(name) for name, names in named.items()),
    )
    return events.with_columns(
        (pl.col("n").cum_sum() - pl.col("n")).over("subject_id").alias("before")
    )


def _moved(frame: pl.DataFrame, positions: Mapping[int, np.ndarray]) -> pl.DataFrame:
    """Convert positions to those of the current list; -1 for events that are not in it."""
    columns = ("period_begin", "period_end", *PLACES)
    parts = [frame.filter(~pl.col("subject_id").is_in(list(positions)))]
    for subject, new in positions.items():
        own = frame.filter(pl.col("subject_id") == subject)
        places = pl.DataFrame({"old": np.arange(len(new)), "new": new})
        for column in columns:
            moved = own.join(
                places, left_on=column, right_on="old", how="left", maintain_order="left"
            )
            lost = pl.when(pl.col(column).is_not_null()).then(pl.col("new").fill_null(-1))
            own = moved.with_columns(lost.alias(column)).drop("new")
        parts.append(own)
    return pl.concat(parts).with_columns(pl.col(columns).cast(pl.Int32))


def _with_events(frame: pl.DataFrame, events: pl.DataFrame) -> pl.DataFrame:
    """Add the target event, the number of rows of the context, and the prediction time."""
    place = pl.col("position").cast(pl.Int32)
    sizes = events.group_by("subject_id").agg(
        (place.max() + 1).alias("length"), pl.col("n").sum().alias("total")
    )
    target = events.select("subject_id", place, "table", "row", "n", "items", "classes", "start")
    at = events.select("subject_id", place, pl.col("start").alias("at"), "before")
    frame = frame.join(sizes, on="subject_id", how="left", maintain_order="left")
    last = (pl.col("period_end") - 1).alias("last")
    frame = frame.with_columns(last)
    for column, name, found in (
        ("period_end", "end", target.join(at, on=["subject_id", "position"])),
        ("period_begin", "begin", at),
        ("last", "last", at),
    ):
        found = found.rename({"at": f"{name}_at", "before": f"{name}_before"})
        frame = frame.join(
            found,
            left_on=["subject_id", column],
            right_on=["subject_id", "position"],
            how="left",
            maintain_order="left",
        )
    risk = pl.col("task").is_in([task for task, entry in TASKS.items() if entry.kind == "risk"])
    anchors = {
        task: ORDER.index(entry.anchor_table) if entry.anchor_table in TABLES else None
        for task, entry in TASKS.items()
    }
    anchor = pl.col("task").replace_strict(anchors, return_dtype=pl.UInt8)
    right_table = risk | anchor.is_null() | (anchor == pl.col("table"))
    after_a_day = pl.col("task").str.contains("^(Inpatient_|LengthOfStay_|ICU_)")
    asked = (
        pl.when(~risk)
        .then("start")
        .when(after_a_day)
        .then(pl.col("begin_at") + pl.duration(days=1))
        .otherwise(pl.coalesce("last_at", "begin_at"))
    )
    split = pl.when(pl.col("split") != "train")
    rows = pl.coalesce("end_before", "total") - pl.col("begin_before").fill_null(0)
    return frame.with_columns(
        pl.coalesce("prediction_time", asked).alias("prediction_time"),
        pl.when(right_table).then("items").alias("items"),
        pl.when(right_table).then("classes").alias("classes"),
        pl.when(right_table).then("row").alias("row"),
        pl.when(risk).then(anchor).otherwise(pl.col("table")).alias("table"),
        split.then("split").otherwise("patient_split").alias("split"),
        risk.alias("inclusive"),
        rows.cast(pl.Int32).alias("n_context_rows"),
    )


def _with_answers(frame: pl.DataFrame, names: pl.Series) -> pl.DataFrame:
    """Add `target` (codes of names) and `target_row` (the note to write)."""
    codes = dict(zip(names.to_list(), range(len(names)), strict=True))
    columns = ("task", "answer", "table", "items", "classes", "row", "n")
    targets: list[list[int]] = []
    notes: list[int | None] = []
    for row in frame.select(columns).iter_rows(named=True):
        task = TASKS[row["task"]]
        text = task.target == "text"
        notes.append(row["row"] if text and row["n"] == 1 else None)
        said = [] if text else items_of(row["answer"])
        if task.kind == "risk":
            said = [ANSWERS.get(item.strip().lower(), "") for item in said][:1]
        found = [codes[item] for item in dict.fromkeys(said) if item]
        if not said and not text:
            found = _read_off(row, task.target, codes)
        targets.append(found)
    return frame.with_columns(
        pl.Series("target", targets, dtype=pl.List(pl.Int32)),
        pl.Series("target_row", notes, dtype=pl.Int64),
    )


def _read_off(row: Mapping[str, Any], target: str, codes: Mapping[str, int]) -> list[int]:
    """Return the answer according to the target event."""
    if target == "heading":
        return [] if row["table"] is None else [codes[ORDER[row["table"]]]]
    found = {"item": row["items"], "class": row["classes"]}.get(target)
    return list(found or [])
