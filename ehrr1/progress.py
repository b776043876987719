"""Progress bars on stderr, and pools of threads and processes with a bar."""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context, parent_process
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Item = TypeVar("Item")
Result = TypeVar("Result")


def bar() -> Progress:
    """Return a progress display on stderr, disabled if stderr is not a terminal."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def in_threads(
    work: Callable[[Item], None], items: Sequence[Item], description: str, workers: int
) -> None:
    """Run `work` on each item in `workers` threads, with a bar; a failure cancels waiting items."""
    pool = ThreadPoolExecutor(max_workers=workers)
    try:
        for _ in track(pool.map(work, items), description, total=len(items)):
            pass
    finally:
        pool.shutdown(cancel_futures=True)


def track(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Yield `items` while a bar labelled `description` advances.

    `total` is needed only if `len(items)` is unknown.
    """
    with bar() as progress:
        yield from progress.track(items, total=total, description=description)


def in_processes(
    work: Callable[[Item], Result], items: Sequence[Item], description: str, workers: int | None
) -> Iterator[Result]:
    """Yield `work(item)` for each item, in order, computed by several processes.

    workers: number of processes; None for one per core. With one worker or one item, the work is
    done in this process.
    """
    workers = min(workers or os.cpu_count() or 1, len(items))
    if workers <= 1:
        yield from track(map(work, items), description, len(items))
        return
    # spawn, not fork: a forked process inherits locks that Polars' threads may hold
    with ProcessPoolExecutor(workers, get_context("spawn"), watch_parent) as pool:
        try:
            yield from track(pool.map(work, items), description, len(items))
        finally:
            pool.shutdown(cancel_futures=True)


def watch_parent() -> None:
    """End this process of a pool as soon as its parent has ended.

    A parent that is killed cannot notify its pool, whose processes would otherwise wait for work
    forever.
    """
    parent = parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
