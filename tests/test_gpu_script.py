"""benchmarks/gpu.py runs to its end on a CPU, and needs torch and transformers only."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

BLOCKED = ("polars", "pyarrow", "datasets", "hydra", "omegaconf", "pydantic", "pytorch_lightning")
"""Packages that a machine with a GPU may lack."""


def run(out: Path, *arguments: str, **env: str) -> tuple[int, list[dict[str, Any]]]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", str(out), "--tiny", *arguments],
        cwd=ROOT,
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=400,
    )
    written = json.loads(out.read_text())["parts"]
    assert [json.loads(line) for line in done.stdout.splitlines()] == written, done.stderr
    return done.returncode, written


@pytest.mark.slow
def test_every_part_but_the_command_line_needs_torch_and_transformers_only(tmp_path: Path) -> None:
    for name in BLOCKED:
        (tmp_path / f"{name}.py").write_text("raise ImportError('blocked')\n")
    words = ("machine", "exact", "autocast", "update", "shapes", "rollout")
    code, parts = run(tmp_path / "out.json", "--only", *words, PYTHONPATH=str(tmp_path))
    assert code == 0 and not [part for part in parts if "failed" in part], parts
    found = {part["part"]: part for part in parts}
    assert found["exact sdpa fp32"]["gradient"] < 1e-5
    assert 0 < found["exact sdpa bf16"]["mean_nats"] < 0.1
    for name in ("1.7b sft", "1.7b grpo"):
        ours, theirs = (found[f"update {name} {way}"] for way in ("forest-sdpa", "alone"))
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=0.05)
        assert ours["planned_gib"] > 0 and theirs["samples_per_second"] > 0
    assert "left_out" in found["exact varlen bf16"] and found["rollout"]["tokens_per_second"] > 0


@pytest.mark.slow
def test_a_killed_run_of_zero3_goes_on(tmp_path: Path) -> None:
    code, [part] = run(tmp_path / "out.json", "--only", "resume")
    assert code == 0 and part["ok"] and 3 <= part["steps_before"] < part["steps"], part


def test_a_part_that_ends_its_process_is_told_and_the_next_one_runs(tmp_path: Path) -> None:
    """As an error of CUDA does, which leaves a process unusable."""
    (tmp_path / "prefix_grouper.py").write_text("import os\nos._exit(9)\n")
    words = ("update 1.7b grpo prefix_grouper", "update 1.7b grpo alone")
    code, parts = run(tmp_path / "out.json", "--only", *words, PYTHONPATH=str(tmp_path))
    assert code == 1 and len(parts) == 2
    good, bad = sorted(parts, key=lambda part: "failed" in part)
    assert good["part"] == words[1] and good["seconds"] > 0
    assert bad["part"] == words[0] and "exit code 9" in bad["failed"]
