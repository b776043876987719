"""Measure stage=export of the MIMIC-IV demo: time, size and memory of each layout, side by side.

    python -m benchmarks.export_speed DIR [--split all] [--layouts parquet jsonl.zst jsonl rows]
                                          [--runs 3] [--json FILE]

DIR holds the MIMIC-IV demo (hosp/, icu/, ed/), which is prepared once. Whole processes of
`python run.py stage=export experiment=mimic_demo export.layout=...` are timed in turn, imports
included. After the first round, which is not counted, every row is read back from each layout, and
a digest of all rows says whether they are the same; `rows` is the layout of version 0.1 (the chat
of each row beside it, which the digest leaves out). With --split all it takes 22 GB in TMPDIR.
"""

import hashlib
import io
import json
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.measure import Cost, interleaved, machine, markdown, parser, report, run

LAYOUTS = ("parquet", "jsonl.zst", "jsonl", "rows")
COLUMNS = ["layout", "seconds", "least-most", "CPU seconds", "MB", "peak memory, MB"]
OWN = ("idx", "sample_id", "subject_id", "instruction", "output", "candidates")
TIMES = ("prediction_time", "available_until")
NOT_IN_INFO = {*OWN, *TIMES, "context_id", "split", "question", "label"} - {
    "subject_id",
    "instruction",
}


class Exports:
    """The commands; what they write lies in `work` and is removed after each run."""

    def __init__(self, data: Path, split: str, work: Path):
        self.work, self.sizes, self.digests = work, {}, {}
        self.command = [sys.executable, "run.py", "experiment=mimic_demo", f"data.root={data}"]
        self.command += [f"output_root={work}", f"export.split={split}"]
        run([*self.command, "stage=prepare"], work / "log")

    def export(self, layout: str, number: int) -> Cost:
        cost = run([*self.command, "stage=export", f"export.layout={layout}"], self.work / "log")
        [folder] = (self.work / "mimic_demo" / "export").glob(f"{layout}-*")
        made = [path for path in folder.rglob("*") if path.suffix in (".parquet", ".jsonl", ".zst")]
        self.sizes[layout] = sum(path.stat().st_size for path in made)
        if not number:
            self.digests[layout] = digest(rows_of(folder))
        shutil.rmtree(folder)
        return cost


def rows_of(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the benchmark's rows of an export, without chats."""
    if (folder / "dataset").exists():
        for split in (folder / "dataset").iterdir():
            if split.is_dir():
                yield from rows_of_dataset(split)
        return
    [path] = folder.glob("samples.jsonl*")
    with path.open("rb") as file:
        lines = file
        if path.suffix == ".zst":
            lines = io.BufferedReader(pa.CompressedInputStream(file, "zstd"), 2**20)
        for line in lines:
            row = json.loads(line)
            row.pop("messages", None)
            yield row


def rows_of_dataset(split: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a split: each sample with its context, which comes no later than it."""
    contexts = (
        row
        for batch in pq.ParquetFile(split / "contexts.parquet").iter_batches(256)
        for row in batch.to_pylist()
    )
    texts: dict[str, str] = {}
    subject = None
    for batch in pq.ParquetFile(split / "samples.parquet").iter_batches(1024):
        for row in batch.to_pylist():
            if row["subject_id"] != subject:
                texts.clear()
                subject = row["subject_id"]
            while row["context_id"] not in texts:
                context = next(contexts)
                texts[context["context_id"]] = context["text"]
            yield benchmark_row(row, texts[row["context_id"]])


def benchmark_row(sample: dict[str, Any], text: str) -> dict[str, Any]:
    """Return a row of the benchmark from a row of samples.parquet and the text of its context."""
    times = {name: sample[name] and sample[name].isoformat() for name in TIMES}
    info = {name: value for name, value in sample.items() if name not in NOT_IN_INFO}
    info["label"] = json.loads(info["target"])
    return {name: sample[name] for name in OWN} | times | {"input": text, "task_info": info}


def digest(rows: Iterable[dict[str, Any]]) -> str:
    """Return the number of rows and a digest of them, which does not depend on their order."""
    total = count = 0
    for row in rows:
        text = json.dumps(row, sort_keys=True, ensure_ascii=False)
        total += int.from_bytes(hashlib.sha256(text.encode()).digest(), "big")
        count += 1
    return f"{count} rows, {total % 2**256:064x}"


def table_row(layout: str, costs: list[Cost], size: int) -> list[str]:
    seconds = [cost.seconds for cost in costs]
    return [
        layout,
        f"{median(seconds):.1f}",
        f"{min(seconds):.1f}-{max(seconds):.1f}",
        f"{median(cost.cpu_seconds for cost in costs):.1f}",
        f"{size / 1e6:,.1f}",
        f"{median(cost.peak_mb for cost in costs):.0f}",
    ]


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("data", type=Path, metavar="DIR", help="the MIMIC-IV demo")
    arguments.add_argument("--split", default="all")
    arguments.add_argument("--layouts", nargs="+", default=LAYOUTS, choices=LAYOUTS)
    arguments.set_defaults(runs=3)
    given = arguments.parse_args()
    on = machine()
    with tempfile.TemporaryDirectory() as work:
        exports = Exports(given.data.resolve(), given.split, Path(work))
        layouts = {
            layout: lambda number, layout=layout: exports.export(layout, number)
            for layout in given.layouts
        }
        costs = interleaved(layouts, given.runs)
    rows = [table_row(name, found, exports.sizes[name]) for name, found in costs.items()]
    digests = set(exports.digests.values())
    same = "all layouts: " if len(digests) == 1 else "LAYOUTS DIFFER: "
    table = markdown(COLUMNS, rows) + f"\n\n{same}{'; '.join(sorted(digests))}"
    figures = {"machine": on, "costs": costs, "sizes": exports.sizes, "digests": exports.digests}
    report(given.json, table, figures)
    if len(digests) > 1:
        raise SystemExit("the layouts do not hold the same rows")


if __name__ == "__main__":
    main()
