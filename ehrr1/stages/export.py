"""stage=export: prepared records and samples for other tools.

layout=rows      samples.jsonl: samples that are ready to use, one JSON object a line
layout=meds      meds/: the whole cohort in the Medical Event Data Standard (`export_meds`)
layout=release   release/: the files of the EHR-R1 release (`export_release`)
layout=lm_eval   lm_eval/: tasks of lm-evaluation-harness (`export_harness`)
layout=inspect   inspect/: tasks of Inspect (`export_harness`)

Each export has a folder of its own below `export/` (`runs.paths.export_name`), with a data card:
README.md.

samples.jsonl holds the benchmark's row (`idx, instruction, input, output, candidates, task_info`)
with `sample_id, subject_id, prediction_time, available_until, messages`. `candidates` of a decision
task are its answer among others' answers, for models that were not trained on the task. No caps:
what a stage trains on is its own matter.
"""

import json
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from ehrr1.config.schema import Config
from ehrr1.errors import UserError
from ehrr1.files import write_jsonl, write_text
from ehrr1.progress import track
from ehrr1.prompts.messages import answer_text
from ehrr1.prompts.wording import Wording, style_of
from ehrr1.records.events import Event
from ehrr1.records.schema import TABLES
from ehrr1.runs import Run
from ehrr1.stages import export_harness, export_meds, export_release
from ehrr1.stages.card import export_card
from ehrr1.tasks.candidates import Candidates
from ehrr1.tasks.catalog import ALL_TASKS
from ehrr1.tasks.release.task_info import task_info
from ehrr1.tasks.samples import SIMILAR, Prepared, Sample

PLACES = ("period_begin", "period_end", "admissions_id", "last_discharge_id")
"""Of a sample of the paper's protocol: positions in the patient's list of events."""

TABLE_OF = {table.heading: name for name, table in TABLES.items()}

CHUNK = 10_000
"""The number of samples that are held in memory at a time."""


def run(cfg: Config, run: Run) -> dict[str, float | int]:
    """Write the files of the layout, and the data card beside them.

    Metrics: `rows`, those of the layout, and `too_long/<task>`: answers that no list of candidates
    holds. Raises UserError where the split is empty or the layout cannot be written.
    """
    metrics = write(cfg, run)
    card = export_card(Prepared(run.input("prepare")), cfg.export.layout, cfg.seed)
    write_text(run.folder / "README.md", card)
    return metrics


def write(cfg: Config, run: Run) -> dict[str, float | int]:
    """Write the files of the layout; return its metrics."""
    prepared = Prepared(run.input("prepare"))
    brought = prepared.folder / SIMILAR
    folder = (
        Path(cfg.export.similar_items)
        if cfg.export.similar_items
        else brought
        if brought.exists()
        else None
    )
    if cfg.export.layout == "meds":
        return export_meds.write(prepared, run.folder / "meds")
    if cfg.export.layout in ("lm_eval", "inspect"):
        return export_harness.write(
            prepared,
            run.folder / cfg.export.layout,
            style_of(cfg.wording, "eval"),
            layout=cfg.export.layout,
            split=cfg.export.split,
            limit=cfg.export.limit,
            seed=cfg.seed,
        )
    candidates = Candidates(prepared, cfg.seed, folder)
    if cfg.export.layout == "release":
        style = style_of("release", "eval")
        bench = partial(rows, prepared, candidates, style, split="test", limit=None)
        metrics = export_release.write(prepared, run.folder / "release", bench)
        return metrics | too_long(candidates)
    style = style_of(cfg.wording, "eval")
    found = rows(prepared, candidates, style, split=cfg.export.split, limit=cfg.export.limit)
    count = write_jsonl(run.folder / "samples.jsonl", found)
    return {"rows": count} | too_long(candidates)


def too_long(candidates: Candidates) -> dict[str, float | int]:
    """Count by task the answers that no list of candidates holds."""
    return {f"too_long/{task}": count for task, count in sorted(candidates.too_long.items())}


def rows(
    prepared: Prepared,
    candidates: Candidates,
    style: Wording,
    *,
    split: str,
    limit: int | None,
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a split ("all": of every split), at most `limit`.

    Raises UserError where the split has no samples.
    """
    index = prepared.index(None if split == "all" else split)
    if not index.height:
        raise UserError(
            f"split={split}: it has no samples; prepare more patients or give the split a larger "
            "share (data.split)"
        )
    index = index.head(limit) if limit is not None else index
    edges = [*range(0, index.height, CHUNK), index.height]
    samples = (
        sample
        for begin, end in pairwise(edges)
        for sample in prepared.as_samples(index.slice(begin, end - begin))
    )
    last_id, events, record = "", list[Event](), ""
    for number, sample in enumerate(track(samples, "export", total=index.height)):
        if sample.context_id != last_id:
            events = prepared.context(sample)
            last_id, record = sample.context_id, style.record(events)
        yield row(number, sample, events, record, candidates(sample), style)


def row(
    number: int,
    sample: Sample,
    events: list[Event],
    record: str,
    candidates: list[str],
    style: Wording,
) -> dict[str, Any]:
    """Return one sample as a row of the benchmark, with the fields that the release's reader needs.

    Times are written as ISO 8601.
    """
    task = ALL_TASKS[sample.task]
    known = [event.available_time for event in events if event.available_time is not None]
    own = style.own(sample)
    question = own or task.instruction
    output = answer_text(sample.target)
    label = export_release.label_of(sample)
    places = {name: getattr(sample, name) for name in PLACES} if sample.period_end else {}
    return {
        "idx": number,
        "sample_id": sample.sample_id,
        "subject_id": sample.subject_id,
        "prediction_time": sample.prediction_time.isoformat(),
        "available_until": max(known).isoformat() if known else None,
        "instruction": question,
        "input": record,
        "output": output,
        "candidates": ["yes", "no"] if task.kind == "risk" else candidates or None,
        "task_info": {
            **task_info(sample.task),
            "instruction": question,
            "subject_id": sample.subject_id,
            "hadm_id": sample.hadm_id,
            "task": sample.task,
            "event": event_of(sample),
            **places,
            "target": json.dumps(label, ensure_ascii=False),
            "label": label,
        },
        "messages": style.chat(sample.task, record, think=task.kind == "decision", own=own),
    }


def event_of(sample: Sample) -> str:
    """Return the table that a sample asks about; for `next_event` that of the event itself.

    The user's own task asks about none, and has its name.
    """
    task = ALL_TASKS[sample.task]
    if task.anchor_table in TABLES:
        return task.anchor_table
    if task.kind == "risk":
        return sample.task
    [answer] = sample.target
    return TABLE_OF.get(answer, answer)
