"""Ends of commands: files made, the next command, finished runs, Ctrl-C, errors in one line."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from ehrr1.config.names import ORDER
from ehrr1.runs import folder_of
from tests.conftest import ROOT, CommandLine
from tests.settings import composed

SMALL = ("experiment=smoke", "data.subjects=12")

HEAVY = (
    *("torch", "transformers", "tokenizers", "datasets", "pytorch_lightning", "polars", "pyarrow"),
    *("numpy", "scipy", "sklearn", "pandas", "networkx", "matplotlib", "tensorboard", "optuna"),
)
"""Packages that take their time; none is needed to refuse a command or to report a run."""

IMPORTED = f"""
import runpy, sys
sys.argv = ["run.py", *sys.argv[1:]]
try:
    runpy.run_path("run.py", run_name="__main__")
finally:
    print(sorted(set({HEAVY}) & set(sys.modules)))
"""
NONE = "[]"


def saying_what_was_imported(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process that says last on stdout which packages of `HEAVY` it has."""
    command = [sys.executable, "-c", IMPORTED, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def lines_of(done: subprocess.CompletedProcess[str]) -> list[str]:
    return done.stderr.splitlines()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, command_line: CommandLine) -> Path:
    root = tmp_path_factory.mktemp("a folder")
    done = command_line("stage=prepare", *SMALL, f"output_root={root}", "overwrite=true")
    assert done.returncode == 0, done.stderr
    (root / "said").write_text(done.stderr)
    return root


def test_a_stage_ends_with_what_it_made_and_the_next_command(prepared: Path) -> None:
    said = (prepared / "said").read_text().splitlines()
    folder = prepared / "smoke" / "prepare"
    samples = json.loads((folder / "metrics.json").read_text())
    number = sum(value for name, value in samples.items() if name.startswith("samples/"))
    assert said[-4:] == [
        f"  patients 12, samples {number:,}",
        f"  {folder / 'store'}",
        f"  {folder / 'index.parquet'}",
        f"next: python run.py stage=graph {' '.join(SMALL)} 'output_root={prepared}'",
    ]
    assert all(path.exists() for path in (folder / "store", folder / "index.parquet"))


def test_a_finished_run_says_the_same_again_at_once(prepared: Path) -> None:
    done = saying_what_was_imported("stage=prepare", *SMALL, f"output_root={prepared}")
    said = (prepared / "said").read_text().splitlines()
    assert done.returncode == 0 and done.stdout.splitlines() == [NONE]
    assert lines_of(done)[0].endswith(f"finished already, in {prepared / 'smoke' / 'prepare'}")
    assert lines_of(done)[1:] == said[-4:]


def test_a_finished_curriculum_shows_its_scores_again_at_once(smoke: Path) -> None:
    done = saying_what_was_imported("experiment=smoke", f"output_root={smoke.parent}")
    scores = (smoke / "eval" / "scores.txt").read_text()
    assert done.returncode == 0 and done.stdout == f"{scores}{NONE}\n"
    assert max(map(len, scores.splitlines())) <= 80
    said = lines_of(done)
    assert sum("finished already" in line for line in said) == len(ORDER)
    assert said[-3:] == [
        f"  {smoke / 'eval' / 'report.html'}",
        f"  {smoke / 'eval' / 'cards'}",
        f"next: tensorboard --logdir {smoke}",
    ]
    metrics = json.loads((smoke / "eval" / "metrics.json").read_text())
    [last] = [line for line in scores.splitlines() if line.split()[:1] == ["rl"]][-1:]
    assert f" {metrics['risk/auroc/macro']:.3f} (" in last
    assert f" {metrics['decision/f1/macro']:.3f} (" in last


@pytest.mark.parametrize("arguments", [
    ["stage=reason", "name=x"],
    ["stage=rl", "trainer.devices=auto"],
    ["stage=eval"],
    ["stage=chains"],
    ["stage=infer", "infer.subject=1", "infer.task=ED_Hospitalization"],
    ["stage=graph", "graph.show=1"],
    ["stage=adapt", "model=8b"],
])  # fmt: skip
def test_what_is_missing_is_said_at_once(arguments: list[str], tmp_path: Path) -> None:
    done = saying_what_was_imported(*arguments, f"output_root={tmp_path}")
    assert done.returncode == 2 and done.stdout == f"{NONE}\n", done.stdout + done.stderr[-2000:]
    [line] = lines_of(done)
    assert line.startswith("run.py: ") and str(tmp_path) in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [
    ["stage=adapt", "model=nonsense"],
    ["+adapt.lrr=3"],
    ["stage=adapt", "adapt.lr=-1"],
    ["stage=prepare", "data=mimic"],
    ["stage=eval", "compare=[/a,/b]"],
    ["stage=eval", "rescore=/a"],
    ["stage=consolidate"],
])  # fmt: skip
def test_what_is_wrong_is_said_at_once(arguments: list[str], tmp_path: Path) -> None:
    done = saying_what_was_imported(*arguments, f"output_root={tmp_path}")
    assert done.returncode == 2 and done.stdout == f"{NONE}\n", done.stdout + done.stderr[-2000:]
    assert len(lines_of(done)) == 1


def test_exports_lie_beside_each_other(prepared: Path, command_line: CommandLine) -> None:
    given = ["stage=export", *SMALL, f"output_root={prepared}", "export.split=all"]
    given += ["export.layout=rows"]
    exports = prepared / "smoke" / "export"
    for more, lines in {"": 7, "wording=ours": 7, "export.limit=5": 5}.items():
        done = command_line(*given, "export.limit=7", *filter(None, [more]))
        assert done.returncode == 0, done.stderr
        name = {"": "rows-all-7", "wording=ours": "rows-all-7-ours"}.get(more, "rows-all-5")
        rows = (exports / name / "samples.jsonl").read_text().splitlines()
        assert len(rows) == lines and f"  {exports / name / 'samples.jsonl'}" in lines_of(done)
    done = command_line(*given, "export.layout=meds")
    assert done.returncode == 0 and (exports / "meds" / "meds" / "data").is_dir(), done.stderr
    done = command_line(*given, "export.layout=parquet", "export.limit=7")
    dataset = exports / "parquet-all-7" / "dataset"
    assert done.returncode == 0 and f"  {dataset}" in lines_of(done), done.stderr
    assert "rows 7, contexts" in done.stderr and (dataset / "README.md").exists()
    names = {"meds", "parquet-all-7", "rows-all-5", "rows-all-7", "rows-all-7-ours"}
    assert {path.name for path in exports.iterdir() if path.is_dir()} == names
    before = (exports / "rows-all-7" / "metrics.json").stat().st_mtime_ns
    again = command_line(*given, "export.limit=7")
    assert again.returncode == 0 and "finished already" in again.stderr
    assert (exports / "rows-all-7" / "metrics.json").stat().st_mtime_ns == before
    other = command_line(*given, "export.limit=7", "seed=1")
    assert other.returncode == 2 and "seed: 0 there, 1 now" in other.stderr
    anew = command_line(*given, "export.limit=7", "seed=1", "overwrite=true")
    assert anew.returncode == 0 and "done in" in anew.stderr


def test_names_of_exports(tmp_path: Path) -> None:
    def name(**export: object) -> str:
        return str(
            folder_of(composed(export=export, name="x", output_root=str(tmp_path)), "export")
        )

    assert name() == f"{tmp_path}/x/export/parquet-test"
    assert name(layout="release", limit=3, split="all") == f"{tmp_path}/x/export/release"
    one, two = (name(similar_items=folder) for folder in ("one", "two"))
    assert one != two and one.startswith(f"{tmp_path}/x/export/parquet-test-")
    given = {"name": "x", "output_root": str(tmp_path), "export": {"layout": "jsonl"}}
    tasks = [["emar"], ["emar", "labevents"], ["labevents", "emar"]]
    names = [folder_of(composed(data={"tasks": some}, **given), "export").name for some in tasks]
    assert names[0] == "jsonl-test-emar" and names[1] == names[2] != names[0]


def test_an_unknown_flag_is_one_line(command_line: CommandLine) -> None:
    for words, meant in {
        "--multirn seed=1": "did you mean --multirun?",
        "--nope": "--help",
    }.items():
        done = command_line(*words.split())
        [line] = lines_of(done)
        assert done.returncode == 2 and words.split()[0] in line and meant in line
    done = command_line("--nope", script="sweep.py")
    assert done.returncode == 2 and lines_of(done)[0].startswith("sweep.py: --nope: sweep.py takes")


@pytest.mark.parametrize("wrong", ["adapt.lr=-1", "adapt.lrr=3", "model=9b,8b", "stage=adapt"])
def test_a_refused_multirun_leaves_no_folder(
    wrong: str, tmp_path: Path, command_line: CommandLine
) -> None:
    done = command_line("-m", "seed=1,2", wrong, f"output_root={tmp_path / 'outputs'}")
    assert done.returncode == 2 and not list(tmp_path.iterdir()), done.stderr
    assert len(lines_of(done)) == 1


def test_a_sweep_reads_a_folder_of_settings(tmp_path: Path, command_line: CommandLine) -> None:
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    text = "# @package _global_\ndata: {subjects: 4}\n"
    (tmp_path / "mine" / "experiment" / "own.yaml").write_text(text)
    given = ["experiment=own", "stage=prepare", "data.window_hours=24,48", "--dry-run"]
    folders = ["--config-dir", str(tmp_path / "mine"), f"output_root={tmp_path}"]
    done = command_line(*folders[:2], *given, folders[2], script="sweep.py")
    assert done.returncode == 0 and "own/data.window_hours=48/prepare" in done.stdout, done.stderr
    done = command_line("--config-dir", str(tmp_path / "none"), *given, script="sweep.py")
    assert done.returncode == 2 and "no such folder" in done.stderr


WAITS = """
import runpy, sys, time

class Waits:
    def find_spec(self, name, path=None, target=None):
        if name == "hydra":
            print("importing", file=sys.stderr, flush=True)
            time.sleep(60)

sys.meta_path.insert(0, Waits())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs a script whose import of Hydra takes a minute."""

IGNORES = """
import sys
sys.modules["ehrr1.cli"] = cli = type(sys)("ehrr1.cli")

class Waits:
    def __del__(self):
        print("deleting", file=sys.stderr, flush=True)
        time.sleep(3)  # an exception here is ignored by Python

def main():
    Waits()
    time.sleep(60)

import time
cli.main = main
from ehrr1.__main__ import main
main()
"""


SWALLOWS = IGNORES.replace(
    "    Waits()\n",
    """    try:
        print("calling back", file=sys.stderr, flush=True)
        time.sleep(60)
    except BaseException:  # as a library may, where it calls back
        pass
""",
)


FALLS_APART = IGNORES.replace(
    "    Waits()\n",
    """    global left
    left = Broken()  # as the workers of a data loader, which the signal has ended too
    print("waiting", file=sys.stderr, flush=True)
""",
).replace(
    "def main():",
    """class Broken:
    def __del__(self):
        raise RuntimeError("a worker was killed")

def main():""",
)


def pressed(
    *command: str,
    ready: str,
    numbers: Sequence[signal.Signals] = (signal.SIGINT,),
    ignored: Sequence[signal.Signals] = (),
) -> tuple[int, list[str]]:
    """Run a command, send signals once it has printed `ready`; return how it ended and what it said
    then."""

    def as_started() -> None:
        # by a terminal, also where the tests run in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        for one in ignored:
            signal.signal(one, signal.SIG_IGN)

    process = subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, stderr=subprocess.PIPE, text=True,
        preexec_fn=as_started,
    )  # fmt: skip
    assert process.stderr is not None
    said = ""
    while ready not in said:
        line = process.stderr.readline()
        assert line, f"{ready} was not said: {said}"
        said += line
    for number in numbers:
        process.send_signal(number)
    rest = process.communicate(timeout=120)[1]
    return process.returncode, [line for line in rest.splitlines() if line]


def test_ctrl_c_in_a_stage_is_one_line(tmp_path: Path) -> None:
    given = ["stage=prepare", "data.subjects=4000", f"output_root={tmp_path}"]
    code, said = pressed("run.py", *given, ready="prepare ->")
    assert (code, said) == (130, ["run.py: interrupted by Ctrl-C; the same command goes on"])


@pytest.mark.parametrize(
    ("number", "called"),
    [(signal.SIGTERM, "SIGTERM"), (signal.SIGHUP, "SIGHUP, as its terminal was closed")],
)
def test_other_ends_of_a_stage_are_one_line_too(
    number: signal.Signals, called: str, tmp_path: Path
) -> None:
    given = ["stage=prepare", "data.subjects=4000", f"output_root={tmp_path}"]
    code, said = pressed("run.py", *given, ready="prepare ->", numbers=[number])
    assert (code, said) == (
        128 + number,
        [f"run.py: interrupted by {called}; the same command goes on"],
    )


def test_what_nohup_ignores_stays_ignored(tmp_path: Path) -> None:
    given = ["stage=prepare", "data.subjects=4000", f"output_root={tmp_path}"]
    code, said = pressed(
        "run.py", *given, ready="prepare ->",
        numbers=[signal.SIGHUP, signal.SIGTERM], ignored=[signal.SIGHUP],
    )  # fmt: skip
    assert code == 128 + signal.SIGTERM and "SIGTERM" in said[0] and len(said) == 1


def test_a_closed_terminal_saves_what_was_trained(
    smoke: Path, tmp_path: Path, command_line: CommandLine
) -> None:
    given = ["experiment=smoke", "stage=adapt", f"inputs.prepare={smoke / 'prepare'}"]
    given += ["adapt.max_steps=30", "adapt.epochs=50", f"output_root={tmp_path}"]
    folder = tmp_path / "smoke" / "adapt"
    child, terminal = pty.fork()
    if child == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also where `nohup` runs the tests
        os.chdir(ROOT)
        os.execv(sys.executable, [sys.executable, "run.py", *given])
    deadline = time.monotonic() + 120
    while not (folder / "train.jsonl").exists() or not (folder / "train.jsonl").read_text():
        assert time.monotonic() < deadline
        select.select([terminal], [], [], 0.05)[0] and os.read(terminal, 65536)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 128 + signal.SIGHUP
    [saved] = (folder / "checkpoints").glob("step=*.ckpt")
    done = command_line(*given)
    assert done.returncode == 0 and "adapt: resumed" in done.stderr
    lines = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    assert {line["resumed_from"] for line in lines} == {0, int(saved.stem.partition("=")[2])}


@pytest.mark.parametrize("script", ["run.py", "sweep.py"])
def test_ctrl_c_while_python_imports_is_one_line(script: str) -> None:
    given = ["stage=prepare", "seed=1,2", "--dry-run"]
    code, said = pressed("-c", WAITS, script, *given, ready="importing")
    assert code == 130 and len(said) == 1, said
    assert said[0].startswith(f"{script}: interrupted by Ctrl-C; ")


def test_ctrl_c_where_python_ignores_exceptions_is_one_line() -> None:
    code, said = pressed("-c", IGNORES, ready="deleting")
    assert code == 130 and len(said) == 1 and "interrupted by Ctrl-C" in said[0], said


def test_what_fails_while_a_process_ends_is_not_told() -> None:
    code, said = pressed("-c", FALLS_APART, ready="waiting", numbers=[signal.SIGTERM])
    assert code == 143 and len(said) == 1 and "interrupted by SIGTERM" in said[0], said


def test_a_signal_that_a_library_swallows_comes_again() -> None:
    code, said = pressed("-c", SWALLOWS, ready="calling back", numbers=[signal.SIGTERM])
    assert code == 143 and len(said) == 1 and "interrupted by SIGTERM" in said[0], said


def test_ctrl_c_ends_the_processes_of_a_pool(smoke: Path, tmp_path: Path) -> None:
    given = ["experiment=smoke", "stage=graph", "graph.workers=2", f"output_root={tmp_path}"]
    prepared = f"inputs.prepare={smoke / 'prepare'}"
    code, said = pressed("run.py", *given, prepared, ready="prepare is read from")
    assert (code, said) == (130, ["run.py: interrupted by Ctrl-C; the same command goes on"])
