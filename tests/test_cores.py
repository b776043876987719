"""The number of cores to use."""

import os
import subprocess
import sys

import pytest

from ehrr1.cores import cores

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
