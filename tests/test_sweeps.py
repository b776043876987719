"""Sweeps by the real command line: on this machine, and on a real SLURM (test_slurm_sweeps.py)."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from ehrr1.parallel import free_port
from ehrr1.stages.hparams import columns
from ehrr1.sweeps import local
from ehrr1.sweeps.search import Search, Trial, lags, space_of
from ehrr1.sweeps.state import Entry, Sweep, status
from tests.conftest import CommandLine, fork_py


def sweep(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python sweep.py ARGUMENTS`, as a user types it."""
    return fork_py(*arguments, script="sweep.py", **environment)


def told(root: Path, name: str, **environment: str) -> list[dict[str, Any]]:
    done = sweep("status", name, f"output_root={root}", "--json", **environment)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def states(root: Path, name: str, **environment: str) -> dict[str, str]:
    return {one["run"]: one["state"] for one in told(root, name, **environment)}


def wait(root: Path, name: str, seconds: float = 400, **environment: str) -> dict[str, str]:
    """The states when nothing waits or runs any more."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = states(root, name, **environment)
        if not {"pending", "running"} & set(found.values()):
            return found
        time.sleep(3)
    raise AssertionError(f"not over after {seconds} s: {told(root, name, **environment)}")


def begin(*arguments: str, **environment: str) -> None:
    done = sweep(*arguments, **environment)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def world(smoke: Path, tmp_path: Path) -> list[str]:
    """Overrides of short `adapt` runs that read a finished curriculum's records."""
    return [
        *("experiment=smoke", "stage=adapt", f"inputs.prepare={smoke}/prepare"),
        *("adapt.max_steps=2", f"output_root={tmp_path}"),
    ]


@dataclass(frozen=True)
class Grid:
    """A sweep of which one run could not begin, what its status said, and the same resumed."""

    root: Path
    command: list[str]
    first: list[dict[str, Any]]
    resumed: dict[str, str]


@pytest.fixture(scope="module")
def grid(smoke: Path, tmp_path_factory: pytest.TempPathFactory) -> Grid:
    root = tmp_path_factory.mktemp("grid")
    broken = root / "smoke" / "adapt.max_steps=2-seed=2"
    broken.parent.mkdir()
    broken.write_text("a file where the run's folder must be")
    command = [
        *("experiment=smoke", "stage=adapt,eval", "eval.models=[adapt]", "adapt.max_steps=2"),
        *("seed=1,2", "adapt.lr=1e-3,1e-2", "launcher.parallel=2", "name=grid"),
        *(f"inputs.prepare={smoke}/prepare", f"output_root={root}"),
    ]
    begin(*command)
    found = told(root, "grid")
    assert len(found) == 8 and {one["state"] for one in found} <= {"pending", "running", "done"}
    wait(root, "grid")
    first = told(root, "grid")
    broken.unlink()
    begin("resume", "grid", f"output_root={root}")
    return Grid(root, command, first, wait(root, "grid"))


def test_a_failing_link_stops_what_needs_it_and_resume_mends_it(grid: Grid) -> None:
    states_then = [one["state"] for one in grid.first]
    assert states_then.count("done") == 6 and states_then.count("failed") == 2
    failed, waiting = [one for one in grid.first if one["state"] == "failed"]
    assert "exit code" in failed["note"]
    assert f"not started: {failed['run']} is failed" in waiting["note"]
    log = sweep("logs", "grid", failed["run"], f"output_root={grid.root}").stdout
    assert log.strip()
    assert set(grid.resumed.values()) == {"done"}


def test_the_same_command_runs_nothing_again(grid: Grid) -> None:
    before = {path: path.stat().st_mtime_ns for path in grid.root.rglob("metrics.json")}
    begin(*grid.command)
    assert set(wait(grid.root, "grid").values()) == {"done"}
    assert before == {path: path.stat().st_mtime_ns for path in grid.root.rglob("metrics.json")}


def test_compare_puts_seeds_together_and_says_how_sure_it_is(grid: Grid) -> None:
    done = sweep("compare", "grid", f"output_root={grid.root}", "metric=risk/log_loss/macro")
    assert done.returncode == 0, done.stderr
    table = pl.read_csv(grid.root / "sweeps" / "grid" / "compare.csv")
    assert table.height == 2 and set(map(str, table["adapt.lr"])) == {"0.001", "0.01"}
    cells = table["risk/log_loss/macro"]
    assert all(re.fullmatch(r"\d\.\d{4} \[.+, .+\] \(n=2\)", cell) for cell in cells)
    assert "[" in table["minus the best"][1]
    assert "best: " in done.stdout
    one, _, other, _ = [run for run in grid.resumed if run.endswith("adapt")]
    done = sweep("compare", "grid", one, other, f"output_root={grid.root}")
    assert done.returncode == 0 and "| seed | 1 | 2 |" in done.stdout, done.stdout
    done = sweep("compare", "grid", f"output_root={grid.root}", "metric=auroc")
    assert done.returncode == 2 and "risk/auroc/macro" in done.stderr


def test_tensorboard_shows_parameters_beside_scores(grid: Grid, browser: Any) -> None:
    """A real TensorBoard in a real browser: the HParams page of the finished sweep."""
    port = free_port()
    command = [str(Path(sys.executable).with_name("tensorboard")), "--logdir", str(grid.root)]
    board = subprocess.Popen([*command, "--port", str(port)], stderr=subprocess.DEVNULL)
    try:
        # the page asks once: first let the server have read all
        until(lambda: told_by(port), "final/decision/f1/macro", seconds=120)
        browser.get(f"http://localhost:{port}/#hparams")
        # of training runs and of evaluations: no run's own columns alone
        for word in ("adapt.lr", "seed", "final/eval/loss", "final/decision/f1/macro"):
            until(lambda: shown(browser), word, seconds=120)
    finally:
        board.terminate()
        board.wait()


def told_by(port: int) -> str:
    """Return the content of TensorBoard's HParams page, empty while the server is not up."""
    page = f"http://localhost:{port}/data/plugin/hparams/experiment"
    asked = urllib.request.Request(page, b'{"experimentName": ""}', {"Content-Type": "text/json"})
    try:
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return str(answer.read())
    except urllib.error.URLError:
        return ""


def shown(browser: Any) -> str:
    """The text of a page, through its shadow trees."""
    found: str = browser.execute_script(
        """const text = node => [...(node.shadowRoot ? [node.shadowRoot] : []),
             ...node.childNodes].map(n => n.nodeType === 3 ? n.textContent : text(n)).join(" ");
           return text(document.body)"""
    )
    return found


def until(look: Callable[[], str], word: str, seconds: float) -> None:
    """Look until the word is seen."""
    deadline = time.monotonic() + seconds
    while word not in (found := look()):
        assert time.monotonic() < deadline, found[:2000]
        time.sleep(1)


def test_a_search_proposes_and_stops_laggards(smoke: Path, tmp_path: Path) -> None:
    begin(
        *("experiment=smoke", "stage=adapt", f"inputs.prepare={smoke}/prepare"),
        *("adapt.trees_per_step=4", "adapt.lr=choice(1e-2,1e-9)", "search.metric=eval/loss"),
        *("search.trials=5", "search.curve=loss", "search.every_steps=3", "adapt.max_steps=12"),
        *("launcher.parallel=2", f"output_root={tmp_path}", "name=find"),
    )
    assert told(tmp_path, "find")
    file = tmp_path / "sweeps" / "find" / "search.json"

    def trials() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(file.read_text())["trials"]
        return found

    deadline = time.monotonic() + 300
    while len(trials()) < 5 or any(one["state"] == "running" for one in trials()):
        assert time.monotonic() < deadline, trials()
        time.sleep(1)
    assert {one["state"] for one in trials()} <= {"complete", "pruned"}
    assert all(one["value"] for one in trials() if one["state"] == "complete")
    done = sweep("compare", "find", f"output_root={tmp_path}")
    assert done.returncode == 0 and "adapt.lr" in done.stdout


def test_columns_are_of_the_whole_run() -> None:
    shown = ["risk/auroc/macro", "risk/ece/macro", "adapt/risk/auroc/macro", "train/loss/last"]
    left = ["adapt/risk/ece/macro", "risk/auroc/macro/low", "rl-adapt/risk/auroc/macro"]
    assert columns([*shown, *left]) == shown


@pytest.mark.parametrize(("curve", "metric"), [("loss", "minimize"), ("reward", "maximize")])
def test_a_trial_lags_where_its_curve_is_worse_than_the_median(curve: str, metric: str) -> None:
    space, _ = space_of(["adapt.lr=interval(0.0,1.0)"])
    settings = {"seed": 0, "direction": metric, "curve": curve}
    over = [
        Trial({"adapt.lr": v}, ["one"], "complete", v, {10: v}) for v in (0.3, 0.4, 0.5, 0.6, 0.7)
    ]
    search = Search(settings, [], space, over)
    low = Trial({"adapt.lr": 0.1}, ["two"], curve={10: 0.1})
    high = Trial({"adapt.lr": 0.9}, ["two"], curve={10: 0.9})
    assert [lags(search, low), lags(search, high)] == [curve == "reward", curve == "loss"]


def test_multirun_with_several_devices_is_refused(command_line: CommandLine) -> None:
    done = command_line("-m", "experiment=smoke", "stage=adapt", "trainer.devices=2", "seed=1,2")
    assert done.returncode == 2 and "python sweep.py" in done.stderr
    assert done.stderr.count("\n") == 1


def test_hydras_sweeper_searches_in_one_process(
    smoke: Path, tmp_path: Path, command_line: CommandLine
) -> None:
    done = command_line(
        *("-m", "experiment=smoke", "stage=adapt", f"inputs.prepare={smoke}/prepare"),
        *("hydra/sweeper=search", "search.metric=eval/loss", "search.trials=2"),
        *("adapt.lr=tag(log,interval(1e-4,1e-2))", "adapt.max_steps=1", f"output_root={tmp_path}"),
    )
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("smoke/*/adapt/metrics.json"))) == 2
    assert "best_value" in (tmp_path / "multirun" / "optimization_results.yaml").read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="a small file system can only be mounted as root")
def test_a_full_disk_is_named(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        seeds = "seed=range(0,20)"  # the list of runs is larger than the disk
        done = sweep("experiment=smoke", "stage=curriculum", seeds, f"output_root={tmp_path}")
        assert done.returncode == 2 and "No space left" in done.stderr, done.stderr
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_killed_supervisor_and_killed_runs_lose_nothing(world: list[str], tmp_path: Path) -> None:
    arguments = [*world, "seed=1,2,3", "launcher.parallel=2", "name=killed"]
    begin(*arguments)
    deadline = time.monotonic() + 60
    while "running" not in states(tmp_path, "killed").values():
        assert time.monotonic() < deadline
        time.sleep(0.2)
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = line.read_bytes().replace(b"\0", b" ")
        except OSError:
            continue
        if str(tmp_path / "sweeps" / "killed").encode() in command:
            os.kill(int(line.parent.name), signal.SIGKILL)
    time.sleep(1)
    found = told(tmp_path, "killed")
    assert any("killed?" in one["note"] for one in found)
    assert any("resume" in one["note"] for one in found if one["state"] == "pending")
    begin("resume", "killed", f"output_root={tmp_path}")
    assert set(wait(tmp_path, "killed").values()) == {"done"}


def test_a_run_whose_process_cannot_begin_is_not_begun_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = Sweep(tmp_path / "sweeps" / "x")
    runs = [Entry("a", "adapt", str(tmp_path / "a" / "adapt"), ["seed=1"], [], {}, {})]
    book.write([], {"parallel": 1}, runs)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    local.supervise(book)
    [told] = status(book, local.active(book))
    assert told.state == "failed"
    assert re.search("exit code 1 before it began .*supervisor.log.*`resume` retries", told.note)


def test_cancelled_runs_save_and_go_on(world: list[str], tmp_path: Path) -> None:
    long = ["adapt.max_steps=120", "adapt.epochs=3", "adapt.trees_per_step=4"]
    begin(*world[:3], world[4], *long, "seed=1,2", "name=stopped")
    deadline = time.monotonic() + 90
    while not any(one["step"] for one in told(tmp_path, "stopped")):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    begin("cancel", "stopped", f"output_root={tmp_path}")
    assert set(states(tmp_path, "stopped").values()) == {"cancelled"}
    (log,) = tmp_path.glob("smoke/*/adapt/train.jsonl")  # the other had not begun
    while not list(log.parent.glob("checkpoints/step=*.ckpt")):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    begin("resume", "stopped", f"output_root={tmp_path}")
    assert set(wait(tmp_path, "stopped").values()) == {"done"}
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 121))
    assert 0 < lines[-1]["resumed_from"] < 120
    begin("clean", "stopped", f"output_root={tmp_path}")
    assert log.exists() and not (tmp_path / "sweeps" / "stopped").exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["status", "nothing"], "no sweep of that name"),
        (["status"], "which sweep?"),
        (["status", "nothing", "--jsn"], "--jsn: status takes --json and --watch"),
        (
            ["stage=adapt", "search.metric=eval/loss", "adapt.lr=interval("],
            "not in Hydra's grammar",
        ),
        (["stage=adapt", "experiment=smoke", "seed=1,2"], "needs 'prepare'"),
        (["stage=prepare", "data.subjects=5,6", "launcher=slurm"], "there is no SLURM here"),
        (["stage=prepare", "data.subjects=5,x"], "data.subjects=x"),
    ],
)
def test_wrong_commands_are_one_line(tmp_path: Path, arguments: list[str], complaint: str) -> None:
    done = sweep(*arguments, f"output_root={tmp_path}", PATH=str(Path(sys.executable).parent))
    assert done.returncode == 2 and complaint in done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("sweep.py: ")
    assert not (tmp_path / "sweeps").exists()
