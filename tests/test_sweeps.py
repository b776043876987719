"""Sweeps by the real command line: on this machine, and on a real SLURM (test_slurm_sweeps.py)."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.conftest import ROOT


def sweep(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python sweep.py ARGUMENTS`, as a user types it."""
    return subprocess.run(
        [sys.executable, str(ROOT / "sweep.py"), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | environment,
    )


def told(root: Path, name: str, **environment: str) -> list[dict[str, Any]]:
    done = sweep("status", name, f"output_root={root}", "--json", **environment)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def states(root: Path, name: str, **environment: str) -> dict[str, str]:
    return {one["run"]: one["state"] for one in told(root, name, **environment)}


def wait(root: Path, name: str, seconds: float = 400, **environment: str) -> dict[str, str]:
    """The states when nothing waits or runs any more."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = states(root, name, **environment)
        if not {"pending", "running"} & set(found.values()):
            return found
        time.sleep(1)
    raise AssertionError(f"not over after {seconds} s: {told(root, name, **environment)}")


def begin(*arguments: str, **environment: str) -> None:
    done = sweep(*arguments, **environment)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def world(smoke: Path, tmp_path: Path) -> list[str]:
    """Overrides of short `adapt` runs that read a finished curriculum's records."""
    return [
        *("experiment=smoke", "stage=adapt", f"inputs.prepare={smoke}/prepare"),
        *("adapt.max_steps=2", f"output_root={tmp_path}"),
    ]


def test_a_grid_with_a_failing_run_and_what_resume_and_compare_make_of_it(
    smoke: Path, world: list[str], tmp_path: Path
) -> None:
    broken = tmp_path / "smoke" / "adapt.max_steps=2-seed=2"
    broken.parent.mkdir()
    broken.write_text("a file where the run's folder must be")
    chain = ["stage=adapt,eval", "eval.models=[adapt]", "seed=1,2", "adapt.lr=1e-3,1e-2"]
    begin(*world, *chain, "launcher.parallel=2", "name=grid")
    found = told(tmp_path, "grid")
    assert len(found) == 8 and {one["state"] for one in found} <= {"pending", "running", "done"}
    over = wait(tmp_path, "grid")
    assert list(over.values()).count("done") == 6
    assert list(over.values()).count("failed") == 2
    notes = {one["run"]: one["note"] for one in told(tmp_path, "grid")}
    first, waiting = [run for run, state in over.items() if state == "failed"]
    assert "exit code" in notes[first]
    assert f"not started: {first} is failed" in notes[waiting]
    assert sweep("logs", "grid", first, f"output_root={tmp_path}").stdout.strip()

    broken.unlink()
    begin("resume", "grid", f"output_root={tmp_path}")
    assert set(wait(tmp_path, "grid").values()) == {"done"}
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("metrics.json")}
    begin(*world, *chain, "name=grid")  # finished: nothing is run again
    assert set(wait(tmp_path, "grid").values()) == {"done"}
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("metrics.json")}

    done = sweep("compare", "grid", f"output_root={tmp_path}", "metric=risk/log_loss/macro")
    assert done.returncode == 0, done.stderr
    table = pl.read_csv(tmp_path / "sweeps" / "grid" / "compare.csv")
    assert table.height == 2 and set(map(str, table["adapt.lr"])) == {"0.001", "0.01"}
    assert all("(n=2)" in cell for cell in table["risk/log_loss/macro"])
    assert "[" in table["minus the best"][1]
    assert "best: " in done.stdout
    one, _, other, _ = [run for run in over if run.endswith("adapt")]
    done = sweep("compare", "grid", one, other, f"output_root={tmp_path}")
    assert done.returncode == 0 and "| seed | 1 | 2 |" in done.stdout, done.stdout


def test_a_killed_supervisor_and_killed_runs_lose_nothing(world: list[str], tmp_path: Path) -> None:
    arguments = [*world, "seed=1,2,3", "launcher.parallel=2", "name=killed"]
    begin(*arguments)
    deadline = time.monotonic() + 60
    while "running" not in states(tmp_path, "killed").values():
        assert time.monotonic() < deadline
        time.sleep(0.2)
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = line.read_bytes().replace(b"\0", b" ")
        except OSError:
            continue
        if str(tmp_path / "sweeps" / "killed").encode() in command:
            os.kill(int(line.parent.name), signal.SIGKILL)
    time.sleep(1)
    found = told(tmp_path, "killed")
    assert any("killed?" in one["note"] for one in found)
    assert any("resume" in one["note"] for one in found if one["state"] == "pending")
    begin("resume", "killed", f"output_root={tmp_path}")
    assert set(wait(tmp_path, "killed").values()) == {"done"}


def test_cancelled_runs_save_and_go_on(world: list[str], tmp_path: Path) -> None:
    begin(*world[:3], world[4], "adapt.max_steps=400", "seed=1,2", "name=stopped")
    deadline = time.monotonic() + 90
    while not any(one["step"] for one in told(tmp_path, "stopped")):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    begin("cancel", "stopped", f"output_root={tmp_path}")
    assert set(states(tmp_path, "stopped").values()) == {"cancelled"}
    done = sweep("clean", "stopped", f"output_root={tmp_path}")
    if done.returncode:  # the one at work is still saving
        assert "under way" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["status", "nothing"], "no sweep of that name"),
        (["status"], "which sweep?"),
        (["stage=adapt", "experiment=smoke", "seed=1,2"], "needs 'prepare'"),
        (["stage=prepare", "data.subjects=5,6", "launcher=slurm"], "there is no SLURM here"),
        (["stage=prepare", "data.subjects=5,x"], "data.subjects=x"),
    ],
)
def test_wrong_commands_are_one_line(tmp_path: Path, arguments: list[str], complaint: str) -> None:
    done = sweep(*arguments, f"output_root={tmp_path}", PATH=str(Path(sys.executable).parent))
    assert done.returncode == 2 and complaint in done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("sweep.py: ")
    assert not (tmp_path / "sweeps").exists()
