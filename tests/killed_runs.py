"""Kill a training run at random moments: `python -m tests.killed_runs ROUNDS ARGUMENTS`.

Each round is a process of its own that runs what `run.py ARGUMENTS` runs; it is forked from this
one, which has imported everything and computed nothing, so that a round takes a second and not ten.
It is killed (SIGKILL) at a random moment, every other time as soon as a checkpoint is written.
After ROUNDS kills the run is left to end. Prints, as JSON lines, the steps of the checkpoint that
was there after each kill, and the partial ones beside it.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from ehrr1.runs import home
from ehrr1.stages import execute
from ehrr1.training.checkpoints import last_checkpoint
from tests.settings import composed


def main() -> None:
    rounds, arguments = int(sys.argv[1]), sys.argv[2:]
    cfg = composed(*arguments, "name=killed")
    folder = home(cfg) / cfg.stage
    generator = random.Random(0)
    kills = 0
    while kills < rounds:
        steps = lines(folder)
        child = os.fork()
        if child == 0:
            execute(cfg)
            os._exit(0)
        wait_for_more(folder, steps, generator.uniform(0.0, 0.6))
        if kills % 2:
            wait_for_writing(folder / "checkpoints")
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            raise SystemExit(f"the run ended before it could be killed: status {status}")
        kills += 1
        _, step = last_checkpoint(folder / "checkpoints")
        partial = [path.name for path in (folder / "checkpoints").glob(".step=*")]
        print(json.dumps({"step": step, "lines": lines(folder), "partial": partial}), flush=True)
    execute(cfg)


def lines(folder: Path) -> int:
    log = folder / "train.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def wait_for_more(folder: Path, before: int, seconds: float) -> None:
    """Until the run has logged something new, and so many seconds more."""
    log, deadline = folder / "train.jsonl", time.monotonic() + 60
    begun = log.stat().st_mtime_ns if log.exists() else 0
    while time.monotonic() < deadline:
        if log.exists() and log.stat().st_mtime_ns > begun and lines(folder):
            break
        time.sleep(0.005)
    time.sleep(seconds)


def wait_for_writing(checkpoints: Path) -> None:
    deadline = time.monotonic() + 5
    while not any(checkpoints.glob(".step=*")) and time.monotonic() < deadline:
        pass


if __name__ == "__main__":
    main()
