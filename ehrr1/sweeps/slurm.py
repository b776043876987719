"""The runs of a sweep as SLURM jobs: runs that wait for the same ones are one array.

submitit writes the batch script. A submission is recorded before SLURM has it, and its job's name
holds its token, so that a `sweep.py` that is killed in between finds the job again.
"""

import shlex
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
    """A submitit executor for a plain command.

    Nothing is pickled, so nothing must be moved to the job after SLURM has it.
    """

    def submit_command(self, command: str, count: int, **parameters: Any) -> str:
        """Submit `count` runs, as an array where they are several, and return the job's number.

        Raises UserError where sbatch refuses them.
        """
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


def refuse_unsafe(book: Sweep, job: dict[str, Any]) -> None:
    """Raise UserError for what a batch script cannot hold: each option is a line of it.

    `launcher.setup` may have several: they are commands of the user's own.
    """
    given = {f"launcher.{name}": job[name] for name in ("partition", "account", "qos")}
    given |= {f"launcher.sbatch.{name}": value for name, value in job["sbatch"].items()}
    given["output_root"] = str(book.folder.resolve())
    problems = [
        f"{name}={value}: an option of sbatch is a single line"
        for name, value in given.items()
        if not (str(value).isprintable() and name.isprintable())
    ]
    if "%" in given["output_root"]:  # SLURM would put the job's number there
        problems.append(f"output_root={given['output_root']}: SLURM reads % in names of logs")
    if problems:
        raise UserError("; ".join(problems))


def ask(command: Sequence[str]) -> str:
    """Return what a SLURM command prints. Raises UserError with its complaint if it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        told = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise UserError(f"launcher=slurm: {command[0]} failed: {told}")
    return done.stdout


def submit(book: Sweep, entries: Sequence[Entry]) -> None:
    """Submit runs, inputs first; jobs depend on the runs in the queue that they read."""
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
    """Submit runs that need the same resources as one job, an array where they are several.

    Returns the job's number.
    """
    token, job = uuid.uuid4().hex[:10], entries[0].job
    refuse_unsafe(book, job)
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
    chosen = {name: value for name, value in parameters.items() if value is not None}
    try:
        jobs = Commands(book.folder / "jobs")
        number = jobs.submit_command(worker_command(book, token), len(entries), **chosen)
    except UserError:
        file.unlink()
        raise
    write_json(file, {**told, "job": number})
    return number


def worker_command(book: Sweep, token: str) -> str:
    """Return the line of the batch script that runs one run of a submission.

    Every part is quoted: paths may have blanks and quotes in them.
    """
    worker = [sys.executable, "-u", "-m", "ehrr1.sweeps.worker", str(book.folder.resolve())]
    run = shlex.join([*worker, "--submission", token])
    # until Python has its own handlers a signal would end it
    return shlex.join(["bash", "-c", f"trap '' USR1; exec {run}"])


def job_name(book: Sweep, token: str) -> str:
    """Return the name of a submission's job in SLURM."""
    return f"{book.folder.name}-{token}"


def queue(book: Sweep) -> dict[str, tuple[str, str]]:
    """Map the runs that SLURM has to their job and state, by one call of `squeue`.

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
    """Record the jobs of submissions that a killed `sweep.py` left without one.

    Submissions that SLURM never had are removed. The caller holds the sweep's lock.
    """
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
    """Map the runs that SLURM has to `pending` or `running`."""
    return {
        run: "running" if state in RUNNING else "pending" for run, (_, state) in queue(book).items()
    }


def cancel(book: Sweep, runs: Iterable[str]) -> None:
    """Remove runs from the queue; those that are running save and end."""
    there = queue(book)
    jobs = [there[run][0] for run in runs if run in there]
    for start in range(0, len(jobs), 200):
        ask(["scancel", *jobs[start : start + 200]])
