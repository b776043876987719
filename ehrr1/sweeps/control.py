"""Start and stop the runs of a sweep, for the command line and for searches."""

import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from rich.console import Console

from ehrr1.errors import UserError, need_extra
from ehrr1.sweeps import local
from ehrr1.sweeps.state import Entry, Sweep, status
from ehrr1.terminal import plain_console


def launcher_of(book: Sweep) -> ModuleType:
    """Return the launcher module of a sweep.

    Launcher modules define check, submit, settle, active and cancel.
    """
    return module_of(book.asked["launcher"]["name"])


def module_of(launcher: str) -> ModuleType:
    """Return the launcher module by name; raises UserError if its package is not installed."""
    if launcher == "local":
        return local
    need_extra(f"launcher={launcher}", "submitit", "sweeps")
    from ehrr1.sweeps import slurm

    return slurm


def tell_begun(book: Sweep, root: Path) -> None:
    """Print the number of runs and the command for their status."""
    console = plain_console(stderr=True)
    console.print(f"{len(book.entries())} runs in {book.folder}", soft_wrap=True)
    console.print(
        f"python sweep.py status {shlex.quote(book.folder.name)} "
        f"output_root={shlex.quote(str(root))}",
        soft_wrap=True,
        highlight=False,
    )


def refuse_others(book: Sweep, overrides: Sequence[str]) -> None:
    """Raise UserError if a sweep exists with other overrides than these."""
    if list(overrides) != book.asked["overrides"]:
        raise UserError(
            f"name={book.folder.name}: there is a sweep of that name with other overrides "
            f"({' '.join(book.asked['overrides'])}); choose another name=NAME"
        )


def start_missing(book: Sweep, module: ModuleType, runs: Sequence[str], again: bool) -> list[str]:
    """Submit the runs that are neither finished nor active, and return their names.

    With `again`, runs that failed or were cancelled, and those that wait for them, are included.
    """
    module.settle(book)
    entries = book.entries()
    wanted_names = with_needs(entries, runs)
    active = wait_for_cancelled(book, module, wanted_names) if again else module.active(book)
    if again:
        for entry in (e for e in entries if e.run in wanted_names and e.run not in active):
            if not entry.done:
                book.tell(entry, state="pending")
    states = {one.run: one.state for one in status(book, active)}
    wanted = [
        entry
        for entry in entries
        if entry.run in wanted_names and states[entry.run] == "pending" and entry.run not in active
    ]
    if wanted:
        module.submit(book, wanted)
    return [entry.run for entry in wanted]


def wait_for_cancelled(book: Sweep, module: ModuleType, runs: set[str]) -> dict[str, str]:
    """Wait until no cancelled run is still saving, and return the active runs.

    Raises UserError after two minutes.
    """
    cancelled = {e.run for e in book.entries() if book.state(e).get("state") == "cancelled"} & runs
    deadline = time.monotonic() + 120
    while saving := cancelled & module.active(book).keys():
        if time.monotonic() > deadline:
            raise UserError(f"{', '.join(sorted(saving))}: cancelled, and still saving; try again")
        time.sleep(1)
    found: dict[str, str] = module.active(book)
    return found


def with_needs(entries: Sequence[Entry], runs: Sequence[str]) -> set[str]:
    """Return the names of these runs and of all runs for which they wait."""
    found = set(runs)
    for entry in reversed(entries):  # inputs come first in the list
        if entry.run in found:
            found |= set(entry.needs)
    return found


def end(book: Sweep, module: ModuleType, runs: Sequence[str], note: str) -> None:
    """Cancel runs with a note: pending ones are not started, active ones save and end."""
    for entry in (entry for entry in book.entries() if entry.run in runs):
        kept = {key: book.state(entry).get(key) for key in ("pid", "job")}
        book.tell(entry, state="cancelled", note=note, **kept)
    module.cancel(book, runs)


def chosen(book: Sweep, words: Sequence[str]) -> list[Entry]:
    """Return the runs named by `words`, which are names or parts of names; all runs if it is empty.

    Raises UserError if there is none.
    """
    entries = book.entries()
    if not words:
        return entries
    found = [e for e in entries if any(word == e.run for word in words)]
    found = found or [e for e in entries if any(word in e.run for word in words)]
    if not found:
        raise UserError(
            f"{' '.join(words)}: no such run in {book.folder.name}; there are "
            f"{', '.join(entry.run for entry in entries[:20])}"
        )
    return found


def wide_console() -> Console:
    """Return a console of the terminal; output to a file or a pipe is not wrapped."""
    return plain_console() if sys.stdout.isatty() else plain_console(width=1_000, height=100)
