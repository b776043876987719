"""Building of store and index by shard, as `stage=prepare` writes them below its folder.

A shard is complete if its folder exists: after an interruption, the run continues with the missing
shards, and several processes may build different shards. `merge` then joins the samples of the
shards into one index.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from ehrr1.damage import damaged, reading
from ehrr1.files import remove, replacing, write_json
from ehrr1.progress import in_threads
from ehrr1.records.shard_buffer import Spool
from ehrr1.records.source import Shards, Source
from ehrr1.records.store import read_all, read_ipc, shard_folder, write_shard, write_shards
from ehrr1.tasks.index import Index
from ehrr1.tasks.samples import INDEX, NAMES, STORE, TIME_TOLD
from ehrr1.tasks.sampling import Draw

SAMPLES = "samples.arrow"
"""File of a shard with its part of the index; answers are coded by the shard's own names."""
COUNTS = "counts.json"
"""File of a shard with the outcomes of its rows and samples, and the sizes of its files."""

AT_A_TIME = 2
"""Number of shards in memory; most of the work on one shard uses a single core."""

BuildIndex = Callable[[pl.DataFrame, pl.Series, dict[str, pl.DataFrame]], Index]
"""Function from a shard's rows, names and parents to its samples."""


def missing_shards(folder: Path, source: Source) -> list[int]:
    """Return the shards that do not exist yet."""
    store = folder / STORE
    return [
        number for number in range(len(source.shards)) if not shard_folder(store, number).exists()
    ]


def build_shards(source: Source, numbers: list[int], folder: Path, build_index: BuildIndex) -> None:
    """Read the input once and write the shards `numbers` with their samples and counts."""
    if not numbers:
        return
    store = folder / STORE
    source.want(numbers)
    with Spool(store / f".spool-{numbers[0]:04d}") as spool:
        read_all(source, spool)

        def build(number: int) -> None:
            with replacing(shard_folder(store, number), durable=True) as temporary:
                own = {name: of_shard(frame, number) for name, frame in source.parents.items()}
                rows, names = write_shard(temporary, source, spool.take(number), own)
                index = build_index(rows, names, own)
                index.frame.write_ipc(temporary / SAMPLES, compression="lz4")
                sizes = {path.name: path.stat().st_size for path in temporary.iterdir()}
                counts = {
                    "rows": source.counts[number],
                    "samples": index.counts,
                    "bytes": sizes,
                }
                write_json(temporary / COUNTS, counts)

        in_threads(build, numbers, "writing shards", AT_A_TIME)


def of_shard(frame: pl.DataFrame, number: int) -> pl.DataFrame:
    """Return the rows of `frame` that belong to shard `number`."""
    return frame.filter(pl.col("shard") == number)


def merge(
    folder: Path, shards: Shards, draw: Draw, tell_time: bool = False
) -> tuple[dict[str, Counter[str]], Counter[str]]:
    """Join the samples of all shards into one index, with one list of names for their answers.

    With `tell_time`, the questions state the prediction time (`samples.Sample.time_told`). Returns
    the counts: table -> outcome -> rows, and `<kind>/<task>[/<reason>]` -> samples.
    """
    folders = [shard_folder(folder / STORE, number) for number in range(len(shards))]
    write_shards(folder / STORE, shards)
    counted = [_whole(path) for path in folders]
    own = [read_ipc(path / "names.arrow")["name"] for path in folders]
    names = pl.concat(own).unique().sort()
    with replacing(folder / NAMES) as temporary:
        names.to_frame().write_parquet(temporary)
    parts = [_part(path, mine, names) for path, mine in zip(folders, own, strict=True)]
    with replacing(folder / INDEX) as temporary:
        drawn, not_drawn = _drawn(parts, draw)
        if tell_time:
            drawn = drawn.with_columns(pl.lit(True).alias(TIME_TOLD))
        drawn.sink_parquet(temporary, compression="lz4")
    samples = _counted(folder / INDEX)
    samples.update(not_drawn)
    for left_behind in (folder / STORE).glob(".*"):
        remove(left_behind)
    rows: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for counts in counted:
        samples.update(counts["samples"])
        for table, outcomes in counts["rows"].items():
            rows[table].update(outcomes)
    return rows, samples


def _whole(folder: Path) -> dict[str, Any]:
    """Return the counts of a shard; raises DamagedError if its files have other sizes."""
    remedy = f"delete the folder {folder} and repeat the command, which builds it again"
    with reading(folder / COUNTS, ValueError, FileNotFoundError, KeyError, remedy=remedy):
        found: dict[str, Any] = json.loads((folder / COUNTS).read_text(encoding="utf-8"))
        written = found["bytes"]
    for name, size in written.items():
        path = folder / name
        if not path.exists() or path.stat().st_size != size:
            raise damaged(path, f"is missing or has not its {size:,} bytes", remedy)
    return found


def _part(folder: Path, own: pl.Series, names: pl.Series) -> pl.LazyFrame:
    """Return a shard's samples, their answers coded by the names of all shards."""
    part = pl.scan_ipc(folder / SAMPLES, glob=False).with_columns(pl.lit(False).alias("balanced"))
    if len(own) == len(names):
        return part
    code = pl.element().replace_strict(range(len(own)), names.search_sorted(own))
    return part.with_columns(pl.col("target").list.eval(code.cast(pl.Int32)))


def _drawn(parts: list[pl.LazyFrame], draw: Draw) -> tuple[pl.LazyFrame, Counter[str]]:
    """Return the samples that `draw` selects, and the counts of the others by task."""
    if draw.takes_all:
        return pl.concat(parts), Counter()
    lost: Counter[str] = Counter()
    held = []
    for part in map(pl.LazyFrame.collect, parts):
        lost.update(_per_task(part))
        # The overall lowest ranks are among the lowest ranks of each shard.
        held.append(draw(part) if draw.by_rank else part)
    drawn = draw(pl.concat(held))
    lost.subtract(_per_task(drawn))
    return drawn.lazy(), Counter({f"sampled_out/{task}": n for task, n in lost.items() if n})


def _per_task(index: pl.DataFrame) -> dict[str, int]:
    return dict(index["task"].value_counts().iter_rows())


def _counted(index: Path) -> Counter[str]:
    """Return the counts `samples/<task>` and, for risk tasks, `positives/<task>`."""
    answers = (pl.col("label").count().alias("asked"), pl.col("label").sum().alias("yes"))
    counts = (
        pl.scan_parquet(index, glob=False)
        .group_by("task")
        .agg(pl.len(), *answers)
        .collect()
        .sort("task")
    )
    found: Counter[str] = Counter()
    for task, samples, asked, yes in counts.iter_rows():
        found[f"samples/{task}"] = samples
        if asked:
            found[f"positives/{task}"] = yes
    return found
