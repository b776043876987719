"""Measure what lists of candidates tell without the record, a task a line.

python -m benchmarks.list_only outputs/mimic_demo/prepare
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from ehrr1.evaluation.list_only import LEARNT, list_baselines
from ehrr1.scoring.sets import set_scores
from ehrr1.tasks.candidates import Candidates
from ehrr1.tasks.catalog import TASKS
from ehrr1.tasks.samples import Prepared, Sample
from ehrr1.tasks.selection import select

DRAWS = 3
"""Seeds of lists and of samples over which scores are averaged."""


def scores(
    prepared: Prepared, candidates: Callable[[Sample], Sequence[str]], task: str, seed: int
) -> dict[str, float]:
    """Baseline -> its mean F1 on test samples of a task."""
    samples = prepared.as_samples(select(prepared.scan("test", [task]), LEARNT, seed))
    rows = list_baselines(prepared, candidates, samples, "test", seed)
    pairs = zip(rows["prediction"], rows["target"], strict=True)
    f1 = pl.Series("f1", [set_scores(a.split("\n"), b.split("\n")).f1 for a, b in pairs])
    means = rows.with_columns(f1).group_by("model").agg(pl.col("f1").mean())
    return dict(means.select("model", "f1").iter_rows())


def main() -> None:
    prepared = Prepared(Path(sys.argv[1]))
    print("task, list_only, list_frequency, difference")
    for task, entry in TASKS.items():
        if entry.kind == "risk" or entry.target == "text":
            continue
        found = [scores(prepared, Candidates(prepared, s), task, s) for s in range(DRAWS)]
        if all(found):
            only, frequency = (
                float(np.mean([one[name] for one in found]))
                for name in ("list_only", "list_frequency")
            )
            print(f"{task}, {only:.3f}, {frequency:.3f}, {only - frequency:+.3f}", flush=True)


if __name__ == "__main__":
    main()
