"""Do evidence edges find the causes that the synthetic hospital has planted?

    python run.py stage=prepare data.subjects=1500 output_root=DIR
    python run.py stage=graph data.subjects=1500 output_root=DIR graph.min_lift=1.5
    python -m benchmarks.planted_evidence DIR/demo/prepare DIR/demo/graph

`synthetic/links.parquet` says which signs (a drug, an order, an infusion) each hidden condition or
problem causes, and which diagnosis is its name. Asked are the answers of diagnosis tasks that are
such a name. An edge to one is right if its concept is a planted sign of it or the diagnosis itself,
as an earlier stay has it; a drug that is prescribed stands in emar and pyxis by the same name.
Classes (ATC, CCS) are left out: no class is planted. A planted cause is what of it a context shows.

precision: the share of edges that are right, of the first K for each answer; recall: the share of
planted causes with an edge; chance: the precision of as many concepts drawn from the same contexts.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from ehrr1.graph.concepts import Concept, occurrences
from ehrr1.graph.evidence import answers, from_json
from ehrr1.tasks.samples import Prepared

TASKS = ("diagnoses_icd", "diagnosis")

Planted = dict[str, set[str]]
"""Each diagnosis and the names of the signs that its condition or problem causes, and its own."""


@dataclass
class Found:
    """Counts over the samples of a task."""

    edges: int = 0
    right: int = 0
    planted: int = 0
    expected_right: float = 0.0

    @property
    def precision(self) -> float:
        return self.right / max(self.edges, 1)

    @property
    def recall(self) -> float:
        return self.right / max(self.planted, 1)

    @property
    def chance(self) -> float:
        """Return the average precision of a random graph of equal size."""
        return self.expected_right / max(self.edges, 1)


def planted_signs(prepare: Path) -> Planted:
    """Names of rows only: chief complaints are free text, and a hidden level is no diagnosis."""
    links = pl.read_parquet(prepare / "hospital" / "synthetic" / "links.parquet")
    rows = links.filter(pl.col("kind") != "latent", pl.col("table") != "ed/triage")
    signs: Planted = {}
    for sign, target in rows.select("sign", "target").iter_rows():
        signs.setdefault(target, {target}).add(sign)
    return signs


def compare(prepare: Path, graph: Path, top: int) -> dict[str, Found]:
    """Each task's evidence, at most `top` for an answer, beside what was planted."""
    prepared, planted = Prepared(prepare), planted_signs(prepare)
    with (graph / "graphs.jsonl").open(encoding="utf-8") as lines:
        rows = {row["sample_id"]: row for row in map(json.loads, lines) if row["task"] in TASKS}
    index = prepared.index(tasks=TASKS).filter(pl.col("sample_id").is_in(list(rows)))
    found: dict[str, Found] = {task: Found() for task in TASKS}
    for sample in prepared.as_samples(index):
        shown = {one.concept for one in occurrences(prepared.context(sample))}
        drawn = from_json(rows[sample.sample_id]["graph"])
        for item, evidence in answers(drawn).items():
            if item in planted:
                edges = {concept_of(drawn.nodes[node]) for node, _ in evidence[:top]}
                add(found[sample.task], edges, shown, planted[item])
    return found


def add(found: Found, edges: set[Concept], shown: set[Concept], names: set[str]) -> None:
    """Count one answer's edges."""
    edges, shown = ({one for one in some if "/" not in one.kind} for some in (edges, shown))
    causes = {concept for concept in shown if concept.name in names}
    found.edges += len(edges)
    found.right += len(edges & causes)
    found.planted += len(causes)
    found.expected_right += len(edges) * len(causes) / max(len(shown), 1)


def concept_of(node: dict) -> Concept:
    return Concept(node["table"], node["label"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prepare", type=Path)
    parser.add_argument("graph", type=Path)
    arguments = parser.parse_args()
    print("task             K  edges  precision  chance  planted  recall")
    for top in (1, 3, 5, 20):
        for task, found in compare(arguments.prepare, arguments.graph, top).items():
            print(
                f"{task:15} {top:2}  {found.edges:5}  {found.precision:9.3f}  {found.chance:6.3f}"
                f"  {found.planted:7}  {found.recall:6.3f}"
            )


if __name__ == "__main__":
    main()
