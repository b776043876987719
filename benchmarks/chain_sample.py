"""Draw a sample of the kept chains of a run, to be judged by a reader.

    python -m benchmarks.chain_sample RUN/chains/chains.jsonl [--number 10] [--seed 0]

One chain of each of `number` tasks is drawn. Writes a table with each line of reasoning and the
results.
"""

import argparse
import json
import random
from pathlib import Path

from benchmarks.measure import markdown


def main() -> None:
    """Print the sample."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("chains", type=Path)
    parser.add_argument("--number", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with given.chains.open(encoding="utf-8") as lines:
        kept = [row for row in map(json.loads, lines) if row["kept"]]
    random.Random(given.seed).shuffle(kept)
    first: dict[str, dict[str, str]] = {}
    for row in kept:
        first.setdefault(row["task"], row)
    drawn = list(first.values())[: given.number]
    rows = [
        [str(number), f"`{row['sample_id']}`", reasoning(row["chain"])]
        for number, row in enumerate(drawn, start=1)
    ]
    print(markdown(["", "sample", "reasoning"], rows))


def reasoning(chain: str) -> str:
    """Return the lines of the section Reasoning in one cell of a table."""
    lines = chain.partition("## Reasoning\n")[2].partition("\n## ")[0].splitlines()
    return "<br>".join(line.replace(" | -> | ", " -> ").replace(" | ", "; ") for line in lines)


if __name__ == "__main__":
    main()
