"""A fault of the machine is one line with its cause, whichever library meets it."""

import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch

from ehrr1 import errors, limits, locks, runs
from ehrr1.damage import DamagedError, reading
from ehrr1.errors import UserError, machine_fault
from tests.conftest import ROOT
from tests.test_runs import settings

WRITERS = """
import json, resource, sqlite3, sys
import polars as pl, pyarrow.parquet as parquet, torch
from pathlib import Path
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import BPE
from ehrr1.errors import machine_fault

folder, rows = Path(sys.argv[1]), pl.DataFrame({"x": list(range(100_000))})
words = {str(n): n for n in range(10_000)}

def database(path):
    with sqlite3.connect(path) as rows:
        rows.execute("CREATE TABLE x (y BLOB)")
        rows.execute("INSERT INTO x VALUES (zeroblob(1000000))")

writers = {
    "text": lambda path: path.write_text("x" * 100_000),
    "polars": rows.write_parquet,
    "polars, as a stream": rows.lazy().sink_parquet,
    "arrow": lambda path: parquet.write_table(rows.to_arrow(), str(path)),
    "safetensors": lambda path: save_file({"x": torch.zeros(100_000)}, path),
    "tokenizers": lambda path: Tokenizer(BPE(words, [])).save(str(path)),
    "sqlite": database,
}
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
told = {}
for name, write in writers.items():
    try:
        write(folder / name)
    except Exception as error:
        told[name] = machine_fault(error)
print(json.dumps(told))
"""
"""Has libraries write more than a file may have, and tells what is said of their errors."""


def test_a_full_disk_is_told_whoever_writes(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITERS, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert len(told) == 7
    for name, line in told.items():
        assert line and "output_root=DIR" in line and "\n" not in line, name
        assert name == "sqlite" or "File too large" in line, name


HOLDERS: dict[str, Callable[[], object]] = {
    "python": lambda: bytearray(1 << 60),
    "numpy": lambda: np.ones(1 << 50),
    "torch": lambda: torch.empty(1 << 50),
    "arrow": lambda: pa.allocate_buffer(1 << 60),
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_missing_memory_is_told_whoever_asks_for_it(holder: str) -> None:
    with pytest.raises((MemoryError, RuntimeError)) as error:
        HOLDERS[holder]()
    told = machine_fault(error.value)
    assert told is not None and "not enough memory" in told and "\n" not in told


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.EDQUOT, "output_root=DIR"),
        (errno.EROFS, "output_root=DIR"),
        (errno.EACCES, "permissions are missing"),
        (errno.EMFILE, "ulimit -n"),
        (errno.ENOMEM, "not enough memory"),
        (errno.EAGAIN, "ulimit -u"),
        (errno.ESTALE, "the disk or its server fails"),
    ],
)
def test_what_helps_is_told(number: int, remedy: str) -> None:
    told = machine_fault(OSError(number, os.strerror(number), "/a/b"))
    assert told is not None and told.startswith(f"/a/b: {os.strerror(number)}: ")
    assert remedy in told and told.endswith("The same command resumes")


def test_full_shared_memory_is_told_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(errors, "SHARED_MEMORY", str(tmp_path))
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for free, told in ((0, "--shm-size"), (errors.SHARED_MEMORY_BYTES, "output_root=DIR")):
        monkeypatch.setattr(errors.shutil, "disk_usage", lambda _, n=free: SimpleNamespace(free=n))
        line = machine_fault(full)
        assert line is not None and told in line
        assert line.startswith(f"{tmp_path if free == 0 else 'the run folder'}: No space left")
        named = machine_fault(OSError(*full.args, "/a/b"))
        assert named is not None and named.startswith("/a/b: ") and "output_root=DIR" in named


@pytest.mark.parametrize("error", [KeyError(28), RuntimeError("shapes"), FileNotFoundError(2, "x")])
def test_a_bug_is_no_fault_of_the_machine(error: Exception) -> None:
    assert machine_fault(error) is None


def test_missing_memory_is_no_damage_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "rows.arrow").write_text("whole")
    for error in (pa.ArrowMemoryError("malloc"), pa.ArrowInvalid("mmap failed: [errno 12]")):
        with pytest.raises(type(error)), reading(tmp_path / "rows.arrow", pa.ArrowException):
            raise error
    with pytest.raises(DamagedError), reading(tmp_path / "rows.arrow", pa.ArrowException):
        raise pa.ArrowInvalid("not an Arrow file")


def test_a_file_system_without_locks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(locks.fcntl, "flock", no_locks)
    with (
        pytest.raises(UserError, match=r"prepare\.lock: its file system has no locks .*-o flock"),
        runs.opened(settings(tmp_path), "prepare"),
    ):
        pass


def limited(name: int, value: int, *words: str) -> subprocess.CompletedProcess[str]:
    """`python run.py WORDS` with a limit of the system."""
    return subprocess.run(
        [sys.executable, "run.py", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(name, (value, value)),
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit", "value", "cause"),
    [(resource.RLIMIT_FSIZE, 20_000, "File too large"), (resource.RLIMIT_NOFILE, 24, "ulimit -n")],
)
def test_limits_of_the_system_are_one_line(
    limit: int, value: int, cause: str, tmp_path: Path
) -> None:
    given = ["experiment=smoke", "stage=prepare", "data.subjects=12", f"output_root={tmp_path}"]
    done = limited(limit, value, *given)
    assert done.returncode == 2, done.stderr[-2000:]
    assert cause in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
    whole = subprocess.run([sys.executable, "run.py", *given], cwd=ROOT, capture_output=True)
    assert whole.returncode == 0


@pytest.mark.parametrize(
    ("stage", "limit"),
    [
        ("prepare", 600_000 << 10),
        ("prepare", limits.LEAST_BYTES - 1),
        ("adapt", limits.LEAST_OF_MODELS_BYTES - 1),
        ("curriculum", limits.LEAST_BYTES),
    ],
)
def test_too_few_addresses_are_refused_at_once(stage: str, limit: int, tmp_path: Path) -> None:
    done = limited(
        resource.RLIMIT_AS, limit, "experiment=smoke", f"stage={stage}", f"output_root={tmp_path}"
    )
    assert done.returncode == 2, done.stderr[-2000:]
    [line] = done.stderr.splitlines()
    assert line.startswith(f"run.py: ulimit -v {limit // 1024}: stage={stage} needs at least ")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_least_addresses_are_enough_for_a_small_run(tmp_path: Path) -> None:
    given = ["experiment=smoke", "data.subjects=12", "adapt.max_steps=1", f"output_root={tmp_path}"]
    for stage, least in (
        ("prepare", limits.LEAST_BYTES),
        ("adapt", limits.LEAST_OF_MODELS_BYTES),
    ):
        done = limited(resource.RLIMIT_AS, least, f"stage={stage}", *given)
        assert done.returncode == 0, done.stderr[-2000:]
