"""Progress bars on stderr, and pools of threads and processes with a bar."""

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
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
    pool, wait = ThreadPoolExecutor(max_workers=workers), True
    try:
        for _ in track(pool.map(work, items), description, total=len(items)):
            pass
    except KeyboardInterrupt:
        wait = False  # the process ends, and its threads with it
        raise
    finally:
        pool.shutdown(wait, cancel_futures=True)


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
    # spawned, not forked: a forked process inherits locks that Polars' threads may hold
    pool, wait = ProcessPoolExecutor(workers, get_context("spawn"), watch_parent), True
    try:
        with not_interrupted():
            results = pool.map(work, items)
        yield from track(results, description, len(items))
    except KeyboardInterrupt:
        wait = False  # the processes end with this one
        raise
    finally:
        pool.shutdown(wait, cancel_futures=True)


@contextmanager
def not_interrupted() -> Iterator[None]:
    """Block the signals of a terminal for processes that start meanwhile.

    They never receive its Ctrl-C, nor that it was closed, which their parent answers. SIGTERM ends
    them: the pool uses it itself.
    """
    terminal = {signal.SIGINT, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, terminal)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, terminal)


def watch_parent() -> None:
    """End this process of a pool when its parent is gone.

    The processes of a parent that was killed would wait for work for ever.
    """
    parent = parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
