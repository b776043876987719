"""The part `resume` of `benchmarks/gpu.py`: ZeRO-3 in one process, killed and resumed.

By the real command line, on the synthetic hospital of `experiment=smoke`, with a checkpoint after
every step. Needs what training needs: hydra, polars, datasets, Lightning, DeepSpeed.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.measure import ROOT

NEEDED = ("hydra", "pydantic", "polars", "datasets", "pytorch_lightning", "deepspeed")
STEPS, KILLED_AFTER = 12, 3
SECONDS = 60
"""To wait for the first steps."""

TOLERANCE = 1e-5
"""Relative tolerance of losses: a GPU does not always sum the same numbers in the same order."""


def killed_and_resumed() -> dict[str, Any]:
    """Losses of a run that was killed against those of one that was not."""
    if lacking := [name for name in NEEDED if find_spec(name) is None]:
        return {"left_out": f"not installed: {', '.join(lacking)}"}
    with tempfile.TemporaryDirectory() as folder:
        common = ["experiment=smoke", f"output_root={folder}", "logger=[]"]
        command_line([*common, "stage=prepare"])
        adapt = ["stage=adapt", "trainer=zero3", "trainer.devices=1"]
        adapt += [f"adapt.max_steps={STEPS}", "adapt.save_seconds=0"]
        whole, killed = ([*common, *adapt, f"variant={name}"] for name in ("whole", "killed"))
        command_line(whole)
        log = Path(folder) / "smoke" / "killed" / "adapt" / "train.jsonl"
        before = kill(killed, log)
        command_line(killed)
        resumed = losses(log)
        expected = losses(Path(folder) / "smoke" / "whole" / "adapt" / "train.jsonl")
    worst = max(abs(a / b - 1) for a, b in zip(resumed, expected, strict=True))
    return {
        "steps_before": before,
        "steps": len(resumed),
        "worst_relative": worst,
        "ok": before < STEPS and worst < TOLERANCE,
    }


def command_line(arguments: list[str]) -> None:
    """Run `run.py` to its end."""
    subprocess.run([sys.executable, "run.py", *arguments], cwd=ROOT, check=True)


def kill(arguments: list[str], log: Path) -> int:
    """Start a run, kill it after some steps; return how many lines its log then has."""
    process = subprocess.Popen(
        [sys.executable, "run.py", *arguments], cwd=ROOT, start_new_session=True
    )
    until = time.monotonic() + SECONDS
    while time.monotonic() < until and process.poll() is None and len(losses(log)) < KILLED_AFTER:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return len(losses(log))


def losses(log: Path) -> list[float]:
    """The losses that a log has; a line that is being written does not count."""
    if not log.exists():
        return []
    lines = log.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line)["loss"] for line in lines]
