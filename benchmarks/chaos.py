"""Kill runs, fill disks and damage files at random: python -m benchmarks.chaos FOLDER --minutes N.

Makes a small curriculum and a sweep in FOLDER, undisturbed. Then, until the time is up, one
try follows the other:

    kill     SIGKILL before a random change of the file system, or at a random moment, once or
             several times, of a stage, of a stage that replaces a finished run, of a sweep, or of
             a swap of folders; then the same command runs to its end
    fault    a random change of the file system fails (no space, quota, input/output error); then
             the same command runs to its end
    write    chains by language models: their server fails in many ways, and the command is killed
    damage   files between stages and inputs of users are damaged; most are read in this process,
             some by the next stage's command line

What was killed or failed must end with the files of the undisturbed run, byte for byte; of drafts
that were written none is paid for twice. A fault and
a damage must be one line and exit code 2. Prints tables of tries and outcomes; what did not come
out as it must is printed with its number, and the exit code is then 1.

FOLDER/counts.json keeps the counts: the next command goes on with the next number, and adds to
them. Number and kind of a try decide all that is drawn in it; `--seed N` begins with number N.
"""

import argparse
import os
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count, cycle, islice
from pathlib import Path
from typing import Any

from benchmarks import chaos_damages, chaos_kills, chaos_sweeps, chaos_users, chaos_writers
from benchmarks.chaos_world import READS, Known, WrongError, apart, undisturbed, warm
from ehrr1.files import read_json, write_json
from tests import test_swaps

KINDS = ("kill", "fault", "write", "damage")
OF_KILLS = ("lost", "doubled", "unequal", "stuck")
BATCH = 28
"""Damages that are tried in one process."""

Told = Counter[tuple[str, str]]
"""What is damaged or killed, and an outcome -> how often."""


class Chaos:
    """The folder of a chaos run, its undisturbed world, and its counts."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.whole = folder, folder / "whole" / "smoke"
        self.sweep = folder / "sweep"
        self.counts: dict[str, Any] = {"next": 0, "wrong": [], "minutes": 0.0}
        if (folder / "counts.json").exists():
            self.counts = read_json(folder / "counts.json")
        self.known = self._made()

    def _made(self) -> dict[str, Known]:
        """Make the undisturbed world where it is not there yet; return what its stages take."""
        times = self.folder / "known.json"
        if not times.exists():
            shutil.rmtree(self.whole.parent, ignore_errors=True)
            write_json(times, undisturbed(self.whole.parent))
        return {stage: Known(*own) for stage, own in read_json(times).items()}

    def add(self, kind: str, told: Told, number: int, minutes: float) -> None:
        """Add the counts of a try, and write all."""
        for (what, outcome), times in told.items():
            row = self.counts.setdefault(kind, {}).setdefault(what, {})
            row[outcome] = row.get(outcome, 0) + times
        self.counts["next"] = number + 1
        self.counts["minutes"] = round(self.counts["minutes"] + minutes, 2)
        write_json(self.folder / "counts.json", self.counts)

    def wrong(self, number: int, kind: str, message: str) -> None:
        """Tell what did not come out as it must."""
        told = f"--seed {number} --kinds {kind}: {message}"
        self.counts["wrong"].append(told)
        print(told, file=sys.stderr, flush=True)

    def kill(self, number: int, root: Path) -> Told:
        """Kill a stage, one that replaces a run, a sweep, or a swap: 8, 6, 1 and 9 of 24 tries."""
        stage = random.choice([*READS])
        given = stage, root, self.whole, self.known[stage]
        what, act = random.choices(
            [
                (stage, partial(chaos_kills.kill, *given)),
                (f"{stage}, overwrite=true", partial(chaos_kills.kill_overwrite, *given)),
                ("sweeps", partial(self.kill_sweep, root)),
                ("swaps", partial(chaos_kills.kill_swap, root)),
            ],
            (8, 6, 1, 9),
        )[0]
        return self._of_kills(number, "kill", what, act)

    def kill_sweep(self, root: Path) -> int:
        """Kill a sweep; the undisturbed one is made before the first."""
        done = self.sweep / "done"
        if not done.exists():
            shutil.rmtree(self.sweep, ignore_errors=True)
            chaos_sweeps.to_its_end(self.sweep, self.whole)
            done.touch()
        return chaos_sweeps.kill_sweep(root, self.whole, self.sweep)

    def fault(self, number: int, root: Path) -> Told:
        """Let a change of the file system of a stage fail."""
        stage = random.choice([*READS])
        act = partial(chaos_kills.fault, stage, root, self.whole, self.known[stage])
        return self._of_kills(number, "fault", stage, act)

    def write(self, number: int, root: Path) -> Told:
        """Kill a command that writes chains by a server with faults."""
        writer = random.choice([*chaos_writers.WRITERS])
        act = partial(chaos_writers.kill_writer, writer, root, self.whole)
        return self._of_kills(number, "write", writer, act)

    def _of_kills(self, number: int, kind: str, what: str, act: Callable[[], int]) -> Told:
        told: Told = Counter({(what, "tries"): 1})
        try:
            told[what, "kills"] += act()
        except WrongError as error:
            told[what, error.kind] += 1
            told[what, "kills"] += 1
            self.wrong(number, kind, f"{what}: {error}")
        return told

    def damage(self, number: int, root: Path) -> Told:
        """Damage many files in one process, and sometimes one that a command reads."""
        told: Told = Counter()
        tries = apart(partial(many, number, root, self.whole))
        if random.random() < 0.5:
            tries.append(one_by_command(root / "command", self.whole))
        for what, outcome, said in tries:
            told[what, outcome] += 1
            if outcome in chaos_damages.WRONG:
                self.wrong(number, "damage", f"{outcome}: {said}")
        return told


def many(number: int, root: Path, whole: Path) -> list[tuple[str, str, str]]:
    """Try `BATCH` damages; return what was damaged, the outcome, and a description of each.

    Each is tried in a process of its own fork, whose end is an outcome too.
    """
    listed, bare = chaos_damages.copies(whole, root)
    random.seed(f"{number} many")
    turns = islice(cycle(chaos_damages.turns()), number * BATCH, (number + 1) * BATCH)
    found = []
    for place, (kind, damage, with_manifest) in enumerate(turns):
        what = f"{kind}: {damage}"
        act = partial(chaos_damages.outcome, kind, damage, with_manifest, listed, bare)
        found.append((what, *_apart_told(f"{number} {place}", act, what)))
        if place % 3 == 0:
            own = random.choice([*chaos_users.KINDS])
            act = partial(chaos_users.tried, own, root / f"user-{place}")
            found.append((own, *_apart_told(f"{number} {place} user", act, own)))
    return found


def one_by_command(root: Path, whole: Path) -> tuple[str, str, str]:
    """Try one damage by the command line; return as `many` does."""
    root.mkdir(parents=True)
    try:
        return chaos_damages.by_command(root, whole), "refused", ""
    except WrongError as error:
        return "by command", error.kind, str(error)


def _apart_told(seed: str, act: Callable[[], tuple[str, str]], what: str) -> tuple[str, str]:
    """Return what a try says in a forked process; one that dies has no outcome of its own."""

    def seeded() -> tuple[str, str]:
        random.seed(seed)
        for output in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), output)
        return chaos_damages.quietly(act)

    try:
        return apart(seeded)
    except ChildProcessError as error:
        return "traceback", f"{what}: {error}"


def table(rows: dict[str, dict[str, int]], columns: Sequence[str], first: str) -> str:
    """Return counts as a Markdown table with a last row for their sums."""
    sums = {column: sum(row.get(column, 0) for row in rows.values()) for column in columns}
    lines = [f"| {first} | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    for name, row in [*sorted(rows.items()), ("all", sums)]:
        lines.append(f"| {name} | {' | '.join(f'{row.get(c, 0):,}' for c in columns)} |")
    return "\n".join(lines) + "\n"


def summed(rows: dict[str, dict[str, int]], part: int) -> dict[str, dict[str, int]]:
    """Return the counts of damages by kind of file (part 0), or by way of damage (part 1).

    Inputs of users are damaged in ways of their own, which are not listed.
    """
    found: dict[str, Counter[str]] = {}
    for what, row in rows.items():
        parts = what.partition(": ")[::2]
        if name := parts[part]:
            own = found.setdefault(name, Counter())
            own.update(row)
            own["tries"] += sum(row.values())
    return {name: dict(row) for name, row in found.items()}


def tables(counts: dict[str, Any]) -> str:
    """Return the tables of all tries so far."""
    tries = ("tries", "kills", *OF_KILLS)
    parts = []
    if rows := counts.get("kill"):
        parts.append(table(rows, tries, "killed"))
    if rows := counts.get("write"):
        parts.append(table(rows, (*tries, "traceback"), "writer"))
    if rows := counts.get("fault"):
        parts.append(table(rows, ("tries", "traceback", *OF_KILLS), "failed"))
    if rows := counts.get("damage"):
        columns = ("tries", *chaos_damages.OUTCOMES)
        parts += [
            table(summed(rows, 0), columns, "kind"),
            table(summed(rows, 1), columns, "damage"),
        ]
    return "\n".join(parts)


def run(folder: Path, minutes: float, kinds: Sequence[str], first: int | None) -> dict[str, Any]:
    """Disturb until the time is up; return all counts of the folder."""
    chaos = Chaos(folder)
    deadline = time.monotonic() + 60 * minutes
    for number in count(chaos.counts["next"] if first is None else first):
        if time.monotonic() > deadline:
            break
        begin = time.monotonic()
        random.seed(number)
        kind = random.choice(kinds)
        random.seed(f"{number} {kind}")
        root = folder / f"try-{number}"
        shutil.rmtree(root, ignore_errors=True)
        acts = {"kill": chaos.kill, "fault": chaos.fault}
        told = (acts | {"write": chaos.write, "damage": chaos.damage})[kind](number, root)
        chaos.add(kind, told, number, (time.monotonic() - begin) / 60)
        shutil.rmtree(root, ignore_errors=True)
    return chaos.counts


def main() -> None:
    """Disturb until the time is up, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--seed", type=int)
    asked = parser.parse_args()
    one = dict.fromkeys(("OMP_NUM_THREADS", "POLARS_MAX_THREADS"), "1")
    if os.environ | one != os.environ:  # libraries have read it: sums of two threads are others
        os.execve(
            sys.executable,
            [sys.executable, "-m", "benchmarks.chaos", *sys.argv[1:]],
            os.environ | one,
        )
    warm()
    chaos_users.ready()
    test_swaps.composed()
    folder = asked.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    counts = run(folder, asked.minutes, asked.kinds.split(","), asked.seed)
    print(tables(counts))
    print(f"{counts['minutes']:.0f} minutes")
    sys.exit(bool(counts["wrong"]))


if __name__ == "__main__":
    main()
