"""Wall time and peak memory of whole processes, and the tables in which they are shown.

Standard library only: a child's peak memory, as the kernel counts it, starts from the memory of the
process that forked it, so the measuring process must stay small.
"""

import argparse
import ctypes
import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
"""The project: commands run there."""

TRL = ("torch==2.13.0", "trl==1.16.0", "transformers==5.19.0", "datasets==5.2.0")
"""The environment of TRL, the peer in training."""

GROUPER = ("torch==2.13.0", "transformers==5.19.0", "prefix_grouper==0.0.1.post1")
"""The environment of prefix_grouper, the peer in sharing prompts."""

PR_SET_CHILD_SUBREAPER = 36
"""An option of Linux's prctl: processes whose parent has ended become this one's children."""

PERIOD = 0.02
"""Seconds between two looks at the memory of a process tree."""


@dataclass(frozen=True)
class Cost:
    """The cost of one command, imports and children included; memory in MB (10**6 bytes)."""

    seconds: float
    cpu_seconds: float
    """User and system time of the process, and of the children that it waited for."""
    peak_mb: float
    """Peak resident memory of the largest single process of the tree, as the kernel counted it."""
    tree_mb: float
    """Largest sum of resident memory over the tree, seen every `PERIOD`; shared pages count twice
    (an upper bound), a short peak can be missed."""
    largest: str
    """The command line of the largest process seen."""


def run(command: Sequence[str | Path], log: Path, env: dict[str, str] | None = None) -> Cost:
    """Run a command from the project's root, its output in `log`; SystemExit if it fails."""
    with log.open("wb") as output:
        begin = time.perf_counter()
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=ROOT,
            env=os.environ | (env or {}),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        watch = _Watch(process.pid)
        watch.start()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    watch.stop()
    if process.returncode:
        tail = log.read_text(encoding="utf-8", errors="replace")[-2000:]
        raise SystemExit(f"{' '.join(map(str, command))}\nended with {process.returncode}:\n{tail}")
    return Cost(
        round(seconds, 3),
        round(usage.ru_utime + usage.ru_stime, 3),
        round(usage.ru_maxrss * 1024 / 1e6, 1),
        watch.tree_mb,
        watch.largest,
    )


class _Watch(threading.Thread):
    """Looks at the resident memory of all processes of a session until stopped."""

    def __init__(self, session: int):
        super().__init__(daemon=True)
        self.session, self.ended = session, threading.Event()
        self.tree_mb, self.largest = 0.0, ""
        self._largest_bytes = 0

    def run(self) -> None:
        while not self.ended.wait(PERIOD):
            self._look()

    def stop(self) -> None:
        self.ended.set()
        self.join()

    def _look(self) -> None:
        total = 0
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                if os.getsid(int(entry.name)) != self.session:
                    continue
                resident = int((entry / "statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
                total += resident
                if resident > self._largest_bytes:
                    words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                    self._largest_bytes, self.largest = resident, " ".join(words).strip()
            except (ProcessLookupError, FileNotFoundError):
                continue  # it ended while we looked
        self.tree_mb = max(self.tree_mb, round(total / 1e6, 1))


@contextmanager
def adopted() -> Iterator[None]:
    """Adopt the processes that the body's commands leave behind, and wait for them at its end.

    They are those from which pools are forked. Their processor time is then told by
    `RUSAGE_CHILDREN`; Linux only.
    """
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        with suppress(ChildProcessError):
            while True:
                os.wait()


def interleaved(
    contenders: dict[str, Callable[[int], Cost]], rounds: int, warm_up: bool = True
) -> dict[str, list[Cost]]:
    """Run the contenders in turn, `rounds` times; a first round, not counted, warms caches."""
    costs: dict[str, list[Cost]] = {name: [] for name in contenders}
    for number in range(1 - warm_up, rounds + 1):
        for name, contender in contenders.items():
            cost = contender(number)
            counted = "" if number else ", not counted"
            print(f"round {number} {name}: {cost.seconds:.2f} s, {cost.peak_mb:.0f} MB{counted}",
                  file=sys.stderr, flush=True)  # fmt: skip
            if number:
                costs[name].append(cost)
    return costs


def median_ratio(these: list[Cost], those: list[Cost], field: str) -> float:
    """The median over rounds of a cost's ratio: both sides of a ratio ran side by side."""
    pairs = zip(these, those, strict=True)
    return median(getattr(a, field) / getattr(b, field) for a, b in pairs)


def cost_row(name: str, costs: list[Cost]) -> list[str]:
    """A row for `COST_COLUMNS`."""
    seconds = [cost.seconds for cost in costs]
    return [
        name,
        f"{median(seconds):.2f}",
        f"{min(seconds):.2f}-{max(seconds):.2f}",
        f"{median(cost.peak_mb for cost in costs):.0f}",
        f"{median(cost.tree_mb for cost in costs):.0f}",
    ]


COST_COLUMNS = ["", "seconds", "least-most", "peak MB, largest process", "peak MB, all processes"]


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def machine() -> dict[str, Any]:
    """Describe the machine of the figures."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 2**30, 1),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def parser(doc: str) -> argparse.ArgumentParser:
    """Arguments that every benchmark has."""
    found = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument(
        "--runs", "--rounds", type=int, default=5, help="counted runs of each (default 5)"
    )
    found.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    return found


def report(path: Path | None, table: str, figures: dict[str, Any]) -> None:
    """Print the table; write the figures where asked."""
    on = figures["machine"]
    print(f"{on['cores']} cores, {on['memory_gib']} GiB, load {on['load_before']} before\n")
    print(table)
    if path is not None:
        path.write_text(json.dumps(figures, indent=1, default=asdict) + "\n", encoding="utf-8")


def environment(folder: Path, requirements: Sequence[str]) -> Path:
    """The `bin/` of a virtual environment that holds the requirements; made where it is missing."""
    if not (folder / "bin" / "python").exists():
        print(f"making {folder} with {', '.join(requirements)}", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = [folder / "bin" / "python", "-m", "pip", "install", "-q", *requirements]
        subprocess.run(pip, check=True)
    return folder.resolve() / "bin"
