"""Check and measure this project on one GPU, in seven minutes.

    python -m benchmarks.gpu OUT.json [--tiny] [--only WORD ...]

Needs torch (2.11 or later), transformers and this checkout; a part that needs more (flash-attn,
prefix_grouper, TRL, or what the command line needs) is left out where that is missing, and says so.
Prints one line of JSON a part at once and writes all of them to OUT.json. `--only` takes the parts
whose names begin with one of the words. `--tiny` runs the same on a CPU in small sizes, as a test
of this script; its figures mean nothing.

The parts run one after another in one child process. Where it ends or hangs (an error of CUDA
leaves a process unusable), that part has failed and a new process begins with the next one. After
seven minutes the child is killed. Exits with 1 if a part failed, was not exact, or was not reached.

- machine: card, driver, versions
- exact: log-probabilities and gradient of each attention at Qwen3-8B's heads (two layers, records
  of 2,000 tokens with six branches of 80), against a dense mask in float32 without TF32 on the same
  weights. `ok`: in float32 within 1e-4 nats and 1e-3 of the gradient's norm; in bf16 within twice
  what the dense mask in bf16 is off
- autocast: the same in bf16 by autocast over float32 weights, as trainer=single and ddp compute
- update: an optimizer step (AdamW) of 1.7B and 8B with random weights, bf16 weights and optimizer
  states, activation checkpointing: sft (two records of 7,600 tokens, eight answers of 70 each) and
  grpo (a prompt of 10,000 tokens, 16 completions of 1,024); as a forest by each attention, each
  branch alone behind a copy of its record, by prefix_grouper, and by TRL. `seconds` is the faster
  of two steps after the first; `mfu` counts the operations of the contender's own rows,
  without what checkpointing computes twice, against the card's dense bf16 peak; `planned_gib` is
  what `stage=plan` computes for a forest's activations and logits, with 8 bytes a parameter
- shapes: ten forests of different shapes through flex: seconds of each, and graphs compiled
- rollout: tokens a second of `rollout=transformers` (1.7B, a prompt of 10,000, 16 completions)
- resume: the command line, `stage=adapt trainer=zero3` in one process, killed and run again; `ok`:
  the same losses as a run that was not killed
"""

import argparse
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.measure import ROOT
from ehrr1.files import write_json

LIMIT = 420
"""Seconds of everything."""

PART_LIMIT = 150
"""Seconds of one part."""

ATTENTIONS = ("dense", "sdpa", "flex", "varlen")
FORESTS = ("forest-flex", "forest-varlen", "forest-sdpa")
PEERS = ("alone", "prefix_grouper", "trl")
PARTS = (
    "machine",
    *(f"exact {attention} {dtype}" for dtype in ("fp32", "bf16") for attention in ATTENTIONS),
    *(f"autocast {attention}" for attention in ATTENTIONS[1:]),
    *(f"update 1.7b sft {way}" for way in (*FORESTS, "alone")),
    *(f"update 1.7b grpo {way}" for way in (*FORESTS, *PEERS)),
    "update 8b sft forest-flex",
    "update 8b grpo forest-flex",
    "shapes",
    "rollout",
    "resume",
    "update 8b sft alone",
    "update 8b grpo alone",
)
"""The parts, those that matter most first: seven minutes may not reach the last."""


class Report:
    """The lines of all parts, printed and written as they come."""

    def __init__(self, path: Path, tiny: bool):
        self.path, self.tiny, self.began = path, tiny, time.monotonic()
        self.lines: list[dict[str, Any]] = []

    def add(self, line: dict[str, Any]) -> None:
        line = line | {"at_seconds": round(time.monotonic() - self.began, 1)}
        self.lines.append(line)
        print(json.dumps(line), flush=True)
        write_json(self.path, {"tiny": self.tiny, "parts": self.lines})

    @property
    def good(self) -> bool:
        return all("failed" not in line and line.get("ok", True) for line in self.lines)


class Child:
    """A process that runs parts and prints a line for each: what it is, then what was found."""

    def __init__(self, parts: list[str], tiny: bool):
        command = [sys.executable, "-m", "benchmarks.gpu_parts", *["--tiny"] * tiny, *parts]
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(None)

    def kill(self) -> None:
        """End it with the processes that it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def run(parts: list[str], report: Report, deadline: float) -> int:
    """Run parts in a child until one fails, all are done or the time is over; return how many."""
    child, done, other = Child(parts, report.tiny), 0, ""
    try:
        while True:
            until = min(deadline, time.monotonic() + PART_LIMIT)
            line = child.lines.get(timeout=max(until - time.monotonic(), 0.1))
            if line is None:
                with suppress(subprocess.TimeoutExpired):
                    child.process.wait(10)  # for its own exit code
                break
            if not line.startswith('{"part":'):
                print(line, end="", file=sys.stderr, flush=True)
                other = line.strip() or other
                continue
            report.add(json.loads(line))
            done += 1
    except queue.Empty:
        report.add({"part": parts[done], "failed": "took too long"})
        return done + 1
    finally:
        child.kill()
    if done < len(parts):
        code = child.process.returncode
        report.add({"part": parts[done], "failed": f"exit code {code}: {other}"[:500]})
        done += 1
    return done


def main() -> None:
    reader = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    reader.add_argument("out", type=Path, metavar="OUT.json")
    reader.add_argument("--tiny", action="store_true", help="small sizes, on a CPU too")
    reader.add_argument("--only", nargs="+", metavar="WORD", help="parts that begin with it")
    given = reader.parse_args()
    left = [part for part in PARTS if part.startswith(tuple(given.only or [""]))]
    report = Report(given.out, given.tiny)
    deadline = report.began + LIMIT
    while left and time.monotonic() < deadline:
        left = left[run(left, report, deadline) :]
    for part in left:
        report.add({"part": part, "failed": f"not reached in {LIMIT} s"})
    sys.exit(0 if report.good else 1)


if __name__ == "__main__":
    main()
