"""EHRSHOT (Wornow et al., NeurIPS 2023, arXiv 2307.02028) as samples with their contexts.

A context is a patient's record up to and including the prediction time, as Markdown
(`ehrshot_text`). The events of the selected patients are collected on disk, by groups of patients,
so that memory is bounded.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl

from ehrr1.errors import UserError
from ehrr1.progress import track
from ehrr1.records.shard_buffer import Spool
from ehrr1.tasks.external import ehrshot_files as files
from ehrr1.tasks.external.benchmark import INDEX_SCHEMA, Benchmark
from ehrr1.tasks.external.ehrshot_text import PERSON_CODES, CodedRow, PatientText
from ehrr1.tasks.external.texts import Texts, text_file

SHARDS = 128
"""Number of groups of patients; the 41.6 million events yield about 300,000 rows per group."""


@dataclass(frozen=True)
class Limits:
    """Limits on the number and size of samples.

    `max_events` is the maximum number of rows of a context, of which the newest are kept.
    `samples_per_task` is the maximum number of samples per task and split, drawn by `seed`; None
    means all. There are about 400,000 contexts in total, of up to 200 kB each.
    """

    max_events: int
    samples_per_task: int | None
    seed: int


def read_ehrshot(root: Path, texts: Path, limits: Limits) -> Benchmark:
    """Return the labelled samples of EHRSHOT's folder; write their contexts to the file `texts`.

    Raises UserError if files are missing or no label is usable.
    """
    folder = files.find(root)
    labels = files.read_labels(folder)
    shots = files.read_shots(folder)
    questions = choose(labels.frame, shots, limits)
    reported = labels.reported
    if left := labels.frame.height - questions.height:
        reported["not_drawn"] = left
    found = Benchmark(pl.DataFrame(schema=INDEX_SCHEMA), labels.read, reported)
    with text_file(texts) as contexts, Spool(texts.with_name(".events")) as spool:
        codes = gather(folder, questions, spool, found.counts)
        names = files.read_descriptions(folder, codes)
        rows = list(samples(questions, spool, names, contexts, limits.max_events, found.counts))
        if not rows:
            raise UserError(
                f"data.root={root}: there is no usable label ({_told(reported)}): do labels, "
                "splits and events belong together?"
            )
    if lost := questions.height - len(rows):
        reported["no_events"] = lost
    found.index = pl.DataFrame(rows, schema=INDEX_SCHEMA).sort(
        "subject_id", "prediction_time", "task"
    )
    if shots.height:
        key = ["task", "subject_id", "prediction_time"]
        there = found.index.filter(pl.col("split") == "train").select(*key, "sample_id")
        found.shots = shots.join(there, on=key).select("sample_id", "k", "replicate")
    return found


def choose(labels: pl.DataFrame, shots: pl.DataFrame, limits: Limits) -> pl.DataFrame:
    """Return at most `samples_per_task` labels of each task and split, whatever their answer.

    The samples that the benchmark designates as examples are always kept in the training split.
    """
    if limits.samples_per_task is None:
        return labels
    key = ["task", "subject_id", "prediction_time"]
    rank = pl.struct("subject_id", "prediction_time").hash(limits.seed)
    named = shots.select(key).unique().with_columns(pl.lit(True).alias("named"))
    marked = labels.join(named, on=key, how="left", maintain_order="left")
    nth = rank.rank("ordinal").over("task", "split")
    kept = (nth <= limits.samples_per_task) | (
        pl.col("named").fill_null(False) & (pl.col("split") == "train")
    )
    return marked.filter(kept).drop("named")


def gather(
    folder: files.EhrshotFolder,
    questions: pl.DataFrame,
    spool: Spool,
    counts: dict[str, float | int],
) -> set[str]:
    """Put the events of the patients of `questions` into `spool`, and return their codes.

    Events of other patients, events after a patient's last prediction time, and rows without
    patient, code or time are counted and left out.
    """
    last = questions.group_by("subject_id").agg(pl.col("prediction_time").max().alias("last"))
    timeless = pl.col("code").str.to_lowercase().str.contains(f"^({'|'.join(PERSON_CODES)})/")
    codes: set[str] = set()
    total: Counter[str] = Counter()
    for frame in files.event_batches(folder):
        total["read"] += frame.height
        frame = frame.join(last, on="subject_id", how="left", maintain_order="left")
        for reason, bad in {
            "no_subject": pl.col("subject_id").is_null(),
            "no_code": pl.col("code").fill_null("") == "",
            "no_time": pl.col("time").is_null() & ~timeless,
            "not_asked_about": pl.col("last").is_null(),
            "later": (pl.col("time") > pl.col("last")).fill_null(False),
        }.items():
            total[f"reported/{reason}"] += frame.filter(bad).height
            frame = frame.filter(~bad)
        codes |= set(frame["code"].unique())
        total["kept"] += frame.height
        shard = (pl.col("subject_id").hash(0) % SHARDS).alias("shard")
        spool.add(frame.drop("last").with_columns(shard))
    for name, count in total.items():
        place, _, reason = name.partition("/")
        start = {"read": "rows", "kept": "rows_kept", "reported": "rows_reported"}[place]
        counts["/".join(filter(None, (start, "events", reason)))] = count
    return codes


def samples(
    questions: pl.DataFrame,
    spool: Spool,
    names: dict[str, str],
    contexts: Texts,
    max_events: int,
    counts: dict[str, float | int],
) -> Iterator[dict[str, Any]]:
    """Yield rows of the index, patient by patient; equal contexts are written once."""
    counts |= {"cut_contexts": 0, "cut_events": 0}
    shards = (pl.col("subject_id").hash(0) % SHARDS).alias("shard")
    by_shard = questions.with_columns(shards).partition_by("shard", as_dict=True, include_key=False)
    for (shard,), labels in track(by_shard.items(), "EHRSHOT: contexts", len(by_shard)):
        parts = spool.take(int(str(shard)))
        if not parts:
            continue
        events = pl.concat(parts).select("subject_id", *CodedRow._fields)
        patients = events.partition_by("subject_id", as_dict=True, include_key=False)
        for (subject,), own in labels.group_by("subject_id", maintain_order=True):
            if (subject,) in patients:
                patient = PatientText(
                    [CodedRow(*row) for row in patients[subject,].iter_rows()], names
                )
                for (time,), rows in own.group_by("prediction_time", maintain_order=True):
                    record = patient.record(time, max_events)
                    if record is not None:
                        yield from _rows(rows.to_dicts(), record, contexts, counts)


def _rows(
    labels: Sequence[dict[str, Any]],
    record: tuple[str, int, int],
    contexts: Texts,
    counts: dict[str, float | int],
) -> Iterator[dict[str, Any]]:
    text, shown, cut = record
    counts["cut_contexts"] += cut > 0
    counts["cut_events"] += cut
    place = contexts.add(text)
    for label in labels:
        time: datetime = label["prediction_time"]
        yield {
            "sample_id": f"{label['task']}/{label['subject_id']}/{time.isoformat()}",
            "task": label["task"],
            "split": label["split"],
            "subject_id": label["subject_id"],
            "prediction_time": time,
            "n_context_rows": shown,
            "context_id": f"text/{place}",
            "target": [label["target"]],
            "candidates": [],
            "text_row": place,
        }


def _told(reported: Counter[str]) -> str:
    return ", ".join(f"{why} {n}" for why, n in reported.items()) or "the files are empty"
