"""What `sweep.py` does with its arguments."""

import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

from rich.console import Console
from rich.live import Live
from rich.table import Table

from ehrr1.errors import UserError, need_extra
from ehrr1.sweeps import local
from ehrr1.sweeps.book import Book, Entry, Told, status

COLOURS = {"done": "green", "running": "cyan", "failed": "red", "cancelled": "yellow"}

ROOT = "outputs"

OPTIONS = ("output_root=", "metric=")
"""What the commands take beside names."""

FLAGS = {"status": {"--json", "--watch"}, "compare": {"--json"}}


def run(arguments: Sequence[str]) -> int:
    """Do what is asked; the exit code. Raises UserError."""
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
    options = dict(one.split("=", 1) for one in given)  # names of runs have signs of equality too
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
    book = Book.open(root / "sweeps" / words[0])
    return commands[arguments[0]](book, words[1:], options, flags)


def launcher_of(book: Book) -> ModuleType:
    """The module that starts runs: it has check, submit, settle, active and cancel."""
    return module_of(book.asked["launcher"]["name"])


def module_of(launcher: str) -> ModuleType:
    if launcher == "local":
        return local
    need_extra(f"launcher={launcher}", "submitit", "sweeps")
    from ehrr1.sweeps import slurm

    return slurm


def begin(arguments: Sequence[str]) -> int:
    """Expand the grid, write the sweep down, start what is not finished, and return."""
    from ehrr1.sweeps.begin import begun  # hydra is slow to import

    if any(one.startswith("search.metric=") for one in arguments):
        need_extra("search.metric", "optuna", "sweeps")
        from ehrr1.sweeps.search import begin_search

        if "--dry-run" in arguments:
            raise UserError("--dry-run: a search proposes its runs as it goes; leave it out")
        return begin_search(arguments)
    asked = begun([one for one in arguments if one != "--dry-run"])
    if "--dry-run" in arguments:
        told = [
            Told(e.run, e.overrides, "done" if e.done else "pending", None, e.folder)
            for e in asked.entries
        ]
        wide_console().print(table(told, asked.name))
        return 0
    book, module = Book(asked.folder), module_of(asked.launcher["name"])
    module.check(asked.launcher)
    with book.held():
        if (book.folder / "sweep.json").exists():
            refuse_others(book, asked.overrides)
        else:
            book.write(asked.overrides, asked.launcher, asked.entries)
        start_missing(book, module, [entry.run for entry in book.entries()], again=False)
    tell_begun(book, asked.root)
    return 0


def tell_begun(book: Book, root: Path) -> None:
    console = Console(stderr=True)
    console.print(f"{len(book.entries())} runs in {book.folder}", soft_wrap=True)
    console.print(
        f"python sweep.py status {book.folder.name} output_root={root}",
        soft_wrap=True,
        highlight=False,
    )


def refuse_others(book: Book, overrides: Sequence[str]) -> None:
    """The same overrides go on with a sweep. Raises UserError for others."""
    if list(overrides) != book.asked["overrides"]:
        raise UserError(
            f"name={book.folder.name}: there is a sweep of that name with other overrides "
            f"({' '.join(book.asked['overrides'])}); choose another name=NAME"
        )


def start_missing(book: Book, module: ModuleType, runs: Sequence[str], again: bool) -> list[str]:
    """Hand in the runs that are neither finished nor under way; with `again` those that have
    failed or were cancelled, and those that wait for them, too. Returns what was handed in."""
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


def wait_for_cancelled(book: Book, module: ModuleType, runs: set[str]) -> dict[str, str]:
    """What is under way once no run that was cancelled is still saving. Raises UserError after two
    minutes."""
    cancelled = {e.run for e in book.entries() if book.state(e).get("state") == "cancelled"} & runs
    deadline = time.monotonic() + 120
    while saving := cancelled & module.active(book).keys():
        if time.monotonic() > deadline:
            raise UserError(f"{', '.join(sorted(saving))}: cancelled, and still saving; try again")
        time.sleep(1)
    found: dict[str, str] = module.active(book)
    return found


def with_needs(entries: Sequence[Entry], runs: Sequence[str]) -> set[str]:
    """Runs and all that they wait for."""
    found = set(runs)
    for entry in reversed(entries):  # inputs stand first
        if entry.run in found:
            found |= set(entry.needs)
    return found


def show_status(book: Book, words: list[str], options: dict[str, str], flags: set[str]) -> int:
    """A row a run; `--json` as a list, `--watch` until all are over."""

    def look() -> list[Told]:
        return status(book, launcher_of(book).active(book))

    if "--json" in flags:
        print(json.dumps([asdict(one) for one in look()], indent=1))
        return 0
    name = book.folder.name
    if "--watch" in flags and sys.stdout.isatty():
        with Live(table(look(), name), refresh_per_second=1) as live:
            told = look()
            while any(one.state in ("pending", "running") for one in told):
                time.sleep(2)
                told = look()
                live.update(table(told, name))
        return 0
    wide_console().print(table(look(), name))
    return 0


def wide_console() -> Console:
    """The terminal; in a file or a pipe lines are not broken."""
    return Console() if sys.stdout.isatty() else Console(width=1_000, height=100)


def table(told: Sequence[Told], name: str) -> Table:
    counts = {state: sum(one.state == state for one in told) for state in {o.state for o in told}}
    title = f"{name}: " + ", ".join(f"{number} {state}" for state, number in sorted(counts.items()))
    found = Table(title=title, title_justify="left")
    for column in ("run", "state", "step", "s/step", "note"):
        numbers = column in ("step", "s/step")
        found.add_column(column, justify="right" if numbers else "left", overflow="fold")
    for one in told:
        state = f"[{COLOURS.get(one.state, 'default')}]{one.state}[/]"
        speed = "" if one.seconds_per_step is None else f"{one.seconds_per_step:.2f}"
        step = "" if one.step is None else f"{one.step:,}"
        found.add_row(one.run, state, step, speed, one.note.replace("[", r"\["))
    return found


def is_search(book: Book) -> bool:
    return (book.folder / "search.json").exists()


def chosen(book: Book, words: Sequence[str]) -> list[Entry]:
    """The runs that are named, by their names or by what stands in them; all where none is."""
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


def show_log(book: Book, words: list[str], options: dict[str, str], flags: set[str]) -> int:
    """What one run printed, over all its attempts."""
    entries = chosen(book, words)
    if len(entries) > 1:
        raise UserError(f"logs: name one run of {', '.join(e.run for e in entries[:20])}")
    log = book.log(entries[0])
    if not log.exists():
        raise UserError(f"{entries[0].run}: it has not begun, there is no log yet")
    with log.open("rb") as file:
        shutil.copyfileobj(file, sys.stdout.buffer)
    return 0


def resume(book: Book, words: list[str], options: dict[str, str], flags: set[str]) -> int:
    """Start what is missing, has failed or was cancelled; what is done or under way is left."""
    with book.held():
        module = launcher_of(book)
        module.check(book.asked["launcher"])
        runs = [entry.run for entry in chosen(book, words)]
        if is_search(book):
            from ehrr1.sweeps.search import resumed

            runs = resumed(book, runs)
        begun = start_missing(book, module, runs, again=True)
    Console(stderr=True).print(f"{len(begun)} runs handed in", *begun, sep="\n  ", soft_wrap=True)
    return 0


def cancel(book: Book, words: list[str], options: dict[str, str], flags: set[str]) -> int:
    """Runs that wait are not started; those at work save and end."""
    with book.held():
        module = launcher_of(book)
        names = {entry.run for entry in chosen(book, words)}
        if is_search(book) and not words:
            from ehrr1.sweeps.search import stopped

            stopped(book)
        told = status(book, module.active(book))
        over = [one.run for one in told if one.run in names and one.state in ("pending", "running")]
        end(book, module, over, "by `sweep.py cancel`")
    Console(stderr=True).print(f"{len(over)} runs cancelled; `resume` goes on with them")
    return 0


def end(book: Book, module: ModuleType, runs: Sequence[str], note: str) -> None:
    """Runs that wait are not started, those at work save and end; why is noted."""
    for entry in (entry for entry in book.entries() if entry.run in runs):
        kept = {key: book.state(entry).get(key) for key in ("pid", "job")}
        book.tell(entry, state="cancelled", note=note, **kept)
    module.cancel(book, runs)


def clean(book: Book, words: list[str], options: dict[str, str], flags: set[str]) -> int:
    """Forget a sweep that is over: its lists and logs go, the runs' folders stay."""
    with book.held():
        done = {entry.run for entry in book.entries() if entry.done}
        under_way = launcher_of(book).active(book).keys() - done
        if under_way:
            raise UserError(
                f"name={book.folder.name}: {len(under_way)} runs are under way; cancel them first: "
                f"python sweep.py cancel {book.folder.name}"
            )
        gone = book.folder.with_name(f".{book.folder.name}.{os.getpid()}")
        book.folder.rename(gone)
    shutil.rmtree(gone)
    return 0


def show_comparison(book: Book, words: list[str], options: dict[str, str], flags: set[str]) -> int:
    from ehrr1.sweeps.comparing import compare_sweep  # polars and numpy are slow to import

    return compare_sweep(book, words, options.get("metric"), "--json" in flags)
