"""Act before a change of the file system, of which Python tells by audit events."""

import os
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path

STEPS = frozenset({"os.rename", "os.remove", "os.rmdir", "os.mkdir", "open"})


def at_each_change(act: Callable[[int], object], folder: Path | None = None) -> None:
    """Let this process `act` before each of its changes, numbered from 1 on.

    With `folder` only changes of what lies in it count.
    """
    seen = count(1)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event not in STEPS or not str(arguments[0]).startswith(str(folder or "")):
            return
        if event != "open" or int(str(arguments[2])) & (os.O_WRONLY | os.O_RDWR):
            act(next(seen))

    sys.addaudithook(hook)
