"""Store and index, shard by shard: what `stage=prepare` writes below its folder.

A shard is whole when its folder is there: a run that was killed goes on with the others, and
several processes may each build some. `merge` then joins the shards' samples into one index.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from ehrr1.files import read_json, remove, replacing, write_json
from ehrr1.progress import track
from ehrr1.records.source import Shards, Source
from ehrr1.records.spool import Spool
from ehrr1.records.store import (
    AS_LISTED,
    SORTED_BY,
    read_all,
    shard_folder,
    write_shard,
    write_shards,
)
from ehrr1.tasks.index import Index
from ehrr1.tasks.samples import INDEX, NAMES, STORE
from ehrr1.tasks.sampling import Draw

COUNTS = "counts.json"
"""Of one shard: what became of its rows, and of its samples."""

BuildIndex = Callable[[pl.DataFrame, pl.Series, dict[str, pl.DataFrame]], Index]
"""A shard's rows, names and parents -> its samples."""


def missing_shards(folder: Path, source: Source) -> list[int]:
    """The shards that are not there yet."""
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
        for number in track(numbers, "writing shards"):
            with replacing(shard_folder(store, number)) as temporary:
                own = {name: of_shard(frame, number) for name, frame in source.parents.items()}
                order = AS_LISTED if source.listed else SORTED_BY
                rows, names = write_shard(temporary, spool.take(number), own, order)
                index = build_index(rows, names, own)
                index.frame.write_parquet(temporary / INDEX, compression="lz4")
                counts = {"rows": source.counts[number], "samples": index.counts}
                write_json(temporary / COUNTS, counts)


def of_shard(frame: pl.DataFrame, number: int) -> pl.DataFrame:
    return frame.filter(pl.col("shard") == number)


def merge(folder: Path, shards: Shards, draw: Draw) -> tuple[dict[str, Counter[str]], Counter[str]]:
    """Join the shards' samples into one index, with one list of names for their answers.

    Returns what was counted: table -> outcome -> rows, and `<kind>/<task>[/<reason>]` -> samples.
    """
    folders = [shard_folder(folder / STORE, number) for number in range(len(shards))]
    write_shards(folder / STORE, shards)
    own = [pl.read_ipc(path / "names.arrow")["name"] for path in folders]
    names = pl.concat(own).unique().sort()
    with replacing(folder / NAMES) as temporary:
        names.to_frame().write_parquet(temporary)
    samples: Counter[str] = Counter()
    with replacing(folder / INDEX) as temporary:
        parts = map(_index, folders, (names.search_sorted(mine) for mine in own))
        _write_index(temporary, _drawn(parts, draw, samples), samples)
    for left_behind in (folder / STORE).glob(".*"):
        remove(left_behind)
    rows: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for path in folders:
        counts = read_json(path / COUNTS)
        samples.update(counts["samples"])
        for table, outcomes in counts["rows"].items():
            rows[table].update(outcomes)
    return rows, samples


def _index(folder: Path, codes: pl.Series) -> pl.DataFrame:
    """A shard's samples, their answers coded by the names of all shards."""
    table = pq.ParquetFile(folder / INDEX).read()  # read_table would import pandas
    own = table["target"].combine_chunks()
    values = pa.array(codes.to_numpy()[own.values.to_numpy()], pa.int32())
    target = type(own).from_arrays(own.offsets, values)
    table = table.set_column(table.column_names.index("target"), "target", target)
    return pl.DataFrame(table).with_columns(pl.lit(False).alias("balanced"))


def _drawn(
    parts: Iterable[pl.DataFrame], draw: Draw, samples: Counter[str]
) -> Iterator[pl.DataFrame]:
    """The samples that `draw` takes; the others are counted."""
    if draw.takes_all:
        yield from parts
        return
    held = []
    for part in parts:
        samples.update(_per_task(part, "sampled_out"))
        held.append(draw(part) if draw.by_rank else part)
    drawn = draw(pl.concat(held))
    samples.subtract(_per_task(drawn, "sampled_out"))
    for name in [name for name, count in samples.items() if not count]:
        del samples[name]
    yield drawn


def _per_task(index: pl.DataFrame, kind: str) -> dict[str, int]:
    counts = index["task"].value_counts().sort("task").iter_rows()
    return {f"{kind}/{task}": count for task, count in counts}


def _write_index(path: Path, parts: Iterator[pl.DataFrame], samples: Counter[str]) -> None:
    """One file, a part after the other: patients stay in order, memory in bounds. Counts them."""
    writer: pq.ParquetWriter | None = None
    for part in parts:
        samples.update(_per_task(part, "samples"))
        asked = part.filter(pl.col("label").is_not_null())
        samples.update(dict.fromkeys(_per_task(asked, "positives"), 0))
        samples.update(_per_task(part.filter(pl.col("label")), "positives"))
        table = part.to_arrow(compat_level=pl.CompatLevel.oldest())
        if writer is None:
            writer = pq.ParquetWriter(path, table.schema, compression="lz4")
        writer.write_table(table)
    if writer is not None:
        writer.close()
