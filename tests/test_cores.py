"""Cores, memory and processes, also of systems that are not this one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ehrr1.cores import cores
from ehrr1.models.sizes import memory_bytes
from ehrr1.prompts import dataset

FOUND = "from ehrr1.cores import cores; print(cores())"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_a_job_of_one_core_has_one_core() -> None:
    """Whatever the node has."""
    one = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})"
    command = [sys.executable, "-c", f"{one}; {FOUND}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


def test_a_system_without_affinity_has_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """As macOS."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert cores() == os.cpu_count()


def test_a_system_that_spawns_tokenises_in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """As macOS, where the functions of prompts would have to be sent to other processes."""
    monkeypatch.setattr(dataset, "cores", lambda: 4)
    for method, workers in (("fork", 4), ("spawn", 0)):
        monkeypatch.setattr(dataset, "get_start_method", lambda: method)  # noqa: B023
        assert dataset._workers(1000) == workers


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="nothing to compare with")
def test_memory_is_the_systems() -> None:
    [total] = re.findall(r"MemTotal: +(\d+) kB", Path("/proc/meminfo").read_text())
    assert memory_bytes() == pytest.approx(int(total) * 1024, rel=0.01)
