"""A run that is killed again and again ends as the one that was not; Ctrl-C at work."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ehrr1.runs.catalog import INPUTS, OPTIONAL_INPUTS
from tests.conftest import ROOT, CommandLine, StartCommand

ROUNDS = 20
SETTINGS = (
    "experiment=smoke", "stage=adapt", "adapt.max_steps=400", "adapt.epochs=20",
    "adapt.trees_per_step=4", "adapt.save_seconds=0",
    "adapt.eval_every=30", "trainer.save_top_k=2",
)  # fmt: skip


def test_twenty_kills_lose_nothing(smoke: Path, tmp_path: Path, command_line: CommandLine) -> None:
    """Checkpoints are written all the time, so that some kills fall into the writing of one."""
    given = [*SETTINGS, f"inputs.prepare={smoke / 'prepare'}", f"output_root={tmp_path}"]
    killed = subprocess.run(
        [sys.executable, "-m", "tests.killed_runs", str(ROUNDS), *given, "variant=killed"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert killed.returncode == 0, killed.stderr[-3000:]
    kills = [json.loads(line) for line in killed.stdout.splitlines()]
    assert len(kills) == ROUNDS
    steps = [kill["step"] for kill in kills]
    assert steps == sorted(steps) and steps[-1] > 0
    assert any(kill["partial"] for kill in kills), "no kill fell into the writing of a checkpoint"
    assert command_line(*given, "variant=whole").returncode == 0
    folder = tmp_path / "killed" / "killed" / "adapt"
    found, expected = (
        [json.loads(line) for line in (path / "train.jsonl").read_text().splitlines()]
        for path in (folder, tmp_path / "smoke" / "whole" / "adapt")
    )
    for name in ("step", "loss", "lr", "grad_norm", "tokens", "samples"):
        assert [line[name] for line in found] == [line[name] for line in expected], name
    # every process went on from a checkpoint that was there, and from the newest
    begun = {line["resumed_from"] for line in found}
    assert begun <= {0, *steps}
    assert found[-1]["resumed_from"] == steps[-1]
    assert not list((folder / "checkpoints").glob(".step=*"))
    # and kept the same checkpoints, for the same reasons
    for place in (folder, tmp_path / "smoke" / "whole" / "adapt"):
        best = json.loads((place / "checkpoints" / "best.json").read_text())
        lines = [json.loads(line) for line in (place / "eval.jsonl").read_text().splitlines()]
        losses = {line["step"]: line["eval/loss"] for line in lines}
        assert list(losses) == [*range(30, 400, 30), 400]
        expected = sorted(losses, key=lambda step: losses[step])[:2]
        assert [one["step"] for one in best] == expected
        there = {int(path.stem.split("=")[1]) for path in place.glob("checkpoints/step=*.ckpt")}
        assert there == {*expected, 400}


@pytest.mark.parametrize(
    ("stage", "begun", "longer"),
    [
        ("chains", "config.yaml", []),
        ("reason", "train.jsonl", ["reason.epochs=50"]),
        ("rl", "train.jsonl", ["rl.steps=50"]),
        ("eval", "parts", []),
    ],
)
def test_ctrl_c_at_work_is_one_line(
    stage: str, begun: str, longer: list[str], smoke: Path, tmp_path: Path,
    start_command: StartCommand,
) -> None:  # fmt: skip
    """Training saves before it ends; `test_endings` has the stages before."""
    inputs = (*INPUTS[stage], *OPTIONAL_INPUTS.get(stage, ()))
    given = [f"inputs.{name}={smoke / name}" for name in inputs]
    started = start_command(
        "experiment=smoke", f"stage={stage}", f"output_root={tmp_path}", *given, *longer
    )
    folder = tmp_path / "smoke" / stage
    while not (folder / begun).exists():
        assert started.poll() is None, started.said()
        time.sleep(0.02)
    started.send_signal(signal.SIGINT)
    assert started.wait() == 130
    last = started.said().splitlines()[-1]
    assert re.match(r"run\.py: (interrupted by Ctrl-C|stopped by SIGINT after \d+ steps)", last)
    assert "Traceback" not in started.said() and not (folder / "metrics.json").exists()
