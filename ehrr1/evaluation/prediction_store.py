"""Store of partial predictions, from which a stopped evaluation resumes.

    parts/<result>/<process>-<number>.parquet

Each file holds the rows of a few seconds, whole samples only. Processes that share an evaluation
write separate files and read those of all processes.
"""

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import polars as pl

from ehrr1.evaluation.predictions import SCHEMA, frame, read_predictions
from ehrr1.files import read_json, replacing, write_json
from ehrr1.progress import bar
from ehrr1.tasks.samples import Sample

SAVE_SECONDS = 10
"""Interval in seconds between files; a killed process loses at most the rows since the last."""


class PredictionStore:
    """The stored rows of one result."""

    def __init__(self, folder: Path, result: str, process: int = 0):
        """Store rows of `result` in a subfolder of `folder`; `process` is this process's number."""
        self.result, self.process = result, process
        self.folder = folder / result.replace("/", "_")

    def read(self) -> pl.DataFrame:
        """Return all stored rows, without duplicates of a sample and draw."""
        files = sorted(self.folder.glob("*.parquet"))
        remedy = "delete it and repeat the command, which asks again what it held"
        frames = [read_predictions(file, remedy) for file in files]
        rows = pl.concat(frames) if frames else pl.DataFrame(schema=SCHEMA)
        return rows.unique(["sample_id", "draw"], keep="first", maintain_order=True)

    def left(self, samples: Iterable[Sample]) -> list[Sample]:
        """Return the samples that have no stored rows."""
        there = set(self.read()["sample_id"].to_list())
        return [sample for sample in samples if sample.sample_id not in there]

    def save(self, batches: Iterable[list[dict[str, Any]]], total: int) -> None:
        """Write batches of rows as they are produced, and record the samples per second.

        `total` is the number of samples, for the progress bar and the speed.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        waiting: list[dict[str, Any]] = []
        begin = last = time.monotonic()
        for rows in _counted(batches, self.result, total):
            waiting += rows
            if time.monotonic() - last > SAVE_SECONDS:
                self._write(waiting)
                waiting, last = [], time.monotonic()
        self._write(waiting)
        work = {"samples": total, "seconds": time.monotonic() - begin}
        write_json(self.folder / f"{self.process}.json", work)

    def _write(self, rows: list[dict[str, Any]]) -> None:
        """Write rows to this process's next file."""
        if not rows:
            return
        number = len(list(self.folder.glob(f"{self.process}-*.parquet")))
        with replacing(self.folder / f"{self.process}-{number:06d}.parquet") as path:
            frame(self.result, rows).write_parquet(path)


def _counted(
    batches: Iterable[list[dict[str, Any]]], description: str, total: int
) -> Iterator[list[dict[str, Any]]]:
    """Yield `batches`, and show a progress bar that counts samples."""
    with bar() as progress:
        task = progress.add_task(description, total=total)
        for rows in batches:
            progress.advance(task, len({row["sample_id"] for row in rows}))
            yield rows


def speed(folder: Path) -> dict[str, float]:
    """Return `<result>/samples_per_second` of each result, and `samples_per_second` of all.

    Both are the mean speed of a process, without loading the model. Of a process that was
    restarted, the last run counts.
    """
    found: dict[str, float] = {}
    whole = [0.0, 0.0]
    for result in sorted(path for path in folder.glob("*/") if path.is_dir()):
        work = [read_json(file) for file in sorted(result.glob("*.json"))]
        both = [sum(one[name] for one in work) for name in ("samples", "seconds")]
        whole = [sum(pair) for pair in zip(whole, both, strict=True)]
        if both[1]:
            found[f"{result.name}/samples_per_second"] = both[0] / both[1]
    return found | ({"samples_per_second": whole[0] / whole[1]} if whole[1] else {})
