"""Buffer of rows between tables and shards, in memory as long as it is small, otherwise on disk.

A table is read once, in the order of its rows; a shard needs all rows of its patients. Rows wait
here, divided by shard, and are written to disk whenever they take more than `LIMIT_BYTES`.
"""

from collections import defaultdict
from pathlib import Path
from threading import Lock

import polars as pl

from ehrr1.files import remove

LIMIT_BYTES = 384 << 20
"""Size in bytes of the rows in memory above which they are written to disk."""


class Spool:
    """Buffer that takes frames with a column `shard` and returns the rows of a shard.

    `folder` is used by this buffer only and is removed on exit.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._held: defaultdict[int, list[pl.DataFrame]] = defaultdict(list)
        self._held_bytes = 0
        self._lock = Lock()
        self._files: defaultdict[int, list[Path]] = defaultdict(list)
        remove(folder)

    def add(self, frame: pl.DataFrame) -> None:
        """Add rows; several threads may call this method at the same time."""
        parts = frame.partition_by("shard", as_dict=True, include_key=False)
        with self._lock:
            for (shard,), rows in parts.items():
                self._held[int(str(shard))].append(rows)
            self._held_bytes += int(frame.estimated_size())
            if self._held_bytes > LIMIT_BYTES:
                self._flush()

    def take(self, shard: int) -> list[pl.DataFrame]:
        """Return all rows of a shard and remove them from the buffer."""
        files = self._files.pop(shard, [])
        frames = [pl.scan_ipc(path, glob=False).collect() for path in files]
        for path in files:
            path.unlink()
        return frames + self._held.pop(shard, [])

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, *_: object) -> None:
        remove(self.folder)

    def _flush(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for shard, frames in self._held.items():
            path = self.folder / f"{shard:04d}-{len(self._files[shard]):04d}.arrow"
            pl.concat(frames).write_ipc(path, compression="lz4")
            self._files[shard].append(path)
        self._held.clear()
        self._held_bytes = 0
