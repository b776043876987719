"""stage=prepare data=benchmark: the rows of a benchmark file, checked, as samples.

texts.arrow     the contexts, each distinct one once
index.parquet   a row a sample, with its question, candidates and answer
split.parquet   subject_id, split: all "test"
reported.json   reason -> rows that could not be used
"""

from pathlib import Path

import polars as pl
from omegaconf import DictConfig
from rich.console import Console

from ehrr1.files import replacing, write_json
from ehrr1.runs import Run
from ehrr1.tasks.benchmark import read_benchmark
from ehrr1.tasks.samples import INDEX, SPLIT, TEXTS

console = Console(stderr=True)


def run(cfg: DictConfig, run: Run) -> dict[str, float | int]:
    """Read and check every row. Metrics: rows read = rows kept + rows reported; samples a task."""
    found = read_benchmark(Path(cfg.data.path), run.folder / TEXTS)
    subjects = found.index["subject_id"].unique().sort()
    splits = pl.DataFrame({"subject_id": subjects}).with_columns(pl.lit("test").alias("split"))
    index = found.index.with_columns(pl.lit(cfg.data.balanced).alias("balanced"))
    for frame, name in ((index, INDEX), (splits, SPLIT)):
        with replacing(run.folder / name) as path:
            frame.write_parquet(path)
    write_json(run.folder / "reported.json", {"benchmark": dict(found.reported)})
    lost = "".join(f"; {why} {n:,}" for why, n in sorted(found.reported.items()))
    console.print(f"{found.read:,} rows, {found.index.height:,} usable{lost}")
    tasks = found.index["task"].value_counts(sort=True)
    return {
        "rows/benchmark": found.read,
        "rows_kept/benchmark": found.index.height,
        "rows_reported/benchmark": found.reported.total(),
        "subjects": len(subjects),
        **{f"samples/{task}": count for task, count in tasks.iter_rows()},
    }
