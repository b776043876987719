"""Kill runs, fill disks and damage files at random: python -m benchmarks.chaos FOLDER --minutes N.

Makes the curriculum of `experiment=smoke` in FOLDER/whole, undisturbed. Then, until the time is
up, a random stage is disturbed in a random way, by the real command line in a forked process:

    kill     SIGKILL before a random change of the file system, or at a random moment, one to
             three times; then the same command runs to its end
    fault    a random change of the file system fails (no space, quota, input/output error); then
             the same command runs to its end
    damage   a random file that the stage reads is damaged (tests/damages.py)

A run that was killed or failed must end with the files of the undisturbed one, byte for byte. A
fault and a damage must be one line and exit code 2. Prints a table of tries and outcomes; what did
not come out as it must is printed with its seed, and the exit code is then 1.
"""

import argparse
import errno
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path

from tests.damages import damages
from tests.file_changes import at_each_change
from tests.forked_commands import become, import_stages

READS = {
    "prepare": (),
    "graph": ("prepare",),
    "chains": ("prepare", "graph"),
    "adapt": ("prepare",),
    "reason": ("prepare", "chains", "adapt"),
    "rl": ("prepare", "reason"),
    "eval": ("prepare", "adapt", "reason", "rl"),
}
"""Stages with the stages whose files they read."""

FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
LARGEST = 2**22
"""Files up to this size in bytes are damaged."""

TRACEBACK = re.compile(r"^Traceback ", re.MULTILINE)
KINDS = ("kill", "fault", "damage")

Disturb = Callable[[], object]


class WrongError(Exception):
    """An outcome that no disturbance may have."""


def arguments_of(stage: str, root: Path, whole: Path | None) -> list[str]:
    """Return the command of a stage that writes to `root` and reads the runs in `whole`."""
    inputs = [] if whole is None else [f"inputs.{name}={whole / name}" for name in READS[stage]]
    return ["experiment=smoke", f"stage={stage}", f"output_root={root}", *inputs]


def forked(arguments: list[str], disturb: Disturb, seconds: float | None = None) -> tuple[int, str]:
    """Run a command in a forked process; return its exit code and what it says on stderr.

    `disturb` is called in the process before the command. After `seconds` it is killed.
    """
    with tempfile.TemporaryFile() as said:
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(said.fileno(), 2)
            disturb()
            code = 1
            try:
                become(str(Path.cwd()), arguments)
                code = 0
            except SystemExit as error:
                code = error.code if isinstance(error.code, int) else int(error.code is not None)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        if seconds is not None:
            time.sleep(seconds)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        said.seek(0)
        return os.waitstatus_to_exitcode(status), said.read().decode(errors="replace")


def apart(act: Callable[[], object]) -> None:
    """Act in a forked process: threads that it starts would hold locks in processes forked later.

    Raises RuntimeError if it fails.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            act()
            code = 0
        finally:
            os._exit(code)
    if os.waitpid(child, 0)[1]:
        raise RuntimeError("a file could not be damaged")


def at_step(number: int, folder: Path, act: Callable[[], object]) -> None:
    """Let this process `act` before its `number`-th change of a file in `folder`."""
    at_each_change(lambda step: act() if step == number else None, folder)


def counting(folder: Path, into: Path) -> None:
    """Let this process write the number of its changes of files in `folder` to `into`."""
    file = os.open(into, os.O_WRONLY | os.O_CREAT)
    at_each_change(lambda step: os.pwrite(file, f"{step:8}".encode(), 0), folder)


def die() -> None:
    """Kill this process."""
    os.kill(os.getpid(), signal.SIGKILL)


def fail() -> None:
    """Fail as a full disk does."""
    number = random.choice(FAULTS)
    raise OSError(number, os.strerror(number))


def files_of(folder: Path) -> dict[str, object]:
    """Return the digests of the files of a run that later stages read, without its settings."""
    listed = json.loads((folder / "manifest.json").read_text())["files"]
    own = ("config.yaml", "environment.txt", "inputs.json")  # they name the folder
    return {name: one for name, one in listed.items() if name not in own}


def ends_as(stage: str, root: Path, whole: Path) -> None:
    """Run a disturbed stage to its end. Raises WrongError if it ends otherwise than undisturbed."""
    code, said = forked(arguments_of(stage, root, whole), lambda: None)
    if code:
        raise WrongError(f"does not go on: exit code {code}: {said[-500:]}")
    there = root / "smoke" / stage
    if not (there / "metrics.json").exists():
        raise WrongError("has no metrics.json")
    found, expected = files_of(there), files_of(whole / stage)
    if differ := [n for n in found.keys() | expected.keys() if found.get(n) != expected.get(n)]:
        raise WrongError(f"other files: {', '.join(sorted(differ)[:5])}")
    beside = [path.name for path in there.parent.iterdir() if path.name.startswith(".")]
    if left := [name for name in beside if not name.endswith(".lock")]:
        raise WrongError(f"left behind: {', '.join(left)}")


def one_line(code: int, said: str) -> None:
    """Raise WrongError unless a command ended with exit code 2 and one line for its error."""
    if TRACEBACK.search(said):
        raise WrongError(f"a traceback: {said[-700:]}")
    if code != 2 or "run.py: " not in said.rstrip("\n").rpartition("\n")[2]:
        raise WrongError(f"exit code {code}: {said[-500:]}")


def kill(stage: str, root: Path, whole: Path, steps: int, seconds: float) -> None:
    """Kill a stage up to three times. Raises WrongError if the next run does not end as it must."""
    given = arguments_of(stage, root, whole)
    for _ in range(random.randint(1, 3)):
        if random.random() < 0.5:
            forked(given, lambda: None, random.uniform(0.05, seconds))
        else:
            forked(given, partial(at_step, random.randint(1, steps), root, die))
    ends_as(stage, root, whole)


def fault(stage: str, root: Path, whole: Path, steps: int, seconds: float) -> None:
    """Let a change of the file system fail. Raises WrongError unless it is told and resumed."""
    number = random.randint(1, steps)
    code, said = forked(arguments_of(stage, root, whole), partial(at_step, number, root, fail))
    if code:  # some changes may fail: what is cleaned up then stays
        one_line(code, said)
    ends_as(stage, root, whole)


def damage(stage: str, root: Path, whole: Path, steps: int, seconds: float) -> None:
    """Damage a file that a stage reads. Raises WrongError unless one line refuses it."""
    copied = root / "whole"
    shutil.copytree(whole, copied)
    reader = "graph" if stage == "prepare" else stage  # which reads no run
    source = random.choice(READS[reader])
    names = json.loads((copied / source / "manifest.json").read_text())["files"]
    small = [name for name, one in names.items() if 0 < one["bytes"] <= LARGEST]
    path = copied / source / random.choice(small)
    before = path.read_bytes()
    while path.exists() and path.read_bytes() == before:  # a row turned round is the same
        chosen = random.choice(damages(path))
        apart(partial(chosen.do, path))
    code, said = forked(arguments_of(reader, root, copied), lambda: None)
    try:
        one_line(code, said)
    except WrongError as told:
        raise WrongError(f"{path.relative_to(copied)}, {chosen.name}: {told}") from None
    if str(path) not in said:
        raise WrongError(f"{path.relative_to(copied)}, {chosen.name}: not named: {said[-300:]}")


def undisturbed(root: Path) -> dict[str, tuple[int, float]]:
    """Make the curriculum; return each stage's changes of the file system and its seconds."""
    found = {}
    for stage in READS:
        with tempfile.NamedTemporaryFile() as number:
            begin = time.monotonic()
            own, into = root / "smoke", Path(number.name)
            code, said = forked(arguments_of(stage, root, None), partial(counting, own, into))
            if code:
                raise SystemExit(f"{stage}: {said}")
            found[stage] = int(into.read_text()), time.monotonic() - begin
    return found


def main() -> None:
    """Disturb until the time is up, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import_stages()
    folder = asked.folder.resolve()
    known = undisturbed(folder / "whole")
    deadline = time.monotonic() + 60 * asked.minutes
    tries, failed = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for number in count(asked.seed):
        if time.monotonic() > deadline:
            break
        random.seed(number)
        kind, stage = random.choice(KINDS), random.choice([*READS])
        root = folder / f"try-{number}"
        try:
            {"kill": kill, "fault": fault, "damage": damage}[kind](
                stage, root, folder / "whole" / "smoke", *known[stage]
            )
        except WrongError as told:
            failed[stage, kind] += 1
            print(f"--seed {number}: {kind} {stage}: {told}", file=sys.stderr, flush=True)
        tries[stage, kind] += 1
        shutil.rmtree(root, ignore_errors=True)
    print("| stage | " + " | ".join(f"{kind}: tries, wrong" for kind in KINDS) + " |")
    print("|---" * (1 + len(KINDS)) + "|")
    for stage in READS:
        cells = (f"{tries[stage, kind]}, {failed[stage, kind]}" for kind in KINDS)
        print(f"| {stage} | {' | '.join(cells)} |")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
