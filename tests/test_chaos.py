"""A short chaos run by its command: the first two tries are a swap and a batch of damages."""

import subprocess
import sys
from pathlib import Path

import pytest

from ehrr1.files import read_json, write_json
from tests.conftest import ROOT


@pytest.mark.slow
def test_a_short_chaos_run_loses_nothing_and_adds_up(tmp_path: Path) -> None:
    earlier = {"swaps": {"tries": 2, "kills": 5}}
    write_json(tmp_path / "counts.json", {"kill": earlier, "next": 9, "wrong": [], "minutes": 1.0})
    command = [sys.executable, "-m", "benchmarks.chaos", str(tmp_path), "--minutes", "0.2"]
    given = ["--kinds", "kill,damage", "--seed", "4"]
    done = subprocess.run([*command, *given], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    counts = read_json(tmp_path / "counts.json")
    assert counts["next"] >= 6 and counts["wrong"] == []
    swaps = counts["kill"]["swaps"]
    assert swaps["tries"] > 2 and swaps["kills"] > 5
    assert f"| swaps | {swaps['tries']} | {swaps['kills']} | 0 | 0 | 0 | 0 |" in done.stdout
    tries = sum(sum(row.values()) for row in counts["damage"].values())
    assert tries >= 28 and f"| all | {tries} |" in done.stdout
    assert not list(tmp_path.glob("try-*"))
    given = ["--kinds", "write", "--seed", "5", "--minutes", "0.01"]
    done = subprocess.run([*command[:4], *given], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    (writer,) = read_json(tmp_path / "counts.json")["write"].values()
    assert writer["tries"] == 1
