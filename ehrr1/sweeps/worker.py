"""Execute one run of a sweep, in the process that SLURM or the local supervisor started.

    python -m ehrr1.sweeps.worker SWEEP_FOLDER (--submission TOKEN | --run RUN)

It starts `run.py` as a child process and is the only place that handles SLURM's signals and
requeues jobs:

SIGUSR1: the time limit is near (`launcher.signal_seconds`). The child saves and ends, and the job
is requeued, at most `launcher.requeues` times.

SIGTERM: preemption, `scontrol requeue` or `scancel`. The child saves. SLURM, which sent the signal,
determines whether the job is started again.

Any other end of the child is a failure, which is recorded and not requeued.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ehrr1.files import read_json
from ehrr1.sweeps.state import Entry, Sweep, alone, last_line

SAVED = {128 + signal.SIGUSR1, 128 + signal.SIGTERM}
"""Exit codes of a run that was stopped by a signal and continues with the same command.

A training run has saved a checkpoint; other stages save their results as they proceed.
"""


def main() -> int:
    """Execute the run that the command line names and return the exit code."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--submission")
    arguments.add_argument("--run")
    given = arguments.parse_args()
    book, name = Sweep(given.folder), given.run
    if given.submission:
        runs = read_json(given.folder / "submissions" / f"{given.submission}.json")["runs"]
        name = runs[int(os.environ.get("SLURM_ARRAY_TASK_ID", 0))]
    entry = next(one for one in book.entries() if one.run == name)
    if int(os.environ.get("SLURM_PROCID", 0)) > 0:
        return Child(book, entry).wait()
    with alone(book.folder / "states" / f"{entry.slug}.lock") as free:
        return attempt(book, entry) if free else 0  # another process executes this run


def attempt(book: Sweep, entry: Entry) -> int:
    """Execute the run once, record the result and return the exit code."""
    if book.state(entry).get("state") == "cancelled":
        return 1
    job, begun = job_id(), time.time()
    restarts = int(os.environ.get("SLURM_RESTART_COUNT", 0))
    book.tell(entry, state="running", job=job, pid=os.getpid(), restarts=restarts)
    child = Child(book, entry)
    code = child.wait()
    cost = {"job": job, "restarts": restarts, "seconds": round(time.time() - begun, 1)}
    if book.state(entry).get("state") == "cancelled":
        return 1
    if code == 0:
        book.tell(entry, state="done", **cost)
        return 0
    if code in SAVED and child.told:
        return saved(book, entry, child.told, job, restarts, cost)
    note = last_line(book.log(entry)) or "it printed nothing"
    book.tell(entry, state="failed", code=code, note=f"exit code {code}: {note}", **cost)
    return code if code > 0 else 1


def saved(
    book: Sweep, entry: Entry, told: signal.Signals, job: str, restarts: int, cost: dict[str, Any]
) -> int:
    """Record that a run was stopped by a signal, requeue it if allowed, and return 1."""
    limit = entry.job.get("requeues", 0)
    if told == signal.SIGUSR1 and restarts < limit:
        book.tell(entry, state="pending", note="time limit: saved, queued again", **cost)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        subprocess.run(["scontrol", "requeue", job], check=True)
        time.sleep(60)  # SLURM ends this job
        return 1
    if told == signal.SIGUSR1:
        note = f"time limit met {restarts + 1} times (launcher.requeues={limit}); `resume` retries"
        book.tell(entry, state="failed", note=note, **cost)
        return 1
    note = "stopped by SIGTERM, saved; queued again by SLURM if it was preempted, else by `resume`"
    book.tell(entry, state="pending", note=note, **cost)
    return 1


class Child:
    """The child process `run.py`, to which signals are forwarded."""

    def __init__(self, book: Sweep, entry: Entry) -> None:
        self.told: signal.Signals | None = None
        log = book.log(entry).open("ab")
        for one in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(one, self.note)
        command = [sys.executable, "-m", "ehrr1", *entry.overrides]
        self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        if self.told:  # signal before the child existed
            self.pass_on()

    def note(self, number: int, frame: Any) -> None:
        """Handle a signal: remember it and forward it."""
        self.told = signal.Signals(number)
        self.pass_on()

    def pass_on(self) -> None:
        """Forward the last signal to the child if it is running."""
        process: Any = vars(self).get("process")
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGUSR1 if self.told == signal.SIGUSR1 else signal.SIGTERM)

    def wait(self) -> int:
        """Wait for the child and return its exit code, 128 + n if signal n ended it."""
        code = self.process.wait()
        return code if code >= 0 else 128 - code


def job_id() -> str:
    """Return SLURM's id of this job or array task, or "" outside SLURM."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    if array:
        return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID", "")


if __name__ == "__main__":
    sys.exit(main())
