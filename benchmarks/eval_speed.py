"""Measure the phases of an evaluation, and print digests of what it has found.

    python -m benchmarks.eval_speed outputs/demo FOLDER experiment=demo

runs `stage=eval` on the finished stages of a run, which is only read, and writes it to FOLDER.
Further words are settings of the command. The phases are those that the stage measures itself
(`seconds/...`, `cpu_seconds/...` in metrics.json). Baselines are learnt beside the models: their
seconds are no part of the sum. "the rest" is the interpreter, imports and what has no phase.

The digests are those of all rows of predictions.parquet, and of all metrics but the measured ones.
With `--digests DIR ...` only those of finished evaluations are printed.
"""

import hashlib
import io
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import polars as pl

from benchmarks.measure import ROOT, adopted, machine, markdown, parser, report
from ehrr1.stages.eval import MEASURED

STAGES = ("prepare", "graph", "chains", "adapt", "reason", "rl")
BESIDE = "baselines/"


def digests(folder: Path) -> dict[str, str]:
    """Return digests of the predictions and of the metrics of a finished evaluation."""
    rows = io.BytesIO()
    table = pl.read_parquet(folder / "predictions.parquet")
    table.rechunk().write_ipc(rows, compression="uncompressed")
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    scores = {name: metrics[name] for name in sorted(metrics) if not MEASURED.fullmatch(name)}
    parts = {"predictions": rows.getvalue(), "metrics": json.dumps(scores).encode()}
    return {name: hashlib.sha256(content).hexdigest()[:16] for name, content in parts.items()}


def evaluate(run: Path, folder: Path, words: list[str]) -> tuple[Path, float, float]:
    """Run the stage in a process; return its folder, its seconds and its processor seconds."""
    inputs = [f"inputs.{name}={run / name}" for name in STAGES if (run / name).is_dir()]
    command = [sys.executable, "run.py", "stage=eval", f"output_root={folder}", *inputs, *words]
    begin = time.monotonic()
    with adopted():
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    seconds, used = time.monotonic() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    [made] = {path.parent for path in folder.rglob("predictions.parquet")}
    return made, seconds, used.ru_utime + used.ru_stime


def rows_of(metrics: dict[str, float], seconds: float, cpu_seconds: float) -> list[list[str]]:
    """Return a row a phase: its seconds of time and of processors."""
    names = [name.removeprefix("seconds/") for name in metrics if name.startswith("seconds/")]
    own = [name for name in names if not name.startswith(BESIDE)]
    left = [
        seconds - sum(metrics[f"seconds/{name}"] for name in own),
        cpu_seconds - sum(metrics[f"cpu_seconds/{name}"] for name in names),
    ]
    table = {
        name: [metrics[f"{kind}/{name}"] for kind in ("seconds", "cpu_seconds")]
        for name in sorted(names, key=lambda name: name.startswith(BESIDE))
    }
    table |= {"the rest": left, "whole": [seconds, cpu_seconds]}
    return [[name, *(f"{value:.1f}" for value in values)] for name, values in table.items()]


def main() -> None:
    reader = parser(__doc__ or "")
    reader.add_argument("run", type=Path, nargs="?", help="folder of a run's finished stages")
    reader.add_argument("folder", type=Path, nargs="?", help="where the evaluation is written")
    reader.add_argument("words", nargs="*", help="settings, such as experiment=demo")
    reader.add_argument("--digests", type=Path, nargs="+", metavar="DIR", help="only print those")
    given = reader.parse_args()
    if given.digests:
        for folder in given.digests:
            print(folder, digests(folder))
        return
    on = machine()
    made, seconds, cpu_seconds = evaluate(given.run.resolve(), given.folder.resolve(), given.words)
    metrics = json.loads((made / "metrics.json").read_text(encoding="utf-8"))
    rows = rows_of(metrics, seconds, cpu_seconds)
    found = digests(made)
    report(
        given.json,
        markdown(["phase", "seconds", "CPU seconds"], rows)
        + f"\n\npredictions {found['predictions']}, metrics {found['metrics']}",
        {"machine": on, "rows": rows, "digests": found},
    )


if __name__ == "__main__":
    main()
