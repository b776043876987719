"""Progress bars on stderr, and pools of threads and processes with a bar."""

import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context, parent_process
from multiprocessing.context import BaseContext
from multiprocessing.synchronize import Event as Signal
from typing import TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ehrr1.cores import cores
from ehrr1.terminal import plain_console

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_TEMPORARY_BYTES = 107 - len("/pymp-12345678/listener-12345678")
"""How long TMPDIR may be for multiprocessing's socket in it: Linux takes a path of 107 bytes."""


def bar() -> Progress:
    """Return a progress display on stderr.

    It is disabled if stderr is not a terminal, and in processes beside the one that owns it.
    """
    console = plain_console(stderr=True)
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal or parent_process() is not None,
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
    workers = min(workers or cores(), len(items))
    if workers <= 1:
        yield from track(map(work, items), description, len(items))
        return
    pool, wait = ProcessPoolExecutor(workers, fresh_processes(work), watch_parent), True
    try:
        with not_interrupted():
            results = pool.map(partial(_timed, work), items)
        for result, seconds in track(results, description, len(items)):
            _POOLED.append(seconds)
            yield result
    except KeyboardInterrupt:
        wait = False  # the processes end with this one
        raise
    finally:
        pool.shutdown(wait, cancel_futures=True)


def _timed(work: Callable[[Item], Result], item: Item) -> tuple[Result, float]:
    begin = time.process_time()
    return work(item), time.process_time() - begin


_POOLED: list[float] = []
"""Processor seconds of each piece of work that other processes have done for this one."""


def processor_seconds() -> float:
    """Return the processor seconds of this process, and of the work of its pools."""
    return time.process_time() + sum(_POOLED)


@contextmanager
def beside(work: Callable[[], Result]) -> Iterator[Future[Result]]:
    """Yield the result, which is still to come, of `work()` in a process beside this one.

    The process is ended if the body fails.
    """
    context = fresh_processes(work)
    given_up = context.Event()
    pool = ProcessPoolExecutor(1, context, watch_parent, (given_up,))
    try:
        with not_interrupted():
            future = pool.submit(work)
        yield future
    except BaseException:
        given_up.set()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def fresh_processes(work: Callable[..., object]) -> BaseContext:
    """Return how processes are started that do `work`.

    They are forked from a process that has only imported what `work` needs, once for all. This
    process itself cannot be forked: a copy would inherit locks that Polars' threads may hold.
    """
    # macOS's libraries do not survive a fork
    if sys.platform != "linux" or len(os.fsencode(tempfile.gettempdir())) > MAX_TEMPORARY_BYTES:
        return get_context("spawn")
    while isinstance(work, partial):
        work = work.func
    context = get_context("forkserver")
    context.set_forkserver_preload([work.__module__])
    return context


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


def watch_parent(given_up: Signal | None = None) -> None:
    """End this process of a pool when its parent is gone, or has given up.

    The processes of a parent that was killed would wait for work for ever.
    """
    parent = parent_process()
    assert parent is not None

    def end_after(wait: Callable[[], object]) -> None:
        wait()
        os._exit(1)

    for wait in (parent.join, *([given_up.wait] if given_up else [])):
        threading.Thread(target=end_after, args=(wait,), daemon=True).start()
