"""Run a sweep on this machine with a supervisor in the background.

    python -m ehrr1.sweeps.local SWEEP_FOLDER

It executes up to `launcher.parallel` runs at a time. No state is lost with the supervisor: each run
has a session of its own and writes its state to a file, from which a new supervisor continues.
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
    """Check the launcher's requirements; there are none here."""


def submit(book: Sweep, entries: Iterable[Entry]) -> None:
    """Start the supervisor if it is not running.

    It finds the runs to start in the sweep's folder.
    """
    if not supervised(book):
        started = detached([sys.executable, "-m", "ehrr1.sweeps.local", str(book.folder)], book)
        # so that a subsequent status is correct; one that was killed at once never supervises
        while not supervised(book) and started.poll() is None:
            time.sleep(0.02)


def supervised(book: Sweep) -> bool:
    """Return whether a supervisor is running."""
    return is_held(book.folder / ".supervisor.lock")


def settle(book: Sweep) -> None:
    """Resolve interrupted submissions; there are none here."""


def active(book: Sweep) -> dict[str, str]:
    """Return the active runs: `running`, or `pending` while there is a supervisor."""
    here = supervised(book)
    found = {}
    for entry in book.entries():
        if book.alive(entry):
            found[entry.run] = "running"
        elif here and book.state(entry).get("state") in (None, "pending"):
            found[entry.run] = "pending"
    return found


def cancel(book: Sweep, runs: Iterable[str]) -> None:
    """Signal active runs to save and end."""
    names = set(runs)
    for entry in book.entries():
        pid = book.state(entry).get("pid")
        if entry.run in names and pid and book.alive(entry):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)


def supervise(book: Sweep) -> None:
    """Start runs that are ready until none is left that can be started.

    At most `launcher.parallel` runs are active at a time.
    """
    with alone(book.folder / ".supervisor.lock") as free:
        if not free:
            return
        children: dict[str, subprocess.Popen[bytes]] = {}
        begun: dict[str, float] = {}
        while True:
            for run in [run for run, child in children.items() if child.poll() is not None]:
                tell_unbegun(book, run, children.pop(run).returncode, begun[run])
            told = status(book, active(book))
            running = {one.run for one in told if one.state == "running"} | set(children)
            ready = [one for one in ready_runs(book, told) if one.run not in running]
            if not running and not ready:
                return
            parallel = book.asked["launcher"]["parallel"]
            for entry in ready[: max(0, parallel - len(running))]:
                begun[entry.run] = time.time()
                children[entry.run] = start(book, entry)
            time.sleep(LOOK_SECONDS)


def tell_unbegun(book: Sweep, run: str, code: int, begun: float) -> None:
    """Record that a run has failed if its process, begun then, ended without recording anything.

    It would be started again and again.
    """
    entry = next(one for one in book.entries() if one.run == run)
    if code and book.state(entry).get("time", 0.0) < begun:
        note = f"its process ended with exit code {code} before it began (see supervisor.log in "
        book.tell(entry, state="failed", note=f"{note}{book.folder}): `resume` retries")


def ready_runs(book: Sweep, told: list[RunStatus]) -> list[Entry]:
    """Return the pending runs whose inputs are finished."""
    states = {one.run: one.state for one in told}
    return [
        entry
        for entry in book.entries()
        if states[entry.run] == "pending" and all(states[need] == "done" for need in entry.needs)
    ]


def start(book: Sweep, entry: Entry) -> "subprocess.Popen[bytes]":
    """Start the process of a run."""
    command = [sys.executable, "-m", "ehrr1.sweeps.worker", str(book.folder), "--run", entry.run]
    return detached(command, book)


def detached(command: Sequence[str], book: Sweep) -> "subprocess.Popen[bytes]":
    """Start a process that outlives this one."""
    log = (book.folder / "supervisor.log").open("ab")
    return subprocess.Popen(
        command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
    )


if __name__ == "__main__":
    supervise(Sweep(Path(sys.argv[1])))
