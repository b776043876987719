"""Measure what a user waits for before anything is computed: refusals, reports, the first step.

    python -m benchmarks.start ROOT [--beside CHECKOUT] [--rounds 3] [--cold] [--json FILE]

ROOT is an `output_root` in which `python run.py experiment=smoke stage=prepare output_root=ROOT`
and the same with `stage=adapt` have ended. Whole commands run in turn, each in a process of its
own, and each also in another checkout of this project (`--beside`):

- wrong choice, wrong setting, missing input: commands that are refused (exit code 2);
- finished stage, finished records: commands that report what is there;
- first step: a new run on ROOT's records (40 patients; it trains a tokenizer, tokenises them and
  starts a tiny model), until the first line of train.jsonl, and then killed;
- floors: an interpreter alone, with torch, and with the packages that every training needs.

CPU seconds are user and system time of the command and its children: on a busy machine they say
more than seconds by the clock. With `--cold` the files of the environment and of the project are
dropped from the page cache before each command, as on the first command of a day; what another
process has mapped stays. Without it a first round, not counted, warms the cache.
"""

import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import ROOT, machine, markdown, parser, report

PACKAGES = "torch, datasets, pytorch_lightning; from transformers import Qwen3ForCausalLM"
PERIOD = 0.01
"""Seconds between two looks for the first line of train.jsonl."""

COLUMNS = ["", "checkout", "CPU seconds", "seconds", "peak MB"]
Command = Callable[[Path], "Start"]
"""Runs in an empty folder."""


@dataclass(frozen=True)
class Start:
    """The cost of one command up to its end, or to its first step; memory in MB (10**6 bytes)."""

    cpu_seconds: float
    seconds: float
    peak_mb: float


def whole(words: list[str], code: int, checkout: Path = ROOT) -> Start:
    """Run Python with `words` to its end; SystemExit if it ends otherwise than by `code`."""
    with tempfile.TemporaryFile("w+") as said:
        begin = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *words], cwd=checkout, stdout=subprocess.DEVNULL, stderr=said
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != code:
            said.seek(0)
            tail = said.read()[-2000:]
            raise SystemExit(f"{' '.join(words)}\nended with {process.returncode}:\n{tail}")
    return Start(usage.ru_utime + usage.ru_stime, seconds, usage.ru_maxrss * 1024 / 1e6)


def until_first_step(words: list[str], root: Path, checkout: Path) -> Start:
    """Run Python with `words` until a train.jsonl below `root` has a line, and kill it."""
    begin = time.perf_counter()
    with (root / "log").open("w+") as said:
        process = subprocess.Popen([sys.executable, *words], cwd=checkout, stdout=said, stderr=said)
        while not any(path.stat().st_size for path in root.glob("*/adapt/train.jsonl")):
            if process.poll() is not None:
                raise SystemExit(f"{' '.join(words)}\nended:\n{(root / 'log').read_text()[-2000:]}")
            time.sleep(PERIOD)
    seconds = time.perf_counter() - begin
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    # user and system time, and that of children that have ended
    ticks = sum(map(int, fields[11:15]))
    process.kill()
    _, _, usage = os.wait4(process.pid, 0)
    process.returncode = -9
    return Start(ticks / os.sysconf("SC_CLK_TCK"), seconds, usage.ru_maxrss * 1024 / 1e6)


def commands(outputs: Path, checkout: Path) -> dict[str, Command]:
    """The commands of a checkout by their names."""
    prepare = f"inputs.prepare={outputs / 'smoke' / 'prepare'}"
    adapt = ["run.py", "experiment=smoke", "stage=adapt", prepare]

    def run(*words: str, code: int) -> Command:
        return lambda folder: whole(["run.py", *words], code, checkout)

    def finished(stage: str) -> Command:
        return run("experiment=smoke", f"stage={stage}", f"output_root={outputs}", code=0)

    def missing(folder: Path) -> Start:
        return whole(["run.py", "stage=rl", f"output_root={folder}"], 2, checkout)

    def first_step(folder: Path) -> Start:
        return until_first_step([*adapt, f"output_root={folder}"], folder, checkout)

    return {
        "wrong choice: `stage=adapt model=nonsense`": run("stage=adapt", "model=nonsense", code=2),
        "wrong setting: `+adapt.lrr=3`": run("+adapt.lrr=3", code=2),
        "missing input: `stage=rl`": missing,
        "finished records: `stage=prepare`": finished("prepare"),
        "finished stage: `stage=adapt`": finished("adapt"),
        "first step: `stage=adapt inputs.prepare=DIR`": first_step,
    }


def floors() -> dict[str, Command]:
    """Return the commands of the floor: what every command, and every training, needs."""
    codes = ("pass", "import torch", f"import {PACKAGES}")
    return {f"floor: `{code}`": lambda folder, code=code: whole(["-c", code], 0) for code in codes}


def drop_files() -> None:
    """Drop the files of the environment and of the project from the page cache."""
    for folder in (sys.prefix, sysconfig.get_path("stdlib"), ROOT / "ehrr1"):
        for place, _, names in os.walk(folder):  # keeps little: a child's peak begins from ours
            for path in (os.path.join(place, name) for name in names):
                if os.path.isfile(path) and not os.path.islink(path):
                    file = os.open(path, os.O_RDONLY)
                    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
                    os.close(file)


def measured(
    outputs: Path, checkouts: list[Path], rounds: int, cold: bool
) -> dict[tuple[str, str], list[Start]]:
    own = {checkout.name: commands(outputs, checkout) for checkout in checkouts}
    every = {
        (name, checkout): own[checkout][name] for name in own[ROOT.name] for checkout in own
    } | {(name, ""): command for name, command in floors().items()}
    costs: dict[tuple[str, str], list[Start]] = {name: [] for name in every}
    for number in range(cold, rounds + 1):
        for name in costs:
            if cold:
                drop_files()
            with tempfile.TemporaryDirectory() as folder:
                cost = every[name](Path(folder))
            print(f"round {number} {name}: {cost}", file=sys.stderr, flush=True)
            if number:
                costs[name].append(cost)
    return costs


def row(name: tuple[str, str], costs: list[Start]) -> list[str]:
    """A row for `COLUMNS`: least-most of all rounds."""
    return [
        *name,
        *(
            f"{min(values):.{digits}f}-{max(values):.{digits}f}"
            for values, digits in (
                ([cost.cpu_seconds for cost in costs], 2),
                ([cost.seconds for cost in costs], 2),
                ([cost.peak_mb for cost in costs], 0),
            )
        ),
    ]


def main() -> None:
    arguments = parser(__doc__ or "")
    arguments.add_argument("root", type=Path, metavar="ROOT")
    arguments.add_argument("--beside", type=Path, metavar="CHECKOUT", help="measure it in turn")
    arguments.add_argument("--cold", action="store_true", help="drop the page cache before each")
    arguments.set_defaults(runs=3)
    given = arguments.parse_args()
    on = machine()
    checkouts = [ROOT, *([given.beside.resolve()] if given.beside else [])]
    costs = measured(given.root.resolve(), checkouts, given.runs, given.cold)
    table = markdown(COLUMNS, [row(name, found) for name, found in costs.items()])
    named = {" in ".join(filter(None, name)): found for name, found in costs.items()}
    report(given.json, table, {"machine": on, "cold": given.cold, "costs": named})


if __name__ == "__main__":
    main()
