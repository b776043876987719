"""Labels in MEDS' schema: yes/no samples of risk tasks.

A file has the columns `subject_id, prediction_time, boolean_value`. In a MEDS dataset it is
`task_labels/<task>.parquet` or `task_labels/<task>/**/*.parquet`, of a task that has the same name
here; labels of the user's own (`data.own_labels`) are the task `own` of any store. The context of a
sample includes what was known *by* its time.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import polars as pl

from ehrr1.errors import UserError
from ehrr1.records.reading import READ_ERRORS, as_moment, check_zones, data_files
from ehrr1.tasks.catalog import OWN, TASKS
from ehrr1.tasks.index import Index, completed, numbered_events
from ehrr1.tasks.labels import SAMPLE_SCHEMA
from ehrr1.terminal import plain_console

console = plain_console(stderr=True)

COLUMNS = ("subject_id", "prediction_time", "boolean_value")


@dataclass
class Labels:
    """Rows of `subject_id, prediction_time, label, task`, and the names that are no risk task."""

    frame: pl.DataFrame
    unknown: list[str] = field(default_factory=list)


def read_labels(root: Path, tasks: Collection[str], events: Sequence[Path]) -> Labels:
    """Read the labels of `tasks` below `root`; `events` are the files of the dataset's events.

    Raises UserError for a file without the schema's columns, or if times with a zone and times
    without one are mixed.
    """
    empty = pl.DataFrame(schema={n: SAMPLE_SCHEMA[n] for n in ("subject_id", "prediction_time")})
    parts = [empty.with_columns(pl.lit(None, pl.Boolean).alias("label"), pl.lit("").alias("task"))]
    unknown, read = set(), []
    for path in data_files(root):
        task = path.relative_to(root).parts[0].removesuffix(".parquet")
        if task not in TASKS or TASKS[task].kind != "risk":
            unknown.add(task)
        elif task in tasks:
            parts.append(read_label_file(path).with_columns(pl.lit(task).alias("task")))
            read.append(path)
    check_zones([*events, *read], ("time", "prediction_time"))
    return Labels(pl.concat(parts), sorted(unknown))


def read_own_labels(
    path: Path, subjects: pl.Series, events: Sequence[Path], local: Path | None
) -> Labels:
    """Read the user's own labels: a .parquet file, or all of a folder and its subfolders.

    `subjects` are the patients of the store; labels of others are counted on standard error. Times
    must have the zone of the records': `events` are the files of a MEDS dataset, `local` the folder
    of tables whose times have none. Raises UserError for files that cannot be used, and where no
    label is of a patient of the store.
    """
    files = data_files(path) if path.is_dir() else [path] * path.is_file()
    if not files:
        raise UserError(f"data.own_labels={path}: there is no .parquet file; name one, or a folder")
    labels = pl.concat(read_label_file(file) for file in files).with_columns(
        pl.lit(OWN).alias("task")
    )
    check_zones([*events, *files], ("time", "prediction_time"), local)
    elsewhere = int((~labels["subject_id"].is_in(subjects.implode())).sum())
    if elsewhere == labels.height:
        raise UserError(
            f"data.own_labels={path}: none of its {elsewhere:,} labels is of a patient that is "
            "read; the subject_id must be those of the records"
        )
    if elsewhere:
        console.print(f"data.own_labels: {elsewhere:,} labels are of patients that are not read")
    return Labels(labels)


def read_label_file(path: Path) -> pl.DataFrame:
    """Read subject, prediction time and label of each row. Raises UserError for any other file."""
    try:
        schema = pl.scan_parquet(path, glob=False).collect_schema()
        missing = [name for name in COLUMNS if name not in schema]
        if missing:
            raise UserError(
                f"{path} lacks {', '.join(missing)}: labels of a risk task need "
                f"{', '.join(COLUMNS)}"
            )
        frame = pl.read_parquet(path, columns=list(COLUMNS), glob=False)
        if nameless := frame["subject_id"].null_count():
            raise UserError(f"{path}: {nameless:,} labels have no subject_id; mend or remove them")
        return frame.select(
            pl.col("subject_id").cast(pl.Int64),
            as_moment(frame["prediction_time"]),
            pl.col("boolean_value").cast(pl.Boolean).alias("label"),
        )
    except READ_ERRORS as error:
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}): it is not a file of MEDS labels"
        ) from error


def label_index(
    store_rows: pl.DataFrame,
    names: pl.Series,
    admissions: pl.DataFrame,
    subjects: pl.Series,
    splits: pl.DataFrame,
    window: timedelta,
    labels: Labels,
) -> Index:
    """Return the samples of a shard's labels, with the columns of `tasks.index.build_index`."""
    codes = dict(zip(names.to_list(), range(len(names)), strict=True))
    own = labels.frame.filter(pl.col("subject_id").is_in(subjects.implode()))
    keys = ["subject_id", "prediction_time", "task"]
    usable = own.drop_nulls().unique().unique(keys, keep="none", maintain_order=True)
    lost = Counter(own["task"].to_list()) - Counter(usable["task"].to_list())
    excluded = {f"{task}/empty_or_repeated_label": count for task, count in lost.items()}
    answer = pl.when(pl.col("label")).then(codes["yes"]).otherwise(codes["no"])
    absent = [n for n in SAMPLE_SCHEMA if n not in usable.columns]
    questions = usable.with_columns(
        *(pl.lit(None, SAMPLE_SCHEMA[name]).alias(name) for name in absent),
        answer.cast(pl.Int32).reshape((-1, 1)).arr.to_list().alias("target"),
        pl.lit(True).alias("inclusive"),
        pl.lit(None, pl.Int64).alias("target_row"),
    ).with_columns((pl.col("prediction_time") - window).alias("window_start"))
    frame, without_context = completed(questions, numbered_events(store_rows), admissions, splits)
    return Index(frame, excluded | without_context)
