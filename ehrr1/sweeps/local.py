"""A sweep's runs on this machine: a supervisor in the background, so many runs at a time.

    python -m ehrr1.sweeps.local SWEEP_FOLDER

The supervisor owns nothing that is lost with it: each run is a session of its own that tells its
state in a file, and a new supervisor goes on from these files.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ehrr1.sweeps.state import Entry, RunStatus, Sweep, alone, is_held, status

LOOK_SECONDS = 0.5


def check(launcher: dict[str, Any]) -> None:
    """Nothing can be missing here."""


def submit(book: Sweep, entries: Iterable[Entry]) -> None:
    """Start the supervisor, where none is there; it finds by itself what is to be done."""
    if not supervised(book):
        detached([sys.executable, "-m", "ehrr1.sweeps.local", str(book.folder)], book)
        while not supervised(book):  # so that a status that follows at once is right
            time.sleep(0.02)


def supervised(book: Sweep) -> bool:
    return is_held(book.folder / ".supervisor.lock")


def settle(book: Sweep) -> None:
    """Nothing can be half submitted here."""


def active(book: Sweep) -> dict[str, str]:
    """The runs that the supervisor has: `running`, or `pending` while it lives."""
    here = supervised(book)
    found = {}
    for entry in book.entries():
        if book.alive(entry):
            found[entry.run] = "running"
        elif here and book.state(entry).get("state") in (None, "pending"):
            found[entry.run] = "pending"
    return found


def cancel(book: Sweep, runs: Iterable[str]) -> None:
    """Runs that are at work are told to save and end."""
    names = set(runs)
    for entry in book.entries():
        pid = book.state(entry).get("pid")
        if entry.run in names and pid and book.alive(entry):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)


def supervise(book: Sweep) -> None:
    """Start what is ready, so many at a time, until nothing is left that can be started."""
    with alone(book.folder / ".supervisor.lock") as free:
        if not free:
            return
        children: dict[str, subprocess.Popen[bytes]] = {}
        while True:
            children = {run: child for run, child in children.items() if child.poll() is None}
            told = status(book, active(book))
            running = {one.run for one in told if one.state == "running"} | set(children)
            ready = [one for one in ready_runs(book, told) if one.run not in running]
            if not running and not ready:
                return
            parallel = book.asked["launcher"]["parallel"]
            for entry in ready[: max(0, parallel - len(running))]:
                children[entry.run] = start(book, entry)
            time.sleep(LOOK_SECONDS)


def ready_runs(book: Sweep, told: list[RunStatus]) -> list[Entry]:
    """Runs that wait for nothing any more."""
    states = {one.run: one.state for one in told}
    return [
        entry
        for entry in book.entries()
        if states[entry.run] == "pending" and all(states[need] == "done" for need in entry.needs)
    ]


def start(book: Sweep, entry: Entry) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "ehrr1.sweeps.worker", str(book.folder), "--run", entry.run]
    return detached(command, book)


def detached(command: Sequence[str], book: Sweep) -> "subprocess.Popen[bytes]":
    """A process that outlives this one."""
    log = (book.folder / "supervisor.log").open("ab")
    return subprocess.Popen(
        command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
    )


if __name__ == "__main__":
    supervise(Sweep(Path(sys.argv[1])))
