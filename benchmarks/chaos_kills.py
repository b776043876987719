"""Kills and faults of `benchmarks.chaos`: stages, `overwrite=true`, sweeps, and swaps of folders.

Each function disturbs one thing in a folder of its own, and raises WrongError if it does not end as
it would have undisturbed:

    lost      a run that was finished is gone, or a sweep lacks a run
    doubled   something is left behind, a step is logged twice, or a finished run was made again
    unequal   the files that later stages read are not those of the undisturbed run
    stuck     the same command does not go on
"""

import random
import re
import shutil
import signal
from functools import partial
from pathlib import Path

from benchmarks.chaos_world import (
    Known,
    WrongError,
    apart,
    arguments_of,
    at_step,
    die,
    fail,
    files_of,
    forked,
    small,
    started,
)
from ehrr1 import runs
from ehrr1.damage import check
from ehrr1.files import read_jsonl
from tests import test_swaps as swaps

TRACEBACK = re.compile(r"^Traceback ", re.MULTILINE)
KILLED = -signal.SIGKILL


def steps_of(folder: Path) -> list[int]:
    """Return the steps that a training run has logged."""
    log = folder / "train.jsonl"
    return [row["step"] for row in read_jsonl(log, ("step",))] if log.exists() else []


def left_beside(folder: Path) -> list[str]:
    """Return what is hidden beside and in the folder of a run, but for locks."""
    found = [*folder.parent.glob(".*"), *folder.rglob(".*")]
    return sorted(path.name for path in found if not path.name.endswith(".lock"))


def same(there: Path, undisturbed: Path) -> None:
    """Raise WrongError if a run is not finished, or other than the undisturbed one."""
    if not (there / "metrics.json").exists():
        raise WrongError("lost", f"{there.name} has no metrics.json")
    found, expected = files_of(there), files_of(undisturbed)
    if differ := [n for n in found.keys() | expected.keys() if found.get(n) != expected.get(n)]:
        raise WrongError("unequal", f"other files: {', '.join(sorted(differ)[:5])}")
    if steps_of(there) != steps_of(undisturbed):
        raise WrongError("doubled", f"the steps of train.jsonl are {steps_of(there)}")
    if left := left_beside(there):
        raise WrongError("doubled", f"left behind: {', '.join(left)}")


def ends_as(stage: str, root: Path, whole: Path, *more: str) -> None:
    """Run a disturbed stage to its end. Raises WrongError if it ends otherwise than undisturbed."""
    code, said = forked([*arguments_of(stage, root, whole), *more], lambda: None)
    if code:
        raise WrongError("stuck", f"exit code {code}: {said[-500:]}")
    same(root / "smoke" / stage, whole / stage)


def struck(stage: str, root: Path, whole: Path, known: Known, overwrite: bool = False) -> bool:
    """Kill a stage before a random change of the file system, or at a random moment.

    Returns whether it was killed: it may have ended before.
    """
    cfg = small(stage, root, whole, overwrite)
    if random.random() < 0.5:
        code, _ = started(cfg, lambda: None, random.uniform(0.05, known.seconds / 2))
    else:
        step = random.randint(1, known.steps)
        code, _ = started(cfg, partial(at_step, step, root, die))
    return code == KILLED


def kill(stage: str, root: Path, whole: Path, known: Known) -> int:
    """Kill a stage up to four times; return how often. Then the same command ends as it must."""
    kills = sum(struck(stage, root, whole, known) for _ in range(random.randint(1, 4)))
    ends_as(stage, root, whole)
    return kills


def kill_overwrite(stage: str, root: Path, whole: Path, known: Known) -> int:
    """Kill a stage that replaces a finished run; return how often.

    After each kill the earlier or the new run is there, finished, for the next command.
    """
    there = root / "smoke" / stage
    shutil.copytree(whole / stage, there)
    kills = 0
    for _ in range(random.randint(1, 4)):
        kills += struck(stage, root, whole, known, overwrite=True)
        apart(partial(_settled, there))
        same(there, whole / stage)
    ends_as(stage, root, whole, "overwrite=true")
    return kills


def _settled(folder: Path) -> None:
    """Do what every command that touches a run does first."""
    with runs.held(folder):
        pass


def fault(stage: str, root: Path, whole: Path, known: Known) -> int:
    """Let a change of the file system fail once. It is told in one line, and resumed."""
    number = random.randint(1, known.steps)
    code, said = forked(arguments_of(stage, root, whole), partial(at_step, number, root, fail))
    if code:  # some changes may fail: what is cleaned up then stays
        one_line(code, said)
    ends_as(stage, root, whole)
    return 1


def one_line(code: int, said: str) -> None:
    """Raise WrongError unless a command ended with exit code 2 and one line for its error."""
    if TRACEBACK.search(said):
        raise WrongError("traceback", said[-700:])
    if code != 2 or "run.py: " not in said.rstrip("\n").rpartition("\n")[2]:
        raise WrongError("traceback", f"exit code {code}: {said[-500:]}")


def kill_swap(root: Path) -> int:
    """Kill a process that replaces a run or its hf/, and the commands after it; return how often.

    The runs are those of tests/test_swaps.py, which kills before each single step; here what
    follows a kill is killed too.
    """
    return apart(partial(_kill_swap, root))


def _kill_swap(root: Path) -> int:
    name = random.choice(["hf", *swaps.ACTS])
    stage, act = swaps.ACTS.get(name, ("prepare", swaps.consolidated))
    folder = runs.folder_of(swaps.of(root), stage)
    for one in dict.fromkeys(("prepare", stage)):
        swaps.make(root, one, "old")
    kills = 0
    for _ in range(random.randint(1, 6)):
        kills += swaps.killed_at(random.randint(1, 60), partial(act, root))
        while random.random() < 0.5:
            kills += swaps.killed_at(random.randint(1, 20), partial(_settled, folder))
        _settled(folder)
        if not runs.is_finished(folder):
            raise WrongError("lost", f"{name}: no run is finished")
        # consolidation replaces hf/ alone
        names = _CONTENT[1:] if name == "hf" else _CONTENT
        found = {(folder / one).read_text() for one in names}
        if len(found) > 1:
            raise WrongError("unequal", f"{name}: files of two runs")
        if name != "hf":
            check(folder, full=True)
        if left := [one for one in left_beside(folder) if not one.startswith(".prepare")]:
            raise WrongError("doubled", f"{name}: left behind: {', '.join(left)}")
    return kills


_CONTENT = ("result.txt", "hf/weights", "hf/deeper/tokenizer")
