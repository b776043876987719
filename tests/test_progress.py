"""Work in several processes: in order, with errors passed on, and nothing left behind."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from ehrr1.errors import UserError
from ehrr1.progress import MAX_TEMPORARY_BYTES, beside, in_processes
from tests.conftest import ROOT


def double(number: int) -> int:
    if number == 13:
        raise UserError("thirteen=13: choose another number")
    return 2 * number


def wait_for_ever(folder: Path) -> None:
    (folder / str(os.getpid())).touch()
    time.sleep(600)


@pytest.mark.parametrize("workers", [1, 2, None])
def test_results_come_in_order_and_errors_come_through(workers: int | None) -> None:
    assert list(in_processes(double, range(5), "doubling", workers)) == [0, 2, 4, 6, 8]
    with pytest.raises(UserError, match="thirteen"):
        list(in_processes(double, [1, 13, 2], "doubling", workers))


def test_what_is_made_beside_comes_with_its_errors() -> None:
    with beside(partial(double, 4)) as eight, beside(partial(double, 13)) as none:
        assert eight.result() == 8
        with pytest.raises(UserError, match="thirteen"):
            none.result()


def test_what_is_made_beside_ends_with_the_work_that_fails(tmp_path: Path) -> None:
    begin = time.monotonic()
    with (
        pytest.raises(UserError, match="given up"),
        beside(partial(wait_for_ever, tmp_path)),
    ):
        while not list(tmp_path.iterdir()):
            time.sleep(0.05)
        raise UserError("given up")
    [child] = tmp_path.iterdir()
    assert not Path(f"/proc/{child.name}/cmdline").exists()
    assert time.monotonic() - begin < 300


def test_a_killed_process_leaves_none_behind(tmp_path: Path) -> None:
    code = "\n".join(
        (
            "from pathlib import Path",
            "from ehrr1.progress import beside, in_processes",
            "from tests.test_progress import wait_for_ever",
            "if __name__ == '__main__':",
            f"    list(in_processes(wait_for_ever, [Path({str(tmp_path)!r})] * 2, 'waiting', 2))",
        )
    )
    script = tmp_path / "script" / "parent.py"
    script.parent.mkdir()
    script.write_text(code)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, script], env=environment)
    children: list[Path] = []
    until = time.monotonic() + 60
    while len(children) < 2 and time.monotonic() < until:
        children = [path for path in tmp_path.iterdir() if path.name.isdigit()]
        time.sleep(0.05)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    alive = [path.name for path in children]
    while alive and time.monotonic() < until:
        alive = [pid for pid in alive if Path(f"/proc/{pid}/cmdline").exists()]
        time.sleep(0.05)
    assert len(children) == 2 and not alive


@pytest.mark.parametrize("beyond", [0, 1, 150])
def test_any_folder_for_temporary_files_will_do(tmp_path: Path, beyond: int) -> None:
    """Also one whose path is too long for the address of a socket, as clusters' may be."""
    folder = tmp_path
    while (rest := MAX_TEMPORARY_BYTES + beyond - len(os.fsencode(folder))) > 0:
        folder /= "t" * min(max(rest - 1, 1), 100)
    folder.mkdir(parents=True, exist_ok=True)
    code = "\n".join(
        (
            "from ehrr1.progress import in_processes",
            "from tests.test_progress import double",
            "if __name__ == '__main__':",
            "    print(list(in_processes(double, [1, 2], 'doubling', 2)))",
        )
    )
    script = tmp_path / "parent.py"
    script.write_text(code)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(folder)}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert done.stdout == "[2, 4]\n", done.stderr[-2000:]
