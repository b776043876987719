"""A sweep's runs as SLURM jobs: runs that wait for the same ones are one array.

Submitted by submitit, which writes the batch script. A submission is written down before SLURM has
it and its job's name holds its token: a `sweep.py` that is killed in between finds the job again.
"""

import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

import submitit
from submitit.core.utils import FailedSubmissionError

from ehrr1.errors import UserError
from ehrr1.files import write_json
from ehrr1.sweeps.state import Entry, Sweep

RUNNING = frozenset({"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED"})

COMMANDS = ("sbatch", "squeue", "scancel", "srun")


class Commands(submitit.SlurmExecutor):
    """submitit for a plain command: nothing is pickled, so nothing must be moved to the job after
    SLURM has it."""

    def submit_command(self, command: str, count: int, **parameters: Any) -> str:
        """The job of `count` runs, an array where they are several. Raises UserError."""
        self.update_parameters(**parameters)
        self.parameters["map_count"] = count if count > 1 else None
        try:
            return str(self._submit_command(command).job_id)
        except FailedSubmissionError as error:
            told = " ".join(str(error).split())
            raise UserError(f"launcher=slurm: sbatch refused the job: {told}") from None


def check(launcher: dict[str, Any]) -> None:
    """Raise UserError where there is no SLURM here, or none with that partition."""
    if missing := [name for name in COMMANDS if shutil.which(name) is None]:
        raise UserError(
            f"launcher={launcher['name']}: there is no SLURM here (no {', '.join(missing)}); log "
            "in to the cluster, or use launcher=local"
        )
    there = ask(["sinfo", "--noheader", "--format=%R"]).split()
    if launcher["partition"] not in (None, *there):
        raise UserError(
            f"launcher.partition={launcher['partition']}: the cluster has {', '.join(there)}"
        )


def ask(command: Sequence[str]) -> str:
    """What a SLURM command prints. Raises UserError with what it complains of."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        told = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise UserError(f"launcher=slurm: {command[0]} failed: {told}")
    return done.stdout


def submit(book: Sweep, entries: Sequence[Entry]) -> None:
    """Hand runs to SLURM, inputs first. Runs in the queue are depended on where they are needed."""
    jobs = {run: job for run, (job, _) in queue(book).items()}
    waiting: dict[tuple[Any, ...], list[Entry]] = {}
    for entry in entries:
        waiting.setdefault((entry.stage, tuple(entry.needs), repr(entry.job)), []).append(entry)
    for (_, needs, _), alike in waiting.items():
        dependency = ":".join(["afterok", *sorted({jobs[need] for need in needs if need in jobs})])
        job = submit_alike(book, alike, dependency if ":" in dependency else None)
        several = len(alike) > 1
        jobs |= {e.run: f"{job}_{n}" if several else job for n, e in enumerate(alike)}


def submit_alike(book: Sweep, entries: Sequence[Entry], dependency: str | None) -> str:
    """One job, an array where runs are several; they differ in nothing that SLURM must know."""
    token, job = uuid.uuid4().hex[:10], entries[0].job
    file = book.folder / "submissions" / f"{token}.json"
    told = {"token": token, "runs": [e.run for e in entries], "time": time.time(), "job": None}
    write_json(file, told)
    extra = dict(job["sbatch"]) | {"signal": f"USR1@{job['signal_seconds']}", "requeue": True}
    if dependency:
        extra |= {"kill-on-invalid-dep": "yes"}
    parameters = {
        "job_name": job_name(book, token),
        "partition": job["partition"],
        "account": job["account"],
        "qos": job["qos"],
        "time": job["minutes"],
        "nodes": job["nodes"],
        "ntasks_per_node": job["tasks_per_node"],
        "cpus_per_task": job["cpus_per_task"],
        "gpus_per_node": job["gpus_per_node"] or None,
        "mem": None if job["memory_gb"] is None else f"{job['memory_gb']}G",
        "setup": job["setup"],
        "srun_args": ["--kill-on-bad-exit=0", *job["srun_args"]],
        "stderr_to_stdout": True,
        "array_parallelism": job["parallel"],
        "dependency": dependency,
        "additional_parameters": extra,
    }
    # until Python has its own handlers a signal would end it
    command = (
        "bash -c \"trap '' USR1; exec "
        f'{sys.executable} -u -m ehrr1.sweeps.worker {book.folder.resolve()} --submission {token}"'
    )
    chosen = {name: value for name, value in parameters.items() if value is not None}
    try:
        number = Commands(book.folder / "jobs").submit_command(command, len(entries), **chosen)
    except UserError:
        file.unlink()
        raise
    write_json(file, {**told, "job": number})
    return number


def job_name(book: Sweep, token: str) -> str:
    return f"{book.folder.name}-{token}"


def queue(book: Sweep) -> dict[str, tuple[str, str]]:
    """The runs that SLURM has -> job and state, by one look at the queue.

    A submission without a job (its `sweep.py` was killed) is found by its name, or given up.
    """
    submissions = book.submissions()
    if not submissions:
        return {}
    listing = ask(["squeue", "--me", "--noheader", "--array", "--format=%i|%T|%j|%r"])
    lines = [line.split("|") for line in listing.splitlines()]
    states = {job: state for job, state, _, reason in lines if reason != "DependencyNeverSatisfied"}
    by_name = {name: job.split("_")[0] for job, _, name, _ in lines}
    found: dict[str, tuple[str, str]] = {}
    for one in submissions:
        number = one["job"] or by_name.get(job_name(book, one["token"]))
        if number is None:
            continue
        several = len(one["runs"]) > 1
        for place, run in enumerate(one["runs"]):
            job = f"{number}_{place}" if several else number
            if job in states:
                found[run] = (job, states[job])
    return found


def settle(book: Sweep) -> None:
    """Write down the jobs of submissions that a killed `sweep.py` left without one; those that
    SLURM never had are removed. While a sweep is held."""
    unsettled = [one for one in book.submissions() if one["job"] is None]
    if not unsettled:
        return
    listing = ask(["squeue", "--me", "--noheader", "--format=%A|%F|%j"])
    by_name = {name: array for _, array, name in (line.split("|") for line in listing.splitlines())}
    for one in unsettled:
        file = book.folder / "submissions" / f"{one['token']}.json"
        if job := by_name.get(job_name(book, one["token"])):
            write_json(file, {**one, "job": job})
        else:  # never there, or over: what its runs said and made is in their own files
            file.unlink()


def active(book: Sweep) -> dict[str, str]:
    """The runs that SLURM has: `pending` or `running`."""
    return {
        run: "running" if state in RUNNING else "pending" for run, (_, state) in queue(book).items()
    }


def cancel(book: Sweep, runs: Iterable[str]) -> None:
    """Take runs out of the queue; those that run are told to save and end."""
    there = queue(book)
    jobs = [there[run][0] for run in runs if run in there]
    for start in range(0, len(jobs), 200):
        ask(["scancel", *jobs[start : start + 200]])
