"""Measure the contexts that one core writes per second, and the search for one patient.

    python -m benchmarks.rendering PREPARED [--runs 5] [--samples 2000] [--seed 0] [--json FILE]

PREPARED is the folder of a finished `stage=prepare`. The process is bound to one core. The same
seeded draw of samples (over all tasks, without replacement) serves every run:

- contexts a second: `Prepared.context` and `record_markdown`, sample by sample in random order,
  nothing remembered in between; the first run is not counted. Characters are those written.
- random access: for patients drawn with replacement, find the patient and copy all of the patient's
  rows out of the mapped file (every column as numbers, the shown values as Arrow text). Target: the
  99th percentile below 5 ms.
- opening: a new `Prepared`, its index of patients read, and the first context.

The files lie in the page cache: they have just been read. Only processing is measured, not a disk.
"""

import argparse
import os
import random
import time
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa

from benchmarks.measure import machine, markdown, parser, report
from ehrr1.records.markdown import record_markdown
from ehrr1.records.store import Patient, Shard
from ehrr1.tasks.catalog import TASKS
from ehrr1.tasks.samples import Prepared, Sample

LIMIT_MS = 5.0
NUMBERS = ("table", "event_time", "available_time", "late_time", "hadm_id", "stay_id", "item")


def copy_rows(rows: Shard, patient: Patient) -> int:
    """Copy everything that the store has of a patient; returns the number of rows."""
    for name in NUMBERS:
        getattr(rows, name)[patient.first : patient.last].copy()
    positions = pa.array(np.arange(patient.first, patient.last))
    rows._values.take(positions)
    return patient.last - patient.first


def contexts_a_second(prepared: Prepared, samples: list[Sample]) -> tuple[float, int, int]:
    """Contexts a second, characters and rows written."""
    characters = rows = 0
    begin = time.perf_counter()
    for sample in samples:
        events = prepared.context(sample)
        characters += len(record_markdown(events))
        rows += sum(len(event.rows) for event in events)
    return len(samples) / (time.perf_counter() - begin), characters, rows


def access_ms(prepared: Prepared, subjects: list[int]) -> list[float]:
    found = []
    for subject in subjects:
        begin = time.perf_counter()
        copy_rows(*prepared.store.find(subject))
        found.append((time.perf_counter() - begin) * 1000)
    return found


def opening_ms(folder: Path, sample: Sample) -> float:
    begin = time.perf_counter()
    Prepared(folder).context(sample)
    return (time.perf_counter() - begin) * 1000


def draw(prepared: Prepared, count: int, seed: int, kind: str) -> list[Sample]:
    """Samples of one kind of task, in random order; all where there are fewer."""
    index = prepared.index(tasks=[key for key, task in TASKS.items() if task.kind == kind])
    chosen = random.Random(seed).sample(range(index.height), min(count, index.height))
    return prepared.as_samples(index[chosen])


def arguments() -> argparse.Namespace:
    found = parser(__doc__)
    found.add_argument("prepared", type=Path, metavar="PREPARED")
    found.add_argument("--samples", type=int, default=2000, help="of each kind (default 2000)")
    found.add_argument("--seed", type=int, default=0)
    return found.parse_args()


def main() -> None:
    given = arguments()
    on = machine()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    prepared = Prepared(given.prepared)
    figures: dict = {"machine": on, "contexts": {}}
    rows = []
    for kind in ("decision", "risk"):
        samples = draw(prepared, given.samples, given.seed, kind)
        runs = [contexts_a_second(prepared, samples) for _ in range(given.runs + 1)][1:]
        rates = [rate for rate, _, _ in runs]
        _, characters, written = runs[0]
        figures["contexts"][kind] = {"samples": len(samples), "rates": rates}
        figures["contexts"][kind] |= {"characters": characters, "rows": written}
        rows.append(
            [
                kind,
                f"{len(samples):,}",
                f"{median(rates):,.0f}",
                f"{min(rates):,.0f}-{max(rates):,.0f}",
                f"{written / len(samples):,.0f}",
                f"{characters / len(samples):,.0f}",
                f"{median(rates) * characters / len(samples) / 1e6:.1f}",
            ]
        )
    columns = ["task", "contexts", "contexts/s", "least-most", "rows each", "characters each"]
    ids = prepared.splits["subject_id"].to_list()
    subjects = random.Random(given.seed).choices(ids, k=max(given.samples, 1000))
    access_ms(prepared, subjects[:100])
    times = [ms for _ in range(given.runs) for ms in access_ms(prepared, subjects)]
    p50, p99 = np.percentile(times, [50, 99])
    samples = draw(prepared, given.runs, given.seed + 1, "risk")
    opened = [opening_ms(given.prepared, sample) for sample in samples]
    figures["access_ms"] = {"median": p50, "p99": p99, "most": max(times), "limit": LIMIT_MS}
    figures["opening_ms"] = opened
    table = markdown([*columns, "million characters/s"], rows)
    table += (
        f"\n\nrandom access to a patient of {len(ids):,}: median {p50:.3f} ms, 99th percentile "
        f"{p99:.3f} ms, most {max(times):.3f} ms (99th percentile below {LIMIT_MS} ms)"
        f"\nopening a store and writing its first context: median {median(opened):.1f} ms"
    )
    report(given.json, table, figures)


if __name__ == "__main__":
    main()
