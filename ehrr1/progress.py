"""Progress bars on stderr: one look for every long loop."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Item = TypeVar("Item")


def bar() -> Progress:
    """A progress display on stderr; nothing where stderr is not a terminal."""
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
    """`work` on each item, `workers` at a time, with a bar; what is waiting stops at a failure."""
    pool = ThreadPoolExecutor(max_workers=workers)
    try:
        for _ in track(pool.map(work, items), description, total=len(items)):
            pass
    finally:
        pool.shutdown(cancel_futures=True)


def track(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Yield `items` while a bar named `description` advances; `total` where `len` is unknown."""
    with bar() as progress:
        yield from progress.track(items, total=total, description=description)
