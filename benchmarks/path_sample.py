"""Draw a sample of the knowledge paths of a run's graphs, to be judged by a reader.

    python -m benchmarks.path_sample RUN/graph/graphs.jsonl [--number 100] [--seed 0]

A path counts once, however many samples and tasks have it: the name in the record, the answer, and
the steps between them. Writes the number of pairs and of distinct paths, and a table of the paths
that are drawn: as a sentence, or as the steps if they are none (`graph.path_rule=any`).
"""

import argparse
import json
import random
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import networkx as nx

from benchmarks.measure import markdown
from ehrr1.graph.evidence import answers, from_json
from ehrr1.graph.paths import path_nodes, sentence


def main() -> None:
    """Print the sample."""
    given = _arguments()
    counts: Counter[tuple[str, str, str]] = Counter()
    pairs = same = 0
    for graph in _graphs(given.graphs):
        for found in answers(graph).values():
            pairs += len(found)
            same += sum("same_concept" in edge for _, edge in found)
        counts.update(paths(graph))
    drawn = random.Random(given.seed).sample(sorted(counts), min(given.number, len(counts)))
    figures = {
        "pairs": pairs,
        "same concept": same,
        "pairs with a path": counts.total(),
        "distinct paths": len(counts),
    }
    rows = [[str(number), *path] for number, path in enumerate(drawn, start=1)]
    print("\n".join(f"{name}: {value}" for name, value in figures.items()), end="\n\n")
    print(markdown(["", "record", "answer", "path"], rows))


def paths(graph: nx.DiGraph) -> Iterator[tuple[str, str, str]]:
    """Yield the name in the record, the answer and the path of each pair that has one."""
    label = graph.nodes(data="label")
    for concept, answer, edge in graph.edges(data=True):
        if "hops" in edge:
            words = sentence(graph, concept, answer) or _steps(graph, concept, answer)
            yield label[concept], label[answer], " ".join(words)


def _steps(graph: nx.DiGraph, concept: str, answer: str) -> list[str]:
    """Return the concepts of a path with arrows between them in the direction of each fact."""
    nodes = path_nodes(graph, concept, answer)[1:-1]
    words = [graph.nodes[nodes[0]]["label"]]
    for one, other in pairwise(nodes):
        edge = graph.edges[one, other]
        arrow = f"<-{edge['relation']}-" if edge.get("inverse") else f"-{edge['relation']}->"
        words += [arrow, graph.nodes[other]["label"]]
    return words


def _graphs(file: Path) -> Iterator[nx.DiGraph]:
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            row: dict[str, Any] = json.loads(line)
            yield from_json(row["graph"])


def _arguments() -> argparse.Namespace:
    found = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("graphs", type=Path, help="graphs.jsonl of a run")
    found.add_argument("--number", type=int, default=100, help="paths to draw")
    found.add_argument("--seed", type=int, default=0)
    return found.parse_args()


if __name__ == "__main__":
    main()
