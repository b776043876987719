"""The seconds of an evaluation, by phase."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

from ehrr1.progress import processor_seconds

Item = TypeVar("Item")


class Phases:
    """Seconds of named phases: of time, and of processors (all threads, and the work of pools).

    Phases do not contain each other, so that their sum is a part of the whole. A phase of a process
    that works beside this one is added by `include`.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.cpu_seconds: dict[str, float] = {}

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Add the seconds of the body to a phase."""
        begin, worked = time.monotonic(), processor_seconds()
        try:
            yield
        finally:
            self._add(name, time.monotonic() - begin, processor_seconds() - worked)

    def while_made(self, name: str, items: Iterable[Item]) -> Iterator[Item]:
        """Yield items, and add the seconds until each is there to a phase."""
        iterator = iter(items)
        while True:
            with self.of(name):
                found = list(islice(iterator, 1))
            if not found:
                return
            yield found[0]

    def include(self, other: "Phases") -> None:
        """Add the phases of another process."""
        for name, seconds in other.seconds.items():
            self._add(name, seconds, other.cpu_seconds[name])

    def metrics(self) -> dict[str, float]:
        """Return `seconds/<phase>` and `cpu_seconds/<phase>`."""
        both = {"seconds": self.seconds, "cpu_seconds": self.cpu_seconds}
        return {
            f"{kind}/{name}": round(value, 3)
            for kind, phases in both.items()
            for name, value in phases.items()
        }

    def _add(self, name: str, seconds: float, cpu_seconds: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        self.cpu_seconds[name] = self.cpu_seconds.get(name, 0.0) + cpu_seconds
