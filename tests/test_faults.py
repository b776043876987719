"""A run that is killed again and again ends as the one that was not."""

import json
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT, CommandLine

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
