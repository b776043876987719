"""What a sweep is on disk, and how each of its runs is doing.

    <output_root>/sweeps/<NAME>/
        sweep.json            what was asked, and every run: written before anything starts
        submissions/          <token>.json: the runs of one submission, its job once SLURM has it
        states/               <run>.json: what the run's own process said last; <run>.lock: it lives
        logs/                 <run>.log: everything it printed, over all its attempts
        jobs/                 SLURM's scripts and logs

A run is finished when its folder is (`metrics.json`); everything else is told by these files and
one look at the queue. Nothing here imports more than the standard library: `status` is quick.
"""

import fcntl
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from ehrr1.errors import UserError
from ehrr1.files import read_json, write_json

STATES = ("pending", "running", "done", "failed", "cancelled")


@dataclass(frozen=True)
class Entry:
    """One run of a sweep. `needs` are the runs that it waits for, `settings` the swept ones that it
    depends on, `job` what SLURM is asked for."""

    run: str
    stage: str
    folder: str
    overrides: list[str]
    needs: list[str]
    settings: dict[str, str]
    job: dict[str, Any]

    @property
    def done(self) -> bool:
        return (Path(self.folder) / "metrics.json").exists()

    @property
    def slug(self) -> str:
        """The run's name as that of a file."""
        name = self.run.replace("/", "~")
        return (
            name if len(name) <= 150 else f"{name[:130]}~{sha256(name.encode()).hexdigest()[:10]}"
        )


@dataclass(frozen=True)
class RunStatus:
    """How a run is doing: its state, its last step and speed, and why it is so."""

    run: str
    overrides: list[str]
    state: str
    step: int | None
    folder: str
    seconds_per_step: float | None = None
    note: str = ""


class Sweep:
    """A sweep's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @staticmethod
    def open(folder: Path) -> "Sweep":
        """An existing sweep. Raises UserError where there is none."""
        if not (folder / "sweep.json").exists():
            there = sorted(path.parent.name for path in folder.parent.glob("*/sweep.json"))
            raise UserError(
                f"name={folder.name}: no sweep of that name in {folder.parent} "
                f"({', '.join(there) or 'there is none'}); set output_root=DIR to look elsewhere"
            )
        return Sweep(folder)

    @property
    def asked(self) -> dict[str, Any]:
        found: dict[str, Any] = read_json(self.folder / "sweep.json")
        return found

    def entries(self) -> list[Entry]:
        return [Entry(**one) for one in self.asked["runs"]]

    def write(self, overrides: Sequence[str], launcher: dict[str, Any], runs: list[Entry]) -> None:
        for name in ("submissions", "states", "logs", "jobs"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        told = {
            "overrides": list(overrides),
            "launcher": launcher,
            "runs": [asdict(r) for r in runs],
        }
        write_json(self.folder / "sweep.json", told)

    def add(self, runs: Sequence[Entry]) -> None:
        """More runs of a sweep that is searched; those that it has stay as they are."""
        there = self.asked
        known = {one["run"] for one in there["runs"]}
        there["runs"] += [asdict(one) for one in runs if one.run not in known]
        write_json(self.folder / "sweep.json", there)

    def state_file(self, entry: Entry) -> Path:
        return self.folder / "states" / f"{entry.slug}.json"

    def log(self, entry: Entry) -> Path:
        return self.folder / "logs" / f"{entry.slug}.log"

    def state(self, entry: Entry) -> dict[str, Any]:
        """What the run's process, or `cancel`, said last; empty before."""
        file = self.state_file(entry)
        found: dict[str, Any] = read_json(file) if file.exists() else {}
        return found

    def tell(self, entry: Entry, **told: Any) -> None:
        write_json(self.state_file(entry), {"time": time.time(), **told})

    @contextmanager
    def held(self) -> Iterator[None]:
        """One command at a time works on a sweep; others wait."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def alive(self, entry: Entry) -> bool:
        """Whether a process of this machine works on the run."""
        return is_held(self.folder / "states" / f"{entry.slug}.lock")

    def submissions(self) -> list[dict[str, Any]]:
        """Every submission, oldest first."""
        files = (self.folder / "submissions").glob("*.json")
        return sorted((read_json(file) for file in files), key=lambda one: one["time"])


def is_held(lock: Path) -> bool:
    """Whether a process holds a lock."""
    if not lock.exists():
        return False
    with alone(lock) as free:
        return not free


@contextmanager
def alone(lock: Path) -> Iterator[bool]:
    """Hold a lock for as long as this lasts; False where another process has it."""
    with lock.open("w") as file:
        free = True
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            free = False
        yield free


def status(book: Sweep, active: dict[str, str]) -> list[RunStatus]:
    """How every run is doing. `active`: the runs that a queue or a supervisor has, and as what."""
    found: dict[str, RunStatus] = {}
    handed_in = {
        run: one["time"] for one in book.submissions() if one["job"] for run in one["runs"]
    }
    for entry in book.entries():
        state, note = state_of(book, entry, active, found, handed_in)
        step, speed = progress(Path(entry.folder))
        found[entry.run] = RunStatus(
            entry.run, entry.overrides, state, step, entry.folder, speed, note
        )
    return list(found.values())


def state_of(
    book: Sweep,
    entry: Entry,
    active: dict[str, str],
    before: dict[str, RunStatus],
    handed_in: dict[str, float],
) -> tuple[str, str]:
    """A run's state, and a word about it. `before`: the states of the runs that it may need;
    `handed_in`: when SLURM got the run last."""
    if entry.done:
        return "done", ""
    said = book.state(entry)
    if said.get("state") in ("failed", "cancelled"):
        return said["state"], said.get("note", "")
    if active.get(entry.run) == "running":
        return "running", ""
    stuck = [before[need] for need in entry.needs if before[need].state in ("failed", "cancelled")]
    if stuck:
        why = stuck[0].note if stuck[0].note.startswith("not started") else ""
        return "failed", why or f"not started: {stuck[0].run} is {stuck[0].state}: {stuck[0].note}"
    if entry.run in active:
        return "pending", said.get("note", "")
    if said.get("state") == "running":
        return "failed", "its process ended without a word (killed?): `resume` goes on"
    if handed_in.get(entry.run, 0.0) > said.get("time", 0.0):
        return "failed", f"its job ended before it began (see {book.folder}/jobs): `resume` retries"
    return "pending", said.get("note", "") or "not submitted: `resume` submits it"


def progress(folder: Path) -> tuple[int | None, float | None]:
    """The last step of a training run, and the seconds that it took."""
    log = folder / "train.jsonl"
    if not log.exists():
        return None, None
    with log.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 16_384))
        lines = file.read().splitlines()
    for line in reversed(lines):
        if line.startswith(b"{") and line.endswith(b"}"):
            told = json.loads(line)
            return told.get("step"), told.get("seconds")
    return None, None


def last_line(log: Path) -> str:
    """The last thing that a run printed, without an escape sequence."""
    if not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 8_192))
        text = file.read().decode(errors="replace")
    lines = [part.strip() for line in text.splitlines() for part in line.split("\r")]
    return next((line for line in reversed(lines) if line), "")[:500]
