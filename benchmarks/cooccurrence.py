"""Counting a million samples: seconds and memory of co-occurrence, and that the counts are right.

    python -m benchmarks.cooccurrence

Samples of 90 history and 10 target concepts from a vocabulary of 20,000 each: 900 million pairs.
`uniform` draws names alike, so that nearly every pair occurs; `zipf` as names occur in records.
"""

import argparse
import resource
import time

import numpy as np

from ehrr1.graph.concepts import Concept
from ehrr1.graph.cooccurrence import CooccurrenceCounter

BLOCK = 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--vocabulary", type=int, default=20_000)
    parser.add_argument("--law", choices=("uniform", "zipf"), default="uniform")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    history = [Concept("labevents", f"history {i}") for i in range(arguments.vocabulary)]
    targets = [f"target {i}" for i in range(arguments.vocabulary)]
    weights = 1 / np.arange(1, arguments.vocabulary + 1)
    edges = np.cumsum(weights / weights.sum())
    counter, seconds = CooccurrenceCounter(), 0.0
    for _ in range(0, arguments.samples, BLOCK):
        drawn = rng.random((BLOCK, 100))
        if arguments.law == "uniform":
            codes = (drawn * arguments.vocabulary).astype(int)
        else:
            codes = np.minimum(np.searchsorted(edges, drawn), arguments.vocabulary - 1)
        rows = codes.tolist()
        begin = time.perf_counter()
        for row in rows:
            counter.add([targets[i] for i in row[:10]], [history[i] for i in row[10:]])
        seconds += time.perf_counter() - begin
    begin = time.perf_counter()
    counts = counter.result()
    seconds += time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    total = int(np.sum(counts.joint.data if hasattr(counts.joint, "nnz") else counts.joint))
    print(f"{arguments.law}: {counts.units:,} samples, {total:,} pairs counted")
    print(f"{seconds:.1f} s, peak resident {peak:.2f} GiB")


if __name__ == "__main__":
    main()
