"""stage=export export.layout=meds: the whole cohort as MEDS, for the tools of that ecosystem.

    meds/
        data/<split>/<n>.parquet         events; a patient's stand in one file, sorted by time
        metadata/codes.parquet           every code with a description
        metadata/dataset.json, subject_splits.parquet
        metadata/parents/<name>.parquet  what `data=meds` builds labels from again
        task_labels/<task>/<n>.parquet   labels: boolean_value, or categorical_value of one item

Reads and writes range by range of patients, so that memory does not grow with the cohort.
"""

import json
from collections.abc import Iterator
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from ehrr1.files import replacing
from ehrr1.progress import track
from ehrr1.records.decode import ROWS_AT_ONCE, store_frames
from ehrr1.records.meds import layout
from ehrr1.records.openness import copy_mark
from ehrr1.tasks.catalog import ALL_TASKS, ONE_ITEM
from ehrr1.tasks.samples import Prepared, Sample

LABELS_AT_ONCE = 100_000

INSTANT = timedelta(microseconds=1)
"""The standard lets a model see what happened at the prediction time itself; a decision must not
see its own event."""


def write(prepared: Prepared, folder: Path) -> dict[str, float | int]:
    """Write the dataset to `folder`.

    Metrics: `rows`, `subjects`, `files`, `labels/<task>`, `left_out/<task>`.
    """
    with replacing(folder) as temporary:
        metrics = _write_data(prepared, temporary)
        copy_mark(prepared.folder, temporary, prepared.splits["subject_id"])
        _write_metadata(prepared, temporary / "metadata")
        for task in prepared.index()["task"].unique().sort():
            if (
                ALL_TASKS[task].kind == "risk" or task in ONE_ITEM
            ):  # the label schema has one value a row
                metrics |= _write_labels(prepared, task, temporary / "task_labels" / task)
    return metrics


def _write_data(prepared: Prepared, folder: Path) -> dict[str, float | int]:
    splits = prepared.splits
    subjects = layout.subject_events(prepared.parents)
    codes = pl.DataFrame(schema={"code": pl.String, "description": pl.String})
    rows = files = 0
    for number, (events, own) in enumerate(_event_ranges(prepared, subjects)):
        found = layout.in_order(pl.concat([events, own]))
        codes = pl.concat([codes, layout.described_codes(found)]).unique("code").sort("code")
        found = found.join(splits, on="subject_id", maintain_order="left")
        for (split,), part in found.group_by("split", maintain_order=True):
            path = folder / "data" / layout.SPLITS[str(split)] / f"{number}.parquet"
            _write_parquet(layout.as_arrow(part, layout.DATA), path)
            files, rows = files + 1, rows + part.height
    _write_parquet(layout.as_arrow(codes, layout.CODES), folder / "metadata" / "codes.parquet")
    return {"rows": rows, "subjects": splits.height, "files": files}


def _event_ranges(
    prepared: Prepared, subjects: pl.DataFrame
) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
    """Yield the events of a range of patients, and the rows of `subject_events` of the same ones.

    Patients without any row in the store come last.
    """
    seen: list[pl.Series] = []
    for frame in track(store_frames(prepared.store, ROWS_AT_ONCE), "export"):
        seen.append(frame["subject_id"].unique())
        own = subjects.filter(pl.col("subject_id").is_in(seen[-1].implode()))
        yield layout.meds_events(frame), own
    ids = pl.concat(seen) if seen else pl.Series(dtype=pl.Int64)
    rest = subjects.filter(~pl.col("subject_id").is_in(ids.implode()))
    if rest.height:
        yield rest.clear(), rest


def _write_metadata(prepared: Prepared, folder: Path) -> None:
    splits = prepared.splits.with_columns(pl.col("split").replace(layout.SPLITS))
    _write_parquet(
        layout.as_arrow(splits, layout.SUBJECT_SPLITS), folder / "subject_splits.parquet"
    )
    for name, parent in prepared.parents.items():
        _write_parquet(parent.to_arrow(), folder / "parents" / f"{name}.parquet")
    about = {
        "dataset_name": "MIMIC-IV",
        "etl_name": "ehrr1",
        "meds_version": layout.VERSION,
        "raw_source_id_columns": ["hadm_id", "stay_id"],
        "other_extension_columns": [
            name for name in layout.EXTRA.names if name not in ("hadm_id", "stay_id")
        ],
    }
    (folder / "dataset.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def _write_labels(prepared: Prepared, task: str, folder: Path) -> dict[str, float | int]:
    """Write the labels of one task, `LABELS_AT_ONCE` a file, without samples of several items."""
    index = prepared.index(tasks=[task])
    edges = [*range(0, index.height, LABELS_AT_ONCE), index.height]
    count = 0
    for number, (begin, end) in enumerate(pairwise(edges)):
        samples = prepared.as_samples(index.slice(begin, end - begin))
        table = _labels([sample for sample in samples if len(sample.target) == 1], task)
        _write_parquet(table, folder / f"{number}.parquet")
        count += table.num_rows
    return {f"labels/{task}": count, f"left_out/{task}": index.height - count}


def _labels(samples: list[Sample], task: str) -> pa.Table:
    risk = ALL_TASKS[task].kind == "risk"
    times = [sample.prediction_time - INSTANT * (not sample.inclusive) for sample in samples]
    answers = [s.target == ("yes",) if risk else s.target[0] for s in samples]
    columns = [[sample.subject_id for sample in samples], times, answers]
    schema = layout.RISK_LABELS if risk else layout.ITEM_LABELS
    arrays = [pa.array(c, field.type) for c, field in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)


def _write_parquet(table: pa.Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="zstd")
