"""Cache the mentions of every text, keyed by the hash of the text, in one SQLite file.

The file is in `concepts.cache` and is named after the text source: another dictionary or another
version of the reader uses another file, so that no entry is ever stale. The file contains no text:
keys are SHA-256 hashes, values the mentions as JSON.
"""

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path

from ehrr1.config.records import Concepts
from ehrr1.cores import cores
from ehrr1.damage import damaged
from ehrr1.errors import UserError
from ehrr1.graph.text.mentions import Mention, Reader, TextSource, open_reader, open_source
from ehrr1.progress import not_interrupted, track, watch_parent

BATCH = 64
"""Number of texts sent to a process, and committed, at a time."""
WAIT_SECONDS = 600
"""Seconds to wait for another run that writes to the same file."""

CachedMention = tuple[bytes, str]
"""A text's hash and its mentions as JSON."""


def open_cache(concepts: Concepts) -> "MentionCache | None":
    """Open the cache of the text source that `concepts` selects, preparing the source if needed.

    Returns None for concepts=items.
    """
    source = open_source(concepts)
    return None if source is None else MentionCache(Path(concepts.cache), source)


class MentionCache:
    """The cached mentions of texts; missing ones are read on demand by `read`."""

    def __init__(self, folder: Path, source: TextSource):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"mentions-{source.fingerprint}.sqlite"
        self._source = source
        self._rows = sqlite3.connect(self.path, timeout=WAIT_SECONDS)
        with suppress(PermissionError):  # another user's
            self.path.chmod(0o600)  # the mentions of open and closed records
        try:
            self._rows.execute(
                "CREATE TABLE IF NOT EXISTS mentions (key BLOB PRIMARY KEY, value TEXT)"
                " WITHOUT ROWID"
            )
        except sqlite3.OperationalError:  # locked, or the disk
            raise
        except sqlite3.DatabaseError as error:
            raise damaged(self.path, "is no whole database", "delete it: it is a cache") from error

    def read(self, texts: Iterable[str], workers: int | None = None) -> int:
        """Read each distinct text that is not in the cache and return how many were read.

        `workers` processes read in parallel, one per core if None; each loads the pipeline once.
        Results are committed batch by batch, so that a run that was killed resumes where it
        stopped. `texts` may be a stream: only a few batches are held in memory. Raises UserError if
        a process dies.
        """
        batches = _batches(self._missing(track(texts, "reading free text", _length(texts))))
        workers = workers or cores()
        done = 0
        for rows in _read_all(batches, self._source, workers):
            with self._rows:
                self._rows.executemany("INSERT OR IGNORE INTO mentions VALUES (?, ?)", rows)
            done += len(rows)
        return done

    def of(self, text: str) -> list[Mention]:
        """Return the mentions of a text; raises KeyError if it has not been read."""
        found = self._get(_key(text))
        if found is None:
            raise KeyError("a text that was not read: call read() first")
        return [Mention(*mention) for mention in json.loads(found)]

    def _missing(self, texts: Iterable[str]) -> Iterator[str]:
        seen = set()
        for text in texts:
            key = _key(text)
            if key not in seen and self._get(key) is None:
                seen.add(key)
                yield text

    def _get(self, key: bytes) -> str | None:
        row = self._rows.execute("SELECT value FROM mentions WHERE key = ?", (key,)).fetchone()
        return None if row is None else row[0]


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _length(texts: Iterable[str]) -> int | None:
    return len(texts) if isinstance(texts, list | tuple | set | dict) else None


def _batches(texts: Iterator[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _read_all(
    batches: Iterator[list[str]], source: TextSource, workers: int
) -> Iterator[list[CachedMention]]:
    """Yield the rows of each batch, in no particular order.

    A single batch, or a single worker, is read in this process.
    """
    first, second = next(batches, None), next(batches, None)
    if first is None:
        return
    if workers == 1 or second is None:
        reader = open_reader(source)
        yield _rows(reader, first)
        if second is not None:
            yield _rows(reader, second)
            yield from (_rows(reader, batch) for batch in batches)
        return
    # spawn, not fork: forking a process whose other threads hold locks can deadlock
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _open, (source,))

    def submit(batch: list[str]) -> Future[list[CachedMention]]:
        with not_interrupted():  # it may start a process
            return pool.submit(_read, batch)

    waiting = {submit(first), submit(second)}
    try:
        for batch in batches:
            waiting.add(submit(batch))
            if len(waiting) >= 2 * workers:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from _results(done)
        yield from _results(waiting)
    except BrokenProcessPool as error:
        raise UserError(
            f"concepts.workers={workers}: a process that read free text died (out of memory?); "
            "what was read is kept: run the command again, with a smaller concepts.workers=N"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _results(done: Iterable[Future[list[CachedMention]]]) -> Iterator[list[CachedMention]]:
    for future in done:
        yield future.result()


def _rows(reader: Reader, texts: list[str]) -> list[CachedMention]:
    return [
        (_key(text), json.dumps(reader.read(text), ensure_ascii=False, separators=(",", ":")))
        for text in texts
    ]


_reader: Reader
"""The pipeline of a worker process."""


def _open(source: TextSource) -> None:
    global _reader
    watch_parent()
    _reader = open_reader(source)


def _read(texts: list[str]) -> list[CachedMention]:
    return _rows(_reader, texts)
