"""The folder of a sweep, and the state of its runs.

    <output_root>/sweeps/<NAME>/
        sweep.json            the request and every run, written before anything starts
        submissions/          <token>.json: runs of one submission, and its job id once known
        states/               <run>.json: state last reported by the run's process; <run>.lock:
                              held while it runs
        logs/                 <run>.log: its output, over all its attempts
        jobs/                 SLURM's scripts and logs

A run is finished when its folder is (`metrics.json`). All other states follow from these files and
one query of the queue. This module imports only the standard library and small modules of this
package, so that `status` is quick.
"""

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
from ehrr1.files import delete_gone, read_json, write_json
from ehrr1.locks import flock

STATES = ("pending", "running", "done", "failed", "cancelled")
"""States of a run."""


@dataclass(frozen=True)
class Entry:
    """One run of a sweep.

    needs: names of the runs for which it waits. settings: the swept settings on which it depends.
    job: the requested SLURM resources.
    """

    run: str
    stage: str
    folder: str
    overrides: list[str]
    needs: list[str]
    settings: dict[str, str]
    job: dict[str, Any]

    @property
    def done(self) -> bool:
        """Return whether the run is finished."""
        return (Path(self.folder) / "metrics.json").exists()

    @property
    def slug(self) -> str:
        """Return the run's name in the form of a file name."""
        name = self.run.replace("/", "~")
        return (
            name if len(name) <= 150 else f"{name[:130]}~{sha256(name.encode()).hexdigest()[:10]}"
        )


@dataclass(frozen=True)
class RunStatus:
    """The state of a run, its last step and speed, and a note on the reason."""

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
        """Return an existing sweep; raises UserError if there is none."""
        delete_gone(folder.parent)
        if not (folder / "sweep.json").exists():
            there = sorted(path.parent.name for path in folder.parent.glob("[!.]*/sweep.json"))
            raise UserError(
                f"name={folder.name}: no sweep of that name in {folder.parent} "
                f"({', '.join(there) or 'there is none'}); set output_root=DIR to look elsewhere"
            )
        return Sweep(folder)

    @property
    def asked(self) -> dict[str, Any]:
        """Return the content of sweep.json."""
        found: dict[str, Any] = read_json(self.folder / "sweep.json")
        return found

    def entries(self) -> list[Entry]:
        """Return the runs in order, inputs first."""
        return [Entry(**one) for one in self.asked["runs"]]

    def write(self, overrides: Sequence[str], launcher: dict[str, Any], runs: list[Entry]) -> None:
        """Create the sweep's folders and sweep.json."""
        for name in ("submissions", "states", "logs", "jobs"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        told = {
            "overrides": list(overrides),
            "launcher": launcher,
            "runs": [asdict(r) for r in runs],
        }
        write_json(self.folder / "sweep.json", told)

    def add(self, runs: Sequence[Entry]) -> None:
        """Add runs to a sweep that is a search; existing runs are unchanged."""
        there = self.asked
        known = {one["run"] for one in there["runs"]}
        there["runs"] += [asdict(one) for one in runs if one.run not in known]
        write_json(self.folder / "sweep.json", there)

    def state_file(self, entry: Entry) -> Path:
        """Return the path of a run's state file."""
        return self.folder / "states" / f"{entry.slug}.json"

    def log(self, entry: Entry) -> Path:
        """Return the path of a run's log."""
        return self.folder / "logs" / f"{entry.slug}.log"

    def state(self, entry: Entry) -> dict[str, Any]:
        """Return the state last reported by the run's process or by `cancel`, or {}."""
        file = self.state_file(entry)
        found: dict[str, Any] = read_json(file) if file.exists() else {}
        return found

    def tell(self, entry: Entry, **told: Any) -> None:
        """Write a run's state with the current time."""
        write_json(self.state_file(entry), {"time": time.time(), **told})

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the sweep's lock, so that one command at a time changes the sweep."""
        self.folder.mkdir(parents=True, exist_ok=True)
        delete_gone(self.folder.parent)
        with (self.folder / ".lock").open("w") as file:
            flock(file, wait=True)
            yield

    def alive(self, entry: Entry) -> bool:
        """Return whether a process of this machine executes the run."""
        return is_held(self.folder / "states" / f"{entry.slug}.lock")

    def submissions(self) -> list[dict[str, Any]]:
        """Return every submission, oldest first."""
        files = (self.folder / "submissions").glob("*.json")
        return sorted((read_json(file) for file in files), key=lambda one: one["time"])


def is_held(lock: Path) -> bool:
    """Return whether a process holds a lock."""
    if not lock.exists():
        return False
    with alone(lock) as free:
        return not free


@contextmanager
def alone(lock: Path) -> Iterator[bool]:
    """Hold a lock without waiting; yields False if another process holds it."""
    with lock.open("w") as file:
        free = True
        try:
            flock(file)
        except BlockingIOError:
            free = False
        yield free


def status(book: Sweep, active: dict[str, str]) -> list[RunStatus]:
    """Return the state of every run.

    active: name of a run -> its state ("running" or "pending") in the queue or the supervisor.
    """
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
    """Return a run's state and a note.

    before: states of the runs that it may need. handed_in: time of each run's last submission to
    SLURM.
    """
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
        return "failed", "its process exited without a report (killed?): `resume` continues it"
    if handed_in.get(entry.run, 0.0) > said.get("time", 0.0):
        return "failed", f"its job ended before it began (see {book.folder}/jobs): `resume` retries"
    return "pending", said.get("note", "") or "not submitted: `resume` submits it"


def progress(folder: Path) -> tuple[int | None, float | None]:
    """Return the last step of a training run and its duration in seconds."""
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
    """Return the last non-empty line of a log, at most 500 characters."""
    if not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 8_192))
        text = file.read().decode(errors="replace")
    lines = [part.strip() for line in text.splitlines() for part in line.split("\r")]
    return next((line for line in reversed(lines) if line), "")[:500]
