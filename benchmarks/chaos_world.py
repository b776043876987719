"""The small curriculum that `benchmarks.chaos` disturbs, and commands in forked processes.

A command takes a second: it is forked from a process that has imported everything and has no
threads (tests/forked_commands.py), the hospital has 16 patients, and each stage makes a few steps.
The processes that a command starts (the baselines of `eval`, the runs of a sweep) are forked too.
"""

import errno
import json
import os
import pickle
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from functools import cache, partial
from multiprocessing import forkserver, get_context, resource_tracker
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from zlib import crc32

from ehrr1 import progress
from ehrr1.config.schema import Config
from ehrr1.stages import execute
from tests.file_changes import at_each_change
from tests.forked_commands import become, import_stages
from tests.settings import composed

Result = TypeVar("Result")

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

SMALL = (
    *(
        "experiment=smoke",
        "data.subjects=16",
        "data.tasks=[labevents,prescriptions,Readmission_30day]",
    ),
    *(
        "graph.samples_per_task=4",
        "graph.validation_samples_per_task=2",
        "chains.samples_per_task=3",
    ),
    *("adapt.samples_per_task=6", "adapt.max_tokens=256", "adapt.trees_per_step=4"),
    *("reason.samples_per_task=6", "reason.max_tokens=320", "reason.trees_per_step=4"),
    *(
        "adapt.save_seconds=0",
        "reason.save_seconds=0",
        "rl.save_seconds=0",
        "rl.samples_per_task=2",
    ),
    *("rl.steps=3", "rl.prompts_per_step=2", "rl.validation_prompts=1", "rl.group_size=2"),
    *("rl.max_prompt_tokens=128", "rl.max_completion_tokens=8", "rl.bootstrap=10", "rl.lr=1e-3"),
    *("+rl.rewards={benchmarks.chaos_world.drawn: 1.0}", "rl.mask_truncated=false"),
    *("eval.models=[rl]", "eval.samples_per_task=1", "eval.untrained_samples_per_task=1"),
    *("eval.max_prompt_tokens=128", "eval.max_new_tokens.think=8", "eval.max_new_tokens.direct=8"),
    *(
        "eval.bootstrap=10",
        "eval.baselines.samples_per_task=4",
        "eval.calibration_samples_per_task=4",
    ),
)
"""The settings of the curriculum: a second a stage."""

FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EIO)

Disturb = Callable[[], object]


class WrongError(Exception):
    """An outcome that no disturbance may have; `kind` is one of lost, doubled, unequal, told."""

    def __init__(self, kind: str, message: str):
        super().__init__(kind, message)  # as it is pickled
        self.kind = kind

    def __str__(self) -> str:
        return ": ".join(map(str, self.args))


class Known(NamedTuple):
    """Changes of the file system and seconds of an undisturbed stage."""

    steps: int
    seconds: float


def drawn(completions: Sequence[str], **more: Any) -> list[float]:
    """Return a reward that differs from completion to completion, so that `rl` learns."""
    return [crc32(completion.encode()) % 8 / 7 for completion in completions]


def arguments_of(stage: str, root: Path, whole: Path | None) -> list[str]:
    """Return the command of a stage that writes to `root` and reads the runs in `whole`."""
    inputs = [] if whole is None else [f"inputs.{name}={whole / name}" for name in READS[stage]]
    return [*SMALL, f"stage={stage}", f"output_root={root}", *inputs]


def forked(
    arguments: list[str],
    disturb: Disturb,
    seconds: float | None = None,
    script: str = "run.py",
) -> tuple[int, str]:
    """Run a command in a forked process; return its exit code and what it says on stderr.

    `disturb` is called in the process before the command. After `seconds` it is killed.
    """
    return in_fork(partial(become, str(Path.cwd()), arguments, script), disturb, seconds)


def in_fork(
    command: Callable[[], object], disturb: Disturb, seconds: float | None
) -> tuple[int, str]:
    """Do what a command does in a forked process, as `forked`."""
    with tempfile.TemporaryFile() as said:
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(said.fileno(), 2)
            be(command, disturb)
        if seconds is not None:
            time.sleep(seconds)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        said.seek(0)
        return os.waitstatus_to_exitcode(status), said.read().decode(errors="replace")


def small(stage: str, root: Path, whole: Path, overwrite: bool) -> Config:
    """Return the configuration of `arguments_of`, composed once for each stage."""
    cfg = _composed(stage)
    inputs = cfg.inputs.model_copy(update={name: str(whole / name) for name in READS[stage]})
    changes = {"output_root": str(root), "inputs": inputs, "overwrite": overwrite}
    return cfg.model_copy(deep=True, update=changes)


@cache
def _composed(stage: str) -> Config:
    return composed(*SMALL, f"stage={stage}", "variant=''")


def started(cfg: Config, disturb: Disturb, seconds: float | None = None) -> tuple[int, str]:
    """Run a stage in a forked process as `forked` does, without composing its configuration."""
    return in_fork(partial(_execute, cfg), disturb, seconds)


def _execute(cfg: Config) -> None:
    sys.argv = [str(Path("run.py").resolve()), *SMALL, f"stage={cfg.stage}"]
    execute(cfg)


def be(command: Callable[[], object], disturb: Disturb) -> None:
    """Be a command from here to its exit."""
    code = 1
    try:
        disturb()
        command()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def apart(act: Callable[[], Result]) -> Result:
    """Return or raise what `act` does in a forked process.

    Threads that it starts would hold locks in processes forked later. Raises ChildProcessError if
    the process dies.
    """
    with tempfile.TemporaryFile() as told:
        child = os.fork()
        if child == 0:
            try:
                found: tuple[bool, Any] = True, act()
            except BaseException as error:
                found = False, error
            told.write(pickle.dumps(found))
            told.flush()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        told.seek(0)
        content = told.read()
    if status or not content:
        raise ChildProcessError(f"a process ended with status {status}")
    fine, value = pickle.loads(content)
    if not fine:
        raise value
    return value


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
    """Return the digests of the files of a run that later stages read.

    Those that name the folder, and metrics, which have seconds, are left out.
    """
    listed = json.loads((folder / "manifest.json").read_text())["files"]
    own = ("config.yaml", "environment.txt", "inputs.json", "metrics.json")
    return {name: one for name, one in listed.items() if name not in own}


def undisturbed(root: Path) -> dict[str, Known]:
    """Make the curriculum; return what each stage took."""
    found = {}
    for stage in READS:
        with tempfile.NamedTemporaryFile() as number:
            begin = time.monotonic()
            own, into = root / "smoke", Path(number.name)
            code, said = forked(arguments_of(stage, root, None), partial(counting, own, into))
            if code:
                raise SystemExit(f"{stage}: {said}")
            found[stage] = Known(int(into.read_text()), time.monotonic() - begin)
    return found


def warm() -> None:
    """Import everything, and start the process from which the pools of commands are forked."""
    import_stages()
    context = get_context("forkserver")
    context.set_forkserver_preload(["ehrr1.stages.eval"])
    resource_tracker.ensure_running()
    forkserver.ensure_running()
    # it is no child of the forked processes that ask it
    setattr(forkserver._forkserver, "ensure_running", lambda: None)  # noqa: B010
    setattr(progress, "get_context", lambda kind: context)  # noqa: B010
