"""Sweeps on a real SLURM of this machine."""

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import ROOT
from tests.test_processes import ARGUMENTS, STRATEGIES, assert_same_trajectory
from tests.test_sweeps import begin, sweep, told, wait

SMALL = [
    *("launcher=slurm", "launcher.cpus_per_task=1"),
    "launcher.setup=['export OMP_NUM_THREADS=1']",
]


def ask(slurm: dict[str, str], *command: str) -> str:
    return subprocess.run(
        command, env=os.environ | slurm, capture_output=True, text=True, check=True
    ).stdout


def losses(folder: Path) -> list[Any]:
    lines = (folder / "train.jsonl").read_text().splitlines()
    return [(json.loads(line)["step"], json.loads(line)["loss"]) for line in lines]


def curve(folder: Path) -> list[int]:
    """The steps of TensorBoard's loss: each once, also where a stopped run did them again."""
    events = EventAccumulator(str(folder / "tb")).Reload()
    return [one.step for one in events.Scalars("train/loss")]


def until(root: Path, name: str, step: int, slurm: dict[str, str]) -> str:
    """The folder of the one run of a sweep, once it has done so many steps."""
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        (one,) = told(root, name, **slurm)
        if (one["step"] or 0) >= step:
            return str(one["folder"])
        time.sleep(1)
    raise AssertionError(told(root, name, **slurm))


def test_a_grid_of_two_by_three_whose_sweep_is_killed_as_it_submits(
    slurm: dict[str, str], tmp_path: Path
) -> None:
    """Killed at any moment and called again, each run is there once."""
    arguments = [
        *("experiment=smoke", "stage=prepare", "data.subjects=5,6,7", "data.window_hours=24,48"),
        *("name=grid", f"output_root={tmp_path}", *SMALL),
    ]
    command = [sys.executable, str(ROOT / "sweep.py"), *arguments]
    for seconds in (1.0, 1.5, 2.0):
        process = subprocess.Popen(command, env=os.environ | slurm, stderr=subprocess.DEVNULL)
        time.sleep(seconds)
        process.kill()
        process.wait()
    begin(*arguments, **slurm)
    over = wait(tmp_path, "grid", **slurm)
    assert list(over.values()) == ["done"] * 6, told(tmp_path, "grid", **slurm)
    begun = [
        line for log in (tmp_path / "sweeps" / "grid" / "logs").iterdir() for line in said(log)
    ]
    assert len(begun) == 6, begun


def test_every_part_of_the_batch_script_is_quoted(tmp_path: Path) -> None:
    """A shell reads back the interpreter and the sweep's folder as they are."""
    pytest.importorskip("submitit")
    from ehrr1.sweeps.slurm import worker_command
    from ehrr1.sweeps.state import Sweep

    folder = tmp_path / """it's "a" $HOME `b`"""
    bash, flag, line = shlex.split(worker_command(Sweep(folder), "t0"))
    worker = [sys.executable, "-u", "-m", "ehrr1.sweeps.worker", str(folder), "--submission", "t0"]
    assert (bash, flag) == ("bash", "-c")
    assert shlex.split(line) == ["trap", "", "USR1;", "exec", *worker]


def test_a_folder_with_blanks_and_quotes(slurm: dict[str, str], tmp_path: Path) -> None:
    root = tmp_path / "it's a folder"
    given = ["experiment=smoke", "stage=prepare", "data.subjects=3,4", f"output_root={root}"]
    begin(*given, "name=quoted", *SMALL, **slurm)
    assert list(wait(root, "quoted", **slurm).values()) == ["done"] * 2, told(
        root, "quoted", **slurm
    )


def said(log: Path) -> list[str]:
    """Where a run said that it began."""
    return [line for line in log.read_text().splitlines() if line.startswith("prepare ->")]


def test_a_failing_link_stops_what_waits_for_it(
    slurm: dict[str, str], smoke: Path, tmp_path: Path
) -> None:
    given = [f"inputs.prepare={smoke}/prepare", f"output_root={tmp_path}", "name=broken"]
    # a learning rate at which the loss is not a number ends the run
    begin("experiment=smoke", "stage=adapt,eval", "adapt.lr=1e30,1e-3", *given, *SMALL, **slurm)
    over = wait(tmp_path, "broken", **slurm)
    notes = {one["run"]: one["note"] for one in told(tmp_path, "broken", **slurm)}
    failed = [run for run, state in over.items() if state == "failed"]
    assert len(failed) == 2 and "not started" in notes[failed[1]], (over, notes)
    assert list(over.values()).count("done") == 2


def test_two_tasks_are_one_group(slurm: dict[str, str], smoke: Path, tmp_path: Path) -> None:
    """They are srun's, and take the steps of a single process."""
    given = [f"inputs.prepare={smoke}/prepare", f"output_root={tmp_path}", "name=two"]
    begin(*ARGUMENTS, "stage=adapt", *given, *STRATEGIES["zero2"], *SMALL, **slurm)
    assert set(wait(tmp_path, "two", **slurm).values()) == {"done"}
    (one,) = told(tmp_path, "two", **slurm)
    assert_same_trajectory(Path(one["folder"]))
    parts = next(Path(one["folder"], "checkpoints").glob("step=*.ckpt"))
    assert len(list(parts.rglob("*optim_states.pt"))) == 2  # each has its share


def test_a_stopped_job_goes_on_as_if_it_had_not_stopped(
    slurm: dict[str, str], smoke: Path, tmp_path: Path
) -> None:
    """One that is preempted, and later meets its time limit."""
    given = [f"inputs.prepare={smoke}/prepare", "experiment=smoke", "stage=adapt"]
    steps = ["adapt.epochs=3", "adapt.trees_per_step=4", "adapt.save_seconds=1"]
    # a job that meets its limit is told after 20 to 50 seconds; these steps take 70 at least
    limit = ["launcher.minutes=1", "launcher.signal_seconds=10"]
    slow = "+callbacks.slow={_target_: tests.slow_steps.SlowSteps, seconds: 0.5}"
    begin(*given, *steps, *SMALL, *limit, slow, f"output_root={tmp_path}", "name=stopped", **slurm)
    step, requeued = 0, False
    while not requeued:  # it may meet its limit just now, and be waiting
        step += 3
        folder = Path(until(tmp_path, "stopped", step, slurm))
        job = ask(slurm, "squeue", "-h", "-o", "%i").split()[0]
        command = ["scontrol", "requeue", job]
        requeued = subprocess.run(command, env=os.environ | slurm).returncode == 0
    begin(*given, *steps, "launcher=local", f"output_root={tmp_path}/whole", "name=whole")
    assert set(wait(tmp_path, "stopped", 500, **slurm).values()) == {"done"}
    lines = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    assert len({line["resumed_from"] for line in lines}) > 2, "it was not stopped twice"
    assert set(wait(tmp_path / "whole", "whole").values()) == {"done"}
    (one,) = told(tmp_path / "whole", "whole")
    assert losses(folder) == losses(Path(one["folder"]))
    assert curve(folder) == [step for step, _ in losses(folder)]


def test_hydras_own_launcher_runs_single_devices(
    slurm: dict[str, str], smoke: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "run.py"), "-m", "hydra/launcher=slurm", *SMALL),
            *("experiment=smoke", "stage=adapt", f"inputs.prepare={smoke}/prepare"),
            *("adapt.max_steps=2", "seed=1,2", f"output_root={tmp_path}"),
        ],
        capture_output=True,
        text=True,
        env=os.environ | slurm,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = {path.parts[-3] for path in tmp_path.glob("smoke/*/adapt/metrics.json")}
    assert found == {"seed=1", "seed=2"}


def test_an_unknown_partition_is_named(slurm: dict[str, str], tmp_path: Path) -> None:
    done = sweep(
        *("experiment=smoke", "stage=prepare", "seed=1,2", "launcher.partition=moon", *SMALL),
        f"output_root={tmp_path}",
        **slurm,
    )
    assert done.returncode == 2 and "launcher.partition=moon" in done.stderr
    assert "main" in done.stderr and not (tmp_path / "sweeps").exists()
