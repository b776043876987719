"""No kill loses a finished run: a process is killed before every single step on the file system.

A child process, forked from the test, does what a command does. Python tells it of every file that
it opens for writing, renames or deletes, and of every folder that it makes or deletes (audit
events); before the n-th of them it kills itself, for every n. After each kill the next command must
find a finished run, the earlier or the new one, whole, and nothing beside it.
"""

import os
import signal
from collections.abc import Callable, Iterator
from functools import cache
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from ehrr1 import runs
from ehrr1.config.schema import Config
from ehrr1.damage import DamagedError, check, read_manifest
from ehrr1.errors import UserError
from ehrr1.files import replacing, scratch, settle_beside
from ehrr1.sweeps import cli
from ehrr1.sweeps.state import Sweep
from tests.file_changes import at_each_change
from tests.test_runs import settings


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, where `fsync` takes no time: nothing is lost in it by a kill either."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as folder:
        yield Path(folder)


Act = Callable[[], object]


def killed_at(step: int, act: Act) -> bool:
    """Return whether a process that does `act` was killed before its step `step`, from 1 on."""
    child = os.fork()
    if child == 0:
        try:
            kill_before(step)
            act()
        except KeyError:  # the failure of a stage
            pass
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def kill_before(step: int) -> None:
    """Kill this process before its `step`-th change of the file system."""
    at_each_change(lambda now: os.kill(os.getpid(), signal.SIGKILL) if now == step else None)


def write(folder: Path, content: str) -> None:
    """Write a small folder of results, as stages do: single files, and a folder that is swapped."""
    (folder / "result.txt").write_text(content)
    with replacing(folder / "hf") as hf:
        (hf / "deeper").mkdir(parents=True)
        for name in ("weights", "deeper/tokenizer"):
            (hf / name).write_text(content)


def content_of(folder: Path) -> set[str]:
    """The one content of all files of a whole folder that `write` wrote; several if it is mixed."""
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    described = {"config.yaml", "inputs.json", "environment.txt", "manifest.json", "metrics.json"}
    assert names - described == {"result.txt", "hf/weights", "hf/deeper/tokenizer"}
    assert described <= names
    return {(folder / name).read_text() for name in names - described}


@cache
def composed() -> Config:
    return settings(Path("elsewhere"))


def of(root: Path, overwrite: bool = False) -> Config:
    return composed().model_copy(update={"output_root": str(root), "overwrite": overwrite})


def make(
    root: Path, stage: str, content: str, overwrite: bool = False, fails: bool = False
) -> bool:
    """Run a stage; whether it did anything."""
    with runs.opened(of(root, overwrite), stage) as run:
        if run is None:
            return False
        write(run.folder, content)
        if fails:
            raise KeyError(content)
        runs.finish(run, {"content": len(content)})
    return True


def consolidated(root: Path) -> None:
    folder = runs.folder_of(of(root), "prepare")
    with runs.held(folder):
        write(folder, "new")


ACTS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "overwrite": ("prepare", lambda root: make(root, "prepare", "new", overwrite=True)),
    "again": ("audit", lambda root: make(root, "audit", "new")),
    "fails": ("prepare", lambda root: make(root, "prepare", "new", overwrite=True, fails=True)),
}
"""Actions on a finished run: their stage, and how."""


def beside(folder: Path) -> set[str]:
    """Return the names beside a folder, without its own lock."""
    return {path.name for path in folder.parent.iterdir()} - {folder.name, f".{folder.name}.lock"}


def kills(
    root: Path, begin: Callable[[Path], object], act: Callable[[Path], object]
) -> Iterator[Path]:
    """Yield a folder in which `act` was killed at its first step, at its second, and so on."""
    for step in count(1):
        own = root / str(step)
        begin(own)
        if not killed_at(step, lambda own=own: act(own)):
            assert step > 12, "hardly a step was seen"
            return
        yield own


@pytest.mark.parametrize("name", ACTS)
def test_a_finished_run_outlives_every_kill(name: str, tmp_path: Path) -> None:
    stage, act = ACTS[name]

    def begin(root: Path) -> None:
        make(root, "prepare", "old")
        if stage != "prepare":
            make(root, stage, "old")

    outcomes = set()
    for root in kills(tmp_path, begin, act):
        folder = runs.folder_of(of(root), stage)
        there = content_of(folder) if runs.is_finished(folder) else {"old"}
        with runs.held(folder):  # as every command that touches the run
            assert runs.is_finished(folder)
            assert content_of(folder) == there  # what was finished stays
        outcomes |= there
        assert len(there) == 1
        assert not {left for left in beside(folder) if not left.endswith("prepare.lock")} - {
            "prepare"
        }
        if stage == "prepare":
            assert not make(root, stage, "newer")  # it is reported
        assert make(root, stage, "newest", overwrite=True)
        assert content_of(folder) == {"newest"}
    assert outcomes == ({"old"} if name == "fails" else {"old", "new"})


def test_a_first_run_goes_on_after_every_kill(tmp_path: Path) -> None:
    for root in kills(tmp_path, Path.mkdir, lambda root: make(root, "prepare", "new")):
        folder = runs.folder_of(of(root), "prepare")
        done = runs.is_finished(folder)
        assert make(root, "prepare", "next") is not done
        assert content_of(folder) == {"new" if done else "next"}
        assert not beside(folder)


def test_a_folder_that_is_replaced_in_a_finished_run_outlives_every_kill(tmp_path: Path) -> None:
    def again(root: Path) -> None:
        folder = runs.folder_of(of(root), "prepare")
        with runs.held(folder), replacing(folder / "hf") as hf:
            (hf / "deeper").mkdir(parents=True)
            for name in ("weights", "deeper/tokenizer"):
                (hf / name).write_text("new")

    found = set()
    for root in kills(tmp_path, lambda root: make(root, "prepare", "old"), again):
        folder = runs.folder_of(of(root), "prepare")
        with runs.held(folder):
            one, other = (folder / "hf" / name for name in ("weights", "deeper/tokenizer"))
            assert one.read_text() == other.read_text()
            found.add(one.read_text())
            assert {path.name for path in folder.glob(".*")} == set()
    assert found == {"old", "new"}


def test_a_folder_that_is_made_again_is_refused_until_it_is_whole(tmp_path: Path) -> None:
    def again(root: Path) -> None:
        folder = runs.folder_of(of(root), "prepare")
        with runs.held(folder), runs.rewriting(folder, "hf", "make it"):
            write(folder, "new")

    found = set()
    for root in kills(tmp_path, lambda root: make(root, "prepare", "old"), again):
        folder = runs.folder_of(of(root), "prepare")
        with runs.held(folder):
            pass
        if "pending" in read_manifest(folder):
            with pytest.raises(DamagedError, match=r"written anew.* by the command: make it"):
                check(folder)
            again(root)
        (folder / "result.txt").write_text("old")  # `write` writes it too
        check(folder, full=True)
        found.add((folder / "hf" / "weights").read_text())
    assert found == {"old", "new"}


@pytest.mark.parametrize("error", [UserError, KeyError, KeyboardInterrupt])
def test_a_damage_is_not_taken_for_what_was_made_again(
    error: type[BaseException], tmp_path: Path
) -> None:
    make(tmp_path, "prepare", "old")
    folder = runs.folder_of(of(tmp_path), "prepare")
    before = read_manifest(folder)
    (folder / "hf" / "weights").write_text("bad")
    with pytest.raises(error), runs.rewriting(folder, "hf", "make it"):
        raise error("no checkpoint")
    with pytest.raises(DamagedError, match="hf/weights is not as it was written"):
        check(folder, full=True)
    assert read_manifest(folder) == before


def test_what_a_killed_process_left_half_written_is_removed(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        make(tmp_path, "prepare", "half", fails=True)
    folder = runs.folder_of(of(tmp_path), "prepare")
    shard = folder / "store" / ".0003.partial-node7.cluster-4711"  # as version 0.1 named it
    shard.mkdir(parents=True)
    (shard / "rows.arrow").write_text("half")
    (folder / ".index.parquet.partial-0123456789abcdef").write_text("half")
    make(tmp_path, "prepare", "whole")
    assert not list(folder.rglob(".*"))


def test_a_sweep_that_was_half_deleted_is_gone(tmp_path: Path) -> None:
    def begin(root: Path) -> None:
        book = Sweep(root / "sweeps" / "grid.2")
        book.write([], {"name": "local"}, [])
        for run in "abc":
            (book.folder / "logs" / f"{run}.log").write_text("a line")

    def clean(root: Path) -> None:
        cli.clean(Sweep.open(root / "sweeps" / "grid.2"), [], {}, set())

    outcomes = set()
    for root in kills(tmp_path, begin, clean):
        sweeps = root / "sweeps"
        with pytest.raises(UserError, match="no sweep of that name") as error:
            Sweep.open(sweeps / "other")
        assert "gone-" not in str(error.value)
        left = {path.name for path in sweeps.iterdir()}
        assert left <= {"grid.2"}
        outcomes |= left or {"none"}
        Sweep(sweeps / "grid.2").write([], {"name": "local"}, [])
        clean(root)
        assert not list(sweeps.iterdir())
    assert outcomes == {"grid.2", "none"}


def test_what_is_left_is_told_by_its_whole_name(tmp_path: Path) -> None:
    for name in ("jsonl", "jsonl.zst", "jsonl.error.txt"):
        (tmp_path / f".{name}.old-0").mkdir()
    settle_beside(tmp_path / "jsonl.zst")
    assert {path.name for path in tmp_path.iterdir()} == {
        "jsonl.zst", ".jsonl.old-0", ".jsonl.error.txt.old-0",
    }  # fmt: skip


def test_records_in_the_temporary_folder_go_with_their_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def killed() -> None:
        with scratch("records-") as folder:
            (folder / "patient.txt").write_text("a record")
            os.kill(os.getpid(), signal.SIGKILL)

    assert killed_at(10**9, killed)
    assert len(list(tmp_path.rglob("patient.txt"))) == 1
    with scratch("records-") as folder, scratch("records-"):
        assert not list(tmp_path.rglob("patient.txt"))
        assert folder.is_dir()  # a process that lives keeps its own
    assert not list(tmp_path.iterdir())
