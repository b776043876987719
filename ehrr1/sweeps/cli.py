"""The commands of `sweep.py`."""

import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.live import Live
from rich.table import Table
from rich.text import Text

from ehrr1.errors import UserError, need_extra
from ehrr1.files import remove
from ehrr1.sweeps.control import (
    chosen,
    end,
    launcher_of,
    module_of,
    refuse_others,
    start_missing,
    tell_begun,
    wide_console,
)
from ehrr1.sweeps.state import RunStatus, Sweep, status
from ehrr1.terminal import plain_console

COLOURS = {"done": "green", "running": "cyan", "failed": "red", "cancelled": "yellow"}

ROOT = "outputs"

OPTIONS = ("output_root=", "metric=")
"""Options that the commands take in addition to names."""

FLAGS = {"status": {"--json", "--watch"}, "compare": {"--json"}}


def run(arguments: Sequence[str]) -> int:
    """Run the command in `arguments` and return the exit code; raises UserError."""
    commands = {
        "status": show_status,
        "logs": show_log,
        "resume": resume,
        "cancel": cancel,
        "compare": show_comparison,
        "clean": clean,
    }
    if arguments[0] not in commands:
        return begin(arguments)
    given = [one for one in arguments[1:] if one.startswith(OPTIONS)]
    options = dict(one.split("=", 1) for one in given)  # names of runs contain `=` too
    words = [one for one in arguments[1:] if one not in given and not one.startswith("--")]
    flags = {one for one in arguments[1:] if one.startswith("--")}
    known = FLAGS.get(arguments[0], set())
    if unknown := sorted(flags - known):
        raise UserError(
            f"{' '.join(unknown)}: {arguments[0]} takes {' and '.join(sorted(known)) or 'no flags'}"
        )
    root = Path(options.pop("output_root", ROOT))
    if not words:
        raise UserError(f"{arguments[0]}: which sweep? python sweep.py {arguments[0]} NAME")
    book = Sweep.open(root / "sweeps" / words[0])
    return commands[arguments[0]](book, words[1:], options, flags)


def begin(arguments: Sequence[str]) -> int:
    """Expand the grid, write the sweep's folder, start the runs that are not finished, and return.

    The result is the exit code.
    """
    from ehrr1.sweeps.expand import begun, whole_flags  # hydra is slow to import

    dry_run = "--dry-run" in arguments
    arguments = whole_flags([one for one in arguments if one != "--dry-run"])
    if any(one.startswith("search.metric=") for one in arguments):
        need_extra("search.metric", "optuna", "sweeps")
        from ehrr1.sweeps.search import begin_search

        if dry_run:
            raise UserError("--dry-run: a search proposes its runs as it goes; leave it out")
        return begin_search(arguments)
    asked = begun(arguments)
    if dry_run:
        told = [
            RunStatus(e.run, e.overrides, "done" if e.done else "pending", None, e.folder)
            for e in asked.entries
        ]
        wide_console().print(table(told, asked.name))
        return 0
    book, module = Sweep(asked.folder), module_of(asked.launcher["name"])
    module.check(asked.launcher)
    with book.held():
        if (book.folder / "sweep.json").exists():
            refuse_others(book, asked.overrides)
        else:
            book.write(asked.overrides, asked.launcher, asked.entries)
        start_missing(book, module, [entry.run for entry in book.entries()], again=False)
    tell_begun(book, asked.root)
    return 0


def show_status(book: Sweep, words: list[str], options: dict[str, str], flags: set[str]) -> int:
    """Print one row per run, or a list with `--json`.

    With `--watch` the table is updated until all runs have ended.
    """

    def look() -> list[RunStatus]:
        return status(book, launcher_of(book).active(book))

    if "--json" in flags:
        print(json.dumps([asdict(one) for one in look()], indent=1))
        return 0
    name = book.folder.name
    if "--watch" in flags and sys.stdout.isatty():
        with Live(table(look(), name), console=wide_console(), refresh_per_second=1) as live:
            told = look()
            while any(one.state in ("pending", "running") for one in told):
                time.sleep(2)
                told = look()
                live.update(table(told, name))
        return 0
    wide_console().print(table(look(), name))
    return 0


def table(told: Sequence[RunStatus], name: str) -> Table:
    """Return a table of the runs with their state, step, speed and note."""
    counts = {state: sum(one.state == state for one in told) for state in {o.state for o in told}}
    title = f"{name}: " + ", ".join(f"{number} {state}" for state, number in sorted(counts.items()))
    found = Table(title=title, title_justify="left")
    for column in ("run", "state", "step", "s/step", "note"):
        numbers = column in ("step", "s/step")
        found.add_column(column, justify="right" if numbers else "left", overflow="fold")
    for one in told:
        state = Text(one.state, COLOURS.get(one.state, "default"))
        speed = "" if one.seconds_per_step is None else f"{one.seconds_per_step:.2f}"
        step = "" if one.step is None else f"{one.step:,}"
        found.add_row(one.run, state, step, speed, one.note)
    return found


def is_search(book: Sweep) -> bool:
    """Return whether the sweep is a search."""
    return (book.folder / "search.json").exists()


def show_log(book: Sweep, words: list[str], options: dict[str, str], flags: set[str]) -> int:
    """Print the log of one run, over all its attempts."""
    entries = chosen(book, words)
    if len(entries) > 1:
        raise UserError(f"logs: name one run of {', '.join(e.run for e in entries[:20])}")
    log = book.log(entries[0])
    if not log.exists():
        raise UserError(f"{entries[0].run}: it has not begun, there is no log yet")
    with log.open("rb") as file:
        shutil.copyfileobj(file, sys.stdout.buffer)
    return 0


def resume(book: Sweep, words: list[str], options: dict[str, str], flags: set[str]) -> int:
    """Start the runs that are missing, failed or cancelled.

    Finished and active runs are not changed.
    """
    with book.held():
        module = launcher_of(book)
        module.check(book.asked["launcher"])
        runs = [entry.run for entry in chosen(book, words)]
        if is_search(book):
            from ehrr1.sweeps.search import resumed

            runs = resumed(book, runs)
        begun = start_missing(book, module, runs, again=True)
    plain_console(stderr=True).print(
        f"{len(begun)} runs submitted", *begun, sep="\n  ", soft_wrap=True
    )
    return 0


def cancel(book: Sweep, words: list[str], options: dict[str, str], flags: set[str]) -> int:
    """Cancel runs: pending ones are not started, active ones save and end."""
    with book.held():
        module = launcher_of(book)
        names = {entry.run for entry in chosen(book, words)}
        if is_search(book) and not words:
            from ehrr1.sweeps.search import stopped

            stopped(book)
        told = status(book, module.active(book))
        over = [one.run for one in told if one.run in names and one.state in ("pending", "running")]
        end(book, module, over, "by `sweep.py cancel`")
    plain_console(stderr=True).print(f"{len(over)} runs cancelled; `resume` continues them")
    return 0


def clean(book: Sweep, words: list[str], options: dict[str, str], flags: set[str]) -> int:
    """Delete the folder of a sweep that has ended, with its logs; the runs' folders are kept.

    Raises UserError if runs are active.
    """
    with book.held():
        done = {entry.run for entry in book.entries() if entry.done}
        under_way = launcher_of(book).active(book).keys() - done
        if under_way:
            raise UserError(
                f"name={book.folder.name}: {len(under_way)} runs are under way; cancel them first: "
                f"python sweep.py cancel {book.folder.name}"
            )
        remove(book.folder)
    return 0


def show_comparison(book: Sweep, words: list[str], options: dict[str, str], flags: set[str]) -> int:
    """Print the comparison of the sweep's runs, or of the settings of two runs."""
    from ehrr1.sweeps.compare import compare_sweep  # polars and numpy are slow to import

    return compare_sweep(book, words, options.get("metric"), "--json" in flags)
