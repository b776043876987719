"""Measure how long a sweep of 500 runs takes to submit to SLURM and to look at.

    python -m benchmarks.sweeps [--runs 500]        # on a machine where sbatch works

The runs do nothing (`stage=prepare` of five invented patients), and are cancelled after the look.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from benchmarks.measure import markdown


def seconds_of(*arguments: str) -> float:
    began = time.monotonic()
    subprocess.run([sys.executable, "sweep.py", *arguments], check=True, capture_output=True)
    return time.monotonic() - began


def table(runs: int, root: str) -> list[Sequence[str]]:
    place = f"output_root={root}"
    grid = [
        *("experiment=smoke", "stage=prepare", f"data.subjects=range(5,{5 + runs})"),
        *("launcher=slurm", "launcher.cpus_per_task=1", "name=many", place),
    ]
    told = [("handed to SLURM", f"{seconds_of(*grid):.1f}")]
    told += [("status", f"{min(seconds_of('status', 'many', place) for _ in range(3)):.2f}")]
    told += [("the same command again", f"{seconds_of(*grid):.1f}")]
    told += [("cancel", f"{seconds_of('cancel', 'many', place):.1f}")]
    return [(f"{runs} runs", "seconds"), *told]


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--runs", type=int, default=500)
    with tempfile.TemporaryDirectory() as folder:
        header, *rows = table(arguments.parse_args().runs, folder)
        print(markdown(header, rows))
