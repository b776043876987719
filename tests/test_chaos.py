"""A short chaos run by its command: the first two tries are a swap and a batch of damages."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from ehrr1.files import read_json, write_json
from tests.conftest import ROOT

ONE_THREAD = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "POLARS_MAX_THREADS"), "1")


@pytest.mark.slow
def test_a_short_chaos_run_loses_nothing_and_adds_up(tmp_path: Path) -> None:
    earlier = {"swaps": {"tries": 2, "kills": 5}}
    write_json(tmp_path / "counts.json", {"kill": earlier, "next": 9, "wrong": [], "minutes": 1.0})
    command = [sys.executable, "-m", "benchmarks.chaos", str(tmp_path), "--minutes", "0.2"]
    asked = partial(subprocess.run, cwd=ROOT, capture_output=True, text=True, env=ONE_THREAD)
    given = ["--kinds", "kill,damage", "--seed", "4"]
    done = asked([*command, *given])
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
    done = asked([*command[:4], *given])
    assert done.returncode == 0, done.stderr[-3000:]
    (writer,) = read_json(tmp_path / "counts.json")["write"].values()
    assert writer["tries"] == 1
