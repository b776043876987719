"""Kills of sweeps for `benchmarks.chaos`: of the command, the supervisor, a worker or a run.

The launcher is the local one. The processes that it starts are forked, as the command itself is,
and are otherwise those of a sweep: sessions of their own, which outlive the command.
"""

import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.chaos_kills import KILLED, same
from benchmarks.chaos_world import SMALL, WrongError, at_step, be, die, forked
from ehrr1.locks import flock
from ehrr1.sweeps import local, worker
from ehrr1.sweeps.state import Entry, Sweep
from tests.forked_commands import become

ROLES = {"command": 60, "supervisor": 12, "worker": 8, "run": 40}
"""The processes of a sweep, with about as many changes of the file system as they make."""

PATIENCE_SECONDS = 300
NAME = "swept"

victims: dict[str, Callable[[], object]] = {}
"""What is done to the first process of each role that begins."""


class Forked:
    """A forked process with what a launcher asks of a `subprocess.Popen`."""

    def __init__(self, command: Sequence[str], stdout: Any, **more: Any) -> None:
        self.returncode: int | None = None
        self.process = os.fork()
        if self.process == 0:
            os.setsid()
            os.dup2(stdout.fileno(), 1)
            os.dup2(stdout.fileno(), 2)
            _close_others()
            role, act = _role(command[1:])
            be(act, victims.pop(role, lambda: None))

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        if self.returncode is None:
            self._ended(os.waitpid(self.process, os.WNOHANG))
        return self.returncode

    def wait(self) -> int:
        """Wait for the exit code and return it."""
        if self.returncode is None:
            self._ended(os.waitpid(self.process, 0))
        assert self.returncode is not None
        return self.returncode

    def _ended(self, waited: tuple[int, int]) -> None:
        if waited[0]:
            self.returncode = os.waitstatus_to_exitcode(waited[1])

    def send_signal(self, number: int) -> None:
        """Send a signal to it."""
        if self.poll() is None:
            os.kill(self.process, number)


def _close_others() -> None:
    """Close what a process that is not forked would not have: the locks of its parent."""
    kept = {forkserver._forkserver._forkserver_alive_fd, resource_tracker._resource_tracker._fd}
    for number in map(int, os.listdir("/proc/self/fd")):
        if number > 2 and number not in kept:
            try:
                os.close(number)
            except OSError:  # that of the list itself
                continue


def _role(words: Sequence[str]) -> tuple[str, Callable[[], object]]:
    """Return what a command line of a launcher asks for, and what does it."""
    module, given = words[1], list(words[2:])
    if module == "ehrr1.sweeps.local":
        return "supervisor", lambda: local.supervise(Sweep(Path(given[0])))
    if module == "ehrr1.sweeps.worker":
        return "worker", partial(_worker, given)
    return "run", partial(become, str(Path.cwd()), given)


def _worker(given: list[str]) -> None:
    sys.argv = ["worker", *given]
    sys.exit(worker.main())


def prepared(disturb: Callable[[], object] = lambda: None) -> None:
    """Let a launcher of this process fork, and look often; then disturb."""
    made = SimpleNamespace(Popen=Forked, DEVNULL=None)
    setattr(local, "subprocess", made)  # noqa: B010
    setattr(worker, "subprocess", made)  # noqa: B010
    local.LOOK_SECONDS = 0.05
    disturb()


def command_of(root: Path, whole: Path) -> list[str]:
    """Return the arguments of a sweep of three runs, one of which the two others need."""
    inputs = [f"inputs.prepare={whole / 'prepare'}", f"output_root={root}", f"name={NAME}"]
    return [*SMALL, "stage=graph,chains", "chains.samples_per_task=2,3", *inputs]


def strike(role: str, root: Path, once: Path) -> None:
    """Let the first process of a role be killed before a random change of the file system."""
    step = random.randint(1, ROLES[role])
    disturb = partial(at_step, step, root, partial(_die_once, once))
    if role == "command":
        disturb()
    else:
        victims[role] = disturb


def _die_once(once: Path) -> None:
    if not once.exists():  # the next process of this role was forked with the same disturbance
        once.touch()
        die()


def swept(
    arguments: list[str],
    disturb: Callable[[], object] = lambda: None,
    seconds: float | None = None,
) -> tuple[int, str]:
    """Run a command of `sweep.py`, as `forked` does."""
    return forked(arguments, partial(prepared, disturb), seconds, script="sweep.py")


def quiet(book: Sweep) -> None:
    """Wait until no process of a sweep is left. Raises WrongError after `PATIENCE_SECONDS`."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while local.supervised(book) or any(book.alive(e) or _in_use(e) for e in _entries(book)):
        if time.monotonic() > deadline:
            raise WrongError("stuck", "processes of the sweep do not end")
        time.sleep(0.05)


def _entries(book: Sweep) -> list[Entry]:
    return book.entries() if (book.folder / "sweep.json").exists() else []


def _in_use(entry: Entry) -> bool:
    """Return whether a process works in the folder of a run."""
    folder = Path(entry.folder)
    lock = folder.with_name(f".{folder.name}.lock")
    if not lock.exists():
        return False
    with lock.open("r") as file:
        try:
            flock(file)
        except BlockingIOError:
            return True
    return False


def to_its_end(root: Path, whole: Path) -> None:
    """Repeat the command of a sweep, and resume it until all runs are done.

    Raises WrongError if that does not happen.
    """
    book = Sweep(root / "sweeps" / NAME)
    for arguments in (command_of(root, whole), *[["resume", NAME, f"output_root={root}"]] * 3):
        quiet(book)
        code, said = swept(arguments)
        if code:
            raise WrongError("stuck", f"{arguments[0]}: exit code {code}: {said[-500:]}")
        quiet(book)
        if all(entry.done for entry in book.entries()):
            return
    missing = [f"{entry.run}: {book.state(entry)}" for entry in book.entries() if not entry.done]
    raise WrongError("lost", f"not done: {'; '.join(missing)}")


def finished_at(root: Path) -> dict[Path, int]:
    """Return when each finished run below a folder was finished."""
    return {path: path.stat().st_mtime_ns for path in root.rglob("metrics.json")}


def kill_sweep(root: Path, whole: Path, undisturbed: Path) -> int:
    """Kill a sweep while it is begun, resumed or cleaned; return how often.

    Then the same commands end with the runs of the undisturbed sweep.
    """
    once = root.with_name(f"{root.name}.struck")
    book = Sweep(root / "sweeps" / NAME)
    begin, resume = command_of(root, whole), ["resume", NAME, f"output_root={root}"]
    kills = 0
    for arguments in (begin, resume)[: random.randint(1, 2)]:
        if arguments is resume and not (book.folder / "sweep.json").exists():
            continue
        once.unlink(missing_ok=True)
        if random.random() < 0.25:
            kills += swept(arguments, seconds=random.uniform(0.2, 3.0))[0] == KILLED
        else:
            swept(arguments, partial(strike, random.choice([*ROLES]), root, once))
        quiet(book)
        kills += once.exists()
    before = finished_at(root)
    to_its_end(root, whole)
    if any(finished_at(root)[path] != when for path, when in before.items()):
        raise WrongError("doubled", "a finished run was made again")
    compare(root, undisturbed)
    if random.random() < 0.3:
        kills += kill_clean(root, undisturbed)
    once.unlink(missing_ok=True)
    return kills


def kill_clean(root: Path, undisturbed: Path) -> int:
    """Kill `sweep.py clean`; the sweep is then whole or gone, and its runs are as they were."""
    clean = ["clean", NAME, f"output_root={root}"]
    killed = swept(clean, partial(at_step, random.randint(1, 12), root, die))[0] == KILLED
    if (root / "sweeps" / NAME / "sweep.json").exists():
        code, said = swept(clean)
        if code:
            raise WrongError("stuck", f"clean: exit code {code}: {said[-500:]}")
    compare(root, undisturbed)
    return killed


def compare(root: Path, undisturbed: Path) -> None:
    """Raise WrongError if the runs below a folder are not those of the undisturbed sweep."""
    for metrics in sorted((undisturbed / "smoke").rglob("metrics.json")):
        folder = metrics.parent
        same(root / folder.relative_to(undisturbed), folder)
