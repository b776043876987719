"""Predictions on their way to the disk: a stopped evaluation goes on where it was.

    parts/<result>/<process>-<number>.parquet

Each file holds the rows of a few seconds, whole samples only. Processes that share the work write
files of their own names and read those of all.
"""

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import polars as pl

from ehrr1.evaluation.predictions import SCHEMA, frame
from ehrr1.files import read_json, replacing, write_json
from ehrr1.progress import bar
from ehrr1.tasks.samples import Sample

SAVE_SECONDS = 10
"""So much work is lost at most when a process is killed."""


class PredictionStore:
    """The rows of one result under `folder`; `process` is this process's number."""

    def __init__(self, folder: Path, result: str, process: int = 0):
        self.result, self.process = result, process
        self.folder = folder / result.replace("/", "_")

    def read(self) -> pl.DataFrame:
        """All rows that are there, each sample's once."""
        files = sorted(self.folder.glob("*.parquet"))
        frames = [pl.read_parquet(file) for file in files]
        rows = pl.concat(frames) if frames else pl.DataFrame(schema=SCHEMA)
        return rows.unique(["sample_id", "draw"], keep="first", maintain_order=True)

    def left(self, samples: Iterable[Sample]) -> list[Sample]:
        """The samples that have no rows yet."""
        there = set(self.read()["sample_id"].to_list())
        return [sample for sample in samples if sample.sample_id not in there]

    def save(self, batches: Iterable[list[dict[str, Any]]], total: int) -> None:
        """Write rows as they come; `total` samples are expected, for the bar."""
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
        if not rows:
            return
        number = len(list(self.folder.glob(f"{self.process}-*.parquet")))
        with replacing(self.folder / f"{self.process}-{number:06d}.parquet") as path:
            frame(self.result, rows).write_parquet(path)


def _counted(
    batches: Iterable[list[dict[str, Any]]], description: str, total: int
) -> Iterator[list[dict[str, Any]]]:
    with bar() as progress:
        task = progress.add_task(description, total=total)
        for rows in batches:
            progress.advance(task, len({row["sample_id"] for row in rows}))
            yield rows


def speed(folder: Path) -> dict[str, float]:
    """`<result>/samples_per_second` of each result under `folder`, and of all: a process's speed,
    loading not counted, over what the last of its starts has answered."""
    found: dict[str, float] = {}
    whole = [0.0, 0.0]
    for result in sorted(path for path in folder.glob("*/") if path.is_dir()):
        work = [read_json(file) for file in sorted(result.glob("*.json"))]
        both = [sum(one[name] for one in work) for name in ("samples", "seconds")]
        whole = [sum(pair) for pair in zip(whole, both, strict=True)]
        if both[1]:
            found[f"{result.name}/samples_per_second"] = both[0] / both[1]
    return found | ({"samples_per_second": whole[0] / whole[1]} if whole[1] else {})
